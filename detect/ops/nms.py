"""Greedy non-maximum suppression (NMS) of many padded lists at once, without data-dependent shapes.

Equal to `torchvision.ops.nms` on each list. On the CPU a compiled loop skips boxes that are already suppressed. On
other devices the result is the fixpoint of a matrix operation, which never synchronises with the GPU. There a box
may be kept wrongly if the chain of boxes that suppress each other is longer than `SWEEPS`.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from detect.ops.boxes import iou_matrix

# Sweep k decides every box whose chain of suppressors has length k or less; thousands of real boxes need under ten.
SWEEPS = 32


def nms(
    boxes: Float[Tensor, "*b n 4"],
    valid: Bool[Tensor, "*b n"],
    iou_threshold: float,
    groups: Int[Tensor, "*b n"] | None = None,
) -> Bool[Tensor, "*b n"]:
    """Return a mask of the boxes that survive NMS, for each list separately.

    Args:
        boxes: xyxy, sorted by **descending score** within each list.
        valid: False for padding and for boxes to ignore: they neither survive nor suppress others.
        iou_threshold: a box is suppressed if its IoU with a surviving box of higher score exceeds this.
        groups: boxes suppress each other only within a group, for example a class.
    """
    if groups is None:
        groups = torch.zeros_like(valid, dtype=torch.int64)
    boxes = boxes.detach().float()
    if boxes.device.type == "cpu":
        return _nms_cpu(boxes, valid, groups, iou_threshold)
    return _nms_fixpoint(boxes, valid, groups, iou_threshold)


def _nms_fixpoint(boxes: Tensor, valid: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """Iterate "a box is kept unless a kept box of higher score suppresses it", starting with all boxes kept."""
    suppresses = (iou_matrix(boxes, boxes) > iou_threshold) & (groups.unsqueeze(-1) == groups.unsqueeze(-2))
    suppresses = suppresses.triu_(diagonal=1)
    keep = valid
    for _ in range(SWEEPS):
        keep = valid & ~(suppresses & keep.unsqueeze(-1)).any(dim=-2)
    return keep


@torch.library.custom_op("detect::nms_cpu", mutates_args=(), device_types="cpu")
def _nms_cpu(boxes: Tensor, valid: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    shape = valid.shape
    lists, n = shape[:-1].numel(), shape[-1]
    x1, y1, x2, y2 = boxes.reshape(lists, n, 4).permute(2, 0, 1).contiguous().numpy()
    keep = valid.reshape(lists, n).clone(memory_format=torch.contiguous_format)
    groups = groups.reshape(lists, n).contiguous()
    _greedy(x1, y1, x2, y2, groups.numpy(), np.float32(iou_threshold), keep.numpy())
    return keep.reshape(shape)


@_nms_cpu.register_fake
def _(boxes: Tensor, valid: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    return torch.empty_like(valid)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _greedy(x1, y1, x2, y2, groups, threshold, keep):
    """Clear `keep` for suppressed boxes. The inner loop has no branches, so that it compiles to SIMD code."""
    zero = np.float32(0)
    for row in range(keep.shape[0]):
        kept, group = keep[row], groups[row]
        left, top, right, bottom = x1[row], y1[row], x2[row], y2[row]
        area = (right - left) * (bottom - top)
        for i in range(kept.size):
            if not kept[i]:
                continue
            for j in range(i + 1, kept.size):
                width = max(zero, min(right[i], right[j]) - max(left[i], left[j]))
                height = max(zero, min(bottom[i], bottom[j]) - max(top[i], top[j]))
                shared = width * height
                overlaps = shared / (area[i] + area[j] - shared) > threshold
                kept[j] &= not (overlaps & (group[i] == group[j]))
