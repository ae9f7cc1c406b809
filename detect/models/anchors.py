"""Anchors: boxes of fixed sizes and aspect ratios at every cell of the feature maps (Ren et al. 2015, §3.1.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from detect.backbones.norm import may_keep

KEPT = 32
"""Sizes of canvases whose anchors are kept; a pyramid at 800 × 1333 pixels has 4 MB of them."""


class AnchorGenerator(nn.Module):
    """Anchors of all levels, concatenated, each level in the order row, column, shape.

    Args:
        strides: stride of each level in pixels.
        sizes: square roots of the anchors' areas in pixels, a tuple for each level. Feature pyramids have one size
            per level (Lin et al. 2017, §4.1), a single map has several.
        ratios: height over width, the same on all levels.
        offset: position of an anchor's centre in its cell: 0 is the corner, 0.5 the middle.
        rounded: round the shapes to whole pixels, as in torchvision.
        fitted: place the cells of a level ⌊side of the canvas / number of cells⌋ pixels apart, as torchvision does,
            instead of one stride apart. The two differ if the side is not a multiple of the stride: 13 cells at stride
            64 span 800 pixels.
    """

    def __init__(
        self,
        strides: Sequence[int],
        sizes: Sequence[Sequence[float]],
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
        offset: float = 0.0,
        rounded: bool = True,
        fitted: bool = False,
    ) -> None:
        super().__init__()
        if len(strides) != len(sizes):
            raise ValueError(f"{len(strides)} levels need as many tuples of anchor sizes, not {len(sizes)}")
        if len({len(level) for level in sizes}) != 1:
            raise ValueError("every level needs the same number of anchor sizes")
        self.strides = tuple(strides)
        self.offset, self.fitted = offset, fitted
        self._kept: dict[Any, Tensor] = {}
        self.per_cell = len(sizes[0]) * len(ratios)
        shapes = torch.stack([_shapes(level, ratios) for level in sizes])
        self.register_buffer("shapes", shapes.round() if rounded else shapes, persistent=False)

    shapes: Float[Tensor, "L k 4"]
    """Anchors of each level, centred on the origin."""

    def forward(self, features: Sequence[Float[Tensor, "B C _ _"]]) -> Float[Tensor, "A 4"]:
        """Return the anchors of these feature maps, xyxy in pixels of the canvas; some reach beyond it.

        On a GPU the anchors of the last `KEPT` sizes are kept, since computing them takes forty kernels.
        """
        sizes = tuple((level.shape[-2], level.shape[-1]) for level in features)
        if not self.shapes.is_cuda or not may_keep(self.shapes):
            return self._place(sizes)
        key = sizes, self.shapes.device
        if key not in self._kept:
            if len(self._kept) == KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = self._place(sizes)
        return self._kept[key]

    def _place(self, sizes: Sequence[tuple[int, int]]) -> Float[Tensor, "A 4"]:
        """Return the anchors of maps with these heights and widths."""
        canvas_height, canvas_width = (cells * self.strides[0] for cells in sizes[0])
        levels = []
        for (height, width), stride, shapes in zip(sizes, self.strides, self.shapes, strict=True):
            step_y, step_x = (canvas_height // height, canvas_width // width) if self.fitted else (stride, stride)
            y = (torch.arange(height, device=shapes.device) + self.offset) * step_y
            x = (torch.arange(width, device=shapes.device) + self.offset) * step_x
            y, x = torch.meshgrid(y, x, indexing="ij")
            centres = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4).float()
            levels.append((centres + shapes).reshape(-1, 4))
        return torch.cat(levels)


def _shapes(sizes: Sequence[float], ratios: Sequence[float]) -> Float[Tensor, "k 4"]:
    """Return anchors centred on the origin, ordered by ratio, then by size."""
    size = torch.tensor(sizes, dtype=torch.float32)
    root = torch.tensor(ratios, dtype=torch.float32).sqrt()[:, None]
    height, width = (root * size).flatten(), (size / root).flatten()
    return torch.stack([-width, -height, width, height], dim=-1) / 2
