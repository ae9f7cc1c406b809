"""True and false positives at every score threshold, and the threshold with the highest F1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64, Int64

from detect.data.dataset import Dataset
from detect.evaluation.coco import Prediction
from detect.evaluation.confusion import SCORE_THRESHOLDS, score_bins
from detect.evaluation.flat import FlatDetections, flatten_detections, flatten_ground_truths
from detect.evaluation.matching import Matches, match

DEFAULT_SCORE = 0.5
"""Score threshold for detections without a true positive, whose F1 is 0 everywhere."""


def count_positives(
    detections: FlatDetections, matches: Matches, num_classes: int
) -> tuple[Int64[np.ndarray, "C T"], Int64[np.ndarray, "C T"]]:
    """Return the true and the false positives of each class at each of `SCORE_THRESHOLDS`, at IoU 0.50."""
    hits, ignored = matches.hits[0], matches.ignored[0]
    bin_of = score_bins(detections.scores)

    def cumulative_counts(chosen: Bool[np.ndarray, " D"]) -> Int64[np.ndarray, "C T"]:
        counts = np.zeros((num_classes, len(SCORE_THRESHOLDS)), np.int64)
        np.add.at(counts, (detections.labels[chosen], bin_of[chosen]), 1)
        return counts[:, ::-1].cumsum(axis=1)[:, ::-1]

    return cumulative_counts(hits), cumulative_counts(~hits & ~ignored)


def f1_scores(
    true_positives: Int64[np.ndarray, "C T"], false_positives: Int64[np.ndarray, "C T"], num_objects: int
) -> Float64[np.ndarray, " T"]:
    """Return F1 over the objects of all classes, 2 TP / (detections + objects), at each score threshold."""
    hits = true_positives.sum(axis=0)
    return 2 * hits / np.maximum(hits + false_positives.sum(axis=0) + num_objects, 1)


def best_score(f1: Float64[np.ndarray, " T"]) -> float:
    """Return the score threshold with the highest F1, the highest threshold among equals."""
    return float(SCORE_THRESHOLDS[::-1][f1[::-1].argmax()]) if f1.any() else DEFAULT_SCORE


def best_score_threshold(dataset: Dataset, runs: Sequence[Sequence[Prediction]]) -> float:
    """Return the score threshold with the highest F1 at IoU 0.50, of several detectors the highest mean F1.

    Args:
        dataset: images with their ground truths.
        runs: predictions of each detector, at most one per image.

    Returns:
        One of `SCORE_THRESHOLDS`; `DEFAULT_SCORE` if no detection is correct.
    """
    ground_truths = flatten_ground_truths(dataset)
    counts = ground_truths.class_counts()
    f1 = np.zeros(len(SCORE_THRESHOLDS))
    for predictions in runs:
        detections = flatten_detections(dataset, predictions)
        positives = count_positives(detections, match(ground_truths, detections), len(counts))
        f1 += f1_scores(*positives, int(counts.sum())) / len(runs)
    return best_score(f1)
