"""All analyses take the overlaps of boxes or of masks; those of masks equal pycocotools' to the last bit."""

import contextlib
import io
import math
from dataclasses import replace

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detect.data.masks import Polygons, encode
from detect.evaluation.bootstrap import draw_weights, resample
from detect.evaluation.coco import METRICS, Prediction, coco_ground_truth, coco_results, corners, evaluate_coco
from detect.evaluation.confusion import confusion
from detect.evaluation.flat import flatten_detections, flatten_ground_truths
from detect.evaluation.matching import AREA_RANGES, match, match_area, precision_recall
from detect.evaluation.oracles import oracles
from detect.evaluation.tide import KINDS, find_errors, tide

OBJECT, FAR = (10, 10, 50, 50), (60, 60, 90, 90)


def square(x1, y1, x2, y2):
    return Polygons((np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)], np.float64),))


def bitmap_of(x1, y1, x2, y2):
    bitmap = np.zeros((300, 400), np.uint8)
    bitmap[y1:y2, x1:x2] = 1
    return bitmap


def flat(dataset, predictions, kind="segm"):
    ground_truths = flatten_ground_truths(dataset, kind)
    return ground_truths, flatten_detections(dataset, predictions, ground_truths)


def with_box_masks(dataset, predictions):
    """Give each object and detection its box as mask."""
    records = [
        replace(record, masks=tuple(square(*box) for box in record.boxes.tolist())) for record in dataset.records
    ]
    found = [
        replace(prediction, masks=tuple(encode(bitmap_of(*box)) for box in prediction.boxes.astype(int).tolist()))
        for prediction in predictions
    ]
    return replace(dataset, records=tuple(records)), found


@pytest.fixture
def boxes_of(case_of):
    """Return cases whose boxes are whole pixels within the images, with their boxes as masks."""

    def make(seed):
        dataset, predictions = case_of(seed)

        def whole(one):
            boxes = one.boxes.round().clip(0, (399, 299, 400, 300))
            boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
            return replace(one, boxes=boxes.astype(np.float32))

        records = [whole(record) for record in dataset.records]
        areas = [np.prod(record.boxes[:, 2:] - record.boxes[:, :2], axis=1, dtype=np.float64) for record in records]
        records = tuple(replace(record, areas=area) for record, area in zip(records, areas, strict=True))
        return with_box_masks(replace(dataset, records=records), [whole(one) for one in predictions])

    return make


@pytest.mark.parametrize("images", [{}, {1: []}, {1: [(OBJECT, 0, "")]}, {1: [(OBJECT, 0, "crowd")]}])
def test_without_detections_or_ground_truths(dataset_of, prediction_of, images):
    dataset, some = with_box_masks(dataset_of(images), [prediction_of(number, [(FAR, 0, 0.5)]) for number in images])
    for predictions in ([], [Prediction.empty(number) for number in images], some):
        ground_truths, detections = flat(dataset, predictions)
        assert detections.overlaps.ranges.shape == (len(detections.labels), 2)
        assert len(detections.overlaps.partners) == len(detections.overlaps.ious) == 0
        errors = find_errors(dataset, ground_truths, detections)
        assert errors.counts["Bkg"] == len(detections.labels)
        assert len(oracles(ground_truths, detections)) == 6


def test_only_pairs_that_overlap_are_listed(dataset_of, prediction_of):
    dataset = dataset_of({1: [(OBJECT, 0, ""), (FAR, 1, ""), ((0, 0, 100, 100), 0, "crowd")], 2: [(OBJECT, 0, "")]})
    boxes = [((10, 10, 50, 30), 0, 0.3), ((60, 60, 90, 90), 0, 0.9)]
    for kind in ("bbox", "segm"):
        ground_truths, detections = flat(*with_box_masks(dataset, [prediction_of(1, boxes)]), kind)
        # The second detection has the higher score. A crowd region has the share of the detection that lies in it.
        assert detections.overlaps.ranges.tolist() == [[2, 4], [0, 2]]
        assert detections.overlaps.partners.tolist() == [0, 2, 1, 2]
        assert detections.overlaps.ious.tolist() == [0.5, 1.0, 1.0, 1.0]
        assert detections.areas.tolist() == [900.0, 800.0]
        assert (ground_truths.masks is None) == (kind == "bbox")


@pytest.mark.parametrize("seed", range(12))
def test_masks_that_are_boxes_are_analysed_like_boxes(boxes_of, seed):
    dataset, predictions = boxes_of(seed)
    boxes, masks = flat(dataset, predictions, "bbox"), flat(dataset, predictions)
    for ours, theirs in zip(boxes[1].overlaps, masks[1].overlaps, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert oracles(*boxes) == oracles(*masks)
    assert confusion(*boxes) == confusion(*masks)
    assert tide(dataset, predictions).summary() == find_errors(dataset, *masks).summary()
    weights = draw_weights(len(dataset), 5, seed=0)
    of_boxes, of_masks = resample(*boxes, weights), resample(*masks, weights)
    for name in METRICS:
        np.testing.assert_array_equal(of_boxes.metrics[name], of_masks.metrics[name])
    assert set(of_boxes.metrics) - set(of_masks.metrics) == {"VOC07", "VOC"}


@pytest.mark.parametrize("seed", range(10))
def test_curves_of_masks_equal_those_of_pycocotools(mask_case_of, seed):
    dataset, predictions = mask_case_of(seed)
    ground_truths, detections = flat(dataset, predictions)
    content = coco_ground_truth(dataset)
    for annotation in content["annotations"]:
        if "segmentation" not in annotation:
            annotation |= {"iscrowd": 1, "segmentation": [corners(annotation["bbox"])]}
    results = [
        {key: value for key, value in row.items() if key != "bbox"} for row in coco_results(predictions, dataset)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = content
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
    by_id = np.argsort(dataset.category_ids)
    for area, (low, high) in enumerate(AREA_RANGES.values()):
        curves = precision_recall(ground_truths, detections, match_area(ground_truths, detections, low, high))
        for name in ("precision", "recall", "scores"):
            expected = evaluation.eval[name][..., area, 2]
            np.testing.assert_array_equal(getattr(curves, name)[..., by_id], expected)


@pytest.mark.parametrize("seed", range(6))
def test_resampled_metrics_of_masks_equal_the_evaluation(mask_case_of, seed):
    dataset, predictions = mask_case_of(seed)
    metrics = evaluate_coco(dataset, predictions)
    samples = resample(*flat(dataset, predictions), draw_weights(len(dataset), 0, seed=0))
    for name in METRICS:
        value, ours = metrics[f"mask_{name}"], samples.metrics[name][0]
        assert math.isnan(ours) if value is None else ours == pytest.approx(value, abs=1e-12), name


def test_a_good_box_with_a_poor_mask_is_a_localization_error_of_masks(dataset_of, prediction_of):
    """The mask has a third of the object: IoU 1/3."""
    dataset, _ = with_box_masks(dataset_of({1: [((10, 10, 40, 40), 0, "")]}), [])
    masks = (encode(bitmap_of(10, 10, 20, 40)),)
    predictions = [replace(prediction_of(1, [((10, 10, 40, 40), 0, 0.9)]), masks=masks)]
    assert tide(dataset, predictions).kinds[1].tolist() == [KINDS.index("correct")]
    errors = find_errors(dataset, *flat(dataset, predictions))
    assert errors.kinds[1].tolist() == [KINDS.index("Loc")] and errors.delta_ap["Loc"] == pytest.approx(1.0)
    last = oracles(*flat(dataset, predictions))
    assert [row["AP"] for row in last] == [0.0, 0.0, *[pytest.approx(1.0)] * 4]


def test_an_object_without_a_mask_is_ignored(dataset_of, prediction_of):
    dataset = dataset_of({1: [(OBJECT, 0, ""), (FAR, 0, "")]})
    dataset = replace(dataset, records=(replace(dataset.records[0], masks=(square(*OBJECT), None)),))
    masks = (encode(bitmap_of(61, 61, 89, 89)), encode(bitmap_of(*OBJECT)))
    predictions = [replace(prediction_of(1, [(FAR, 0, 0.9), (OBJECT, 0, 0.8)]), masks=masks)]
    ground_truths, detections = flat(dataset, predictions)
    assert ground_truths.crowd.tolist() == [False, True] and ground_truths.class_counts().tolist() == [1, 0]
    matches = match(ground_truths, detections)
    assert matches.ignored[0].tolist() == [True, False] and matches.hits[0].tolist() == [False, True]
    assert not flatten_ground_truths(dataset).crowd.any()
