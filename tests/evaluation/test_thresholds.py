"""The score threshold with the highest F1."""

import numpy as np
import pytest

from detect.evaluation.confusion import SCORE_THRESHOLDS
from detect.evaluation.flat import flatten_detections, flatten_ground_truths
from detect.evaluation.matching import match
from detect.evaluation.thresholds import DEFAULT_SCORE, best_score_threshold, count_positives, f1_scores

OBJECT, OTHER, NOWHERE = (10, 10, 50, 50), (60, 60, 90, 90), (150, 150, 180, 180)


def test_without_images_or_correct_detections_it_is_the_default(dataset_of, prediction_of):
    assert best_score_threshold(dataset_of({}), [[]]) == DEFAULT_SCORE
    wrong = [prediction_of(1, [(NOWHERE, 0, 0.9)])]
    assert best_score_threshold(dataset_of({1: [(OBJECT, 0, "")]}), [wrong]) == DEFAULT_SCORE


def test_f1_by_hand(dataset_of, prediction_of):
    dataset = dataset_of({1: [(OBJECT, 0, ""), (OTHER, 1, "")]})
    predictions = [prediction_of(1, [(OBJECT, 0, 0.8), (OTHER, 1, 0.3), (NOWHERE, 1, 0.2), (NOWHERE, 0, 0.1)])]
    ground_truths, detections = flatten_ground_truths(dataset), flatten_detections(dataset, predictions)
    f1 = f1_scores(*count_positives(detections, match(ground_truths, detections), 2), 2)
    # 2 TP / (detections + objects): 4/6 with all, then 4/5, 4/4, and 2/3 with the best one.
    np.testing.assert_allclose(f1[[0, 10, 11, 20, 21, 30, 31, 80]], [4 / 6, 4 / 6, 4 / 5, 4 / 5, 1, 1, 2 / 3, 2 / 3])
    assert not f1[81:].any()
    assert best_score_threshold(dataset, [predictions]) == 0.3  # the highest of 0.21 … 0.30


def test_the_mean_of_several_detectors_decides(dataset_of, prediction_of):
    dataset = dataset_of({1: [(OBJECT, 0, "")]})
    sure = [prediction_of(1, [(OBJECT, 0, 0.9), (NOWHERE, 0, 0.6)])]
    unsure = [prediction_of(1, [(OBJECT, 0, 0.4), (NOWHERE, 0, 0.05)])]
    assert best_score_threshold(dataset, [sure]) == 0.9
    assert best_score_threshold(dataset, [unsure]) == 0.4
    assert best_score_threshold(dataset, [sure, unsure]) == 0.4  # (2/3 + 1) / 2 is more than 1/2


@pytest.mark.parametrize("seed", range(5))
def test_it_equals_a_search_over_all_thresholds(case_of, seed):
    dataset, predictions = case_of(seed)
    ground_truths, detections = flatten_ground_truths(dataset), flatten_detections(dataset, predictions)
    matches = match(ground_truths, detections)
    objects = sum(int((~record.crowd).sum()) for record in dataset.records)

    def f1(threshold: float) -> float:
        kept = (detections.scores.astype(np.float32) >= np.float32(threshold)) & ~matches.ignored[0]
        hits = int((matches.hits[0] & kept).sum())
        return 2 * hits / max(int(kept.sum()) + objects, 1)

    values = [f1(threshold) for threshold in SCORE_THRESHOLDS]
    best = best_score_threshold(dataset, [predictions])
    assert f1(best) == pytest.approx(max(values)) and max(values) > 0
    assert best == max(t for t, value in zip(SCORE_THRESHOLDS, values, strict=True) if value == max(values))
