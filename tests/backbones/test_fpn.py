import pytest
import torch
from torch import nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from detect.backbones.fpn import FPN


def maps(images: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(images, channels, 12 // stride, 8 // stride, generator=generator)
        for channels, stride in ((3, 1), (5, 2), (7, 4))
    ]


def test_one_level_by_hand():
    fpn = FPN([1, 1], channels=1)
    for lateral in fpn.lateral:
        nn.init.ones_(lateral[0].weight)
    for output in fpn.output:
        nn.init.dirac_(output[0].weight)
    fine, coarse = torch.arange(4.0).view(1, 1, 2, 2), torch.tensor([[[[10.0]]]])

    p2, p3, p4 = fpn([fine, coarse])
    assert p2.flatten().tolist() == [10, 11, 12, 13]
    assert p3.flatten().tolist() == [10]
    assert p4.flatten().tolist() == [10]


@pytest.mark.parametrize(("norm", "layer"), [(None, None), ("batch", nn.BatchNorm2d)])
@pytest.mark.parametrize("images", [0, 1, 2])
def test_fpn_is_torchvisions(norm, layer, images):
    ours = FPN([3, 5, 7], channels=4, norm=norm).eval()
    theirs = FeaturePyramidNetwork([3, 5, 7], 4, LastLevelMaxPool(), layer).eval()
    theirs.load_state_dict(
        {
            key.replace("lateral", "inner_blocks").replace("output", "layer_blocks"): value
            for key, value in ours.state_dict().items()
        }
    )
    expected = theirs({str(level): features for level, features in enumerate(maps(images))}).values()
    torch.testing.assert_close(ours(maps(images)), list(expected))


def test_fpn_is_initialised_like_torchvisions():
    torch.manual_seed(0)
    convolution = FPN([512], channels=256).lateral[0][0]
    limit = (3 / 512) ** 0.5
    assert limit * 0.99 < convolution.weight.max() <= limit
    assert not convolution.bias.any()


def test_with_a_norm_there_is_no_bias():
    assert all(lateral[0].bias is None for lateral in FPN([3, 5], channels=32, norm="group").lateral)


def test_fpn_leaves_its_input_alone():
    given = maps()
    before = [features.clone() for features in given]
    FPN([3, 5, 7], channels=4)(given)
    torch.testing.assert_close(given, before)
