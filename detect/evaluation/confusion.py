"""What is taken for what: the matrix of found against true classes, for any threshold on the score."""

from __future__ import annotations

import numba
import numpy as np
from jaxtyping import Float64, Int64

from detect.evaluation.matching import LIMIT, Found, Truths, overlap
from detect.ops.threads import in_threads

EDGES = np.arange(101) / 100
"""Thresholds on the score."""


def bins(scores: Float64[np.ndarray, " D"]) -> Int64[np.ndarray, " D"]:
    """The last of `EDGES` that a score reaches; compared as float32, in which 0.7 is 0.7."""
    return np.clip(np.searchsorted(EDGES.astype(np.float32), scores.astype(np.float32), side="right") - 1, 0, None)


def confusion(truths: Truths, found: Found, iou: float = 0.5) -> dict[str, list[int]]:
    """How often each class was found where each class was true, by the score.

    In each image the detections come best first, and each takes the free truth that it overlaps most, of whatever
    class, if by `iou` at least. One that takes none found background, or is left out if so much of it lies in a crowd.
    A detection takes the same truth whatever worse ones there are, so that the matrix at a threshold is the sum of the
    events of higher scores.

    Returns:
        Columns of equal length: the `bin` of the score, the label that was `found`, the `true` label (C is background)
        and the `count` of such detections.
    """
    true = np.full(len(found.labels), -1, np.int64)

    def work(first: int, last: int) -> None:
        _confuse(
            *(first, last, found.starts, found.boxes, found.ranks < LIMIT),
            *(truths.starts, truths.boxes, truths.labels, truths.crowd, iou, truths.classes, true),
        )

    in_threads(truths.images, work)
    kept = true >= 0
    classes = truths.classes + 1
    keys = (bins(found.scores[kept]) * classes + found.labels[kept]) * classes + true[kept]
    events, counts = np.unique(keys, return_counts=True)
    columns = {"bin": events // classes**2, "found": events // classes % classes, "true": events % classes}
    return {name: column.tolist() for name, column in {**columns, "count": counts}.items()}


@numba.njit(cache=True, nogil=True)
def _confuse(
    first, last, starts, boxes, considered, truth_starts, truths, classes, crowd, iou, background, true
):  # fmt: skip
    """Fills in the class of the truth that each detection takes, or `background`: int64 [D]; the left out stay."""
    for image in range(first, last):
        begin, end = truth_starts[image], truth_starts[image + 1]
        taken = np.zeros(end - begin, np.bool_)
        for d in range(starts[image], starts[image + 1]):
            if not considered[d]:
                continue
            best, mine, excused = iou, -1, False
            for g in range(begin, end):
                shared = overlap(boxes[d], truths[g], crowd[g])
                if crowd[g]:
                    excused |= shared >= iou
                elif not taken[g - begin] and shared >= best:
                    best, mine = shared, g
            if mine >= 0:
                taken[mine - begin] = True
                true[d] = classes[mine]
            elif not excused:
                true[d] = background
