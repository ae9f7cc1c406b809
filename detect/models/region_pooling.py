"""Region pooling: RoIPool, RoIAlign, crops (Girshick 2015, §2.1; He et al. 2017, §3; Lin et al. 2017, §4.2)."""

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

# Coarser levels are for the RPN only.
COARSEST_STRIDE = 32
# A box of 224² pixels, the size of ImageNet's images, belongs to the level of stride 16 (Lin et al. 2017, eq. 1).
CANONICAL_SIZE, CANONICAL_STRIDE = 224, 16


@options
class PoolingOptions:
    """Options of region pooling; the box head determines the size of pooled regions.

    Args:
        kind: `align` averages bilinear samples (He et al. 2017), `pool` takes the maximum of rounded bins (Girshick
            2015; one feature map only).
        sampling_ratio: for `align`, samples along each side of a bin; 0 takes one per cell of the map.
        aligned: for `align`, shift the samples by half a cell.
    """

    kind: Literal["align", "pool"] = "align"
    sampling_ratio: int = 2
    aligned: bool = False


class RegionPooling(nn.Module):
    """RoIPool or RoIAlign from the pyramid level for each box's size.

    Args:
        levels: the feature maps.
        size: cells along each side of a pooled region.
        options: kind of pooling.
        scales: factors of further image sizes; each adds a feature map in prediction.
    """

    def __init__(
        self,
        levels: Sequence[FeatureInfo],
        size: int,
        options: PoolingOptions | None = None,
        scales: Sequence[float] = (),
    ) -> None:
        super().__init__()
        options = options or PoolingOptions()
        self.strides: list[float] = [level.stride for level in levels if level.stride <= COARSEST_STRIDE]
        if options.kind == "pool" and len(self.strides) > 1:
            raise UserError("pooling.kind: pool takes one feature map; with a feature pyramid choose align")
        if scales and len(self.strides) > 1:
            raise UserError("scales: a feature pyramid already has several scales; leave the option out")
        self.strides += [self.strides[0] / scale for scale in scales]
        self.size, self.options, self.multi_scale = size, options, bool(scales)

    def forward(
        self, features: Sequence[Float[Tensor, "B C _ _"]], boxes: Float[Tensor, "B S 4"]
    ) -> Float[Tensor, "N C p p"]:
        """Pool the regions, ordered by image, N = B · S. `features` may lack the maps of further image sizes."""
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
        """Return the index of each box's feature map: one level coarser for twice the side (Lin et al. 2017, eq. 1).

        With several image sizes: the map of the size at which the box is closest to 224² pixels (Girshick 2015, §2.2).
        """
        if self.multi_scale:
            sides = (area(boxes).sqrt().clamp(min=1e-3) / CANONICAL_SIZE).log2()
            distances = [(sides - log2(stride / self.strides[0])).abs() for stride in self.strides]
            return torch.stack(distances).argmin(dim=0)
        # 1e-6, so that rounding does not move a side of exactly 112 or 448 to the finer level.
        octave = torch.floor((area(boxes).sqrt() / CANONICAL_SIZE).log2() + 1e-6)
        level = octave + self.strides.index(CANONICAL_STRIDE)
        return level.clamp(0, len(self.strides) - 1).to(torch.int64)


@options
class CropOptions:
    """Options of R-CNN's crops (Girshick et al. 2014, Appendix A; the defaults are those of its code).

    Args:
        size: pixels along each side of a crop; the proposal's aspect ratio is not kept.
        context: pixels on each side of the crop that show the proposal's surroundings.
        batch_size: maximum number of crops in one pass of the network in prediction, to limit memory.
    """

    size: PositiveInt = 224
    context: NonNegativeInt = 16
    batch_size: PositiveInt = 256


class Warp(nn.Module):
    """R-CNN's anisotropic warp: each proposal with its context, resized bilinearly to one size.

    Its feature map is the normalised pixels, at stride 1. Outside of the image a crop is 0, the mean colour.
    """

    def __init__(self, crop: CropOptions) -> None:
        super().__init__()
        if 2 * crop.context >= crop.size:
            raise UserError(f"crop.context: {crop.context} on each side leave nothing of {crop.size} pixels; lower it")
        self.size, self.scale = crop.size, crop.size / (crop.size - 2 * crop.context)

    def forward(
        self, features: Sequence[Float[Tensor, "B 3 _ _"]], boxes: Float[Tensor, "B S 4"]
    ) -> Float[Tensor, "N 3 p p"]:
        """Crop the boxes, ordered by image, N = B · S."""
        centre, half = (boxes[..., :2] + boxes[..., 2:]) / 2, (boxes[..., 2:] - boxes[..., :2]) * (self.scale / 2)
        enlarged = torch.cat([centre - half, centre + half], dim=-1)
        # One sample per pixel, like the paper's code: no averaging if the crop is smaller than the region.
        crops = roi_align(features[0].float(), _with_image_index(enlarged), self.size, sampling_ratio=1, aligned=True)
        return crops.to(features[0].dtype)


def _roi_pool(features: Sequence[Tensor], strides: Sequence[float], boxes: Tensor, levels: Tensor, size: int) -> Tensor:
    """Pool from one map, or from the map of each box's level."""
    regions, level = _with_image_index(boxes), levels.flatten()[:, None, None, None]
    # float32: half precision would move corners by several pixels, and features and boxes must have one dtype.
    pooled = roi_pool(features[0].float().contiguous(), regions, size, 1 / strides[0])
    for index, (features_of_level, stride) in enumerate(zip(features[1:], strides[1:], strict=False), start=1):
        candidates = roi_pool(features_of_level.float().contiguous(), regions, size, 1 / stride)
        pooled = torch.where(level == index, candidates, pooled)
    return pooled.to(features[0].dtype)


def _with_image_index(boxes: Tensor) -> Tensor:
    """Return rows of (index of the image, x1, y1, x2, y2)."""
    image = torch.arange(boxes.shape[0], device=boxes.device, dtype=boxes.dtype)[:, None, None]
    return torch.cat([image.expand(-1, boxes.shape[1], 1), boxes], dim=-1).flatten(0, 1)
