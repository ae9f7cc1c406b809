import sys

import pytest
import torch

from detect.backbones import FeatureInfo, FPNOptions, TimmOptions
from detect.backbones.timm import SameConv2d
from detect.errors import UserError
from detect.prediction.prepare import fold_norms

timm = pytest.importorskip("timm", reason="timm is an extra")
SMALL = "resnet10t"


@pytest.mark.parametrize("model", [SMALL, "hrnet_w18_small", "regnety_002", "convnext_atto", "mobilenetv3_small_050"])
@pytest.mark.parametrize("neck", [FPNOptions(24), FPNOptions(24, first_level=3), None], ids=["P2", "P3", "none"])
def test_channels_and_strides_are_true(model, neck):
    with torch.device("meta"):
        options = TimmOptions(model)
        backbone, box_head = options.build(multi_scale=neck is not None)
        pyramid = neck and neck.build(backbone.levels, options.norm)
        for images in (1, 2):
            maps = backbone(torch.empty(images, 3, 96, 160))
            assert list(maps) == list(backbone.levels)
            assert shapes(maps.values()) == cells(images, backbone.levels.values())
            if pyramid:
                assert shapes(pyramid(maps)) == cells(images, pyramid.levels)
    assert box_head is None
    if pyramid:
        strides = (4, 8, 16, 32, 64) if neck.first_level == 2 else (8, 16, 32, 64, 128)
        assert pyramid.levels == tuple(FeatureInfo(24, stride) for stride in strides)
    else:
        assert [level.stride for level in backbone.levels.values()] == [16]


def shapes(maps):
    return [tuple(features.shape) for features in maps]


def cells(images, levels):
    """The shapes that channels and strides promise."""
    return [(images, level.channels, -(-96 // level.stride), -(-160 // level.stride)) for level in levels]


def last(maps):
    """The only map."""
    (features,) = maps.values()
    return features


def test_weights_of_a_file_are_in_the_maps_and_the_classifiers_are_not(tmp_path):
    source = timm.create_model(SMALL, num_classes=7)
    for name, buffer in source.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    described = TimmOptions(SMALL, weights=str(tmp_path / "weights.pth"))
    ours, _ = described.build(multi_scale=False)
    theirs = timm.create_model(SMALL, features_only=True)
    theirs.load_state_dict({key: source.state_dict()[key] for key in theirs.state_dict()})
    pixels = torch.randn(1, 3, 64, 96)
    torch.testing.assert_close(last(ours.eval()(pixels)), theirs.eval()(pixels)[3])

    crop_network, without = described.build_crop_network(64).eval(), source.eval()
    without.reset_classifier(0)
    crops = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(crop_network(crops), without(crops))
    assert crop_network.layers == {"pool5": 512}


def test_a_network_that_timm_puts_one_level_down_takes_its_weights_too(tmp_path):
    source = timm.create_model("convnext_atto", num_classes=7)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    ours, _ = TimmOptions("convnext_atto", weights=str(tmp_path / "weights.pth")).build(multi_scale=False)
    pixels = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(last(ours.eval()(pixels)), source.eval().forward_intermediates(pixels)[1][2])


@pytest.mark.parametrize("model", [SMALL, "mobilenetv3_small_050"])
def test_what_does_not_learn_does_not_move(model):
    backbone, _ = TimmOptions(model, train_stages=0).build(multi_scale=False)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    backbone.train()(torch.randn(2, 3, 64, 64) + 5)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


@pytest.mark.parametrize("norm", ["frozen", "batch"])
@pytest.mark.parametrize(
    "model", [SMALL, "regnety_002", "convnext_atto", "mobilenetv3_small_050", "tf_efficientnet_lite0"]
)
def test_the_last_stages_learn_and_the_first_ones_do_not(model, norm):
    whole, _ = TimmOptions(model, norm=norm).build(multi_scale=True)
    levels = list(whole.levels)
    for train_stages in range(len(levels) + 1):
        backbone, _ = TimmOptions(model, norm=norm, train_stages=train_stages).build(multi_scale=True)
        before = {name: value.clone() for name, value in backbone.state_dict().items()}
        maps = list(backbone.train()(torch.randn(2, 3, 64, 64)).values())
        frozen = len(levels) - train_stages
        assert [one.requires_grad for one in maps] == [False] * frozen + [True] * train_stages
        learning = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
        moved = {name for name, value in backbone.state_dict().items() if not torch.equal(value, before[name])}
        # Statistics move only beside weights that learn.
        assert {name.rpartition(".")[0] for name in moved} <= {name.rpartition(".")[0] for name in learning}
        assert not moved or norm == "batch"
    assert all(parameter.requires_grad for parameter in whole.parameters())


def test_more_stages_than_the_network_has_are_refused():
    with pytest.raises(UserError, match=r"^train_stages: 5: the network has 4 stages; give 0 … 4$"):
        TimmOptions("convnext_atto", train_stages=5).build(multi_scale=True)


@pytest.mark.parametrize("model", [SMALL, "hrnet_w18_small", "tf_efficientnet_lite0"])
def test_stages_are_all_layers_but_the_classifier(model):
    options = TimmOptions(model)
    with torch.device("meta"):
        network = options.make(7)
    stages = options.stages(network)
    layers = [parameter for stage in stages.values() for parameter in stage.parameters()]
    expected = {one for name, one in network.named_parameters() if not name.startswith(options.classifier_keys)}
    assert len(layers) == len(set(layers)) and set(layers) == expected


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("size", "stride", "dilation"), [(3, 2, 1), (5, 2, 1), (2, 2, 1), (1, 2, 1), (3, 1, 2), ((3, 5), 4, 1)]
)
def test_a_constant_padding_is_tensorflows_on_multiples_of_the_stride(size, stride, dilation, bias):
    theirs = timm.layers.Conv2dSame(4, 6, size, stride, dilation=dilation, groups=2, bias=bias)
    ours = SameConv2d.of(theirs)
    for sides in ((8, 16), (32, 4)):
        x = torch.randn(1, 4, *sides)
        assert torch.equal(ours(x), theirs(x))


def test_the_network_of_a_backbone_can_be_traced_with_any_multiple_of_32():
    backbone, _ = TimmOptions("tf_efficientnet_lite0").build(multi_scale=True)
    sides = {2: 32 * torch.export.Dim("rows", max=64), 3: 32 * torch.export.Dim("columns", max=64)}
    program = torch.export.export(backbone.eval(), (torch.randn(1, 3, 64, 96),), dynamic_shapes=(sides,))
    pixels = torch.randn(1, 3, 96, 128)
    torch.testing.assert_close(program.module()(pixels), backbone(pixels))


def with_statistics(model, norm):
    """A backbone whose norms are not the identity."""
    backbone, _ = TimmOptions(model, norm=norm).build(multi_scale=True)
    for name, value in backbone.state_dict().items():
        if name.endswith("running_mean"):
            value.normal_(0, 0.1)
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
    return backbone.eval()


def norms(module):
    return [one for one in module.modules() if hasattr(one, "running_mean")]


@pytest.mark.parametrize("norm", ["frozen", "batch"])
@pytest.mark.parametrize("model", ["resnet18", "mobilenetv3_small_050", "tf_efficientnet_lite0", "hrnet_w18_small"])
def test_norms_are_folded_with_their_activations_kept(model, norm):
    backbone, pixels = with_statistics(model, norm), torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        before = list(backbone(pixels).values())
        fold_norms(backbone)
        after = list(backbone(pixels).values())
    assert not norms(backbone)
    for one, other in zip(before, after, strict=True):
        assert (one - other).abs().max() <= 1e-4 * one.abs().max()


def test_norms_are_not_folded_where_a_map_would_change():
    # GhostNet's map at stride 2 is the output of the first convolution, before its norm.
    backbone, pixels = with_statistics("ghostnet_100", "frozen"), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before, count = list(backbone(pixels).values()), len(norms(backbone))
        fold_norms(backbone)
        assert all(map(torch.equal, backbone(pixels).values(), before)) and len(norms(backbone)) == count


def test_norms_of_a_crop_network_are_folded():
    network, crops = TimmOptions(SMALL, norm="batch").build_crop_network(64).eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before, count = network(crops), len(norms(network))
        fold_norms(network)
        torch.testing.assert_close(network(crops), before, rtol=1e-4, atol=1e-4)
    assert len(norms(network)) < count


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "resnet81"}, "timm has no network named 'resnet81'; did you mean resnet18"),
        ({"model": "vit_tiny_patch16_224"}, "takes only squares of 224 pixels, but images have many sizes"),
        (
            {"model": SMALL, "weights": "c3_in1k"},
            r"download model.safetensors of https://huggingface.co/timm/resnet10t",
        ),
    ],
)
def test_what_cannot_be_built_says_why(options, message):
    with pytest.raises(UserError, match=message):
        TimmOptions(**options).build(multi_scale=True)


@pytest.mark.parametrize("neck", [True, False])
def test_all_levels_of_a_file_are_the_networks(neck, tmp_path):
    source = timm.create_model(SMALL, num_classes=7).eval()
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    ours, _ = TimmOptions(SMALL, weights=str(tmp_path / "weights.pth")).build(multi_scale=neck)
    pixels = torch.randn(1, 3, 64, 96)
    expected = source.forward_intermediates(pixels)[1]
    maps = list(ours.eval()(pixels).values())
    torch.testing.assert_close(maps, expected if neck else [expected[3]])


def test_crops_are_refused_where_they_are_too_small():
    with pytest.raises(UserError, match="at least 32 pixels"):
        TimmOptions(SMALL).build_crop_network(31)


def test_without_timm_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"pip install 'rcnn-family\[timm\]'$"):
        TimmOptions(SMALL).build(multi_scale=False)
