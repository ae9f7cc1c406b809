"""IoUs of detections and ground truths, of boxes or of masks, equal to those of pycocotools to the last bit.

Only pairs that overlap are listed: most objects of an image do not, and it may have thousands of detections.

Letters: I1 images and one, D detections, G ground truths, P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numba
import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64
from pycocotools import mask as coco_mask

from detect.data.masks import RLE
from detect.ops.threads import in_threads


class Overlaps(NamedTuple):
    """Pairs of a detection and a ground truth of its image that overlap."""

    ranges: Int64[np.ndarray, "D 2"]
    """Detection d overlaps the ground truths `partners[ranges[d, 0] : ranges[d, 1]]`, in ascending order."""
    partners: Int32[np.ndarray, " P"]
    ious: Float64[np.ndarray, " P"]
    """IoU of each pair, above 0; with a crowd region, the share of the detection that lies in it."""


def overlaps_of_boxes(
    image_of: Int64[np.ndarray, " D"],
    boxes: Float64[np.ndarray, "D 4"],
    gt_starts: Int64[np.ndarray, " I1"],
    gt_boxes: Float64[np.ndarray, "G 4"],
    crowd: Bool[np.ndarray, " G"],
) -> Overlaps:
    """Find the pairs of boxes x, y, width, height that overlap.

    Args:
        image_of: index of each detection's image.
        boxes: boxes of the detections.
        gt_starts: image i has the ground truths `gt_starts[i] … gt_starts[i + 1] - 1`.
        gt_boxes: boxes of the ground truths.
        crowd: crowd regions among the ground truths.
    """
    counts = np.zeros(len(boxes), np.int64)
    in_threads(len(boxes), lambda first, last: _count(first, last, image_of, boxes, gt_starts, gt_boxes, counts))
    ranges = _ranges(counts)
    partners, ious = np.empty(counts.sum(), np.int32), np.empty(counts.sum())

    def work(first: int, last: int) -> None:
        _list(first, last, image_of, boxes, gt_starts, gt_boxes, crowd, ranges, partners, ious)

    in_threads(len(boxes), work)
    return Overlaps(ranges, partners, ious)


def overlaps_of_masks(
    image_of: Int64[np.ndarray, " D"],
    masks: Sequence[RLE],
    gt_starts: Int64[np.ndarray, " I1"],
    gt_masks: Sequence[RLE],
    crowd: Bool[np.ndarray, " G"],
) -> Overlaps:
    """Find the pairs of masks that overlap; arguments as of `overlaps_of_boxes`, but `image_of` ascends."""
    starts = np.searchsorted(image_of, np.arange(len(gt_starts)))
    counts, partners, ious = np.zeros(len(masks), np.int64), [np.empty(0, np.int32)], [np.empty(0)]
    for image in range(len(gt_starts) - 1):
        (first, last), (begin, end) = starts[image : image + 2], gt_starts[image : image + 2]
        if first == last or begin == end:
            continue
        of_image = [mask.coco() for mask in masks[first:last]], [mask.coco() for mask in gt_masks[begin:end]]
        table = coco_mask.iou(*of_image, crowd[begin:end].tolist())
        row, column = np.nonzero(table > 0)
        counts[first:last] = np.bincount(row, minlength=last - first)
        partners.append((begin + column).astype(np.int32))
        ious.append(table[row, column])
    return Overlaps(_ranges(counts), np.concatenate(partners), np.concatenate(ious))


def _ranges(counts: Int64[np.ndarray, " D"]) -> Int64[np.ndarray, "D 2"]:
    """Return begin and end of each detection's pairs."""
    ends = np.cumsum(counts)
    return np.stack([ends - counts, ends], axis=1)


@numba.njit(cache=True, nogil=True)
def overlap(box, gt_box, crowd):
    """Return the IoU of two boxes x, y, width, height, with the operations of pycocotools.

    If the ground truth is a crowd region, return the share of `box` that lies in it.
    """
    width = min(box[0] + box[2], gt_box[0] + gt_box[2]) - max(box[0], gt_box[0])
    height = min(box[1] + box[3], gt_box[1] + gt_box[3]) - max(box[1], gt_box[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared, area = width * height, box[2] * box[3]
    return shared / (area if crowd else area + gt_box[2] * gt_box[3] - shared)


@numba.njit(cache=True, nogil=True)
def _count(first, last, image_of, boxes, gt_starts, gt_boxes, counts):
    """Fill in the number of pairs of the detections `first` … `last` - 1: int64 [D]."""
    for d in range(first, last):
        for g in range(gt_starts[image_of[d]], gt_starts[image_of[d] + 1]):
            counts[d] += overlap(boxes[d], gt_boxes[g], False) > 0


@numba.njit(cache=True, nogil=True)
def _list(first, last, image_of, boxes, gt_starts, gt_boxes, crowd, ranges, partners, ious):
    """Fill in `partners` int32 [P] and `ious` float64 [P] of the detections `first` … `last` - 1."""
    for d in range(first, last):
        p = ranges[d, 0]
        for g in range(gt_starts[image_of[d]], gt_starts[image_of[d] + 1]):
            if overlap(boxes[d], gt_boxes[g], False) > 0:
                partners[p], ious[p] = g, overlap(boxes[d], gt_boxes[g], crowd[g])
                p += 1
