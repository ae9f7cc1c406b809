"""Mean average precision of the PASCAL VOC challenge (Everingham et al. 2010, §3.4.1, and the VOC2007 devkit).

The devkit's boxes hold their last pixel, hence the "+1" in its widths. Ours begin one pixel earlier (x1 = xmin - 1) and
end at the same number, so that x2 - x1 is the devkit's width already, and the overlaps are the same.
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
class _Matches:
    """All detections of all images, each with the truth of its class that it overlaps most."""

    scores: Float[np.ndarray, " d"]
    labels: Int64[np.ndarray, " d"]
    truths: Int64[np.ndarray, " d"]
    """The truth's number among those of all images; without meaning where the overlap is 0."""
    overlaps: Float64[np.ndarray, " d"]


def evaluate_voc(dataset: Dataset, predictions: Sequence[Prediction], *, iou: float = 0.5) -> dict[str, Any]:
    """VOC's mAP in both of its forms, in 0 … 1, or None where there is no truth.

    A detection belongs to the truth of its class that it overlaps most. It is right if the overlap is at least `iou`
    and no detection of a higher score took that truth before. Difficult truths, and crowd regions, count neither way:
    they are not missed, and what belongs to them is no mistake. Equal scores keep the order of the images.

    Returns:
        `VOC07`: the precision averaged over the recalls 0, 0.1 … 1, as until 2009; `VOC`: the area under the curve, as
        from 2010 on. Each holds `mAP`, the mean over the classes that have truths, and `per_class` by name.

    Raises:
        ValueError: an unknown image, or one that was predicted twice.
    """
    matches = _match(dataset, by_image(predictions, dataset))
    labels = np.concatenate([np.empty(0, np.int64), *(record.labels for record in dataset.records)])
    excused = np.concatenate([np.empty(0, bool), *(record.difficult | record.crowd for record in dataset.records)])
    rules = {"VOC07": _eleven_points, "VOC": _area}
    per_class: dict[str, dict[str, float | None]] = {rule: {} for rule in rules}
    for label, name in enumerate(dataset.classes):
        positives = int(np.sum((labels == label) & ~excused))
        right = _right(matches, label, excused, iou)
        for rule, average in rules.items():
            per_class[rule][name] = average(right, positives) if positives else None
    return {rule: {"mAP": _mean(figures), "per_class": figures} for rule, figures in per_class.items()}


def _match(dataset: Dataset, predictions: dict[int, Prediction]) -> _Matches:
    parts = [(np.empty(0, np.float32), np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))]
    first = 0
    for record in dataset.records:
        if one := predictions.get(record.id):
            both = (torch.from_numpy(boxes.astype(np.float64)) for boxes in (one.boxes, record.boxes))
            iou = np.where(one.labels[:, None] == record.labels, iou_matrix(*both).numpy(), 0.0)
            iou = np.pad(iou, ((0, 0), (0, 1)))  # a last column of zeros, for images without truths
            parts.append((one.scores, one.labels, first + iou.argmax(axis=1), iou.max(axis=1)))
        first += len(record.labels)
    return _Matches(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _right(matches: _Matches, label: int, excused: Bool[np.ndarray, " n"], iou: float) -> Bool[np.ndarray, " d"]:
    """Whether each detection of a class is right, best first; those that belong to an excused truth are left out."""
    chosen = np.flatnonzero(matches.labels == label)
    chosen = chosen[np.argsort(-matches.scores[chosen], kind="stable")]
    # An overlap of nothing is no hit, even for iou = 0: such a detection has no truth.
    hit = (matches.overlaps[chosen] >= iou) & (matches.overlaps[chosen] > 0)
    truths = np.where(hit, matches.truths[chosen], -1)
    counted = ~np.append(excused, False)[truths]  # -1 finds the appended False
    truths = truths[counted]
    right = np.zeros(len(truths), dtype=bool)
    right[np.unique(truths, return_index=True)[1]] = True  # the first detection of each truth
    return right & (truths >= 0)


def _eleven_points(right: Bool[np.ndarray, " d"], positives: int) -> float:
    """The mean over the recalls 0, 0.1 … 1 of the best precision at that recall or beyond.

    Recalls are compared as whole numbers. The devkit compares floats, and so takes 3 of 10 for less than its 0.3.
    """
    hits = np.cumsum(right)
    precision = hits / np.arange(1, len(right) + 1)
    return float(np.mean([precision[10 * hits >= tenths * positives].max(initial=0.0) for tenths in range(11)]))


def _area(right: Bool[np.ndarray, " d"], positives: int) -> float:
    """The area under the curve of precision over recall, made to fall monotonically."""
    precision = np.cumsum(right) / np.arange(1, len(right) + 1)
    best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    return float(best_from_here[right].sum() / positives)  # the recall grows by 1 / positives at each right detection


def _mean(figures: dict[str, float | None]) -> float | None:
    known = [figure for figure in figures.values() if figure is not None]
    return float(np.mean(known)) if known else None
