"""Stages of timm's networks: which parameters are trained, and that each of these has a gradient."""

import pytest
import torch

from detect.backbones import FPNOptions, TimmOptions
from detect.backbones.norm import FrozenBatchNorm2d
from detect.errors import UserError
from detect.models import FasterRCNN, FasterRCNNOptions
from detect.prediction.prepare import prepare
from detect.structures import Batch, Images, Targets

timm = pytest.importorskip("timm", reason="timm is an extra")
SWIN = "swin_tiny_patch4_window7_224"
# The parts of each network in its stages, by hand from the groups of `group_matcher(coarse=True)`.
STAGES = {
    "resnet18": ["conv1 bn1", "layer1", "layer2", "layer3", "layer4"],
    "efficientnet_b0": ["conv_stem bn1 blocks.0", "blocks.1", "blocks.2", "blocks.3 blocks.4", "blocks.5 blocks.6"],
    "mobilenetv3_small_050": ["conv_stem bn1", "blocks.0", "blocks.1", "blocks.2 blocks.3", "blocks.4 blocks.5"],
    "convnext_atto": ["stem_0 stem_1 stages_0", "stages_1", "stages_2", "stages_3"],
    SWIN: ["patch_embed layers_0", "layers_1", "layers_2", "layers_3"],
    "hrnet_w18_small": [
        "conv1 bn1 conv2 bn2",
        "layer1 transition1",
        "stage2 transition2",
        "stage3 transition3",
        "stage4 incre_modules",
    ],
}


def built(model: str, multi_scale: bool = True, **options):
    with torch.device("meta"):
        return TimmOptions(model, **options).build(multi_scale)[0]


def trained(module):
    return {name for name, one in module.named_parameters() if one.requires_grad}


@pytest.mark.parametrize("model", STAGES)
def test_the_first_stages_are_frozen(model):
    for train_stages in (2, len(STAGES[model]) - 1):
        backbone = built(model, norm="batch", train_stages=train_stages)
        frozen = len(STAGES[model]) - train_stages
        parts = [part for stage in STAGES[model][:frozen] for part in stage.split()]
        prefixes = tuple(f"body.{part}{end}" for part in parts for end in "._")
        assert all(one.requires_grad != name.startswith(prefixes) for name, one in backbone.named_parameters())
        norms = [(name, one) for name, one in backbone.named_modules() if hasattr(one, "running_mean")]
        assert all(isinstance(one, FrozenBatchNorm2d) == f"{name}.".startswith(prefixes) for name, one in norms)


@pytest.mark.parametrize("model", STAGES)
def test_a_classifier_has_the_same_stages(model):
    options = TimmOptions(model, norm="batch")
    with torch.device("meta"):
        network = options.make(3)
    stages = options.stages(network)
    assert len(stages) == len(STAGES[model])
    names = {id(one): name for name, one in network.named_parameters()}
    in_head = {name for name in names.values() if name.startswith(options.classifier_keys)}
    in_stages = [names[id(one)] for stage in stages.values() for one in stage.parameters()]
    assert sorted(in_stages) == sorted(set(names.values()) - in_head)


def test_more_stages_than_five_are_counted_from_the_last():
    # cspdarknet53 has maps at the strides 1, 2, 4, 8, 16 and 32.
    backbone = built("cspdarknet53", train_stages=4)
    frozen = {name for name, one in backbone.named_parameters() if not one.requires_grad}
    assert {name.split(".")[1] for name in frozen} == {"stem_conv1", "stages_0"}
    assert trained(built("cspdarknet53", train_stages=5)) == trained(built("cspdarknet53"))


def test_a_network_without_groups_is_cut_in_the_order_of_its_layers():
    frozen = {name for name, one in built("poolformer_s12", train_stages=3).named_parameters() if not one.requires_grad}
    assert {name.split(".")[1] for name in frozen} == {"stem", "stages_0"}


@pytest.mark.parametrize(
    ("neck", "train_stages"),
    [(FPNOptions(8), 2), (FPNOptions(8, first_level=3), None), (None, None)],
    ids=["P2", "P3", "none"],
)
@pytest.mark.parametrize("model", STAGES)
def test_each_trained_parameter_has_a_gradient(model, neck, train_stages):
    backbone = built(model, multi_scale=neck is not None, norm="batch", train_stages=train_stages)
    if neck:
        backbone.keep_levels(neck.build(backbone.levels, "none").names)
    maps = backbone(torch.empty(2, 3, 64, 96, device="meta"))
    assert list(maps) == list(backbone.levels)
    torch.stack([features.sum() for features in maps.values() if features.requires_grad]).sum().backward()
    assert trained(backbone) == {name for name, one in backbone.named_parameters() if one.grad is not None} != set()


def test_layers_after_the_only_map_are_not_trained():
    assert not any(name.startswith("body.layer4") for name in trained(built("resnet18", multi_scale=False)))
    assert any(name.startswith("body.layer4") for name in trained(built("resnet18")))


def test_frozen_stages_stay_constant_in_training():
    backbone, _ = TimmOptions("efficientnet_b0", norm="batch", train_stages=2).build(multi_scale=True)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    maps = backbone.train()(torch.randn(2, 3, 64, 64))
    torch.stack([features.mean() for features in maps.values() if features.requires_grad]).sum().backward()
    moved = {name for name, value in backbone.state_dict().items() if not torch.equal(value, before[name])}
    assert {".".join(name.split(".")[1:3]) for name in moved} == {f"blocks.{number}" for number in (3, 4, 5, 6)}


def test_the_maps_of_a_swin_are_channels_first_and_equal_to_timms(tmp_path):
    source = timm.create_model(SWIN, num_classes=7, strict_img_size=False).eval()
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    backbone, _ = TimmOptions(SWIN, weights=str(tmp_path / "weights.pth")).build(multi_scale=True)
    pixels = torch.randn(1, 3, 96, 160)
    with torch.no_grad():
        maps = list(backbone.eval()(pixels).values())
        expected = source.forward_intermediates(pixels, intermediates_only=True)
    assert [tuple(one.shape[1:]) for one in maps] == [(96, 24, 40), (192, 12, 20), (384, 6, 10), (768, 3, 5)]
    torch.testing.assert_close(maps, expected)


def test_a_swin_takes_crops_of_any_size_and_those_of_its_own_like_timm():
    torch.manual_seed(0)
    network = TimmOptions(SWIN).build_crop_network(224).eval()
    torch.manual_seed(0)
    source = timm.create_model(SWIN, num_classes=1000).eval()
    source.reset_classifier(0)
    crops = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(network(crops), source(crops))
        assert network(torch.randn(2, 3, 64, 64)).shape == (2, 768)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            "vit_tiny_patch16_224",
            "takes only squares of 224 pixels, .*: its position embeddings or windows fit no other",
        ),
        ("hiera_tiny_224", "takes only squares of 224 pixels"),
        ("maxvit_tiny_tf_224", "takes only squares of 224 pixels"),
        ("bat_resnext26ts", "fails on 96×160 pixels: .*; choose a convolutional network or a Swin$"),
        ("inception_v3", "has 45×77 cells at stride 2 on 96×160 pixels, not 48×80, so boxes would be misplaced"),
    ],
)
def test_what_cannot_be_a_backbone_is_refused_with_the_reason(model, message):
    with pytest.raises(UserError, match=rf"^backbone.model: {model} {message}") as error:
        built(model)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_faster_rcnn_on_a_swin_trains_and_detects():
    torch.manual_seed(0)
    model = FasterRCNN(2, FasterRCNNOptions(backbone=TimmOptions(SWIN, train_stages=2), neck=FPNOptions(32)))
    images = Images(torch.randint(256, (2, 3, 96, 160), dtype=torch.uint8), torch.tensor([[96, 160], [80, 130]]))
    boxes = torch.tensor([[[10.0, 10, 60, 70]], [[20.0, 5, 90, 60]]])
    known = torch.ones(2, 1, dtype=torch.bool)
    targets = Targets(boxes, torch.tensor([[0], [1]]), known, ~known)
    batch = Batch(images, targets, torch.arange(2), torch.ones(2, 2))
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-4)
    losses = []
    for _ in range(3):
        torch.manual_seed(1)  # the same samples of anchors and regions
        total = torch.stack(list(model.train().loss(batch).values())).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(total.item())
    assert losses[2] < losses[0]
    assert all(one.grad is not None for one in model.parameters() if one.requires_grad)
    detections = model.eval().detect(images)
    assert detections.boxes.isfinite().all() and detections.boxes.shape[::2] == (2, 4)
    prepared = prepare(model).detect(images)
    torch.testing.assert_close(prepared.scores, detections.scores, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("model", STAGES)
def test_the_network_is_one_graph(model, unchecked):
    backbone, _ = TimmOptions(model, train_stages=2).build(multi_scale=True)
    backbone.eval()
    pixels = torch.randn(1, 3, 64, 96)
    expected = backbone(pixels)
    torch.testing.assert_close(torch.compile(backbone, fullgraph=True, backend="eager")(pixels), expected)
