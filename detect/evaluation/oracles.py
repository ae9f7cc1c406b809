"""AP after oracles that correct one kind of error after another.

As in Hoiem et al. 2012 ("Diagnosing Error in Object Detectors") and Borji & Iranmanesh 2019 ("Empirical Upper Bound in
Object Detection and More"), an oracle corrects one kind of error, with TIDE's IoU thresholds for background (0.1) and
foreground (0.5). TIDE applies each oracle to the original detections. Here each oracle is applied on top of the
previous ones: its gain is its share of the total loss over the IoU thresholds 0.50 … 0.95, and the last AP is 1. The
gains depend on the order: class, box, duplicates, background, misses.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numba
import numpy as np
from jaxtyping import Bool, Int32, Int64

from detect.evaluation.coco import mean_of_known
from detect.evaluation.flat import FlatDetections, FlatGroundTruths, sort_detections
from detect.evaluation.matching import match, precision_recall
from detect.evaluation.overlaps import Overlaps
from detect.evaluation.tide import BACKGROUND_IOU, FOREGROUND_IOU
from detect.ops.threads import in_threads

_MEANINGS = {
    "no oracle": "the unchanged detections",
    "perfect classes": "a detection with IoU ≥ 0.5 only with objects of other classes gets the class of the best one",
    "perfect boxes": "a detection gets the box of the best free object of its class with IoU ≥ 0.1",
    "no duplicates": "only the best detection of each object is kept",
    "no background": "detections without an object are removed",
    "no misses": "missed objects are added with score 1",
}


def oracles(ground_truths: FlatGroundTruths, detections: FlatDetections) -> list[dict[str, Any]]:
    """Compute AP after each oracle.

    The last AP is 1, except where an image has more objects of a class than COCO's limit of detections.

    Returns:
        `name`, `AP`, `AP50` (None without ground truths) and `meaning` of each step.
    """
    overlaps, gt_ranges = _with_overlaps_of_ground_truths(ground_truths, detections)
    steps = [replace(detections, overlaps=overlaps)]
    steps.append(_replace(ground_truths, steps[-1], labels=_perfect_labels(ground_truths, detections)))
    matched, is_first = _match_nearest(ground_truths, steps[-1])
    if len(ground_truths.boxes):
        is_matched = (matched >= 0)[:, None]
        boxes = np.where(is_matched, ground_truths.boxes[matched], detections.boxes)
        ranges = np.where(is_matched, gt_ranges[matched], overlaps.ranges)
        steps.append(_replace(ground_truths, steps[-1], boxes=boxes, overlaps=overlaps._replace(ranges=ranges)))
    else:
        steps.append(steps[-1])
    unique = is_first | (matched < 0)
    steps.append(_replace(ground_truths, steps[-1], kept=unique))
    steps.append(_replace(ground_truths, steps[-1], kept=is_first[unique]))
    missed = ~ground_truths.crowd
    missed[matched[matched >= 0]] = False
    steps.append(_with_missed(ground_truths, gt_ranges, steps[-1], missed))
    return [
        {"name": name, **_metrics(ground_truths, step), "meaning": meaning}
        for (name, meaning), step in zip(_MEANINGS.items(), steps, strict=True)
    ]


def _metrics(ground_truths: FlatGroundTruths, detections: FlatDetections) -> dict[str, float | None]:
    precision = precision_recall(ground_truths, detections, match(ground_truths, detections)).precision
    return {"AP": mean_of_known(precision), "AP50": mean_of_known(precision[0])}


def _with_overlaps_of_ground_truths(
    ground_truths: FlatGroundTruths, detections: FlatDetections
) -> tuple[Overlaps, Int64[np.ndarray, "G 2"]]:
    """Return the overlaps of the detections with those of ground truths appended, and the ranges of the latter."""
    ranges, *listed = detections.overlaps
    gt_ranges, *added = ground_truths.overlaps(ground_truths.image_of, ground_truths.boxes, ground_truths.masks)
    return Overlaps(ranges, *map(np.concatenate, zip(listed, added, strict=True))), gt_ranges + len(listed[0])


def _perfect_labels(ground_truths: FlatGroundTruths, detections: FlatDetections) -> Int64[np.ndarray, " D"]:
    labels = detections.labels.copy()

    def work(first: int, last: int) -> None:
        _relabel(first, last, detections.arrays, ground_truths.arrays, labels)

    in_threads(ground_truths.num_images, work)
    return labels


def _match_nearest(
    ground_truths: FlatGroundTruths, detections: FlatDetections
) -> tuple[Int32[np.ndarray, " D"], Bool[np.ndarray, " D"]]:
    """Return the ground truth of each detection, or -1, and a mask of the first detection of each ground truth."""
    matched, is_first = np.full(len(detections.labels), -1, np.int32), np.zeros(len(detections.labels), bool)

    def work(first: int, last: int) -> None:
        _nearest(first, last, detections.arrays, ground_truths.arrays, matched, is_first)

    in_threads(ground_truths.num_images, work)
    return matched, is_first


def _replace(
    ground_truths: FlatGroundTruths,
    detections: FlatDetections,
    kept: Bool[np.ndarray, " D"] | None = None,
    **columns: Any,
) -> FlatDetections:
    """Return the detections with some columns replaced, or a subset of them; equal scores keep their order."""
    detections = replace(detections, **columns)
    indices = np.arange(len(detections.labels)) if kept is None else np.flatnonzero(kept)
    return _sorted(ground_truths, detections.overlaps, *(column[indices] for column in _columns(detections)))


def _with_missed(
    ground_truths: FlatGroundTruths,
    gt_ranges: Int64[np.ndarray, "G 2"],
    detections: FlatDetections,
    missed: Bool[np.ndarray, " G"],
) -> FlatDetections:
    """Return the detections and the missed ground truths, as detections with score 1."""
    count = int(missed.sum())
    chosen = (ground_truths.image_of, ground_truths.boxes, ground_truths.areas, ground_truths.labels, gt_ranges)
    image_of, boxes, areas, labels, ranges = (column[missed] for column in chosen)
    added = (image_of, boxes, areas, np.ones(count), labels, np.zeros(count, int), ranges)
    columns = map(np.concatenate, zip(_columns(detections), added, strict=True))
    return _sorted(ground_truths, detections.overlaps, *columns)


def _columns(detections: FlatDetections) -> tuple[np.ndarray, ...]:
    sortable = (detections.boxes, detections.areas, detections.scores, detections.labels, detections.indices)
    return detections.image_of, *sortable, detections.overlaps.ranges


def _sorted(ground_truths: FlatGroundTruths, overlaps: Overlaps, *columns: np.ndarray) -> FlatDetections:
    """Sort detections, given by `_columns`."""
    return sort_detections(
        *columns[:-1],
        overlaps=overlaps._replace(ranges=columns[-1]),
        num_images=ground_truths.num_images,
        num_classes=ground_truths.num_classes,
    )


@numba.njit(cache=True, nogil=True)
def _relabel(first, last, detections, ground_truths, labels):
    """Change `labels` int64 [D] of detections on a ground truth of another class, but on none of their own class."""
    for image in range(first, last):
        for d in range(detections.starts[image], detections.starts[image + 1]):
            best, matched, correct = FOREGROUND_IOU, -1, False
            for p in range(detections.ranges[d, 0], detections.ranges[d, 1]):
                g, iou = detections.partners[p], detections.ious[p]
                if ground_truths.crowd[g]:
                    continue
                correct |= ground_truths.labels[g] == detections.labels[d] and iou >= FOREGROUND_IOU
                if iou >= best:
                    best, matched = iou, g
            if matched >= 0 and not correct:
                labels[d] = ground_truths.labels[matched]


@numba.njit(cache=True, nogil=True)
def _nearest(first, last, detections, ground_truths, matched, is_first):
    """Fill in `matched` int32 [D] and `is_first` bool [D]; a detection takes a free ground truth if there is one."""
    for image in range(first, last):
        begin, end = ground_truths.starts[image], ground_truths.starts[image + 1]
        taken = np.zeros(end - begin, np.bool_)
        for d in range(detections.starts[image], detections.starts[image + 1]):
            best_free, best_taken = BACKGROUND_IOU, BACKGROUND_IOU
            free_gt, taken_gt = -1, -1
            for p in range(detections.ranges[d, 0], detections.ranges[d, 1]):
                g, iou = detections.partners[p], detections.ious[p]
                if ground_truths.crowd[g] or ground_truths.labels[g] != detections.labels[d]:
                    continue
                if taken[g - begin]:
                    if iou >= best_taken:
                        best_taken, taken_gt = iou, g
                elif iou >= best_free:
                    best_free, free_gt = iou, g
            if free_gt >= 0:
                matched[d], is_first[d] = free_gt, True
                taken[free_gt - begin] = True
            else:
                matched[d] = taken_gt
