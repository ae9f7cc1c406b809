"""Matches and curves equal those of pycocotools to the last bit.

The suite tests 100 random data sets; DETECT_RANDOM_SETS=1000 makes it test that many.
"""

import contextlib
import io
import os

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detect.evaluation.coco import Prediction, coco_ground_truth, coco_results, mean_of_known
from detect.evaluation.flat import flatten_detections, flatten_ground_truths
from detect.evaluation.matching import (
    AREA_RANGES,
    MAX_DETECTIONS,
    RECALL_THRESHOLDS,
    match,
    match_area,
    precision_recall,
)

NUM_SETS = int(os.environ.get("DETECT_RANDOM_SETS", "100"))
SQUARE = (10, 10, 50, 50)


def repeated(predictions, times, seed):
    """Return each detection `times` times, slightly shifted: more than 100 per class and image."""
    random = np.random.default_rng(seed)
    several = []
    for one in predictions:
        boxes = np.tile(one.boxes, (times, 1))
        boxes += random.integers(0, 4, (len(boxes), 1)).astype(np.float32)
        scores, labels = np.tile(one.scores, times), np.tile(one.labels, times)
        order = random.permutation(len(labels))
        several.append(Prediction(one.image_id, boxes[order], scores[order], labels[order]))
    return several


def coco_objects(dataset, predictions):
    """Return the ground truths and the detections as objects of pycocotools."""
    results = coco_results(predictions, dataset)
    for number, result in enumerate(results, start=1):
        result |= {"id": number, "area": result["bbox"][2] * result["bbox"][3], "iscrowd": 0}
    ground_truth = coco_ground_truth(dataset)
    both = []
    for content in (ground_truth, {**ground_truth, "annotations": results}):
        coco = COCO()
        coco.dataset = content
        coco.createIndex()
        both.append(coco)
    return both


def pycocotools_eval(dataset, predictions):
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(*coco_objects(dataset, predictions), iouType="bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval


def assert_equals_pycocotools(dataset, predictions):
    expected = pycocotools_eval(dataset, predictions)
    ground_truths, detections = flatten_ground_truths(dataset), flatten_detections(dataset, predictions)
    by_id = np.argsort(dataset.category_ids)
    for area, (low, high) in enumerate(AREA_RANGES.values()):
        matches = match_area(ground_truths, detections, low, high)
        for index, limit in enumerate((1, 10, 100)):
            ours = precision_recall(ground_truths, detections, matches, limit)
            for name in ("precision", "recall", "scores"):
                np.testing.assert_array_equal(getattr(ours, name)[..., by_id], expected[name][..., area, index])


def test_recall_thresholds_are_those_of_pycocotools():
    np.testing.assert_array_equal(RECALL_THRESHOLDS, COCOeval(iouType="bbox").params.recThrs)


def test_without_images_or_detections_or_ground_truths(dataset_of, prediction_of):
    assert_equals_pycocotools(dataset_of({}), [])
    assert_equals_pycocotools(dataset_of({1: [], 2: []}), [])
    assert_equals_pycocotools(dataset_of({1: [(SQUARE, 0, "")], 2: []}), [])
    assert_equals_pycocotools(dataset_of({1: []}), [prediction_of(1, [(SQUARE, 0, 0.5)])])
    assert_equals_pycocotools(dataset_of({1: [(SQUARE, 0, "crowd")]}), [prediction_of(1, [(SQUARE, 0, 0.5)])])


def test_matches_by_hand(dataset_of, prediction_of):
    left, right = (0, 0, 40, 40), (100, 0, 140, 40)
    dataset = dataset_of({3: [(left, 0, ""), (right, 0, "")], 1: [(left, 1, ""), ((0, 100, 200, 200), 1, "crowd")]})
    detections = flatten_detections(
        dataset,
        [
            prediction_of(3, [(right, 0, 0.3), ((0, 0, 40, 24), 0, 0.9), (left, 0, 0.8)]),
            prediction_of(1, [((20, 120, 40, 140), 1, 0.2), (left, 0, 0.7), ((20, 120, 40, 150), 1, 0.2)]),
        ],
    )
    assert detections.scores.tolist() == pytest.approx([0.7, 0.2, 0.2, 0.9, 0.8, 0.3])
    assert detections.indices.tolist() == [1, 0, 2, 1, 2, 0]
    assert detections.image_of.tolist() == [0, 0, 0, 1, 1, 1]
    assert detections.ranks.tolist() == [0, 0, 1, 0, 1, 2]
    assert detections.by_class.tolist() == [3, 4, 0, 5, 1, 2]
    matches = match(flatten_ground_truths(dataset), detections)
    assert matches.ground_truths[0].tolist() == [
        -1,
        1,
        1,
        2,
        -1,
        3,
    ]  # image 1 has ground truths 0 and 1, image 3 has 2 and 3
    assert matches.ground_truths[2].tolist() == [-1, 1, 1, 2, -1, 3]  # 24 of 40 rows: IoU 0.6
    assert matches.ground_truths[3].tolist() == [-1, 1, 1, -1, 2, 3]
    assert matches.ignored[0].tolist() == [False, True, True, False, False, False]
    assert matches.positives.tolist() == [True, False, True, True]
    assert matches.hits[0].tolist() == [False, False, False, True, False, True]


def test_the_101st_detection_is_not_evaluated(dataset_of, prediction_of):
    dataset = dataset_of({1: [(SQUARE, 0, "")]})
    wrong = [((200, 200, 240, 240), 0, 0.9)] * (MAX_DETECTIONS - 1)
    for ahead, recall in ((wrong, 1.0), (wrong + wrong[:1], 0.0)):
        predictions = [prediction_of(1, [*ahead, (SQUARE, 0, 0.5)])]
        ground_truths, detections = flatten_ground_truths(dataset), flatten_detections(dataset, predictions)
        assert (
            mean_of_known(precision_recall(ground_truths, detections, match(ground_truths, detections)).recall)
            == recall
        )
        assert_equals_pycocotools(dataset, predictions)


@pytest.mark.parametrize("part", range(10))
def test_curves_equal_those_of_pycocotools_to_the_last_bit(case_of, part):
    for seed in range(part, NUM_SETS, 10):
        dataset, predictions = case_of(seed)
        assert_equals_pycocotools(dataset, repeated(predictions, 15, seed) if part == 0 else predictions)


def test_slices_equal_pycocotools_with_another_area(case_of):
    """The area, by which pycocotools ignores ground truths and detections, can be any number."""
    for seed in range(10):
        dataset, predictions = case_of(seed)
        both = coco_objects(dataset, predictions)
        for coco in both:
            for one in coco.dataset["annotations"]:
                one["area"] = one["bbox"][2] / one["bbox"][3]
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(*both, iouType="bbox")
            evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0.75, 1.5]], ["all"]
            evaluation.evaluate()
            evaluation.accumulate()
        ground_truths, detections = flatten_ground_truths(dataset), flatten_detections(dataset, predictions)
        ratios = (boxes[:, 2] / boxes[:, 3] for boxes in (ground_truths.boxes, detections.boxes))
        outside = [(ratio < 0.75) | (ratio > 1.5) for ratio in ratios]
        ours = precision_recall(ground_truths, detections, match(ground_truths, detections, *outside))
        by_id = np.argsort(dataset.category_ids)
        np.testing.assert_array_equal(ours.precision[..., by_id], evaluation.eval["precision"][..., 0, -1])


def test_an_unknown_image_is_refused(dataset_of, prediction_of):
    with pytest.raises(ValueError, match="image 2 is not in val"):
        flatten_detections(dataset_of({1: []}), [prediction_of(2, [])])
