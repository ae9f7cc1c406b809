"""Agreement of the boundaries of masks: Boundary IoU (Cheng et al. 2021, "Boundary IoU", §4).

The IoU of two large masks hardly depends on their boundaries, where masks differ. Boundary IoU compares only the pixels
of each mask that are near its contour: within 2 % of the diagonal of the image. Small masks consist of such pixels
only, and their Boundary IoU is their IoU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from detect.data.dataset import Dataset
from detect.data.masks import RLE, Bitmap
from detect.data.records import Record
from detect.evaluation.coco import Prediction, by_image
from detect.evaluation.flat import FlatDetections, FlatGroundTruths
from detect.evaluation.matching import Matches

DISTANCE = 0.02
"""Maximum distance of a boundary's pixels from the contour, as a part of the diagonal of the image."""


@dataclass(frozen=True, slots=True)
class MaskPair:
    """A detection and its ground truth, whose masks have an IoU of at least 0.5."""

    record: Record
    prediction: Prediction
    ground_truth: int
    """Index in the record."""
    detection: int
    """Index in the prediction."""
    iou: float
    boundary_iou: float


def compare_boundaries(
    dataset: Dataset,
    predictions: Sequence[Prediction],
    ground_truths: FlatGroundTruths,
    detections: FlatDetections,
    matches: Matches,
) -> list[MaskPair]:
    """Return the pairs of masks that match at the first IoU threshold, 0.50, in the order of the image ids.

    Args:
        dataset: images with their ground truths.
        predictions: at most one per image, with masks.
        ground_truths: the same as flat arrays, with masks.
        detections: the same as flat arrays.
        matches: result of `match` for them.
    """
    records = sorted(dataset.records, key=lambda record: record.id)
    predicted = by_image(predictions, dataset)
    pairs = []
    for d in np.flatnonzero(matches.hits[0]).tolist():
        g, image, detection = int(matches.ground_truths[0, d]), detections.image_of[d], int(detections.indices[d])
        record = records[image]
        prediction = predicted[record.id]
        assert ground_truths.masks is not None and prediction.masks is not None
        distance = boundary_distance(record.height, record.width)
        bitmaps = _windows(ground_truths.masks[g], prediction.masks[detection])
        ious = mask_iou(*bitmaps), boundary_iou(*bitmaps, distance)
        pairs.append(MaskPair(record, prediction, g - int(ground_truths.starts[image]), detection, *ious))
    return pairs


def boundary_distance(height: int, width: int) -> int:
    """Return `DISTANCE` in an image of this size, in pixels, at least 1."""
    return max(1, round(DISTANCE * float(np.hypot(height, width))))


def boundary(bitmap: Bitmap, distance: int) -> Bitmap:
    """Return the pixels of a mask that are at most `distance` from a pixel outside of it, or of the bitmap."""
    square = np.ones((3, 3), np.uint8)
    inner = cv2.erode(bitmap, square, iterations=distance, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return bitmap - inner


def boundary_iou(a: Bitmap, b: Bitmap, distance: int) -> float:
    """Return the Boundary IoU of two masks; 0 if both are empty."""
    return mask_iou(boundary(a, distance), boundary(b, distance))


def mask_iou(a: Bitmap, b: Bitmap) -> float:
    """Return the IoU of two masks; 0 if both are empty."""
    return cv2.countNonZero(a & b) / max(cv2.countNonZero(a | b), 1)


def _windows(a: RLE, b: RLE) -> tuple[Bitmap, Bitmap]:
    """Return two masks of an image in the smallest window with all of their pixels."""
    boxes = coco_mask.toBbox([a.coco(), b.coco()]).astype(int)
    left, top = boxes[:, :2].min(axis=0)
    right, bottom = (boxes[:, :2] + boxes[:, 2:]).max(axis=0)
    whole = (mask.bitmap(mask.height, mask.width) for mask in (a, b))
    first, second = (np.ascontiguousarray(bitmap[top:bottom, left:right]) for bitmap in whole)
    return first, second
