"""Mean average precision of the PASCAL VOC challenge (Everingham et al. 2010, §3.4.1, and the VOC2007 devkit).

The devkit's boxes include their last pixel, hence the "+1" in its widths. Boxes here begin one pixel earlier (x1 =
xmin - 1) and end at the same number, so that x2 - x1 is the devkit's width, and the IoUs are equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64

from detect.data.dataset import Dataset
from detect.evaluation.coco import Prediction, by_image
from detect.ops.boxes import iou_matrix


@dataclass(frozen=True, slots=True)
class _Detections:
    """Detections of all images, each with the ground truth of its class with the highest IoU."""

    scores: Float[np.ndarray, " d"]
    labels: Int64[np.ndarray, " d"]
    ground_truths: Int64[np.ndarray, " d"]
    """Index among the ground truths of all images; meaningless if the IoU is 0."""
    ious: Float64[np.ndarray, " d"]


def evaluate_voc(dataset: Dataset, predictions: Sequence[Prediction], *, iou_threshold: float = 0.5) -> dict[str, Any]:
    """Compute both forms of VOC's mAP, in 0 … 1; None without ground truths.

    A detection matches the ground truth of its class with the highest IoU. It is correct if the IoU is at least
    `iou_threshold` and no detection with a higher score matched that ground truth. Difficult objects and crowd regions
    are ignored: they need not be detected, and detections that match them are not wrong. Equal scores keep the order of
    the images.

    Returns:
        `VOC07`, the mean precision at the recalls 0, 0.1 … 1, as until 2009, and `VOC`, the area under the curve, as
        from 2010 on. Each has `mAP`, the mean over the classes that have ground truths, and `per_class` by name.

    Raises:
        ValueError: an image is not in the data set, or was predicted twice.
    """
    detections = _highest_ious(dataset, by_image(predictions, dataset))
    labels = np.concatenate([np.empty(0, np.int64), *(record.labels for record in dataset.records)])
    ignored = np.concatenate([np.empty(0, bool), *(record.difficult | record.crowd for record in dataset.records)])
    rules = {"VOC07": _eleven_points, "VOC": _area_under_curve}
    per_class: dict[str, dict[str, float | None]] = {rule: {} for rule in rules}
    for label, name in enumerate(dataset.classes):
        positives = int(np.sum((labels == label) & ~ignored))
        correct = _correct(detections, label, ignored, iou_threshold)
        for rule, average in rules.items():
            per_class[rule][name] = average(correct, positives) if positives else None
    return {rule: {"mAP": _mean(metrics), "per_class": metrics} for rule, metrics in per_class.items()}


def _highest_ious(dataset: Dataset, predictions: dict[int, Prediction]) -> _Detections:
    parts = [(np.empty(0, np.float32), np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))]
    first = 0
    for record in dataset.records:
        if prediction := predictions.get(record.id):
            both = (torch.from_numpy(boxes.astype(np.float64)) for boxes in (prediction.boxes, record.boxes))
            iou = np.where(prediction.labels[:, None] == record.labels, iou_matrix(*both).numpy(), 0.0)
            iou = np.pad(iou, ((0, 0), (0, 1)))  # a last column of zeros, for images without ground truths
            parts.append((prediction.scores, prediction.labels, first + iou.argmax(axis=1), iou.max(axis=1)))
        first += len(record.labels)
    return _Detections(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _correct(
    detections: _Detections, label: int, ignored: Bool[np.ndarray, " n"], iou_threshold: float
) -> Bool[np.ndarray, " d"]:
    """Return a mask of the correct detections of a class, highest scores first; ignored detections are left out."""
    chosen = np.flatnonzero(detections.labels == label)
    chosen = chosen[np.argsort(-detections.scores[chosen], kind="stable")]
    # An IoU of 0 is no match, not even for a threshold of 0: such a detection has no ground truth.
    is_match = (detections.ious[chosen] >= iou_threshold) & (detections.ious[chosen] > 0)
    matched = np.where(is_match, detections.ground_truths[chosen], -1)
    matched = matched[~np.append(ignored, False)[matched]]  # -1 selects the appended False
    correct = np.zeros(len(matched), dtype=bool)
    correct[np.unique(matched, return_index=True)[1]] = True  # the first detection of each ground truth
    return correct & (matched >= 0)


def _eleven_points(correct: Bool[np.ndarray, " d"], positives: int) -> float:
    """Return the mean over the recalls 0, 0.1 … 1 of the highest precision at that recall or above.

    Recalls are compared as integers. The devkit compares floats, in which 3 of 10 is less than its 0.3.
    """
    hits = np.cumsum(correct)
    precision = hits / np.arange(1, len(correct) + 1)
    return float(np.mean([precision[10 * hits >= tenths * positives].max(initial=0.0) for tenths in range(11)]))


def _area_under_curve(correct: Bool[np.ndarray, " d"], positives: int) -> float:
    """Return the area under the precision-recall curve, with precision made monotonically decreasing."""
    precision = np.cumsum(correct) / np.arange(1, len(correct) + 1)
    interpolated = np.maximum.accumulate(precision[::-1])[::-1]
    return float(interpolated[correct].sum() / positives)  # recall grows by 1 / positives at each correct detection


def _mean(metrics: dict[str, float | None]) -> float | None:
    known = [value for value in metrics.values() if value is not None]
    return float(np.mean(known)) if known else None
