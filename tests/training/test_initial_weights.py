"""Training that begins from the weights of another model, whatever wrote the file."""

import logging
import pickle
from dataclasses import replace

import pytest
import torch
from torchvision.models import resnet18
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from detect.backbones import FPNOptions, LeNetOptions, ResNetOptions
from detect.checkpoint import Checkpoint, load_checkpoint, model_card, save_checkpoint, save_safetensors, save_torch
from detect.config import ClassificationConfig, TrainingOptions, load_config, load_experiment
from detect.data.datamodule import DetectionData
from detect.errors import UserError
from detect.export.export_checkpoint import export_checkpoint
from detect.foreign_weights.any_file import read_weights
from detect.models import (
    CascadeHeadOptions,
    CascadeRCNNOptions,
    Classifier,
    ClassifierOptions,
    CropOptions,
    FastRCNNOptions,
    MaskHeadOptions,
    MaskRCNNOptions,
    RCNNOptions,
    RegionHeadOptions,
    build_detector,
)
from detect.training.fit import fit
from detect.training.from_weights import load_from_weights
from detect.training.initial_weights import build_model, copy_weights, match_classes
from detect.training.module import DetectorModule

SHAPES = ("circle", "square", "triangle", "ring")
THEIRS = ("Ring", "person", "circle")
SCORES, DELTAS = "region_head.predictor.scores.weight", "region_head.predictor.deltas.bias"


@pytest.fixture
def checkpoint(config) -> Checkpoint:
    """A detector of other classes, with random values also in its biases."""
    return made(config)


def made(config, classes=THEIRS) -> Checkpoint:
    torch.manual_seed(1)
    model = build_detector(config.model, len(classes)).eval()
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape))
    return Checkpoint(model, config, classes, tuple(range(len(classes))))


@pytest.fixture
def file(checkpoint, tmp_path):
    save_checkpoint(checkpoint, tmp_path / "theirs.ckpt")
    return tmp_path / "theirs.ckpt"


def beginning(config, file, **training):
    return replace(config, training=replace(config.training, weights=file, **training))


def lines(caplog):
    return [record.getMessage() for record in caplog.records if record.name.startswith("detect.")]


# ---- match and copy --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs", "labels"),
    [
        ((), ("a",), {}),
        (("a",), (), {}),
        (("b", "a"), ("a", "x", "b"), {0: 2, 1: 0}),
        (("Cat", "dog"), ("DOG", "cat"), {0: 1, 1: 0}),
        (("cat", "Cat"), ("Cat",), {1: 0}),  # the exact name first, and no row twice
        (("CAT", "cAt"), ("cat",), {0: 0}),
    ],
)
def test_classes_match_exactly_and_then_regardless_of_case(ours, theirs, labels):
    assert match_classes(ours, theirs) == labels


def test_rows_of_classes_follow_their_names_and_background_is_last(config, checkpoint):
    model = build_detector(config.model, len(SHAPES))
    fresh = {key: value.clone() for key, value in model.state_dict().items()}
    copied = copy_weights(model, checkpoint, config, SHAPES)
    assert copied.labels == {0: 2, 3: 0}
    ours, theirs = model.state_dict(), checkpoint.model.state_dict()
    for label, other in ((0, 2), (3, 0), (-1, -1)):
        assert torch.equal(ours[SCORES][label], theirs[SCORES][other])
    for label in (1, 2):
        assert torch.equal(ours[SCORES][label], fresh[SCORES][label])
    assert torch.equal(ours[DELTAS][:4], theirs[DELTAS][8:12]) and torch.equal(ours[DELTAS][12:], theirs[DELTAS][:4])
    assert torch.equal(ours[DELTAS][4:12], fresh[DELTAS][4:12])
    heads = {f"region_head.predictor.{layer}.{kind}" for layer in ("scores", "deltas") for kind in ("weight", "bias")}
    assert set(copied.by_class) == heads and not copied.new and not copied.left_out
    assert all(torch.equal(ours[key], theirs[key]) for key in copied.taken)
    assert {*copied.taken, *copied.by_class} == {key for key in ours if not key.endswith("num_batches_tracked")}


def test_class_agnostic_deltas_have_no_rows_of_classes(config):
    agnostic = replace(config, model=replace(config.model, region_head=RegionHeadOptions(class_agnostic=True)))
    model = build_detector(agnostic.model, len(SHAPES))
    assert DELTAS in copy_weights(model, made(agnostic), agnostic, SHAPES).taken
    copied = copy_weights(model, made(config), agnostic, SHAPES)
    assert DELTAS in copied.new and DELTAS in copied.left_out


def mask_rcnn(config):
    given = {name: getattr(config.model, name) for name in ("backbone", "neck", "rpn", "box_head", "region_head")}
    return replace(config, model=MaskRCNNOptions(**given, masks=MaskHeadOptions(convolutions=1, channels=8)))


def test_masks_of_classes_follow_their_names(config):
    with_masks = mask_rcnn(config)
    source = made(with_masks)
    model = build_detector(with_masks.model, len(SHAPES))
    copied = copy_weights(model, source, with_masks, SHAPES)
    theirs, ours = source.model.mask_head.predictor.weight, model.mask_head.predictor.weight
    assert torch.equal(ours[0], theirs[2]) and torch.equal(ours[3], theirs[0])  # circle and ring
    assert {"mask_head.predictor.weight", "mask_head.predictor.bias"} <= set(copied.by_class) and not copied.new


def test_a_detector_of_boxes_begins_one_of_masks_and_the_reverse(config, checkpoint):
    with_masks = mask_rcnn(config)
    model = build_detector(with_masks.model, len(SHAPES))
    copied = copy_weights(model, checkpoint, with_masks, SHAPES)
    assert {key.partition(".")[0] for key in copied.new} == {"mask_head"} and not copied.left_out
    boxes = build_detector(config.model, len(SHAPES))
    copied = copy_weights(boxes, made(with_masks), config, SHAPES)
    assert {key.partition(".")[0] for key in copied.left_out} == {"mask_head"} and not copied.new


def cascade(config, masks=None):
    given = {name: getattr(config.model, name) for name in ("backbone", "neck", "rpn", "box_head")}
    return replace(
        config, model=CascadeRCNNOptions(**given, region_head=CascadeHeadOptions(batch_size_per_image=16), masks=masks)
    )


HEADS = ("box_head.layers.0.weight", "box_head.layers.0.bias", "predictor.scores.weight", "predictor.scores.bias")


def test_each_stage_of_a_cascade_begins_with_the_only_box_head(config, checkpoint):
    ours = cascade(config)
    model = build_detector(ours.model, len(SHAPES))
    copied = copy_weights(model, checkpoint, ours, SHAPES)
    box_head, predictor = checkpoint.model.region_head.box_head, checkpoint.model.region_head.predictor
    for head in model.region_head.heads:
        assert torch.equal(head.box_head.layers[0].weight, box_head.layers[0].weight)
        assert torch.equal(head.predictor.scores.weight[[0, 3, 4]], predictor.scores.weight[[2, 0, 3]])
    stages = [f"region_head.stages.{stage}." for stage in range(3)]
    assert set(copied.across) == {stage + key for stage in stages for key in HEADS}
    deltas = [f"predictor.deltas.{kind}" for kind in ("weight", "bias")]  # of each class there, of all together here
    assert copied.new == [stage + key for stage in stages for key in deltas]
    assert copied.left_out == [f"region_head.{key}" for key in deltas]


def test_class_agnostic_deltas_go_into_each_stage(config):
    agnostic = replace(config, model=replace(config.model, region_head=RegionHeadOptions(class_agnostic=True)))
    source, ours = made(agnostic), cascade(config)
    model = build_detector(ours.model, len(SHAPES))
    copied = copy_weights(model, source, ours, SHAPES)
    assert not copied.new and not copied.left_out
    for head in model.region_head.heads:
        assert torch.equal(head.predictor.deltas.weight, source.model.region_head.predictor.deltas.weight)


def test_an_only_box_head_begins_with_the_first_stage_of_a_cascade(config):
    source = made(cascade(config))
    model = build_detector(config.model, len(SHAPES))
    copied = copy_weights(model, source, config, SHAPES)
    first = source.model.region_head.heads[0]
    assert torch.equal(model.region_head.box_head.layers[0].weight, first.box_head.layers[0].weight)
    assert torch.equal(model.region_head.predictor.scores.bias[[0, 3, 4]], first.predictor.scores.bias[[2, 0, 3]])
    assert set(copied.across) == {f"region_head.{key}" for key in HEADS}
    assert {key.rpartition(".")[0] for key in copied.new} == {"region_head.predictor.deltas"}
    assert len(copied.left_out) == 2 * 6 + 2  # the second and third stage, and the first stage's deltas


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_stages_of_two_cascades_match_by_their_number(stages, config):
    ours = cascade(config)
    theirs = (*ours.model.region_head.stages, ours.model.region_head.stages[-1])[:stages]
    options = replace(ours.model.region_head, stages=theirs)
    source = made(replace(ours, model=replace(ours.model, region_head=options)))
    model = build_detector(ours.model, len(SHAPES))
    copied = copy_weights(model, source, ours, SHAPES)
    assert {key[: len("region_head.stages.N")] for key in copied.new} == {
        f"region_head.stages.{stage}" for stage in range(stages, 3)
    }
    assert len(copied.left_out) == max(stages - 3, 0) * 6 and not copied.across
    for head, other in zip(model.region_head.heads, source.model.region_head.heads, strict=False):
        assert torch.equal(head.box_head.layers[0].weight, other.box_head.layers[0].weight)
        assert torch.equal(head.predictor.scores.bias[[0, 3, 4]], other.predictor.scores.bias[[2, 0, 3]])


def test_mask_r_cnn_and_a_cascade_with_masks_begin_with_each_other(config):
    single, several = mask_rcnn(config), cascade(config, masks=MaskHeadOptions(convolutions=1, channels=8))
    for source, ours in ((single, several), (several, single)):
        model = build_detector(ours.model, len(SHAPES))
        theirs = made(source)
        copied = copy_weights(model, theirs, ours, SHAPES)
        assert "mask_head.predictor.weight" in copied.by_class and copied.across
        assert not any(key.startswith("mask_head.") for key in copied.new)
        assert torch.equal(model.mask_head.deconvolution.weight, theirs.model.mask_head.deconvolution.weight)


def rcnn(config, backbone):
    return replace(config, model=RCNNOptions(backbone=backbone, crop=CropOptions(size=32, context=2)))


def test_r_cnns_network_is_the_backbone_of_the_others(config):
    backbone = ResNetOptions(18, norm="batch", train_stages=5)
    single = replace(config, model=FastRCNNOptions(backbone=backbone, neck=None))
    source = made(rcnn(config, backbone), SHAPES)
    model = build_detector(single.model, len(SHAPES))
    copied = copy_weights(model, source, single, SHAPES)
    ours, theirs = model.state_dict(), source.model.state_dict()
    conv = "layer4.1.conv2.weight"
    assert torch.equal(ours[f"region_head.box_head.stage.{conv[7:]}"], theirs[f"region_head.box_head.body.{conv}"])
    assert torch.equal(ours["backbone.body.stem.conv1.weight"], theirs["region_head.box_head.body.stem.conv1.weight"])
    assert {key.rpartition(".")[0] for key in copied.left_out} == {
        f"region_head.predictor.{layer}" for layer in ("logits", "svms", "regressors")
    }
    back = build_detector(rcnn(config, backbone).model, len(SHAPES))
    copied = copy_weights(back, Checkpoint(model, single, SHAPES, (1, 2, 3, 4)), rcnn(config, backbone), SHAPES)
    assert all(key.startswith("region_head.predictor.") for key in copied.new)


def test_svms_and_regressors_follow_the_names(config):
    backbone = LeNetOptions()
    source = made(rcnn(config, backbone))
    model = build_detector(rcnn(config, backbone).model, len(SHAPES))
    copied = copy_weights(model, source, rcnn(config, backbone), SHAPES)
    ours, theirs = model.region_head.predictor, source.model.region_head.predictor
    assert len(copied.by_class) == 6 and not copied.new
    assert torch.equal(ours.svms.weight[0], theirs.svms.weight[2]) and not ours.svms.weight[1].any()
    assert torch.equal(ours.regressors.bias[12:], theirs.regressors.bias[:4]) and not ours.regressors.bias[4:12].any()
    assert torch.equal(ours.logits.bias[-1], theirs.logits.bias[-1])


# ---- report ----------------------------------------------------------------------------------------------------------


def test_a_table_tells_what_became_of_each_tensor(config, file, caplog):
    caplog.set_level(logging.INFO, "detect")
    build_model(config, SHAPES, read_weights(file))
    assert lines(caplog) == [
        f"{file} → faster_rcnn on resnet18-fpn",
        "  tensors of         taken  by class  new  left out",
        "  backbone             102         –    –         –",
        "  neck                  40         –    –         –",
        "  RPN                    6         –    –         –",
        "  box head               2         –    –         –",
        "  classes and boxes      –         4    –         –",
        "  2 classes taken by name: circle, ring",
        "  2 classes new: square, triangle",
        "  1 class left out: person",
    ]


def test_the_table_of_a_cascade_adds_up_its_stages(config, file, caplog):
    caplog.set_level(logging.INFO, "detect")
    build_model(cascade(config), SHAPES, read_weights(file))
    assert lines(caplog)[0] == f"{file} → cascade_rcnn on resnet18-fpn"
    assert lines(caplog)[4:8] == [
        "  RPN                    6         –    –         –",
        "  box head               6         –    –         –",
        "  classes and boxes      –         6    6         2",
        "  each stage begins with the box head of the file",
    ]
    caplog.clear()
    save_checkpoint(made(cascade(config)), file)
    build_model(config, SHAPES, read_weights(file))
    assert lines(caplog)[5:8] == [
        "  box head               2         –    –         4",
        "  classes and boxes      –         2    2        10",
        "  box head: the file's first stage",
    ]


def test_another_mask_head_is_told_and_begins_anew(config, file, caplog):
    caplog.set_level(logging.INFO, "detect")
    with_masks = mask_rcnn(config)
    save_checkpoint(made(with_masks), file)
    masks = MaskHeadOptions(convolutions=1, channels=16, samples=8)
    build_model(replace(with_masks, model=replace(with_masks.model, masks=masks)), SHAPES, read_weights(file))
    assert "(masks.channels 8, not 16): what fits is copied" in lines(caplog)[0]
    assert "  mask head              –         1    5         5" in lines(caplog)


def test_another_neck_is_told_and_the_backbone_is_copied(config, file, checkpoint, caplog):
    caplog.set_level(logging.INFO, "detect")
    other = replace(config, model=replace(config.model, neck=FPNOptions(channels=16)))
    model = build_model(other, SHAPES, read_weights(file))
    assert lines(caplog)[0] == (
        f"{file}: this is faster_rcnn on resnet18-fpn, the config says faster_rcnn on resnet18-fpn "
        "(neck.channels 256, not 16): what fits is copied; or take the network from the file with --model from-weights"
    )
    assert torch.equal(model.backbone.body.stem.conv1.weight, checkpoint.model.backbone.body.stem.conv1.weight)


def test_another_depth_is_refused_with_both_names(config, file):
    other = replace(config, model=replace(config.model, backbone=ResNetOptions(50, norm="batch"), neck=None))
    with pytest.raises(UserError) as caught:
        build_model(other, SHAPES, read_weights(file))
    assert str(caught.value) == (
        f"{file}: this is faster_rcnn on resnet18-fpn, the config says faster_rcnn on resnet50 (backbone.depth 18, "
        "not 50; neck fpn, not null): take the network from the file with --model from-weights"
    )


def test_a_detector_gives_a_classifier_nothing(file):
    config = ClassificationConfig(model=ClassifierOptions(backbone=LeNetOptions()))
    with pytest.raises(UserError, match=rf"^{file}: this is a detector, the config describes a classifier; give a"):
        build_model(config, SHAPES, read_weights(file))


# ---- every kind of file trains ---------------------------------------------------------------------------------------


def classifier_file(path, backbone, classes=("dark", "Circle")):
    config = ClassificationConfig(model=ClassifierOptions(backbone=backbone))
    model = Classifier(len(classes), config.model)
    weights = {f"model.{key}": value for key, value in model.state_dict().items()}
    save_torch({"detect": model_card(config, classes), "state_dict": weights}, path)
    return model


def test_a_classifier_gives_a_detector_its_backbone(config, tmp_path):
    path = tmp_path / "classifier.ckpt"
    source = classifier_file(path, ResNetOptions(18, norm="batch"))
    model = build_model(config, SHAPES, read_weights(path))
    assert torch.equal(model.backbone.body.stem.conv1.weight, source.network.conv1.weight)
    classifier_file(path, LeNetOptions())
    with pytest.raises(UserError, match="this is classifier on lenet, the config says faster_rcnn on resnet18-fpn: "):
        build_model(config, SHAPES, read_weights(path))


def test_a_classifier_gives_a_classifier_its_classes_by_name(tmp_path):
    source = classifier_file(tmp_path / "classifier.ckpt", LeNetOptions())
    config = ClassificationConfig(model=ClassifierOptions(backbone=LeNetOptions()))
    model = build_model(config, SHAPES, read_weights(tmp_path / "classifier.ckpt"))
    ours, theirs = model.network.classifier[-1], source.network.classifier[-1]
    assert torch.equal(ours.weight[0], theirs.weight[1]) and not torch.equal(ours.weight[1], theirs.weight[0])


def test_a_backbone_of_torchvision_alone_is_one(config, tmp_path):
    network = resnet18()
    torch.save(
        {"model_state_dict": {f"module.{key}": value for key, value in network.state_dict().items()}},
        tmp_path / "a.pth",
    )
    model = build_model(config, SHAPES, read_weights(tmp_path / "a.pth"))
    assert torch.equal(model.backbone.body.stem.conv1.weight, network.conv1.weight)


def their_faster_rcnn():
    """Return torchvision's Faster R-CNN with weights of which none is an exact zero or one."""
    with torch.device("meta"):
        network = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
    return {key: 0.02 * torch.rand(value.shape) + 0.001 for key, value in network.state_dict().items()}


def write(kind, checkpoint, folder, detectron2_resnet18):
    """Write a file of a kind, and return its path."""
    path = folder / f"{kind}.ckpt"
    match kind:
        case "checkpoint":
            save_checkpoint(checkpoint, path)
        case "safetensors":
            path = path.with_suffix(".safetensors")
            save_safetensors(checkpoint, path)
        case "detectron2":
            path = path.with_suffix(".pkl")
            state = detectron2_resnet18(classes=80)  # of positive numbers, whose sums would overflow
            arrays = {key: (0.01 * value + key.endswith("running_var")).numpy() for key, value in state.items()}
            path.write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}))
        case "torchvision":
            path = path.with_suffix(".pth")
            torch.save({"model": their_faster_rcnn(), "epoch": 3}, path)
    return path


@pytest.mark.parametrize("kind", ["checkpoint", "safetensors", "detectron2", "torchvision"])
def test_training_begins_from_every_kind_of_file(kind, config, checkpoint, tmp_path, detectron2_resnet18):
    file = write(kind, checkpoint, tmp_path, detectron2_resnet18)
    overrides = [f"--data.root={config.data.root}", "--data.val=null", "--data.workers=0", "--data.short_side=[64]"]
    overrides += ["--data.long_side=96", "--data.batch_size=4", "--data.canvases=1", "--training.epochs=1"]
    overrides += ["--training.learning_rate=1e-12", "--training.clip_norm=1", "--training.accelerator=cpu"]
    begun = load_from_weights(None, file, overrides)
    best, _ = fit(begun, DetectionData(begun.data), tmp_path / "run")
    trained, source = load_checkpoint(best), read_weights(file).checkpoint
    assert trained.classes == SHAPES and trained.config.training.weights == file
    assert begun.model == replace(source.config.model, backbone=replace(source.config.model.backbone, weights=None))
    ours, theirs = trained.model.state_dict(), source.model.state_dict()
    for key in (
        "rpn.convolutions.0.weight",
        "region_head.box_head.layers.0.weight",
        "backbone.body.layer4.0.conv1.weight",
    ):
        torch.testing.assert_close(ours[key], theirs[key], rtol=0, atol=1e-6)
    torch.testing.assert_close(ours[SCORES][-1], theirs[SCORES][-1], rtol=0, atol=1e-6)  # background
    assert torch.equal(ours["backbone.std"], theirs["backbone.std"])
    export_checkpoint(trained, tmp_path / "out.safetensors", "safetensors", [])
    assert load_checkpoint(tmp_path / "out.safetensors").classes == SHAPES


# ---- options from the file -------------------------------------------------------------------------------------------


def test_without_a_config_the_file_has_the_options_except_those_of_its_data(config, tmp_path):
    training = replace(config.training, learning_rate=0.003, seed=7, weights=tmp_path / "old.ckpt")
    model = replace(config.model, backbone=replace(config.model.backbone, weights="IMAGENET1K_V1"))
    save_checkpoint(replace(made(config), config=replace(config, model=model, training=training)), tmp_path / "a.ckpt")
    ours = load_from_weights(None, tmp_path / "a.ckpt", ["--data.root=elsewhere"])
    assert ours.model == config.model  # without the weights of the backbone
    assert (str(ours.data.root), ours.data.val, ours.data.short_side) == ("elsewhere", "val", (64,))
    assert ours.training == replace(
        TrainingOptions(),
        **{name: getattr(training, name) for name in ("epochs", "learning_rate", "warmup_steps", "milestones")},
        weights=tmp_path / "a.ckpt",
    )


def test_a_config_keeps_all_but_the_network(config, file, tmp_path):
    (tmp_path / "a.yaml").write_text("model: {name: fast_rcnn}\ntraining: {epochs: 5}\n")
    kept = load_from_weights(tmp_path / "a.yaml", file, network=False)
    assert kept == load_config(tmp_path / "a.yaml", [f"--training.weights={file}"])
    taken = load_from_weights(tmp_path / "a.yaml", file, ["--model.postprocess.score_threshold=0.3"])
    assert taken.model == replace(config.model, postprocess=replace(config.model.postprocess, score_threshold=0.3))
    assert taken.training == TrainingOptions(epochs=5, weights=file)


def test_a_classifier_gives_a_config_of_a_detector_its_backbone(tmp_path):
    classifier_file(tmp_path / "c.ckpt", ResNetOptions(34, norm="batch"))
    (tmp_path / "a.yaml").write_text("model: {name: faster_rcnn, neck: {name: fpn, channels: 32}}\n")
    taken = load_from_weights(tmp_path / "a.yaml", tmp_path / "c.ckpt")
    assert taken.model.backbone == ResNetOptions(34, norm="batch") and taken.model.neck.channels == 32
    assert isinstance(load_from_weights(None, tmp_path / "c.ckpt"), ClassificationConfig)


def test_a_backbone_alone_needs_a_config(tmp_path):
    torch.save(resnet18().state_dict(), tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"a\.pth: a backbone without a detector; give the config of one with -c"):
        load_from_weights(None, tmp_path / "a.pth")


# ---- resume ----------------------------------------------------------------------------------------------------------


def test_a_run_goes_on_from_its_own_checkpoint_without_the_file(config, file, tmp_path, monkeypatch):
    begun = beginning(config, file)
    whole, _ = fit(begun, DetectionData(begun.data), tmp_path / "whole")
    with monkeypatch.context() as patch:

        def stop_in_second_epoch(self) -> None:
            if self.current_epoch == 1:
                raise RuntimeError("the power went")

        patch.setattr(DetectorModule, "on_train_epoch_start", stop_in_second_epoch)
        with pytest.raises(RuntimeError, match="the power went"):
            fit(begun, DetectionData(begun.data), tmp_path / "run")
    file.unlink()
    resumed, _ = fit(begun, DetectionData(begun.data), tmp_path / "run", resume=True)
    ours, theirs = (load_checkpoint(path) for path in (resumed, whole))
    assert ours.config == theirs.config
    theirs_state = theirs.model.state_dict()
    assert all(torch.equal(value, theirs_state[key]) for key, value in ours.model.state_dict().items())


def test_the_config_of_a_run_that_is_resumed_is_read_instead_of_the_file(config, file, tmp_path):
    (tmp_path / "a.yaml").write_text("training: {epochs: 5}\n")
    (tmp_path / "run").mkdir()
    begun = tmp_path / "run" / "config.yaml"
    begun.write_text("model: {name: faster_rcnn, neck: null}\n")
    file.unlink()
    resumed = load_from_weights(tmp_path / "a.yaml", file, begun=begun)
    assert resumed.model == load_experiment(begun).model and resumed.training.epochs == 5
    assert load_from_weights(None, file, begun=begun).training.weights == file
