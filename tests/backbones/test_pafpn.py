import pydantic
import pytest
import torch
from torch import nn

from detect.backbones import CSPDarknetOptions, FeatureInfo, LeNetOptions, PAFPNOptions, ResNetOptions
from detect.errors import UserError

LEVELS = {"c2": FeatureInfo(3, 4), "c3": FeatureInfo(5, 8), "c4": FeatureInfo(7, 16), "c5": FeatureInfo(9, 32)}
SMALL = PAFPNOptions(width=1 / 32)  # 8, 16 and 32 channels


def maps(images: int, height: int = 64, width: int = 96) -> dict[str, torch.Tensor]:
    return {
        name: torch.randn(images, info.channels, height // info.stride, width // info.stride)
        for name, info in LEVELS.items()
    }


@pytest.mark.parametrize("images", [0, 1, 2])
@pytest.mark.parametrize("depthwise", [False, True])
def test_levels_have_the_promised_channels_and_strides(images, depthwise):
    neck = PAFPNOptions(width=1 / 32, depthwise=depthwise).build(LEVELS, "batch").eval()
    assert neck.levels == (FeatureInfo(8, 8), FeatureInfo(16, 16), FeatureInfo(32, 32))
    assert [tuple(features.shape) for features in neck(maps(images))] == [
        (images, level.channels, 64 // level.stride, 96 // level.stride) for level in neck.levels
    ]


@torch.no_grad()
def test_the_ways_down_and_up_by_their_parts():
    neck = SMALL.build(LEVELS, "batch").eval()
    given = maps(1)
    up = nn.Upsample(scale_factor=2)
    reduced5 = neck.reduce[1](given["c5"])
    down4 = neck.top_down[1](torch.cat([up(reduced5), given["c4"]], dim=1))
    reduced4 = neck.reduce[0](down4)
    p3 = neck.top_down[0](torch.cat([up(reduced4), given["c3"]], dim=1))
    p4 = neck.bottom_up[0](torch.cat([neck.downsample[0](p3), reduced4], dim=1))
    p5 = neck.bottom_up[1](torch.cat([neck.downsample[1](p4), reduced5], dim=1))
    torch.testing.assert_close(neck(given), [p3, p4, p5])


def test_every_parameter_has_a_gradient():
    neck = SMALL.build(LEVELS, "batch")
    sum(features.square().sum() for features in neck(maps(2))).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in neck.parameters())


def test_its_input_is_left_alone():
    given = maps(1)
    before = {name: features.clone() for name, features in given.items()}
    SMALL.build(LEVELS, "batch").eval()(given)
    torch.testing.assert_close(given, before)


@pytest.mark.parametrize("network", [CSPDarknetOptions(), ResNetOptions(18), ResNetOptions(50)])
def test_it_runs_over_other_backbones(network):
    with torch.device("meta"):
        backbone, _ = network.build(multi_scale=True)
        neck = PAFPNOptions().build(backbone.levels, network.norm)
        pyramid = neck(backbone(torch.empty(2, 3, 96, 160)))
    assert [tuple(features.shape[1:]) for features in pyramid] == [(128, 12, 20), (256, 6, 10), (512, 3, 5)]


def test_a_backbone_without_the_strides_is_refused():
    with torch.device("meta"):
        backbone, _ = LeNetOptions().build(multi_scale=True)
    message = r"^neck: a pyramid needs maps at strides 8, 16 and so on, the backbone has 1, 2; choose another backbone$"
    with pytest.raises(UserError, match=message):
        PAFPNOptions().build(backbone.levels, "none")


def test_it_compiles_as_one_graph(unchecked):
    neck = SMALL.build(LEVELS, "batch").eval()
    given = maps(1)
    torch.testing.assert_close(torch.compile(neck, fullgraph=True, backend="eager")(given), neck(given))


@pytest.mark.parametrize("values", [{"width": 0.001}, {"depth": 0}, {"depth": 1e6}, {"name": "fpn"}, {"channels": 256}])
def test_options_are_checked(values):
    with pytest.raises(pydantic.ValidationError):
        PAFPNOptions(**values)
