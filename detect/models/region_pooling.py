"""Features of one size from regions of any size (Girshick 2015, §2.1; He et al. 2017, §3; Lin et al. 2017, §4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torchvision.ops import roi_pool

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
    """

    def __init__(self, features: Sequence[FeatureInfo], size: int, pooling: PoolingOptions | None = None) -> None:
        super().__init__()
        pooling = pooling or PoolingOptions()
        self.strides = [level.stride for level in features if level.stride <= COARSEST_STRIDE]
        if pooling.kind == "pool" and len(self.strides) > 1:
            raise UserError("model.pooling.kind: pool takes one feature map; with a feature pyramid choose align")
        self.size, self.options = size, pooling

    def forward(
        self, features: Sequence[Float[Tensor, "B C _ _"]], boxes: Float[Tensor, "B S 4"]
    ) -> Float[Tensor, "N C p p"]:
        """The pooled regions, image after image, N = B · S."""
        if self.options.kind == "pool":
            # float32: in half precision a corner would move by several pixels, and the kernel takes one dtype.
            pooled = roi_pool(features[0].float().contiguous(), _with_image(boxes), self.size, 1 / self.strides[0])
            return pooled.to(features[0].dtype)
        return multilevel_roi_align(
            features[: len(self.strides)],
            self.strides,
            boxes,
            self.levels(boxes),
            self.size,
            self.options.sampling_ratio,
            self.options.aligned,
        )

    def levels(self, boxes: Float[Tensor, "B S 4"]) -> Int[Tensor, "B S"]:
        """The place in the pyramid of each box: one level coarser for twice the side (Lin et al. 2017, eq. 1)."""
        if len(self.strides) == 1:
            return torch.zeros(boxes.shape[:-1], dtype=torch.int64, device=boxes.device)
        # 1e-6: a side of exactly 112 or 448 must not fall a level for a rounding error.
        octave = torch.floor((area(boxes).sqrt() / CANONICAL_SIZE).log2() + 1e-6)
        place = octave + self.strides.index(CANONICAL_STRIDE)
        return place.clamp(0, len(self.strides) - 1).to(torch.int64)


def _with_image(boxes: Tensor) -> Tensor:
    """Rows of (place of the image in the batch, x1, y1, x2, y2)."""
    image = torch.arange(len(boxes), device=boxes.device, dtype=boxes.dtype)[:, None, None]
    return torch.cat([image.expand(-1, boxes.shape[1], 1), boxes], dim=-1).flatten(0, 1)
