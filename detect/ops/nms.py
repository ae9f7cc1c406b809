"""Greedy non-maximum suppression (NMS) of many padded lists at once, without data-dependent shapes.

Equal to `torchvision.ops.nms` on each list. On the CPU a compiled loop skips boxes that are already suppressed. On CUDA
two Triton kernels compute it without waiting. On other devices, and where Triton is missing, blocks of boxes are
compared with all later ones; each block waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from detect.ops.boxes import iou_matrix
from detect.ops.triton_kernels import has_triton

BLOCK_PAIRS = 2**24
"""Maximum number of pairs of boxes that are compared at once without Triton: 64 MB for each temporary tensor."""


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
    boxes = boxes.detach().float()
    if boxes.is_cuda and has_triton():
        return _nms_triton(boxes, valid, groups, iou_threshold)
    if groups is None:
        groups = torch.zeros_like(valid, dtype=torch.int64)
    if boxes.device.type == "cpu":
        return _nms_cpu(boxes, valid, groups, iou_threshold)
    return _nms_in_blocks(boxes, valid, groups, iou_threshold)


def nms_of_parts(
    boxes: Float[Tensor, "B n 4"], valid: Bool[Tensor, "B n"], iou_threshold: float, lengths: Sequence[int]
) -> Bool[Tensor, "B n"]:
    """Return a mask of the boxes that survive NMS within parts of each row, for example the levels of a pyramid.

    Args:
        boxes: xyxy, sorted by descending score within each part.
        valid: as for `nms`.
        iou_threshold: as for `nms`.
        lengths: number of boxes of each part, in order; their sum is n.
    """
    parts = list(zip(boxes.split(lengths, dim=1), valid.split(lengths, dim=1), strict=True))
    if boxes.device.type == "cpu" or len(parts) == 1:
        return torch.cat([nms(*part, iou_threshold) for part in parts], dim=1)
    return _nms_in_one_call(parts, iou_threshold)


def _nms_in_one_call(parts: Sequence[tuple[Tensor, Tensor]], iou_threshold: float) -> Tensor:
    """Return the same for all parts padded to one length, by a few operations on a GPU."""
    lengths = [valid.shape[1] for _, valid in parts]
    padded = [F.pad(boxes, (0, 0, 0, max(lengths) - boxes.shape[1])) for boxes, _ in parts]
    padding = [F.pad(valid, (0, max(lengths) - valid.shape[1])) for _, valid in parts]
    keep = nms(torch.stack(padded, dim=1), torch.stack(padding, dim=1), iou_threshold)
    return torch.cat([part[:, :length] for part, length in zip(keep.unbind(1), lengths, strict=True)], dim=1)


@torch.library.custom_op(
    "detect::nms_triton",
    mutates_args=(),
    device_types="cuda",
    schema="(Tensor boxes, Tensor valid, Tensor? groups, float iou_threshold) -> Tensor",
)
def _nms_triton(boxes: Tensor, valid: Tensor, groups: Tensor | None, iou_threshold: float) -> Tensor:
    from detect.ops.nms_triton import launch

    lists = valid.flatten(0, -2) if valid.ndim > 1 else valid[None]
    of_lists = None if groups is None else groups.reshape(lists.shape)
    return launch(boxes.reshape(*lists.shape, 4), lists, iou_threshold, of_lists).view(valid.shape)


@torch.library.custom_op("detect::nms_in_blocks", mutates_args=())
def _nms_in_blocks(boxes: Tensor, valid: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    keep = valid.clone(memory_format=torch.contiguous_format)
    n = valid.shape[-1]
    step = max(1, BLOCK_PAIRS // max(1, valid.numel()))
    for start in range(0, n, step):
        block = slice(start, start + step)
        overlaps = iou_matrix(boxes[..., block, :], boxes[..., start:, :]) > iou_threshold
        overlaps &= groups[..., block, None] == groups[..., None, start:]
        overlaps.triu_(diagonal=1)
        within, candidates = overlaps[..., : overlaps.shape[-2]], keep[..., block].clone()
        # A box is kept unless a kept box suppresses it; each step decides at least one more box of a chain.
        before = torch.zeros_like(candidates)
        while not torch.equal(before, kept := keep[..., block]):
            before = kept.clone()
            keep[..., block] = candidates & ~(within & before[..., None]).any(dim=-2)
        keep[..., start:] &= ~(overlaps & keep[..., block, None]).any(dim=-2)
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


@_nms_triton.register_fake
@_nms_in_blocks.register_fake
@_nms_cpu.register_fake
def _(boxes: Tensor, valid: Tensor, groups: Tensor | None, iou_threshold: float) -> Tensor:
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
