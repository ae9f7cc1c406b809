"""Features of one size from regions of any size (Girshick 2015, §2.1; He et al. 2017, §3; Lin et al. 2017, §4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from math import log2
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torchvision.ops import roi_align, roi_pool

from detect.backbones import FeatureInfo
from detect.errors import UserError
from detect.ops.boxes import area
from detect.ops.roi_align import multilevel_roi_align
from detect.options import options

# Levels coarser than this serve the RPN alone.
COARSEST_STRIDE = 32
# A box of 224² pixels, ImageNet's image, belongs to the level of stride 16 (Lin et al. 2017, eq. 1).
CANONICAL_SIZE, CANONICAL_STRIDE = 224, 16


@options
class PoolingOptions:
    """How regions are pooled; their size is the trunk's.

    Args:
        kind: `align` averages bilinear samples (He et al. 2017), `pool` takes the maximum of rounded bins (Girshick
            2015; one feature map only).
        sampling_ratio: samples a bin along each side, for `align`; 0 as many as the bin has cells.
        aligned: shift the samples by half a cell, for `align`.
    """

    kind: Literal["align", "pool"] = "align"
    sampling_ratio: int = 2
    aligned: bool = False


class RegionPooling(nn.Module):
    """RoIPool or RoIAlign, from the pyramid's level that fits a box's size.

    Args:
        features: what the backbone gives.
        size: cells along each side of a pooled region.
        pooling: see there.
        scales: further maps that are given, of the image at so many times its size.
    """

    def __init__(
        self,
        features: Sequence[FeatureInfo],
        size: int,
        pooling: PoolingOptions | None = None,
        scales: Sequence[float] = (),
    ) -> None:
        super().__init__()
        pooling = pooling or PoolingOptions()
        self.strides: list[float] = [level.stride for level in features if level.stride <= COARSEST_STRIDE]
        if pooling.kind == "pool" and len(self.strides) > 1:
            raise UserError("model.pooling.kind: pool takes one feature map; with a feature pyramid choose align")
        if scales and len(self.strides) > 1:
            raise UserError("model.scales: a feature pyramid has scales of its own; leave them out")
        self.strides += [self.strides[0] / scale for scale in scales]
        self.size, self.options, self.of_images = size, pooling, bool(scales)

    def forward(
        self, features: Sequence[Float[Tensor, "B C _ _"]], boxes: Float[Tensor, "B S 4"]
    ) -> Float[Tensor, "N C p p"]:
        """The pooled regions, image after image, N = B · S; in training of several scales the first alone is there."""
        strides = self.strides[: len(features)]
        levels = self.levels(boxes) if len(strides) > 1 else torch.zeros_like(boxes[..., 0], dtype=torch.int64)
        if self.options.kind == "pool":
            return _roi_pool(features, strides, boxes, levels, self.size)
        return multilevel_roi_align(
            features[: len(strides)],
            strides,
            boxes,
            levels,
            self.size,
            self.options.sampling_ratio,
            self.options.aligned,
        )

    def levels(self, boxes: Float[Tensor, "B S 4"]) -> Int[Tensor, "B S"]:
        """The map of each box: one level coarser for twice the side (Lin et al. 2017, eq. 1).

        Of several sizes of the image that where the box is nearest to 224² pixels (Girshick 2015, §2.2).
        """
        if self.of_images:
            sides = (area(boxes).sqrt().clamp(min=1e-3) / CANONICAL_SIZE).log2()
            distances = [(sides - log2(stride / self.strides[0])).abs() for stride in self.strides]
            return torch.stack(distances).argmin(dim=0)
        # 1e-6: a side of exactly 112 or 448 must not fall a level for a rounding error.
        octave = torch.floor((area(boxes).sqrt() / CANONICAL_SIZE).log2() + 1e-6)
        place = octave + self.strides.index(CANONICAL_STRIDE)
        return place.clamp(0, len(self.strides) - 1).to(torch.int64)


@options
class CropOptions:
    """How R-CNN cuts proposals out of the image (Girshick et al. 2014, Appendix A; the numbers are its code's).

    Args:
        size: pixels along each side of a crop, whatever the proposal's shape.
        context: pixels of the crop, at each side, that show what is around the proposal.
        at_once: crops that go through the network together in prediction, which bounds the memory.
    """

    size: PositiveInt = 224
    context: NonNegativeInt = 16
    at_once: PositiveInt = 256


class Warp(nn.Module):
    """R-CNN's anisotropic warp: each proposal with its context, bilinear, as a crop of one size.

    Takes the normalised pixels as a feature map of stride 1. Beyond the image a crop is 0, which is the mean colour.
    """

    def __init__(self, crop: CropOptions) -> None:
        super().__init__()
        if 2 * crop.context >= crop.size:
            raise UserError(f"model.crop.context: {crop.context} on each side leave nothing of {crop.size} pixels")
        self.size, self.scale = crop.size, crop.size / (crop.size - 2 * crop.context)

    def forward(
        self, features: Sequence[Float[Tensor, "B 3 _ _"]], boxes: Float[Tensor, "B S 4"]
    ) -> Float[Tensor, "N 3 p p"]:
        """The crops, image after image, N = B · S."""
        centre, half = (boxes[..., :2] + boxes[..., 2:]) / 2, (boxes[..., 2:] - boxes[..., :2]) * (self.scale / 2)
        wide = torch.cat([centre - half, centre + half], dim=-1)
        # One sample a pixel, as the paper's code resizes: without averaging where the crop is smaller than the region.
        crops = roi_align(features[0].float(), _with_image(wide), self.size, sampling_ratio=1, aligned=True)
        return crops.to(features[0].dtype)


def _roi_pool(features: Sequence[Tensor], strides: Sequence[float], boxes: Tensor, levels: Tensor, size: int) -> Tensor:
    """From one map, or from that of each box's level."""
    regions, level = _with_image(boxes), levels.flatten()[:, None, None, None]
    # float32: in half precision a corner would move by several pixels, and the kernel takes one dtype.
    pooled = roi_pool(features[0].float().contiguous(), regions, size, 1 / strides[0])
    for place, (more, stride) in enumerate(zip(features[1:], strides[1:], strict=False), start=1):
        pooled = torch.where(level == place, roi_pool(more.float().contiguous(), regions, size, 1 / stride), pooled)
    return pooled.to(features[0].dtype)


def _with_image(boxes: Tensor) -> Tensor:
    """Rows of (place of the image in the batch, x1, y1, x2, y2)."""
    image = torch.arange(boxes.shape[0], device=boxes.device, dtype=boxes.dtype)[:, None, None]
    return torch.cat([image.expand(-1, boxes.shape[1], 1), boxes], dim=-1).flatten(0, 1)
