"""Confusion matrix of predicted and true classes at every score threshold."""

from __future__ import annotations

import numba
import numpy as np
from jaxtyping import Float64, Int64

from detect.evaluation.flat import FlatDetections, FlatGroundTruths
from detect.evaluation.matching import MAX_DETECTIONS
from detect.ops.threads import in_threads

SCORE_THRESHOLDS = np.arange(101) / 100
"""0.00, 0.01 … 1.00."""


def score_bins(scores: Float64[np.ndarray, " D"]) -> Int64[np.ndarray, " D"]:
    """Return the index of the highest of `SCORE_THRESHOLDS` that each score reaches.

    Scores are compared as float32, so that a float32 0.7 reaches 0.70.
    """
    thresholds = SCORE_THRESHOLDS.astype(np.float32)
    return np.clip(np.searchsorted(thresholds, scores.astype(np.float32), side="right") - 1, 0, None)


def confusion(
    ground_truths: FlatGroundTruths, detections: FlatDetections, iou_threshold: float = 0.5
) -> dict[str, list[int]]:
    """Count predicted and true classes by score.

    In each image, detections are matched in descending order of their scores, each to the free ground truth of any
    class with the highest IoU, if that is at least `iou_threshold`. An unmatched detection counts as background, or is
    ignored if the same share of it lies in a crowd region. Detections with lower scores do not change the match, so the
    matrix at a score threshold is the sum over the score bins from this threshold on.

    Returns:
        Columns of equal length: `bin` of the score, `predicted` label, `true` label (C is background), and `count` of
        such detections.
    """
    true = np.full(len(detections.labels), -1, np.int64)

    def work(first: int, last: int) -> None:
        _confuse(first, last, detections.arrays, ground_truths.arrays, iou_threshold, ground_truths.num_classes, true)

    in_threads(ground_truths.num_images, work)
    kept = true >= 0
    classes = ground_truths.num_classes + 1
    keys = (score_bins(detections.scores[kept]) * classes + detections.labels[kept]) * classes + true[kept]
    events, counts = np.unique(keys, return_counts=True)
    columns = {"bin": events // classes**2, "predicted": events // classes % classes, "true": events % classes}
    return {name: column.tolist() for name, column in {**columns, "count": counts}.items()}


@numba.njit(cache=True, nogil=True)
def _confuse(first, last, detections, ground_truths, iou_threshold, background, true):
    """Fill in the class of the matched ground truth, or `background`: int64 [D]; ignored detections stay -1."""
    crowd = ground_truths.crowd
    for image in range(first, last):
        begin, end = ground_truths.starts[image], ground_truths.starts[image + 1]
        taken = np.zeros(end - begin, np.bool_)
        for d in range(detections.starts[image], detections.starts[image + 1]):
            if detections.ranks[d] >= MAX_DETECTIONS:
                continue
            best, matched, ignored = iou_threshold, -1, False
            for p in range(detections.ranges[d, 0], detections.ranges[d, 1]):
                g, iou = detections.partners[p], detections.ious[p]
                if crowd[g]:
                    ignored |= iou >= iou_threshold
                elif not taken[g - begin] and iou >= best:
                    best, matched = iou, g
            if matched >= 0:
                taken[matched - begin] = True
                true[d] = ground_truths.labels[matched]
            elif not ignored:
                true[d] = background
