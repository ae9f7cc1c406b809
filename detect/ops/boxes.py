"""Functions on boxes: tensors of xyxy in absolute pixels, float32, with x2 and y2 exclusive (no "+1")."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def area(boxes: Float[Tensor, "*b 4"]) -> Float[Tensor, "*b"]:
    """Return width times height in square pixels; zero for an inverted box."""
    width, height = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).unbind(-1)
    return width * height


def intersection_matrix(a: Float[Tensor, "*b n 4"], b: Float[Tensor, "*b m 4"]) -> Float[Tensor, "*b n m"]:
    """Return the intersection area of each box of `a` with each box of `b`, in square pixels."""
    ax1, ay1, ax2, ay2 = a.unsqueeze(-2).unbind(-1)
    bx1, by1, bx2, by2 = b.unsqueeze(-3).unbind(-1)
    # Each coordinate separately, so that the temporaries are n × m instead of n × m × 2.
    width = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp_(min=0)
    height = (torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).clamp_(min=0)
    return width.mul_(height)


def iou_matrix(a: Float[Tensor, "*b n 4"], b: Float[Tensor, "*b m 4"]) -> Float[Tensor, "*b n m"]:
    """Return the IoU of each box of `a` with each box of `b`; zero if both are empty."""
    intersection = intersection_matrix(a, b)
    union = area(a).unsqueeze(-1) + area(b).unsqueeze(-2) - intersection
    return intersection / union.clamp_(min=torch.finfo(union.dtype).tiny)


def paired_iou(a: Float[Tensor, "*b 4"], b: Float[Tensor, "*b 4"]) -> Float[Tensor, "*b"]:
    """Return the IoU of each box of `a` with the box of `b` in its place; zero if both are empty."""
    corners = torch.cat([torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])], dim=-1)
    intersection = area(corners)
    union = area(a) + area(b) - intersection
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny)


def clip(boxes: Float[Tensor, "B n 4"], sizes: Int[Tensor, "B 2"]) -> Float[Tensor, "B n 4"]:
    """Clip boxes to their image; `sizes` holds heights and widths."""
    limits = sizes.to(boxes.dtype).flip(-1).repeat(1, 2)[:, None]
    return torch.minimum(boxes.clamp(min=0), limits)


def large_enough(boxes: Float[Tensor, "*b 4"], min_size: float) -> Bool[Tensor, "*b"]:
    """Return a mask of the boxes whose sides are both at least `min_size` pixels long."""
    return ((boxes[..., 2:] - boxes[..., :2]) >= min_size).all(dim=-1)


def gather_boxes(boxes: Float[Tensor, "B n 4"], indices: Int[Tensor, "B m"]) -> Float[Tensor, "B m 4"]:
    """Gather the boxes, or deltas, at the given indices of each image."""
    return boxes.gather(1, indices.unsqueeze(-1).expand(-1, -1, 4))
