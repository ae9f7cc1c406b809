import os
import pickle
import re
import zipfile

import pytest
import torch

from detect.backbones import LeNetOptions, ResNetOptions
from detect.checkpoint import ClassifierCheckpoint, load_any, load_checkpoint, model_card
from detect.config import ClassificationConfig, Config
from detect.data.dataset import Dataset
from detect.errors import UserError
from detect.models import BoxHeadOptions, Classifier, ClassifierOptions, FasterRCNNOptions, RPNOptions, build_detector
from detect.prediction.predictor import Predictor
from detect.structures import Images

CONFIG = Config(
    model=FasterRCNNOptions(
        # Weights that are not there: a checkpoint must not need them.
        backbone=ResNetOptions(depth=18, norm="batch", train_stages=5, weights="gone.pth"),
        rpn=RPNOptions(anchor_sizes=(8, 16, 32, 48, 64)),
        box_head=BoxHeadOptions(layers=1, channels=16),
    )
)


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> dict:
    """Contents close to those of Lightning's checkpoints."""
    backbone = ResNetOptions(depth=18, norm="batch", train_stages=5)
    options = FasterRCNNOptions(backbone=backbone, rpn=CONFIG.model.rpn, box_head=CONFIG.model.box_head)
    state = build_detector(options, 2).state_dict()
    dataset = Dataset(tmp_path_factory.mktemp("data"), "train", "coco", ("cat", "dog"), (17, 18), ())
    return {
        "state_dict": {f"model.{key}": value for key, value in state.items()},
        "detect": model_card(CONFIG, dataset.classes, dataset.category_ids),
        "epoch": 3,
    }


def test_a_detector_comes_back(content, tmp_path):
    torch.save(content, tmp_path / "a.ckpt")
    checkpoint = load_checkpoint(tmp_path / "a.ckpt")
    assert checkpoint.classes == ("cat", "dog") and checkpoint.category_ids == (17, 18)
    assert checkpoint.config == CONFIG and not checkpoint.model.training
    state = checkpoint.model.state_dict()
    assert all(torch.equal(state[key.removeprefix("model.")], value) for key, value in content["state_dict"].items())


def test_the_reprs_name_network_and_classes(content, classifier, tmp_path):
    torch.save(content, tmp_path / "b.ckpt")
    checkpoint = load_checkpoint(tmp_path / "b.ckpt")
    size = sum(value.numel() for value in checkpoint.model.parameters())
    network = f"faster_rcnn, backbone resnet, {size:,} parameters"
    assert repr(checkpoint) == f"Checkpoint({network}, 2 classes: cat, dog)"
    assert repr(Predictor(checkpoint)) == "Predictor(faster_rcnn, backbone resnet, 2 classes: cat, dog)"
    assert repr(load_any(classifier)).startswith("ClassifierCheckpoint(classifier, backbone lenet, ")


def test_two_readings_detect_the_same(content, tmp_path):
    torch.save(content, tmp_path / "a.ckpt")
    images = Images(torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8), torch.tensor([[60, 64]]))
    one, other = (load_checkpoint(tmp_path / "a.ckpt").model.detect(images) for _ in range(2))
    assert torch.equal(one.boxes, other.boxes) and torch.equal(one.scores, other.scores)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", ["torch", "pickle"])
def test_nothing_is_executed(content, tmp_path, protocol):
    path, trace = tmp_path / "a.ckpt", tmp_path / "trace"
    if protocol == "torch":
        torch.save(content | {"loops": Malicious(str(trace))}, path)
    else:
        path.write_bytes(pickle.dumps(Malicious(str(trace))))
    with pytest.raises(UserError, match="not a checkpoint of detect, or damaged; give one"):
        load_checkpoint(path)
    assert not trace.exists()


def without(content: dict, key: str) -> dict:
    return {name: value for name, value in content.items() if name != key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda whole: without(whole, "detect"), "not a checkpoint of detect"),
        (lambda whole: without(whole, "state_dict"), "not a checkpoint of detect"),
        (lambda whole: whole | {"state_dict": [1, 2]}, "not a checkpoint of detect"),
        (lambda whole: whole | {"detect": without(whole["detect"], "classes")}, "not a checkpoint of detect"),
        (lambda whole: [whole], "not a checkpoint of detect"),
        (
            lambda whole: whole | {"detect": whole["detect"] | {"config": {"model": 3}}},
            "model: this is a section, not an option",
        ),
        (
            lambda whole: whole | {"detect": whole["detect"] | {"classes": ["a"], "category_ids": [1]}},
            "the weights do not fit the file's config: size",
        ),
        (lambda whole: whole | {"detect": whole["detect"] | {"classes": ["a"]}}, "not a checkpoint of detect"),
        (lambda whole: whole | {"state_dict": {}}, "the weights do not fit the file's config: Missing key"),
    ],
)
def test_what_is_no_checkpoint_is_a_mistake_in_one_line(content, tmp_path, change, message):
    path = tmp_path / "a.ckpt"
    torch.save(change(content), path)
    with pytest.raises(UserError, match=message) as caught:
        load_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_a_file_made_to_fill_the_memory_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "a.ckpt")
    with (
        zipfile.ZipFile(tmp_path / "a.ckpt") as whole,
        zipfile.ZipFile(tmp_path / "b.ckpt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in whole.namelist():
            bomb.writestr(name, bytes(10**6) if name.endswith("data/0") else whole.read(name))
    with pytest.raises(UserError, match=r"b\.ckpt: unpacks to more than its size"):
        load_checkpoint(tmp_path / "b.ckpt")


@pytest.mark.parametrize("text", [b"", b"no checkpoint", b"PK\x03\x04"])
def test_bytes_that_are_no_checkpoint(tmp_path, text):
    (tmp_path / "a.ckpt").write_bytes(text)
    with pytest.raises(UserError, match=r"a\.ckpt: not a checkpoint of detect"):
        load_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.parametrize(("name", "reason"), [("missing.ckpt", "No such file"), ("", "Is a directory")])
def test_a_file_that_cannot_be_read(tmp_path, name, reason):
    with pytest.raises(UserError, match=f"{re.escape(str(tmp_path / name))}: {reason}"):
        load_checkpoint(tmp_path / name)


@pytest.mark.parametrize("asked", ["", "checkpoints", "checkpoints/best.ckpt"])
def test_a_run_without_validation_has_a_last_checkpoint_only_which_is_named(tmp_path, asked):
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.parent.mkdir()
    last.touch()
    with pytest.raises(UserError, match=f"give a checkpoint such as {re.escape(str(last))}$"):
        load_checkpoint(tmp_path / asked)


# ---- classifiers -----------------------------------------------------------------------------------------------------

CLASSIFICATION = ClassificationConfig(model=ClassifierOptions(backbone=LeNetOptions(weights="gone.pth"), dropout=0.25))


@pytest.fixture
def classifier(tmp_path) -> str:
    """The file of a classifier, with contents close to those of Lightning's checkpoints."""
    state = Classifier(2, ClassifierOptions(backbone=LeNetOptions())).state_dict()
    content = {
        "state_dict": {f"model.{key}": value for key, value in state.items()},
        "detect": model_card(CLASSIFICATION, ("cat", "dog")),
    }
    torch.save(content, tmp_path / "a.ckpt")
    return tmp_path / "a.ckpt"


def test_a_classifier_comes_back_without_the_file_that_it_began_from(classifier):
    checkpoint = load_any(classifier)
    assert isinstance(checkpoint, ClassifierCheckpoint)
    assert checkpoint.classes == ("cat", "dog") and checkpoint.config == CLASSIFICATION
    assert not any(part.training for part in checkpoint.model.modules())
    saved = torch.load(classifier, weights_only=True)["state_dict"]
    state = checkpoint.model.state_dict()
    assert {f"model.{key}" for key in state} == saved.keys()
    assert all(torch.equal(value, saved[f"model.{key}"]) for key, value in state.items())
    assert checkpoint.model(torch.zeros(3, 3, 32, 32, dtype=torch.uint8)).shape == (3, 2)


def test_a_classifier_is_no_detector(classifier):
    with pytest.raises(UserError, match="this is a classifier; give the checkpoint of a detector") as caught:
        load_checkpoint(classifier)
    assert str(caught.value).startswith(f"{classifier}: ") and "\n" not in str(caught.value)


def test_a_detector_is_read_as_one_by_either_function(content, tmp_path):
    torch.save(content, tmp_path / "a.ckpt")
    assert load_any(tmp_path / "a.ckpt").category_ids == (17, 18)


def test_options_of_a_classifier_can_be_changed_as_far_as_its_weights_fit(classifier):
    checkpoint = load_any(classifier, ["--data.size=48", "--data.resize=48", "--model.trainable=head"])
    assert checkpoint.config.data.size == 48
    assert [name for name, one in checkpoint.model.named_parameters() if one.requires_grad] == [
        "network.classifier.4.weight",
        "network.classifier.4.bias",
    ]
    with pytest.raises(UserError, match=r"the weights do not fit the options --.*: Missing key.*; leave these out$"):
        load_any(classifier, ["--model.backbone={name: alexnet}"])
    with pytest.raises(UserError, match=r"^--data\.short_side: there is no such option"):
        load_any(classifier, ["--data.short_side=[600]"])
