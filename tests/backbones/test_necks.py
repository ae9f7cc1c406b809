import pydantic
import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from detect.backbones import (
    FPN,
    AlexNetOptions,
    BackboneOptions,
    FeatureInfo,
    FPNOptions,
    GoogLeNetOptions,
    LeNetOptions,
    ResNetOptions,
    VGGMOptions,
    VGGOptions,
)
from detect.errors import UserError

STRIDES = {"fine": 4, "middle": 8, "coarse": 16}
LEVELS = {
    name: FeatureInfo(channels, stride) for (name, stride), channels in zip(STRIDES.items(), (3, 5, 7), strict=True)
}


def maps(images: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(images, info.channels, 48 // info.stride, 32 // info.stride, generator=generator)
        for name, info in LEVELS.items()
    }


def test_one_level_by_hand():
    fpn = FPN({"c2": FeatureInfo(1, 4), "c3": FeatureInfo(1, 8)}, channels=1)
    for lateral in fpn.lateral:
        nn.init.ones_(lateral[0].weight)
    for output in fpn.output:
        nn.init.dirac_(output[0].weight)
    fine, coarse = torch.arange(4.0).view(1, 1, 2, 2), torch.tensor([[[[10.0]]]])

    p2, p3, p4 = fpn({"c2": fine, "c3": coarse})
    assert p2.flatten().tolist() == [10, 11, 12, 13]
    assert p3.flatten().tolist() == [10]
    assert p4.flatten().tolist() == [10]


@pytest.mark.parametrize(("norm", "layer"), [("none", None), ("batch", nn.BatchNorm2d)])
@pytest.mark.parametrize("images", [0, 1, 2])
def test_fpn_is_torchvisions(norm, layer, images):
    ours = FPN(LEVELS, channels=4, norm=norm).eval()
    theirs = FeaturePyramidNetwork([3, 5, 7], 4, LastLevelMaxPool(), layer).eval()
    theirs.load_state_dict(
        {
            key.replace("lateral", "inner_blocks").replace("output", "layer_blocks"): value
            for key, value in ours.state_dict().items()
        }
    )
    expected = theirs(maps(images)).values()
    torch.testing.assert_close(ours(maps(images)), list(expected))


@pytest.mark.parametrize("images", [0, 1, 2])
def test_p3_to_p7_are_torchvisions(images):
    """As in RetinaNet: P6 by a convolution on P5, P7 by one on the ReLU of P6."""
    levels = {"c3": FeatureInfo(3, 8), "c4": FeatureInfo(5, 16), "c5": FeatureInfo(7, 32)}
    ours = FPN(levels, channels=4, first_level=3).eval()
    theirs = FeaturePyramidNetwork([3, 5, 7], 4, LastLevelP6P7(4, 4)).eval()
    names = {"lateral": "inner_blocks", "output": "layer_blocks", "downsampling": "extra_blocks"}
    extra = {"extra_blocks.0.0": "extra_blocks.p6", "extra_blocks.1.0": "extra_blocks.p7"}
    state = {}
    for key, value in ours.state_dict().items():
        part, _, rest = key.partition(".")
        key, kind = f"{names[part]}.{rest}".rsplit(".", 1)
        state[f"{extra.get(key, key)}.{kind}"] = value
    theirs.load_state_dict(state)
    given = dict(zip(levels, maps(images).values(), strict=True))
    pyramid = ours(given)
    torch.testing.assert_close(pyramid, list(theirs(given).values()))
    assert [features.shape[-2:] for features in pyramid] == [(12, 8), (6, 4), (3, 2), (2, 1), (1, 1)]


def test_fpn_is_initialised_like_torchvisions():
    torch.manual_seed(0)
    convolution = FPN({"c2": FeatureInfo(512, 4), "c3": FeatureInfo(512, 8)}, channels=256).lateral[0][0]
    limit = (3 / 512) ** 0.5
    assert limit * 0.99 < convolution.weight.max() <= limit
    assert not convolution.bias.any()


@pytest.mark.parametrize("first_level", [2, 3])
def test_with_a_norm_there_is_no_bias(first_level):
    levels = {"c2": FeatureInfo(3, 4), "c3": FeatureInfo(5, 8), "c4": FeatureInfo(7, 16)}
    fpn = FPN(levels, channels=32, first_level=first_level, norm="group")
    convolutions = [layer for layer in fpn.modules() if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 6 and all(layer.bias is None for layer in convolutions)
    assert sum(isinstance(layer, nn.GroupNorm) for layer in fpn.modules()) == 6


@pytest.mark.parametrize("first_level", [2, 3])
def test_fpn_leaves_its_input_alone(first_level):
    given = maps()
    before = {name: features.clone() for name, features in given.items()}
    FPN(LEVELS, channels=4, first_level=first_level)(given)
    torch.testing.assert_close(given, before)


# ---- which levels ----------------------------------------------------------------------------------------------------


def test_of_several_levels_with_one_stride_the_deepest_is_used():
    levels = {"a": FeatureInfo(3, 4), "b": FeatureInfo(9, 8), "c": FeatureInfo(5, 8), "d": FeatureInfo(7, 16)}
    assert FPN(levels).names == ["a", "c", "d"]


def test_levels_finer_than_the_first_are_not_used():
    levels = {"a": FeatureInfo(3, 1), "b": FeatureInfo(3, 2), "c": FeatureInfo(3, 4), "d": FeatureInfo(3, 8)}
    assert FPN(levels).names == ["c", "d"]
    assert [level.stride for level in FPN(levels).levels] == [4, 8, 16]


def test_a_pyramid_ends_before_a_gap():
    levels = {"a": FeatureInfo(3, 4), "b": FeatureInfo(3, 8), "c": FeatureInfo(3, 32)}
    assert [level.stride for level in FPN(levels).levels] == [4, 8, 16]


@pytest.mark.parametrize(
    ("network", "first_level", "names"),
    [
        (ResNetOptions(18), 2, ["layer1", "layer2", "layer3", "layer4"]),
        (ResNetOptions(18), 3, ["layer2", "layer3", "layer4"]),
        (ResNetOptions(18, last_stage=4), 2, ["layer1", "layer2", "layer3"]),
        (ResNetOptions(50, last_stage=4), 3, ["layer2", "layer3"]),
        (VGGOptions(11), 2, ["conv3", "conv4", "conv5"]),
        (VGGOptions(16, norm="batch"), 3, ["conv4", "conv5"]),
        (AlexNetOptions(), 2, ["conv1", "conv2", "conv5"]),
        (AlexNetOptions(), 3, ["conv2", "conv5"]),
        (VGGMOptions(), 3, ["conv2", "conv5"]),
        (GoogLeNetOptions(initialization="he"), 2, ["conv2", "inception3", "inception4", "inception5"]),
        (GoogLeNetOptions(initialization="he"), 3, ["inception3", "inception4", "inception5"]),
    ],
    ids=lambda value: value.architecture() if isinstance(value, BackboneOptions) else "",
)
def test_pyramids_of_every_network_have_the_promised_channels_and_strides(network, first_level, names):
    with FakeTensorMode():
        backbone, box_head = network.build(multi_scale=True)
        neck = FPNOptions(channels=24, first_level=first_level).build(backbone.levels, network.norm)
        for images in (1, 2):
            pyramid = neck(backbone(torch.empty(images, 3, 96, 160)))
            assert [tuple(features.shape) for features in pyramid] == [
                (images, 24, -(-96 // level.stride), -(-160 // level.stride)) for level in neck.levels
            ]
        sum(features.sum() for features in pyramid).backward()
    assert neck.names == names and box_head is None
    extra = 1 if first_level == 2 else 2
    strides = [2**first_level << octave for octave in range(len(names) + extra)]
    assert neck.levels == tuple(FeatureInfo(24, stride) for stride in strides)
    assert all(parameter.grad is not None for parameter in neck.parameters())


@pytest.mark.parametrize(
    ("network", "first_level", "message"),
    [
        (
            LeNetOptions(),
            2,
            r"^neck: a pyramid needs maps at strides 4, 8 and so on, the backbone has 1, 2; set neck to null$",
        ),
        (
            VGGMOptions(),
            2,
            r"^neck: a pyramid needs maps at strides 4, 8 and so on, the backbone has 2, 8, 16; set neck to null$",
        ),
    ],
    ids=["lenet", "vgg_m"],
)
def test_a_backbone_without_the_strides_is_refused(network, first_level, message):
    with FakeTensorMode():
        backbone, _ = network.build(multi_scale=True)
        with pytest.raises(UserError, match=message):
            FPNOptions(first_level=first_level).build(backbone.levels, network.norm)


def test_a_pyramid_of_one_map_is_refused():
    with pytest.raises(UserError, match=r"^neck: a pyramid needs two maps or more, the backbone has strides 2, 8; set"):
        FPN({"conv1": FeatureInfo(3, 2), "conv2": FeatureInfo(3, 8)}, first_level=3)


def test_no_levels_at_all_are_refused():
    with pytest.raises(UserError, match=r"^neck: a pyramid needs maps at strides 4, 8"):
        FPN({})


@pytest.mark.parametrize("values", [{"channels": 0}, {"first_level": 4}, {"norm": "weight"}, {"name": "pafpn"}])
def test_options_are_checked(values):
    with pytest.raises(pydantic.ValidationError):
        FPNOptions(**values)


# ---- the norm --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chosen", "of_backbone", "kinds"),
    [
        (None, "frozen", set()),
        (None, "none", set()),
        (None, "batch", {nn.BatchNorm2d}),
        (None, "sync", {nn.SyncBatchNorm}),
        (None, "group", {nn.GroupNorm}),
        (None, "instance", {nn.InstanceNorm2d}),
        ("none", "batch", set()),
        ("group", "frozen", {nn.GroupNorm}),
        ("batch", "group", {nn.BatchNorm2d}),
    ],
)
def test_the_norm_is_the_backbones_if_none_is_chosen(chosen, of_backbone, kinds):
    neck = FPNOptions(channels=32, norm=chosen).build(LEVELS, of_backbone)
    layers = [layer for layer in neck.modules() if not isinstance(layer, FPN | nn.ModuleList | nn.Sequential)]
    assert {type(layer) for layer in layers} == kinds | {nn.Conv2d}
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    assert len(layers) == len(convolutions) * (2 if kinds else 1)
    assert all((layer.bias is None) == bool(kinds) for layer in convolutions)


def test_a_norm_chosen_as_frozen_is_frozen():
    """Imported networks have such necks; only the backbone's frozen norm is not inherited."""
    from detect.backbones.norm import FrozenBatchNorm2d

    neck = FPNOptions(channels=32, norm="frozen").build(LEVELS, "frozen")
    assert sum(isinstance(layer, FrozenBatchNorm2d) for layer in neck.modules()) == 6
