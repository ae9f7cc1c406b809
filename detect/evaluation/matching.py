"""COCO's matching of detections to ground truths, and precision-recall curves (Lin et al. 2014).

The results equal those of pycocotools to the last bit, ties included. Any subset of the ground truths can be ignored,
as pycocotools does for small, medium and large objects.

Letters: I images, D detections, G ground truths, C classes, T IoU thresholds, R recall thresholds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from jaxtyping import Bool, Float64, Int32

from detect.evaluation.flat import FlatDetections, FlatGroundTruths
from detect.ops.threads import in_threads

IOU_THRESHOLDS: Float64[np.ndarray, " T"] = np.linspace(0.5, 0.95, 10)
RECALL_THRESHOLDS: Float64[np.ndarray, " R"] = np.linspace(0.0, 1.0, 101)
MAX_DETECTIONS = 100
"""Number of evaluated detections per class and image, with the highest scores."""
AREA_RANGES = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
"""COCO's object sizes in square pixels; both ends are inclusive."""


@dataclass(frozen=True, slots=True)
class Matches:
    """Matched ground truth of each detection, at each IoU threshold."""

    ground_truths: Int32[np.ndarray, "T D"]
    """Index of the matched ground truth, or -1."""
    ignored: Bool[np.ndarray, "T D"]
    """Detections that count as neither correct nor wrong."""
    positives: Bool[np.ndarray, " G"]
    """Ground truths that are not ignored."""

    @property
    def hits(self) -> Bool[np.ndarray, "T D"]:
        """True positives."""
        return (self.ground_truths >= 0) & ~self.ignored


@dataclass(frozen=True, slots=True)
class PrecisionRecall:
    """Precision-recall curves of each class; -1 for a class without ground truths."""

    precision: Float64[np.ndarray, "T R C"]
    """Highest precision at each of `RECALL_THRESHOLDS` or above."""
    recall: Float64[np.ndarray, "T C"]
    """Highest recall."""
    scores: Float64[np.ndarray, "T R C"]
    """Score threshold at each recall; 0 if the recall is not reached."""


def match(
    ground_truths: FlatGroundTruths,
    detections: FlatDetections,
    ignored_gt: Bool[np.ndarray, " G"] | None = None,
    outside: Bool[np.ndarray, " D"] | None = None,
    iou_thresholds: Float64[np.ndarray, " T"] = IOU_THRESHOLDS,
) -> Matches:
    """Match detections to ground truths by COCO's rules, at each IoU threshold.

    In each image and class the `MAX_DETECTIONS` highest scores are matched in descending order. Each takes the free
    ground truth with the highest IoU, the last one among equals. Without such a ground truth it may match an ignored
    one, and is then ignored, too. A crowd region matches any number of detections, by the share of their area in it.

    Args:
        ground_truths: ground truths of all images.
        detections: detections of all images.
        ignored_gt: ground truths to ignore in addition to crowd regions.
        outside: detections to ignore if they are not matched.
        iou_thresholds: IoU thresholds above 0, ascending.
    """
    ignored_gt = ground_truths.crowd if ignored_gt is None else ground_truths.crowd | ignored_gt
    thresholds = np.minimum(iou_thresholds, 1 - 1e-10)
    matched = np.full((len(thresholds), len(detections.labels)), -1, np.int32)

    def work(first: int, last: int) -> None:
        _match(first, last, detections.arrays, ground_truths.arrays, ignored_gt, thresholds, matched)

    in_threads(ground_truths.num_images, work)
    beyond = detections.ranks >= MAX_DETECTIONS
    unmatched = beyond if outside is None else beyond | outside
    if len(ignored_gt):
        ignored = np.where(matched >= 0, ignored_gt[matched], unmatched)
    else:
        ignored = np.broadcast_to(unmatched, matched.shape)
    return Matches(matched, ignored, ~ignored_gt)


def match_area(ground_truths: FlatGroundTruths, detections: FlatDetections, low: float, high: float) -> Matches:
    """Match, ignoring ground truths of less than `low` or more than `high` square pixels.

    Unmatched detections of another size are ignored.
    """
    ignored_gt = (ground_truths.areas < low) | (ground_truths.areas > high)
    return match(ground_truths, detections, ignored_gt, (detections.areas < low) | (detections.areas > high))


def precision_recall(
    ground_truths: FlatGroundTruths, detections: FlatDetections, matches: Matches, max_detections: int = MAX_DETECTIONS
) -> PrecisionRecall:
    """Compute the precision-recall curves of each class, the tables of pycocotools' `eval`.

    Args:
        ground_truths: ground truths of all images.
        detections: detections of all images.
        matches: result of `match` for them.
        max_detections: number of detections per class and image to keep, with the highest scores.
    """
    num_classes = ground_truths.num_classes
    precision = np.full((len(matches.ground_truths), len(RECALL_THRESHOLDS), num_classes), -1.0)
    scores, recall = precision.copy(), precision[:, 0].copy()
    positives = np.bincount(ground_truths.labels[matches.positives], minlength=num_classes)
    hits = matches.hits

    def work(first: int, last: int) -> None:
        for label in range(first, last):
            kept = detections.by_class[detections.class_starts[label] : detections.class_starts[label + 1]]
            kept = kept[detections.ranks[kept] < max_detections]
            if positives[label]:
                _precision_recall(
                    *(detections.scores[kept], hits[:, kept], matches.ignored[:, kept], positives[label]),
                    *(precision[:, :, label], recall[:, label], scores[:, :, label]),
                )

    in_threads(num_classes, work)
    return PrecisionRecall(precision, recall, scores)


@numba.njit(cache=True, nogil=True)
def _match(first, last, detections, ground_truths, ignored_gt, thresholds, matched):
    """Fill in `matched` int32 [T, D] for the images `first` … `last` - 1."""
    gt_labels, crowd = ground_truths.labels, ground_truths.crowd
    max_candidates = 1
    for image in range(first, last):
        max_candidates = max(max_candidates, ground_truths.starts[image + 1] - ground_truths.starts[image])
    candidates, ious = np.empty(max_candidates, np.int64), np.empty(max_candidates)
    for image in range(first, last):
        begin, end = ground_truths.starts[image], ground_truths.starts[image + 1]
        taken = np.zeros((len(thresholds), end - begin), np.bool_)
        for d in range(detections.starts[image], detections.starts[image + 1]):
            if detections.ranks[d] >= MAX_DETECTIONS:
                continue
            n = 0
            for p in range(detections.ranges[d, 0], detections.ranges[d, 1]):
                g, iou = detections.partners[p], detections.ious[p]
                if gt_labels[g] == detections.labels[d] and iou >= thresholds[0]:
                    candidates[n], ious[n] = g, iou
                    n += 1
            for t in range(len(thresholds) if n else 0):
                best = thresholds[t]
                for ignored in (False, True):  # ground truths that are not ignored come first
                    for k in range(n):
                        g = candidates[k]
                        if ignored_gt[g] == ignored and ious[k] >= best and (crowd[g] or not taken[t, g - begin]):
                            best, matched[t, d] = ious[k], g
                    if matched[t, d] >= 0:
                        taken[t, matched[t, d] - begin] = True
                        break


@numba.njit(cache=True, nogil=True)
def _precision_recall(scores, hits, ignored, positives, precision, recall, score_at):
    """Fill in `precision` and `score_at` [T, R] and `recall` [T] of one class, its highest scores first."""
    n = len(scores)
    precisions, recalls = np.empty(n), np.empty(n)
    for t in range(len(hits)):
        true_positives, false_positives = 0.0, 0.0
        for d in range(n):
            if not ignored[t, d]:
                if hits[t, d]:
                    true_positives += 1
                else:
                    false_positives += 1
            recalls[d] = true_positives / positives
            precisions[d] = true_positives / (false_positives + true_positives + np.spacing(1.0))
        for d in range(n - 1, 0, -1):
            precisions[d - 1] = max(precisions[d - 1], precisions[d])
        recall[t] = recalls[n - 1] if n else 0.0
        d = 0
        for r in range(len(RECALL_THRESHOLDS)):
            while d < n and recalls[d] < RECALL_THRESHOLDS[r]:
                d += 1
            precision[t, r] = precisions[d] if d < n else 0.0
            score_at[t, r] = scores[d] if d < n else 0.0
