"""Which detection finds which truth, by COCO's rules, and the curves that follow (Lin et al. 2014).

The rules are those of pycocotools to the last bit, ties included, over flat arrays and with the truths that are left
out as an argument: what pycocotools does for small, medium and large truths is done here for any part of the data.

Letters: I images (I1 is one more), D detections, G truths, C classes (C1 one more), T IoU thresholds, R recalls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numba
import numpy as np
from jaxtyping import Bool, Float, Float64, Int32, Int64

from detect.data.dataset import Dataset
from detect.evaluation.coco import Prediction, by_image
from detect.ops.threads import in_threads

THRESHOLDS: Float64[np.ndarray, " T"] = np.linspace(0.5, 0.95, 10)
RECALLS: Float64[np.ndarray, " R"] = np.linspace(0.0, 1.0, 101)
LIMIT = 100
"""So many detections of a class in an image are looked at, the best."""
AREAS = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
"""COCO's sizes in square pixels; both ends belong to a range."""


@dataclass(frozen=True)
class Truths:
    """The truths of all images, one after the other, as the images come by ascending id."""

    classes: int
    starts: Int64[np.ndarray, " I1"]
    """Truths `starts[i] … starts[i + 1] - 1` are those of image i."""
    boxes: Float64[np.ndarray, "G 4"]
    """x, y, width, height, as COCO computes with them."""
    labels: Int64[np.ndarray, " G"]
    areas: Float64[np.ndarray, " G"]
    crowd: Bool[np.ndarray, " G"]
    difficult: Bool[np.ndarray, " G"]

    @property
    def images(self) -> int:
        """How many images."""
        return len(self.starts) - 1

    @cached_property
    def image_of(self) -> Int64[np.ndarray, " G"]:
        """The place of each truth's image."""
        return np.repeat(np.arange(self.images), np.diff(self.starts))


@dataclass(frozen=True)
class Found:
    """The detections of all images, in the order of `Truths`, in each image best first, equal scores as predicted."""

    starts: Int64[np.ndarray, " I1"]
    boxes: Float64[np.ndarray, "D 4"]
    """x, y, width, height."""
    scores: Float64[np.ndarray, " D"]
    labels: Int64[np.ndarray, " D"]
    places: Int64[np.ndarray, " D"]
    """Where each stands in the `Prediction` of its image."""
    ranks: Int64[np.ndarray, " D"]
    """How many detections of its image and class are ahead of it."""
    by_class: Int64[np.ndarray, " D"]
    """The detections class by class, in each best first, equal scores in the order of the images."""
    class_starts: Int64[np.ndarray, " C1"]
    """Into `by_class`."""

    @cached_property
    def image_of(self) -> Int64[np.ndarray, " D"]:
        """The place of each detection's image."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))


@dataclass(frozen=True, slots=True)
class Matches:
    """What each detection found, at each IoU threshold."""

    truths: Int32[np.ndarray, "T D"]
    """The truth's number, or -1."""
    ignored: Bool[np.ndarray, "T D"]
    """Counts as neither right nor wrong."""
    positives: Bool[np.ndarray, " G"]
    """The truths that were to be found."""

    @property
    def hits(self) -> Bool[np.ndarray, "T D"]:
        """Whether a detection is right."""
        return (self.truths >= 0) & ~self.ignored


@dataclass(frozen=True, slots=True)
class Tables:
    """The curves of each class; -1 where the class has no truth."""

    precision: Float64[np.ndarray, "T R C"]
    """The best precision at each of `RECALLS` or beyond."""
    recall: Float64[np.ndarray, "T C"]
    """What was found of the truths."""
    scores: Float64[np.ndarray, "T R C"]
    """The score down to which detections must be kept for this recall; 0 where it is not reached."""


def truths_of(dataset: Dataset) -> Truths:
    """Lays the truths of a data set one after the other."""
    records = sorted(dataset.records, key=lambda record: record.id)
    return Truths(
        classes=len(dataset.classes),
        starts=_starts([len(record.labels) for record in records]),
        boxes=_xywh(np.concatenate([np.empty((0, 4), np.float32), *(record.boxes for record in records)])),
        labels=np.concatenate([np.empty(0, np.int64), *(record.labels for record in records)]),
        areas=np.concatenate([np.empty(0), *(record.areas for record in records)]),
        crowd=np.concatenate([np.empty(0, bool), *(record.crowd for record in records)]),
        difficult=np.concatenate([np.empty(0, bool), *(record.difficult for record in records)]),
    )


def found_in(dataset: Dataset, predictions: Sequence[Prediction]) -> Found:
    """Lays what was predicted one after the other; an image without a prediction has no detections.

    Raises:
        ValueError: an unknown image, or one that was predicted twice.
    """
    predicted = by_image(predictions, dataset)
    found = [
        (place, predicted[id_]) for place, id_ in enumerate(sorted(r.id for r in dataset.records)) if id_ in predicted
    ]
    counts = [len(one.labels) for _, one in found]
    return arrange(
        image_of=np.repeat(np.array([place for place, _ in found], np.int64), counts),
        boxes=_xywh(np.concatenate([np.empty((0, 4), np.float32), *(one.boxes for _, one in found)])),
        scores=np.concatenate([np.empty(0), *(one.scores for _, one in found)]).astype(np.float64),
        labels=np.concatenate([np.empty(0, np.int64), *(one.labels for _, one in found)]),
        places=np.concatenate([np.empty(0, np.int64), *(np.arange(count) for count in counts)]),
        images=len(dataset.records),
        classes=len(dataset.classes),
    )


def arrange(
    image_of: Int64[np.ndarray, " D"],
    boxes: Float64[np.ndarray, "D 4"],
    scores: Float64[np.ndarray, " D"],
    labels: Int64[np.ndarray, " D"],
    places: Int64[np.ndarray, " D"],
    *,
    images: int,
    classes: int,
) -> Found:
    """Detections in any order of the images, and within an image in the order that decides between equal scores."""
    order = np.lexsort((-scores, image_of))
    image_of, labels, scores = image_of[order], labels[order], scores[order]
    groups = np.argsort(image_of * classes + labels, kind="stable")
    keys = (image_of * classes + labels)[groups]
    ranks = np.empty(len(order), np.int64)
    ranks[groups] = np.arange(len(order)) - np.searchsorted(keys, keys)
    by_class = np.lexsort((-scores, labels))
    return Found(
        starts=np.searchsorted(image_of, np.arange(images + 1)),
        boxes=boxes[order],
        scores=scores,
        labels=labels,
        places=places[order],
        ranks=ranks,
        by_class=by_class,
        class_starts=np.searchsorted(labels[by_class], np.arange(classes + 1)),
    )


def match(
    truths: Truths,
    found: Found,
    excluded: Bool[np.ndarray, " G"] | None = None,
    outside: Bool[np.ndarray, " D"] | None = None,
    thresholds: Float64[np.ndarray, " T"] = THRESHOLDS,
) -> Matches:
    """Matches detections to truths as COCO does, at each IoU threshold.

    In each image and class the best `LIMIT` detections come in the order of their scores. Each takes the free truth
    that it overlaps most, the last one of equals. Where there is none, it may belong to a truth that is not to be
    found, and is ignored with it; a crowd takes any number of detections, by the share of each that lies in it.

    Args:
        truths: those of all images.
        found: the detections.
        excluded: truths that are not to be found, besides the crowds.
        outside: detections that are ignored unless they find something.
        thresholds: the IoUs, ascending.
    """
    ignored = truths.crowd if excluded is None else truths.crowd | excluded
    matched = np.full((len(thresholds), len(found.labels)), -1, np.int32)
    taken = np.zeros((len(thresholds), len(truths.labels)), np.bool_)

    def work(first: int, last: int) -> None:
        _match(
            *(first, last, found.starts, found.boxes, found.labels, found.ranks < LIMIT),
            *(truths.starts, truths.boxes, truths.labels, truths.crowd, ignored),
            *(np.minimum(thresholds, 1 - 1e-10), matched, taken),
        )

    in_threads(truths.images, work)
    left_out = found.ranks >= LIMIT if outside is None else (found.ranks >= LIMIT) | outside
    if len(ignored):
        neither = np.where(matched >= 0, ignored[matched], left_out)
    else:
        neither = np.broadcast_to(left_out, matched.shape)
    return Matches(matched, neither, ~ignored)


def of_area(truths: Truths, found: Found, low: float, high: float) -> Matches:
    """Matches of the truths of `low` … `high` square pixels; a detection of another size is no mistake."""
    areas = found.boxes[:, 2] * found.boxes[:, 3]
    return match(
        truths, found, (truths.areas < low) | (truths.areas > high), (areas < low) | (areas > high), THRESHOLDS
    )


def tables(truths: Truths, found: Found, matches: Matches, limit: int = LIMIT) -> Tables:
    """Precision at each recall, the recall reached, and the scores, of each class: the tables of pycocotools' `eval`.

    Args:
        truths: those of all images.
        found: the detections.
        matches: what `match` gave for them.
        limit: the best so many detections of a class in an image count.
    """
    thresholds = len(matches.truths)
    precision = np.full((thresholds, len(RECALLS), truths.classes), -1.0)
    scores, recall = precision.copy(), precision[:, 0].copy()
    positives = np.bincount(truths.labels[matches.positives], minlength=truths.classes)
    hits = matches.hits

    def work(first: int, last: int) -> None:
        for label in range(first, last):
            chosen = found.by_class[found.class_starts[label] : found.class_starts[label + 1]]
            chosen = chosen[found.ranks[chosen] < limit]
            if positives[label]:
                _curves(
                    *(found.scores[chosen], hits[:, chosen], matches.ignored[:, chosen], positives[label], RECALLS),
                    *(precision[:, :, label], recall[:, label], scores[:, :, label]),
                )

    in_threads(truths.classes, work)
    return Tables(precision, recall, scores)


def mean(values: np.ndarray) -> float | None:
    """The mean of what is known, where -1 is not; None where nothing is."""
    known = values[values > -1]
    return float(known.mean()) if known.size else None


@numba.njit(cache=True, nogil=True)
def overlap(box, truth, crowd):
    """IoU of two boxes x, y, width, height, in the operations of pycocotools; of a crowd the share of `box` in it."""
    width = min(box[0] + box[2], truth[0] + truth[2]) - max(box[0], truth[0])
    height = min(box[1] + box[3], truth[1] + truth[3]) - max(box[1], truth[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared, area = width * height, box[2] * box[3]
    return shared / (area if crowd else area + truth[2] * truth[3] - shared)


@numba.njit(cache=True, nogil=True)
def _match(
    first, last, starts, boxes, labels, considered, truth_starts, truths, classes, crowd, ignored, thresholds,
    matched, taken,
):  # fmt: skip
    """Fills in `matched` int32 [T, D] and `taken` bool [T, G] for the images `first` … `last` - 1."""
    most = 1
    for image in range(first, last):
        most = max(most, truth_starts[image + 1] - truth_starts[image])
    same, ious = np.empty(most, np.int64), np.empty(most)
    for image in range(first, last):
        for d in range(starts[image], starts[image + 1]):
            if not considered[d]:
                continue
            n = 0
            for g in range(truth_starts[image], truth_starts[image + 1]):
                if classes[g] == labels[d]:
                    iou = overlap(boxes[d], truths[g], crowd[g])
                    if iou >= thresholds[0]:
                        same[n], ious[n] = g, iou
                        n += 1
            for t in range(len(thresholds) if n else 0):
                best = thresholds[t]
                for excused in (False, True):  # a truth that is to be found goes before one that is not
                    for k in range(n):
                        g = same[k]
                        if ignored[g] == excused and ious[k] >= best and (crowd[g] or not taken[t, g]):
                            best, matched[t, d] = ious[k], g
                    if matched[t, d] >= 0:
                        taken[t, matched[t, d]] = True
                        break


@numba.njit(cache=True, nogil=True)
def _curves(scores, hits, ignored, positives, recalls, precision, recall, score_at):
    """Fills in `precision` and `score_at` [T, R] and `recall` [T] of one class, its detections best first."""
    n = len(scores)
    precisions, reached = np.empty(n), np.empty(n)
    for t in range(len(hits)):
        right, wrong = 0.0, 0.0
        for d in range(n):
            if not ignored[t, d]:
                if hits[t, d]:
                    right += 1
                else:
                    wrong += 1
            reached[d] = right / positives
            precisions[d] = right / (wrong + right + np.spacing(1.0))
        for d in range(n - 1, 0, -1):
            precisions[d - 1] = max(precisions[d - 1], precisions[d])
        recall[t] = reached[n - 1] if n else 0.0
        d = 0
        for r in range(len(recalls)):
            while d < n and reached[d] < recalls[r]:
                d += 1
            precision[t, r] = precisions[d] if d < n else 0.0
            score_at[t, r] = scores[d] if d < n else 0.0


def _starts(counts: Sequence[int]) -> Int64[np.ndarray, " n"]:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def _xywh(boxes: Float[np.ndarray, "n 4"]) -> Float64[np.ndarray, "n 4"]:
    corners = boxes.astype(np.float64)
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
