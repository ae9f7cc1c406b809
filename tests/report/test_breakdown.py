import json
from dataclasses import replace

import numpy as np
import pytest

from detect.evaluation.coco import METRICS, evaluate_coco
from detect.evaluation.confusion import SCORE_THRESHOLDS, confusion, score_bins
from detect.evaluation.flat import flatten_detections, flatten_ground_truths
from detect.evaluation.oracles import oracles
from detect.evaluation.voc import evaluate_voc
from detect.report.breakdown import CROWDING, analyse, compare_runs
from detect.report.meanings import DETECTION_MEANINGS

SQUARE = (10, 10, 50, 50)
FAR = (200, 200, 240, 240)
KEYS = ("metrics", "classes", "curves", "thresholds", "confusion", "slices", "calibration", "oracles")


def approx(values):
    return [value if value is None else pytest.approx(value, abs=1e-9) for value in values]


def matrix(events, size, lowest):
    """Return the matrix of predicted against true classes at the threshold `SCORE_THRESHOLDS[lowest]`."""
    table = np.zeros((size, size), int)
    for row in zip(*(events[key] for key in ("bin", "predicted", "true", "count")), strict=True):
        if row[0] >= lowest:
            table[row[1], row[2]] += row[3]
    return table


@pytest.mark.parametrize("images", [{}, {1: []}, {1: [(SQUARE, 0, "")]}, {1: [(SQUARE, 0, "crowd")]}])
def test_no_detections_or_no_ground_truths(dataset_of, prediction_of, images):
    dataset = dataset_of(images)
    some = [prediction_of(number, [(SQUARE, 0, 0.5), (FAR, 1, 0.4)]) for number in images]
    for predictions in ([], some):
        result = analyse(dataset, predictions, resamples=3)
        assert tuple(result) == KEYS
        json.dumps(result, allow_nan=False)
        coco = evaluate_coco(dataset, predictions)
        values = {row["name"]: row["value"] for row in result["metrics"]}
        assert [values[name] for name in METRICS] == approx([coco[name] for name in METRICS])


@pytest.mark.parametrize("seed", range(6))
def test_metrics_equal_the_evaluations(case_of, seed):
    dataset, predictions = case_of(seed)
    dataset = replace(dataset, records=tuple(sorted(dataset.records, key=lambda record: record.id)))
    result = analyse(dataset, predictions, resamples=8)
    json.dumps(result, allow_nan=False)
    coco, voc = evaluate_coco(dataset, predictions), evaluate_voc(dataset, predictions)
    expected = [coco[name] for name in METRICS] + [voc["VOC07"]["mAP"], voc["VOC"]["mAP"]]
    assert [row["name"] for row in result["metrics"]] == list(DETECTION_MEANINGS)
    assert [row["value"] for row in result["metrics"]] == approx(expected)
    for row in result["classes"]:
        of_class = coco["per_class"][row["name"]]
        keys = {"ground_truths": "truths"} | {name: name for name in ("AP", "AP50", "AP75", "AR100")}
        assert [row[key] for key in keys] == approx([of_class[name] for name in keys.values()])
        assert [row["VOC"]] == approx([voc["VOC"]["per_class"][row["name"]]])
        assert row["AP"] is None or row["AP_interval"] is None or row["AP_interval"][0] <= row["AP"] <= 1
    sizes = {row["name"]: row for row in result["slices"][0]["rows"]}
    assert [row["AP"] for row in sizes.values()] == approx([coco[name] for name in ("APs", "APm", "APl")])
    assert [row["AR"] for row in sizes.values()] == approx([coco[name] for name in ("ARs", "ARm", "ARl")])
    assert [result["oracles"][0][name] for name in ("AP", "AP50")] == approx([coco["AP"], coco["AP50"]])
    mean = result["curves"]["mean"]
    for iou, name in (("0.50", "AP50"), ("0.75", "AP75"), ("0.50:0.95", "AP")):
        assert np.mean(mean[iou]) == pytest.approx(coco[name], abs=1e-4)
    absent = [row["AP"] is None for row in result["classes"]]
    assert [row[0] is None for row in result["curves"]["precision"]["0.50"]] == absent


@pytest.mark.parametrize("seed", range(4))
def test_a_slice_by_crowding_equals_an_evaluation_of_its_images(case_of, seed):
    dataset, predictions = case_of(seed)
    rows = {row["name"]: row for row in analyse(dataset, predictions, resamples=0)["slices"][1]["rows"]}
    assert sum(row["ground_truths"] for row in rows.values()) == sum(
        np.sum(~record.crowd) for record in dataset.records
    )
    for name, (low, high) in CROWDING.items():
        records = tuple(record for record in dataset.records if low <= np.sum(~record.crowd) <= high)
        ids = {record.id for record in records}
        coco = evaluate_coco(replace(dataset, records=records), [one for one in predictions if one.image_id in ids])
        row = rows[name]
        assert [row[key] for key in ("AP", "AP50", "AR")] == approx([coco[key] for key in ("AP", "AP50", "AR100")])


def test_thresholds_and_calibration_by_hand(dataset_of, prediction_of):
    dataset = dataset_of({1: [(SQUARE, 0, ""), (FAR, 0, ""), ((0, 100, 100, 200), 0, "crowd")]})
    boxes = [(SQUARE, 0, 0.7), (SQUARE, 0, 0.74), ((300, 0, 340, 40), 0, 0.2), ((10, 110, 40, 140), 0, 0.9)]
    result = analyse(dataset, [prediction_of(1, [*boxes, (FAR, 1, 1.0)])], resamples=0)
    hits, wrong = (np.array(result["thresholds"][key]) for key in ("true_positives", "false_positives"))
    assert hits[0, [0, 20, 70, 71, 74, 75]].tolist() == [1, 1, 1, 1, 1, 0]
    assert wrong[0, [0, 20, 21, 70, 71, 75]].tolist() == [2, 2, 1, 1, 0, 0]  # a float32 0.7 reaches 0.70
    assert wrong[1, [0, 100]].tolist() == [1, 1] and result["thresholds"]["ground_truths"] == [2, 0]
    rows = result["calibration"]["rows"]
    assert [row["count"] for row in rows] == [0, 0, 1, 0, 0, 0, 0, 2, 0, 1]
    assert (rows[7]["low"], rows[7]["high"], rows[7]["precision"]) == (0.7, 0.8, 0.5)
    assert rows[7]["score"] == pytest.approx(0.72) and rows[0]["score"] is rows[0]["precision"] is None
    assert result["calibration"]["ece"] == pytest.approx((0.2 + 2 * 0.22 + 1.0) / 4)


def test_confusion_by_hand(dataset_of, prediction_of):
    near = (10, 10, 50, 46)
    dataset = dataset_of({1: [(SQUARE, 0, ""), (near, 1, ""), ((0, 100, 100, 200), 1, "crowd")], 2: [(SQUARE, 1, "")]})
    boxes = [(SQUARE, 1, 0.9), (SQUARE, 1, 0.8), (SQUARE, 0, 0.5), ((10, 110, 40, 140), 0, 0.3)]
    predictions = [prediction_of(1, boxes), prediction_of(2, [(FAR, 0, 0.5)])]
    events = confusion(flatten_ground_truths(dataset), flatten_detections(dataset, predictions))
    # The dog of score 0.9 matches the cat, that of 0.8 the remaining dog; two cats of 0.5 match nothing.
    assert events == {"bin": [50, 80, 90], "predicted": [0, 1, 1], "true": [2, 1, 0], "count": [2, 1, 1]}


@pytest.mark.parametrize("seed", range(5))
def test_confusion_at_a_threshold_equals_that_of_the_detections_above_it(case_of, seed):
    dataset, predictions = case_of(seed)
    ground_truths, size = flatten_ground_truths(dataset), len(dataset.classes) + 1
    events = confusion(ground_truths, flatten_detections(dataset, predictions))
    for lowest in (0, 30, 75):
        kept = []
        for one in predictions:
            chosen = score_bins(one.scores.astype(float)) >= lowest
            kept.append(replace(one, boxes=one.boxes[chosen], scores=one.scores[chosen], labels=one.labels[chosen]))
        alone = matrix(confusion(ground_truths, flatten_detections(dataset, kept)), size, 0)
        np.testing.assert_array_equal(matrix(events, size, lowest), alone)
        positives = np.bincount(ground_truths.labels[~ground_truths.crowd], minlength=size)
        assert (alone.sum(axis=0)[:-1] <= positives[:-1]).all()


def test_a_score_equal_to_a_threshold_reaches_it():
    scores = np.float32(SCORE_THRESHOLDS).astype(np.float64)
    np.testing.assert_array_equal(score_bins(scores), np.arange(101))
    assert score_bins(np.array([-0.5, 0.999, 1.5])).tolist() == [0, 99, 100]


def test_each_oracle_corrects_one_kind_of_error(dataset_of, prediction_of):
    def square(x):
        return (x, 0, x + 40, 40)

    dataset = dataset_of({1: [(square(100 * k), 0, "") for k in range(4)]})
    boxes = [
        (square(0), 1, 0.9),  # wrong class
        ((100, 0, 140, 12), 0, 0.8),  # poorly localized: IoU 0.3
        (square(200), 0, 0.7),
        (square(200), 0, 0.6),  # duplicate
        ((0, 200, 40, 240), 0, 0.95),  # background
    ]
    steps = oracles(flatten_ground_truths(dataset), flatten_detections(dataset, [prediction_of(1, boxes)]))
    assert steps[0]["name"] == "no oracle"
    # Precision at 101 recalls: 26 up to 1/4, 25 each up to 2/4, 3/4 and 1.
    expected = [
        26 * 1 / 3,  # 0.95 wrong, 0.8 wrong, 0.7 correct
        26 * 1 / 2 + 25 * 2 / 4,  # 0.95 wrong, 0.9 correct, 0.8 wrong, 0.7 correct
        76 * 3 / 4,  # wrong, correct, correct, correct
        76 * 3 / 4,  # the duplicate was last
        76,
        101,
    ]
    assert [step["AP50"] for step in steps] == pytest.approx([value / 101 for value in expected])
    assert [step["AP"] for step in steps] == pytest.approx([value / 101 for value in expected])


@pytest.mark.parametrize("seed", range(6))
def test_the_last_oracle_reaches_1(case_of, seed):
    dataset, predictions = case_of(seed)
    steps = oracles(flatten_ground_truths(dataset), flatten_detections(dataset, predictions))
    assert len(steps) == 6
    assert steps[-1]["AP"] == pytest.approx(1.0)
    from_boxes_on = [step["AP"] for step in steps[2:]]
    assert from_boxes_on == sorted(from_boxes_on)


def test_runs_are_compared_with_the_first(case_of):
    dataset, predictions = case_of(2)
    fewer = [replace(predictions[0], image_id=one.image_id) if k == 1 else one for k, one in enumerate(predictions)]
    metrics, (same, other) = compare_runs(dataset, [predictions, predictions, fewer], resamples=20)
    assert len(metrics) == 3 and metrics[0] == metrics[1] == analyse(dataset, predictions, resamples=20)["metrics"]
    assert (same["run"], other["run"]) == (1, 2)
    assert [row["name"] for row in same["metrics"]] == list(DETECTION_MEANINGS)
    assert all(row["difference"] in (0.0, None) for row in same["metrics"] + same["classes"])
    before, after = (evaluate_coco(dataset, run) for run in (predictions, fewer))
    assert other["metrics"][0]["difference"] == pytest.approx(after["AP"] - before["AP"])
    assert [row["name"] for row in other["classes"]] == list(dataset.classes)
    of_class = [run["per_class"][dataset.classes[0]]["AP"] for run in (before, after)]
    assert other["classes"][0]["difference"] == pytest.approx(of_class[1] - of_class[0])
    json.dumps([same, other], allow_nan=False)
