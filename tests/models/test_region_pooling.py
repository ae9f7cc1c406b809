from collections import OrderedDict

import pytest
import torch
import torchvision.ops
from torchvision.ops.poolers import LevelMapper

from detect.backbones import FeatureInfo
from detect.errors import UserError
from detect.models.region_pooling import PoolingOptions, RegionPooling

HEIGHT, WIDTH, CHANNELS = 128, 192, 6
PYRAMID = tuple(FeatureInfo(CHANNELS, stride) for stride in (4, 8, 16, 32, 64))
SINGLE = (FeatureInfo(CHANNELS, 16),)


def maps(levels, images: int = 2) -> list[torch.Tensor]:
    return [torch.randn(images, CHANNELS, HEIGHT // info.stride, WIDTH // info.stride) for info in levels]


def random_boxes(*shape: int) -> torch.Tensor:
    corners = torch.rand(*shape, 2, 2) * torch.tensor([WIDTH, HEIGHT])
    return torch.cat([corners.amin(dim=-2), corners.amax(dim=-2)], dim=-1)


def test_levels_by_hand():
    # Lin et al. 2017, eq. 1: 224² pixels belong to P4, of stride 16; half the side one level finer.
    sides = torch.tensor([0.0, 1, 55.9, 56, 111.9, 112, 223.9, 224, 447.9, 448, 5000])
    boxes = torch.stack([torch.zeros(11), torch.zeros(11), sides, sides], dim=-1)[None]
    levels = RegionPooling(PYRAMID, 7).levels(boxes)
    assert levels.tolist() == [[0, 0, 0, 0, 0, 1, 1, 2, 2, 3, 3]]


def test_levels_are_torchvisions():
    boxes = random_boxes(1, 2000) * torch.tensor(6.0)
    assert torch.equal(RegionPooling(PYRAMID, 7).levels(boxes), LevelMapper(2, 5)([boxes[0]])[None])


@pytest.mark.parametrize(("images", "regions"), [(1, 0), (1, 1), (2, 40)])
def test_pyramid_is_torchvisions(images, regions):
    # Small boxes stay on the finest level: a larger image has boxes for all four.
    features, boxes = [level.repeat(1, 1, 6, 6) for level in maps(PYRAMID, images)], random_boxes(images, regions) * 6
    pooled = RegionPooling(PYRAMID, 7)(features, boxes)
    theirs = torchvision.ops.MultiScaleRoIAlign(["0", "1", "2", "3"], 7, sampling_ratio=2)
    named = OrderedDict((str(i), level) for i, level in enumerate(features))
    expected = theirs(named, list(boxes), [(HEIGHT * 6, WIDTH * 6)] * images)
    torch.testing.assert_close(pooled, expected, atol=1e-5, rtol=0)
    if regions > 1:
        assert len(RegionPooling(PYRAMID, 7).levels(boxes).unique()) == 4


@pytest.mark.parametrize(("images", "regions"), [(1, 0), (1, 1), (2, 20)])
@pytest.mark.parametrize("kind", ["align", "pool"])
def test_one_map_is_torchvisions(kind, images, regions):
    features, boxes = maps(SINGLE, images), random_boxes(images, regions)
    pooled = RegionPooling(SINGLE, 7, PoolingOptions(kind))(features, boxes)
    if kind == "align":
        expected = torchvision.ops.roi_align(features[0], list(boxes), 7, 1 / 16, 2)
    else:
        expected = torchvision.ops.roi_pool(features[0], list(boxes), 7, 1 / 16)
    torch.testing.assert_close(pooled, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["align", "pool"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_values_but_not_places(kind, dtype):
    features, boxes = [level.to(dtype) for level in maps(SINGLE)], random_boxes(2, 20)
    pooling = RegionPooling(SINGLE, 7, PoolingOptions(kind))
    pooled = pooling(features, boxes)
    assert pooled.dtype == dtype
    assert torch.equal(pooled, pooling([level.float() for level in features], boxes).to(dtype))


def test_roi_pool_of_a_pyramid_is_refused():
    with pytest.raises(UserError, match="with a feature pyramid choose align"):
        RegionPooling(PYRAMID, 7, PoolingOptions("pool"))
