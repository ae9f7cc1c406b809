"""COCO and VOC metrics of each class with weighted images, for many sets of weights.

An image of weight 2 counts as if it were twice in the data set. The weights change neither the matches nor the order of
the detections, so everything but the sums is computed once. Since the interpolated precision changes only at true
positives, each curve is evaluated only there.

Letters: B sets of weights, I images, D detections, G ground truths, C classes (C1 is C + 1), T IoU thresholds,
L listed detections, E events, P positives.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
from jaxtyping import Bool, Float64, Int32

from detect.evaluation.flat import FlatDetections, FlatGroundTruths
from detect.evaluation.matching import RECALL_THRESHOLDS, Matches
from detect.evaluation.overlaps import overlap
from detect.ops.threads import in_threads

CLASS_METRICS = ("AP", "AP50", "AP75", "AR1", "AR10", "AR100")
"""COCO metrics of one class."""


class Events(NamedTuple):
    """Precision-recall curves of all classes, in a form that image weights can be applied to.

    Precision at a detection is TP / (TP + FP) of the detections up to it. Most detections are false positives, at all
    IoU thresholds. They are stored once: `listed` has the detections that count at the strictest threshold, sorted by
    class, then descending score. An event is a detection that is a true positive at a threshold, or that counts at this
    threshold but is not listed, or the reverse. The weight of TP + FP up to an event is then the weight of the listed
    detections up to it, plus the changes of the events up to it.
    """

    listed: np.ndarray
    """Image of each listed detection: int32 [L]."""
    listed_starts: np.ndarray
    """Class c has `listed[listed_starts[c] : listed_starts[c + 1]]`: int64 [C1]."""
    positives: np.ndarray
    """Image of each ground truth that is not ignored, sorted by class: int32 [P]."""
    positive_starts: np.ndarray
    """Class c has `positives[positive_starts[c] : positive_starts[c + 1]]`: int64 [C1]."""
    starts: np.ndarray
    """Class c has the events `starts[t, c] … starts[t, c + 1] - 1` at threshold t, highest scores first: [T, C1]."""
    images: np.ndarray
    """Image of each event: int32 [E]."""
    listed_before: np.ndarray
    """Number of listed detections of the class up to the event, itself included: int32 [E]."""
    hits: np.ndarray
    """True positives: bool [E]."""
    changes: np.ndarray
    """1 if the event counts but is not listed, -1 for the reverse, else 0: int8 [E]."""
    ranks: np.ndarray
    """Rank of each event within its image and class: int32 [E]."""


def weighted_coco(
    ground_truths: FlatGroundTruths, detections: FlatDetections, matches: Matches, weights: Int32[np.ndarray, "B I"]
) -> dict[str, Float64[np.ndarray, "B C"]]:
    """Compute `CLASS_METRICS` of each class for each row of image weights; NaN for a class without ground truths."""
    events = _events(ground_truths, detections, matches.hits, matches.ignored, matches.positives)
    out = np.full((len(weights), ground_truths.num_classes, len(CLASS_METRICS)), np.nan)
    in_threads(len(weights), lambda first, last: _coco(first, last, weights, events, out))
    return {name: out[:, :, column] for column, name in enumerate(CLASS_METRICS)}


def weighted_voc(
    ground_truths: FlatGroundTruths,
    detections: FlatDetections,
    weights: Int32[np.ndarray, "B I"],
    iou_threshold: float = 0.5,
) -> dict[str, Float64[np.ndarray, "B C"]]:
    """Compute VOC07 and VOC of the boxes of each class by the rules of `evaluate_voc`, for each row of image weights.

    The value is NaN for a class without ground truths.
    """
    ignored_gt = ground_truths.crowd | ground_truths.difficult
    matched = np.full((1, len(detections.labels)), -1, np.int32)
    is_first = np.zeros((1, len(detections.labels)), np.bool_)

    def match(first: int, last: int) -> None:
        _match_voc(first, last, detections.arrays, ground_truths.arrays, iou_threshold, matched[0], is_first[0])

    in_threads(ground_truths.num_images, match)
    ignored = (matched >= 0) & np.append(ignored_gt, False)[matched]  # -1 selects the appended False
    events = _events(ground_truths, detections, is_first & ~ignored, ignored, ~ignored_gt)
    out = np.full((len(weights), ground_truths.num_classes, 2), np.nan)
    in_threads(len(weights), lambda first, last: _voc(first, last, weights, events, out))
    return {"VOC07": out[:, :, 0], "VOC": out[:, :, 1]}


def _events(
    ground_truths: FlatGroundTruths,
    detections: FlatDetections,
    hits: Bool[np.ndarray, "T D"],
    ignored: Bool[np.ndarray, "T D"],
    positives: Bool[np.ndarray, " G"],
) -> Events:
    order = detections.by_class
    hits, counted, labels = hits[:, order], ~ignored[:, order], detections.labels[order]
    listed = counted[-1]
    changes = counted.astype(np.int8) - listed
    threshold, position = np.nonzero(hits | (changes != 0))

    num_classes = ground_truths.num_classes
    classes = np.arange(num_classes + 1)
    listed_starts = np.searchsorted(labels[listed], classes)
    # Convert positions among all detections to positions among the detections of the class.
    listed_before = np.cumsum(listed)[position] - listed_starts[labels[position]]
    event_keys = threshold * num_classes + labels[position]  # ascending
    positive = np.flatnonzero(positives)
    positive = positive[np.argsort(ground_truths.labels[positive], kind="stable")]
    image_of = detections.image_of[order]
    return Events(
        listed=image_of[listed].astype(np.int32),
        listed_starts=listed_starts,
        positives=ground_truths.image_of[positive].astype(np.int32),
        positive_starts=np.searchsorted(ground_truths.labels[positive], classes),
        starts=np.searchsorted(event_keys, np.arange(len(hits))[:, None] * num_classes + classes),
        images=image_of[position].astype(np.int32),
        listed_before=listed_before.astype(np.int32),
        hits=hits[threshold, position],
        changes=changes[threshold, position],
        ranks=detections.ranks[order][position].astype(np.int32),
    )


@numba.njit(cache=True, nogil=True)
def _cumulative_weights(weights, images, sums):
    """Fill in `sums`: element i is the total weight of the first i images."""
    sums[0] = 0
    for i in range(len(images)):
        sums[i + 1] = sums[i] + weights[images[i]]


@numba.njit(cache=True, nogil=True)
def _total_weight(weights, images):
    total = 0
    for image in images:
        total += weights[image]
    return total


@numba.njit(cache=True, nogil=True)
def _walk(weights, events, first, last, sums, true_positives, precisions):
    """Follow one curve, the events `first` … `last` - 1, and return its number n of true positives.

    For each of the n fill in the weight of the true positives up to it (int64) and the highest precision at it or
    later (float64). `sums` are the cumulative weights of the listed detections of the class.
    """
    n, tp, change = 0, 0, 0
    for e in range(first, last):
        # No branches, which would be unpredictable: the next event overwrites an event that is not a true positive.
        weight = weights[events.images[e]]
        change += events.changes[e] * weight
        tp += events.hits[e] * weight
        true_positives[n] = tp
        precisions[n] = tp / (sums[events.listed_before[e]] + change + np.spacing(1.0))
        n += events.hits[e] & (weight > 0)
    for k in range(n - 1, 0, -1):
        precisions[k - 1] = max(precisions[k - 1], precisions[k])
    return n


@numba.njit(cache=True, nogil=True)
def _interpolated_ap(true_positives, precisions, n, positives):
    """Return COCO's AP: the mean precision at `RECALL_THRESHOLDS`."""
    total, r = 0.0, 0
    for k in range(n):
        recall = true_positives[k] / positives
        while r < len(RECALL_THRESHOLDS) and RECALL_THRESHOLDS[r] <= recall:
            total += precisions[k]
            r += 1
    return total / len(RECALL_THRESHOLDS)


@numba.njit(cache=True, nogil=True)
def _coco(first, last, all_weights, events, out):
    """Fill in the rows `first` … `last` - 1 of `out` [B, C, `CLASS_METRICS`]."""
    thresholds, classes = events.starts.shape[0], events.starts.shape[1] - 1
    sums = np.empty(1 + len(events.listed), np.int64)
    true_positives, precisions = np.empty(1 + len(events.images), np.int64), np.empty(1 + len(events.images))
    for b in range(first, last):
        weights = all_weights[b]
        for c in range(classes):
            positive_images = events.positives[events.positive_starts[c] : events.positive_starts[c + 1]]
            positives = _total_weight(weights, positive_images)
            if positives == 0:
                continue
            _cumulative_weights(weights, events.listed[events.listed_starts[c] : events.listed_starts[c + 1]], sums)
            out[b, c] = 0
            tp_1, tp_10, tp_100 = 0, 0, 0
            for t in range(thresholds):
                start, stop = events.starts[t, c], events.starts[t, c + 1]
                n = _walk(weights, events, start, stop, sums, true_positives, precisions)
                ap = _interpolated_ap(true_positives, precisions, n, positives)
                out[b, c, 0] += ap / thresholds
                if t == 0:
                    out[b, c, 1] = ap
                if t == 5:
                    out[b, c, 2] = ap
                for e in range(start, stop):
                    weight = weights[events.images[e]] * events.hits[e]
                    tp_1 += weight * (events.ranks[e] < 1)
                    tp_10 += weight * (events.ranks[e] < 10)
                tp_100 += true_positives[n - 1] if n else 0
            out[b, c, 3] = tp_1 / (thresholds * positives)
            out[b, c, 4] = tp_10 / (thresholds * positives)
            out[b, c, 5] = tp_100 / (thresholds * positives)


@numba.njit(cache=True, nogil=True)
def _voc(first, last, all_weights, events, out):
    """Fill in the rows `first` … `last` - 1 of `out` [B, C, (VOC07, VOC)]."""
    sums = np.empty(1 + len(events.listed), np.int64)
    true_positives, precisions = np.empty(1 + len(events.images), np.int64), np.empty(1 + len(events.images))
    for b in range(first, last):
        weights = all_weights[b]
        for c in range(events.starts.shape[1] - 1):
            positive_images = events.positives[events.positive_starts[c] : events.positive_starts[c + 1]]
            positives = _total_weight(weights, positive_images)
            if positives == 0:
                continue
            _cumulative_weights(weights, events.listed[events.listed_starts[c] : events.listed_starts[c + 1]], sums)
            start, stop = events.starts[0, c], events.starts[0, c + 1]
            n = _walk(weights, events, start, stop, sums, true_positives, precisions)
            points, area, tenths, previous = 0.0, 0.0, 0, 0
            for k in range(n):
                area += precisions[k] * (true_positives[k] - previous)
                previous = true_positives[k]
                while tenths <= 10 and 10 * true_positives[k] >= tenths * positives:
                    points += precisions[k]
                    tenths += 1
            out[b, c, 0] = points / 11
            out[b, c, 1] = area / positives


@numba.njit(cache=True, nogil=True)
def _match_voc(first, last, detections, ground_truths, iou_threshold, matched, is_first):
    """Fill in the matched ground truth of each detection, or -1, and whether the detection is its first match.

    `matched` is int32 [D], `is_first` bool [D].
    """
    for image in range(first, last):
        begin, end = ground_truths.starts[image], ground_truths.starts[image + 1]
        taken = np.zeros(end - begin, np.bool_)
        for d in range(detections.starts[image], detections.starts[image + 1]):
            best = 0.0
            for g in range(begin, end):
                if ground_truths.labels[g] == detections.labels[d]:
                    iou = overlap(detections.boxes[d], ground_truths.boxes[g], False)
                    if iou > best:
                        best = iou
                        matched[d] = g
            if matched[d] >= 0 and best < iou_threshold:
                matched[d] = -1
            if matched[d] >= 0 and not taken[matched[d] - begin]:
                taken[matched[d] - begin] = is_first[d] = True
