"""What AP would be if parts of the detector were perfect: a ladder from what it is to what it could be.

As in Hoiem et al. 2012 ("Diagnosing Error in Object Detectors") and Borji & Iranmanesh 2019 ("Empirical Upper Bound in
Object Detection and More"), an oracle mends one kind of mistake, with the overlaps that TIDE calls near (0.1) and right
(0.5). Other than TIDE's, whose oracles each start from the detections as they are, these stand on one another: what a
rung adds is its share of all that is lost, at every IoU from 0.50 to 0.95, and the last one ends at 1. The shares
depend on the order, which is that of a detector: what it is, where it is, once only, nothing else, all of them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numba
import numpy as np
from jaxtyping import Bool, Int32, Int64

from detect.evaluation.matching import Found, Truths, arrange, match, mean, overlap, tables
from detect.evaluation.tide import BACKGROUND, FOREGROUND
from detect.ops.threads import in_threads

_MEANING = {
    "as it is": "the detections as they are",
    "labels perfect": "what lies on a truth (IoU ≥ 0.5), and on none of its own class, takes the class of that truth",
    "boxes perfect": "and each, best first, takes the box of the free truth of its class it overlaps most (IoU ≥ 0.1)",
    "no duplicates": "and of the detections of one truth only the best is left",
    "no background": "and those that belong to no truth are gone",
    "nothing missed": "and the truths that are still missing are found, with score 1",
}


def oracles(truths: Truths, found: Found) -> list[dict[str, Any]]:
    """The ladder: `name`, `AP`, `AP50` (None without truths) and `meaning` of each rung, each on top of the one before.

    The last rung is 1 but where an image holds more truths of a class than COCO looks at detections.
    """
    rungs = [found]
    labels = _perfect_labels(truths, found)
    rungs.append(_arranged(truths, found, labels=labels))
    target, first = _owners(truths, rungs[-1])
    placed = np.where((target >= 0)[:, None], truths.boxes[target], found.boxes) if len(truths.boxes) else found.boxes
    rungs.append(_arranged(truths, rungs[-1], boxes=placed))
    rungs.append(_arranged(truths, rungs[-1], kept=first | (target < 0)))
    kept = first[first | (target < 0)]
    rungs.append(_arranged(truths, rungs[-1], kept=kept))
    missing = ~truths.crowd
    missing[target[target >= 0]] = False
    rungs.append(_with_truths(truths, rungs[-1], missing))
    return [
        {"name": name, **_figures(truths, rung), "meaning": meaning}
        for (name, meaning), rung in zip(_MEANING.items(), rungs, strict=True)
    ]


def _figures(truths: Truths, found: Found) -> dict[str, float | None]:
    precision = tables(truths, found, match(truths, found)).precision
    return {"AP": mean(precision), "AP50": mean(precision[0])}


def _perfect_labels(truths: Truths, found: Found) -> Int64[np.ndarray, " D"]:
    labels = found.labels.copy()

    def work(first: int, last: int) -> None:
        _relabel(
            *(first, last, found.starts, found.boxes, found.labels),
            *(truths.starts, truths.boxes, truths.labels, truths.crowd, FOREGROUND, labels),
        )

    in_threads(truths.images, work)
    return labels


def _owners(truths: Truths, found: Found) -> tuple[Int32[np.ndarray, " D"], Bool[np.ndarray, " D"]]:
    """The truth that each detection stands for, or -1, and whether it is the best one of that truth."""
    target, is_first = np.full(len(found.labels), -1, np.int32), np.zeros(len(found.labels), bool)

    def work(first: int, last: int) -> None:
        _own(
            *(first, last, found.starts, found.boxes, found.labels),
            *(truths.starts, truths.boxes, truths.labels, truths.crowd, BACKGROUND, target, is_first),
        )

    in_threads(truths.images, work)
    return target, is_first


def _arranged(truths: Truths, found: Found, kept: Bool[np.ndarray, " D"] | None = None, **changed: np.ndarray) -> Found:
    """Detections with other boxes or labels, which keep their order, or some of them."""
    found = replace(found, **changed)
    chosen = np.arange(len(found.labels)) if kept is None else np.flatnonzero(kept)
    columns = (column[chosen] for column in (found.image_of, found.boxes, found.scores, found.labels, found.places))
    return arrange(*columns, images=truths.images, classes=truths.classes)


def _with_truths(truths: Truths, found: Found, missing: Bool[np.ndarray, " G"]) -> Found:
    """The detections and, with score 1, the missing truths."""
    count = int(missing.sum())
    columns = zip(
        (found.image_of, found.boxes, found.scores, found.labels, found.places),
        (truths.image_of[missing], truths.boxes[missing], np.ones(count), truths.labels[missing], np.zeros(count, int)),
        strict=True,
    )
    return arrange(*map(np.concatenate, columns), images=truths.images, classes=truths.classes)


@numba.njit(cache=True, nogil=True)
def _relabel(first, last, starts, boxes, labels, truth_starts, truths, classes, crowd, iou, out):
    """Changes `out` int64 [D] where a detection overlaps no truth of its class by `iou`, but one of another."""
    for image in range(first, last):
        for d in range(starts[image], starts[image + 1]):
            best, mine, right = iou, -1, False
            for g in range(truth_starts[image], truth_starts[image + 1]):
                shared = 0.0 if crowd[g] else overlap(boxes[d], truths[g], False)
                right |= classes[g] == labels[d] and shared >= iou
                if shared >= best:
                    best, mine = shared, g
            if mine >= 0 and not right:
                out[d] = classes[mine]


@numba.njit(cache=True, nogil=True)
def _own(first, last, starts, boxes, labels, truth_starts, truths, classes, crowd, iou, target, is_first):
    """Fills in the truth of each detection, a free one if there is one, best first: int32 and bool [D]."""
    for image in range(first, last):
        begin, end = truth_starts[image], truth_starts[image + 1]
        taken = np.zeros(end - begin, np.bool_)
        for d in range(starts[image], starts[image + 1]):
            free, busy = iou, iou
            of_free, of_busy = -1, -1
            for g in range(begin, end):
                if crowd[g] or classes[g] != labels[d]:
                    continue
                shared = overlap(boxes[d], truths[g], False)
                if taken[g - begin]:
                    if shared >= busy:
                        busy, of_busy = shared, g
                elif shared >= free:
                    free, of_free = shared, g
            if of_free >= 0:
                target[d], is_first[d] = of_free, True
                taken[of_free - begin] = True
            else:
                target[d] = of_busy
