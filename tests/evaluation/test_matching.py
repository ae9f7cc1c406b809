"""Matches and curves are those of pycocotools, to the last bit.

The suite looks at 100 random sets; DETECT_RANDOM_SETS=1000 makes it look at so many.
"""

import contextlib
import io
import os

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detect.evaluation.coco import Prediction, coco_results, coco_truth
from detect.evaluation.matching import AREAS, LIMIT, RECALLS, found_in, match, mean, of_area, tables, truths_of

SETS = int(os.environ.get("DETECT_RANDOM_SETS", "100"))
SQUARE = (10, 10, 50, 50)


def repeated(predictions, times, seed):
    """Each detection `times` times, moved a little: more than 100 of a class in an image."""
    random = np.random.default_rng(seed)
    several = []
    for one in predictions:
        boxes = np.tile(one.boxes, (times, 1))
        boxes += random.integers(0, 4, (len(boxes), 1)).astype(np.float32)
        scores, labels = np.tile(one.scores, times), np.tile(one.labels, times)
        order = random.permutation(len(labels))
        several.append(Prediction(one.image_id, boxes[order], scores[order], labels[order]))
    return several


def sides(dataset, predictions):
    """The truths and the detections as pycocotools has them."""
    results = coco_results(predictions, dataset)
    for number, result in enumerate(results, start=1):
        result |= {"id": number, "area": result["bbox"][2] * result["bbox"][3], "iscrowd": 0}
    truth = coco_truth(dataset)
    both = []
    for content in (truth, {**truth, "annotations": results}):
        side = COCO()
        side.dataset = content
        side.createIndex()
        both.append(side)
    return both


def pycocotools_eval(dataset, predictions):
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(*sides(dataset, predictions), iouType="bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval


def assert_same_bits(dataset, predictions):
    expected = pycocotools_eval(dataset, predictions)
    truths, found = truths_of(dataset), found_in(dataset, predictions)
    by_id = np.argsort(dataset.category_ids)
    for area, (low, high) in enumerate(AREAS.values()):
        matches = of_area(truths, found, low, high)
        for place, limit in enumerate((1, 10, 100)):
            ours = tables(truths, found, matches, limit)
            for name in ("precision", "recall", "scores"):
                np.testing.assert_array_equal(getattr(ours, name)[..., by_id], expected[name][..., area, place])


def test_recalls_are_pycocotools():
    np.testing.assert_array_equal(RECALLS, COCOeval(iouType="bbox").params.recThrs)


def test_without_images_or_detections_or_truths(dataset_of, prediction_of):
    assert_same_bits(dataset_of({}), [])
    assert_same_bits(dataset_of({1: [], 2: []}), [])
    assert_same_bits(dataset_of({1: [(SQUARE, 0, "")], 2: []}), [])
    assert_same_bits(dataset_of({1: []}), [prediction_of(1, [(SQUARE, 0, 0.5)])])
    assert_same_bits(dataset_of({1: [(SQUARE, 0, "crowd")]}), [prediction_of(1, [(SQUARE, 0, 0.5)])])


def test_matches_by_hand(dataset_of, prediction_of):
    left, right = (0, 0, 40, 40), (100, 0, 140, 40)
    dataset = dataset_of({3: [(left, 0, ""), (right, 0, "")], 1: [(left, 1, ""), ((0, 100, 200, 200), 1, "crowd")]})
    found = found_in(
        dataset,
        [
            prediction_of(3, [(right, 0, 0.3), ((0, 0, 40, 24), 0, 0.9), (left, 0, 0.8)]),
            prediction_of(1, [((20, 120, 40, 140), 1, 0.2), (left, 0, 0.7), ((20, 120, 40, 150), 1, 0.2)]),
        ],
    )
    assert found.scores.tolist() == pytest.approx([0.7, 0.2, 0.2, 0.9, 0.8, 0.3])
    assert found.places.tolist() == [1, 0, 2, 1, 2, 0]
    assert found.image_of.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.ranks.tolist() == [0, 0, 1, 0, 1, 2]
    assert found.by_class.tolist() == [3, 4, 0, 5, 1, 2]
    matches = match(truths_of(dataset), found)
    assert matches.truths[0].tolist() == [-1, 1, 1, 2, -1, 3]  # image 1 has the truths 0 and 1, image 3 has 2 and 3
    assert matches.truths[2].tolist() == [-1, 1, 1, 2, -1, 3]  # 24 of 40 rows are an IoU of 0.6
    assert matches.truths[3].tolist() == [-1, 1, 1, -1, 2, 3]
    assert matches.ignored[0].tolist() == [False, True, True, False, False, False]
    assert matches.positives.tolist() == [True, False, True, True]
    assert matches.hits[0].tolist() == [False, False, False, True, False, True]


def test_the_101st_detection_is_not_looked_at(dataset_of, prediction_of):
    dataset = dataset_of({1: [(SQUARE, 0, "")]})
    wrong = [((200, 200, 240, 240), 0, 0.9)] * (LIMIT - 1)
    for ahead, recall in ((wrong, 1.0), (wrong + wrong[:1], 0.0)):
        predictions = [prediction_of(1, [*ahead, (SQUARE, 0, 0.5)])]
        truths, found = truths_of(dataset), found_in(dataset, predictions)
        assert mean(tables(truths, found, match(truths, found)).recall) == recall
        assert_same_bits(dataset, predictions)


@pytest.mark.parametrize("part", range(10))
def test_curves_have_the_bits_of_pycocotools(case_of, part):
    for seed in range(part, SETS, 10):
        dataset, predictions = case_of(seed)
        assert_same_bits(dataset, repeated(predictions, 15, seed) if part == 0 else predictions)


def test_slices_are_what_pycocotools_finds_with_another_area(case_of):
    """Any number can stand for the area, by which pycocotools leaves truths and detections out."""
    for seed in range(10):
        dataset, predictions = case_of(seed)
        both = sides(dataset, predictions)
        for side in both:
            for one in side.dataset["annotations"]:
                one["area"] = one["bbox"][2] / one["bbox"][3]
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(*both, iouType="bbox")
            evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0.75, 1.5]], ["all"]
            evaluation.evaluate()
            evaluation.accumulate()
        truths, found = truths_of(dataset), found_in(dataset, predictions)
        of_truth, of_found = (boxes[:, 2] / boxes[:, 3] for boxes in (truths.boxes, found.boxes))
        outside = [(ratio < 0.75) | (ratio > 1.5) for ratio in (of_truth, of_found)]
        ours = tables(truths, found, match(truths, found, *outside))
        by_id = np.argsort(dataset.category_ids)
        np.testing.assert_array_equal(ours.precision[..., by_id], evaluation.eval["precision"][..., 0, -1])


def test_an_unknown_image_is_refused(dataset_of, prediction_of):
    with pytest.raises(ValueError, match="image 2 is not in val"):
        found_in(dataset_of({1: []}), [prediction_of(2, [])])
