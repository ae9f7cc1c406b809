import json
from dataclasses import replace

import numpy as np
import pytest

from detect.evaluation.coco import FIGURES, evaluate_coco
from detect.evaluation.confusion import EDGES, bins, confusion
from detect.evaluation.matching import found_in, truths_of
from detect.evaluation.oracles import oracles
from detect.evaluation.voc import evaluate_voc
from detect.report.breakdown import CROWDING, MEANINGS, analyse, compare

SQUARE = (10, 10, 50, 50)
FAR = (200, 200, 240, 240)
KEYS = ("figures", "classes", "curves", "thresholds", "confusion", "slices", "calibration", "oracles")


def approx(values):
    return [value if value is None else pytest.approx(value, abs=1e-9) for value in values]


def matrix(events, size, least):
    """Found against true, of the detections of score >= EDGES[least]."""
    table = np.zeros((size, size), int)
    for row in zip(*(events[key] for key in ("bin", "found", "true", "count")), strict=True):
        if row[0] >= least:
            table[row[1], row[2]] += row[3]
    return table


@pytest.mark.parametrize("images", [{}, {1: []}, {1: [(SQUARE, 0, "")]}, {1: [(SQUARE, 0, "crowd")]}])
def test_nothing_found_or_nothing_true(dataset_of, prediction_of, images):
    dataset = dataset_of(images)
    found = [prediction_of(number, [(SQUARE, 0, 0.5), (FAR, 1, 0.4)]) for number in images]
    for predictions in ([], found):
        result = analyse(dataset, predictions, resamples=3)
        assert tuple(result) == KEYS
        json.dumps(result, allow_nan=False)
        coco = evaluate_coco(dataset, predictions)
        values = {row["name"]: row["value"] for row in result["figures"]}
        assert [values[name] for name in FIGURES] == approx([coco[name] for name in FIGURES])


@pytest.mark.parametrize("seed", range(6))
def test_the_figures_are_those_of_the_evaluations(case_of, seed):
    dataset, predictions = case_of(seed)
    dataset = replace(dataset, records=tuple(sorted(dataset.records, key=lambda record: record.id)))
    result = analyse(dataset, predictions, resamples=8)
    json.dumps(result, allow_nan=False)
    coco, voc = evaluate_coco(dataset, predictions), evaluate_voc(dataset, predictions)
    expected = [coco[name] for name in FIGURES] + [voc["VOC07"]["mAP"], voc["VOC"]["mAP"]]
    assert [row["name"] for row in result["figures"]] == list(MEANINGS)
    assert [row["value"] for row in result["figures"]] == approx(expected)
    for row in result["classes"]:
        of_class = coco["per_class"][row["name"]]
        names = ("truths", "AP", "AP50", "AP75", "AR100")
        assert [row[name] for name in names] == approx([of_class[name] for name in names])
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
def test_a_slice_by_crowding_is_the_evaluation_of_those_images(case_of, seed):
    dataset, predictions = case_of(seed)
    rows = {row["name"]: row for row in analyse(dataset, predictions, resamples=0)["slices"][1]["rows"]}
    assert sum(row["truths"] for row in rows.values()) == sum(np.sum(~record.crowd) for record in dataset.records)
    for name, (low, high) in CROWDING.items():
        records = tuple(record for record in dataset.records if low <= np.sum(~record.crowd) <= high)
        ids = {record.id for record in records}
        coco = evaluate_coco(replace(dataset, records=records), [one for one in predictions if one.image_id in ids])
        row = rows[name]
        assert [row[key] for key in ("AP", "AP50", "AR")] == approx([coco[key] for key in ("AP", "AP50", "AR100")])


def test_thresholds_and_calibration_by_hand(dataset_of, prediction_of):
    dataset = dataset_of({1: [(SQUARE, 0, ""), (FAR, 0, ""), ((0, 100, 100, 200), 0, "crowd")]})
    found = [(SQUARE, 0, 0.7), (SQUARE, 0, 0.74), ((300, 0, 340, 40), 0, 0.2), ((10, 110, 40, 140), 0, 0.9)]
    result = analyse(dataset, [prediction_of(1, [*found, (FAR, 1, 1.0)])], resamples=0)
    hits, wrong = (np.array(result["thresholds"][key]) for key in ("hits", "false"))
    assert hits[0, [0, 20, 70, 71, 74, 75]].tolist() == [1, 1, 1, 1, 1, 0]
    assert wrong[0, [0, 20, 21, 70, 71, 75]].tolist() == [2, 2, 1, 1, 0, 0]  # 0.7 reaches 0.70, as a float32 too
    assert wrong[1, [0, 100]].tolist() == [1, 1] and result["thresholds"]["truths"] == [2, 0]
    rows = result["calibration"]["rows"]
    assert [row["count"] for row in rows] == [0, 0, 1, 0, 0, 0, 0, 2, 0, 1]
    assert (rows[7]["low"], rows[7]["high"], rows[7]["precision"]) == (0.7, 0.8, 0.5)
    assert rows[7]["score"] == pytest.approx(0.72) and rows[0]["score"] is rows[0]["precision"] is None
    assert result["calibration"]["ece"] == pytest.approx((0.2 + 2 * 0.22 + 1.0) / 4)


def test_confusion_by_hand(dataset_of, prediction_of):
    near = (10, 10, 50, 46)
    dataset = dataset_of({1: [(SQUARE, 0, ""), (near, 1, ""), ((0, 100, 100, 200), 1, "crowd")], 2: [(SQUARE, 1, "")]})
    found = [(SQUARE, 1, 0.9), (SQUARE, 1, 0.8), (SQUARE, 0, 0.5), ((10, 110, 40, 140), 0, 0.3)]
    predictions = [prediction_of(1, found), prediction_of(2, [(FAR, 0, 0.5)])]
    events = confusion(truths_of(dataset), found_in(dataset, predictions))
    # A dog of 0.9 lies best on the cat, that of 0.8 on the dog that is left; two cats of 0.5 are nothing.
    assert events == {"bin": [50, 80, 90], "found": [0, 1, 1], "true": [2, 1, 0], "count": [2, 1, 1]}


@pytest.mark.parametrize("seed", range(5))
def test_confusion_at_a_threshold_is_that_of_the_detections_above_it(case_of, seed):
    dataset, predictions = case_of(seed)
    truths, size = truths_of(dataset), len(dataset.classes) + 1
    events = confusion(truths, found_in(dataset, predictions))
    for least in (0, 30, 75):
        kept = []
        for one in predictions:
            chosen = bins(one.scores.astype(float)) >= least
            kept.append(replace(one, boxes=one.boxes[chosen], scores=one.scores[chosen], labels=one.labels[chosen]))
        alone = matrix(confusion(truths, found_in(dataset, kept)), size, 0)
        np.testing.assert_array_equal(matrix(events, size, least), alone)
        positives = np.bincount(truths.labels[~truths.crowd], minlength=size)
        assert (alone.sum(axis=0)[:-1] <= positives[:-1]).all()


def test_a_score_falls_on_its_edge():
    scores = np.float32(EDGES).astype(np.float64)
    np.testing.assert_array_equal(bins(scores), np.arange(101))
    assert bins(np.array([-0.5, 0.999, 1.5])).tolist() == [0, 99, 100]


def test_each_rung_of_the_ladder_mends_one_kind_of_mistake(dataset_of, prediction_of):
    def square(x):
        return (x, 0, x + 40, 40)

    truths = [(square(100 * k), 0, "") for k in range(4)]
    dataset = dataset_of({1: truths})
    found = [
        (square(0), 1, 0.9),  # the class is wrong
        ((100, 0, 140, 12), 0, 0.8),  # the box is: IoU 0.3
        (square(200), 0, 0.7),
        (square(200), 0, 0.6),  # a duplicate
        ((0, 200, 40, 240), 0, 0.95),  # on nothing
    ]
    rungs = oracles(truths_of(dataset), found_in(dataset, [prediction_of(1, found)]))
    assert rungs[0]["name"] == "as it is"
    # Precision at 101 recalls, those up to 1/4, 2/4, 3/4 and 1 being 26, 25, 25 and 25.
    expected = [
        26 * 1 / 3,  # 0.95 nothing, 0.8 nothing, 0.7 right
        26 * 1 / 2 + 25 * 2 / 4,  # 0.95 nothing, 0.9 right, 0.8 nothing, 0.7 right
        76 * 3 / 4,  # nothing, right, right, right
        76 * 3 / 4,  # the duplicate came last
        76,
        101,
    ]
    assert [rung["AP50"] for rung in rungs] == pytest.approx([value / 101 for value in expected])
    assert [rung["AP"] for rung in rungs] == pytest.approx([value / 101 for value in expected])


@pytest.mark.parametrize("seed", range(6))
def test_the_ladder_ends_at_1(case_of, seed):
    dataset, predictions = case_of(seed)
    rungs = oracles(truths_of(dataset), found_in(dataset, predictions))
    assert len(rungs) == 6
    assert rungs[-1]["AP"] == pytest.approx(1.0)
    from_boxes_on = [rung["AP"] for rung in rungs[2:]]
    assert from_boxes_on == sorted(from_boxes_on)


def test_runs_are_compared_with_the_first(case_of):
    dataset, predictions = case_of(2)
    fewer = [replace(predictions[0], image_id=one.image_id) if k == 1 else one for k, one in enumerate(predictions)]
    figures, (same, other) = compare(dataset, [predictions, predictions, fewer], resamples=20)
    assert len(figures) == 3 and figures[0] == figures[1] == analyse(dataset, predictions, resamples=20)["figures"]
    assert (same["run"], other["run"]) == (1, 2)
    assert [row["name"] for row in same["figures"]] == list(MEANINGS)
    assert all(row["difference"] in (0.0, None) for row in same["figures"] + same["classes"])
    before, after = (evaluate_coco(dataset, run) for run in (predictions, fewer))
    assert other["figures"][0]["difference"] == pytest.approx(after["AP"] - before["AP"])
    assert [row["name"] for row in other["classes"]] == list(dataset.classes)
    of_class = [run["per_class"][dataset.classes[0]]["AP"] for run in (before, after)]
    assert other["classes"][0]["difference"] == pytest.approx(of_class[1] - of_class[0])
    json.dumps([same, other], allow_nan=False)
