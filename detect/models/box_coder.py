"""Boxes as offsets from reference boxes (Girshick et al. 2014, R-CNN, Appendix C)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

# Maximum decoded log-scale: a box 62.5 times its reference. Keeps exp() finite in early training.
MAX_LOG_SCALE = math.log(1000 / 16)


@dataclass(frozen=True, slots=True)
class BoxCoder:
    """Encodes boxes as (dx, dy, dw, dh) relative to reference boxes, times `weights`, and decodes them."""

    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)

    def encode(self, boxes: Float[Tensor, "*b 4"], references: Float[Tensor, "*b 4"]) -> Float[Tensor, "*b 4"]:
        """Return the deltas from `references` to `boxes`; sides are at least a thousandth of a pixel."""
        centres, sides = _centre_form(boxes)
        reference_centres, reference_sides = _centre_form(references)
        wx, wy, ww, wh = self.weights
        x, y = (centres - reference_centres).unbind(-1)
        w, h = (sides / reference_sides).log().unbind(-1)
        rw, rh = reference_sides.unbind(-1)
        return torch.stack([wx * x / rw, wy * y / rh, ww * w, wh * h], dim=-1)

    def decode(self, deltas: Float[Tensor, "*b 4"], references: Float[Tensor, "*b 4"]) -> Float[Tensor, "*b 4"]:
        """Return the boxes that `deltas` describe relative to `references`, in float32."""
        # Each weight is a number: a tensor of weights would be copied to the GPU, which synchronises.
        dx, dy, dw, dh = (delta / weight for delta, weight in zip(deltas.float().unbind(-1), self.weights, strict=True))
        x1, y1, x2, y2 = references.float().unbind(-1)
        w, h = x2 - x1, y2 - y1
        cx, cy = dx * w + (x1 + 0.5 * w), dy * h + (y1 + 0.5 * h)
        half_w, half_h = 0.5 * w * dw.clamp(max=MAX_LOG_SCALE).exp(), 0.5 * h * dh.clamp(max=MAX_LOG_SCALE).exp()
        return torch.stack([cx - half_w, cy - half_h, cx + half_w, cy + half_h], dim=-1)


def _centre_form(boxes: Float[Tensor, "*b 4"]) -> tuple[Float[Tensor, "*b 2"], Float[Tensor, "*b 2"]]:
    """Return centres and sides, x before y. The minimum side keeps the unused deltas of padding boxes finite."""
    first, last = boxes[..., :2], boxes[..., 2:]
    sides = (last - first).clamp(min=1e-3)
    return first + 0.5 * sides, sides
