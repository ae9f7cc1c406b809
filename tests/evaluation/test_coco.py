import contextlib
import io
import json
import sys

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detect.errors import UserError
from detect.evaluation.coco import METRICS, coco_ground_truth, coco_results, evaluate_coco, from_detections
from detect.structures import Detections

SQUARE = (10, 10, 50, 50)  # 1600 square pixels: COCO's "medium"
NONE = dict.fromkeys(METRICS)


def test_without_images_all_metrics_are_none(dataset_of):
    metrics = evaluate_coco(dataset_of({}), [])
    assert {name: metrics[name] for name in METRICS} == NONE
    assert metrics["per_class"]["cat"] == {"AP": None, "AP50": None, "AP75": None, "AR100": None, "truths": 0}


@pytest.mark.parametrize("engine", ["pycocotools", "fast"])
def test_without_predictions_metrics_are_zero(dataset_of, prediction_of, engine):
    pytest.importorskip("hotcoco")
    dataset = dataset_of({1: [(SQUARE, 0, "")], 2: []})
    for predictions in ([], [prediction_of(1, []), prediction_of(2, [])]):
        metrics = evaluate_coco(dataset, predictions, engine=engine)
        small_and_large = ("APs", "APl", "ARs", "ARl")
        assert {name: metrics[name] for name in METRICS} == {n: None if n in small_and_large else 0.0 for n in METRICS}
        assert metrics["per_class"]["cat"] == {"AP": 0.0, "AP50": 0.0, "AP75": 0.0, "AR100": 0.0, "truths": 1}
        assert metrics["per_class"]["dog"]["AP"] is None


def test_a_perfect_detection(dataset_of, prediction_of, capsys):
    metrics = evaluate_coco(dataset_of({1: [(SQUARE, 1, "")]}), [prediction_of(1, [(SQUARE, 1, 0.5)])])
    assert metrics["AP"] == pytest.approx(1.0)
    assert metrics["APm"] == pytest.approx(1.0)
    assert metrics["APs"] is None
    assert metrics["AR1"] == 1.0
    assert metrics["per_class"]["dog"]["AP50"] == pytest.approx(1.0)
    assert metrics["per_class"]["cat"]["AP50"] is None
    assert capsys.readouterr().out == ""


def test_an_iou_of_80_percent_counts_up_to_that_threshold(dataset_of, prediction_of):
    prediction = prediction_of(1, [((10, 10, 50, 42), 0, 0.9)])  # 40 × 32 of 40 × 40
    metrics = evaluate_coco(dataset_of({1: [(SQUARE, 0, "")]}), [prediction])
    assert metrics["AP"] == pytest.approx(0.7)  # 0.50, 0.55 … 0.80: seven of ten
    assert metrics["AR100"] == pytest.approx(0.7)
    assert metrics["AP75"] == pytest.approx(1.0)


def test_a_false_positive_before_one_of_two_objects(dataset_of, prediction_of):
    dataset = dataset_of({1: [(SQUARE, 0, ""), ((100, 100, 140, 140), 0, "")]})
    prediction = prediction_of(1, [((200, 200, 240, 240), 0, 0.9), (SQUARE, 0, 0.8)])
    metrics = evaluate_coco(dataset, [prediction])
    # Precision 1/2 at the recalls 0 … 0.50, 51 of 101.
    assert metrics["AP"] == pytest.approx(0.5 * 51 / 101)
    assert metrics["AR1"] == 0.0
    assert metrics["AR10"] == 0.5
    assert metrics["per_class"]["cat"]["truths"] == 2


def test_detections_in_a_crowd_region_are_ignored_and_it_is_not_counted(dataset_of, prediction_of):
    dataset = dataset_of({1: [(SQUARE, 0, ""), ((100, 100, 300, 300), 0, "crowd")]})
    prediction = prediction_of(1, [((120, 120, 160, 160), 0, 0.9), (SQUARE, 0, 0.8)])
    metrics = evaluate_coco(dataset, [prediction])
    assert metrics["AP"] == pytest.approx(1.0)
    assert metrics["per_class"]["cat"]["truths"] == 1


def test_the_content_of_the_files(dataset_of, prediction_of):
    dataset = dataset_of({5: [((1.5, 2, 11.5, 22), 1, "crowd")]})
    ground_truth = coco_ground_truth(dataset)
    assert ground_truth["images"] == [{"id": 5, "file_name": "images/5.jpg", "width": 400, "height": 300}]
    assert ground_truth["categories"] == [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]
    assert ground_truth["annotations"] == [
        {"id": 1, "image_id": 5, "category_id": 3, "bbox": [1.5, 2, 10, 20], "area": 200, "iscrowd": 1}
    ]
    assert coco_results([prediction_of(5, [((1.5, 2, 11.5, 22), 0, 0.25)])], dataset) == [
        {"image_id": 5, "category_id": 7, "bbox": [1.5, 2, 10, 20], "score": 0.25}
    ]


@pytest.mark.parametrize("seed", range(3))
def test_pycocotools_on_the_files_gives_the_same_bits(case_of, tmp_path, seed):
    dataset, predictions = case_of(seed)
    ground_truth, results = tmp_path / "instances.json", tmp_path / "predictions.json"
    ground_truth.write_text(json.dumps(coco_ground_truth(dataset), allow_nan=False))
    results.write_text(json.dumps(coco_results(predictions, dataset), allow_nan=False))
    with contextlib.redirect_stdout(io.StringIO()):
        from_files = COCO(str(ground_truth))
        evaluation = COCOeval(from_files, from_files.loadRes(str(results)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    metrics = evaluate_coco(dataset, predictions)
    assert [-1 if metrics[name] is None else metrics[name] for name in METRICS] == evaluation.stats.tolist()
    class_aps = [row["AP"] for row in metrics["per_class"].values() if row["AP"] is not None]
    assert np.mean(class_aps) == pytest.approx(metrics["AP"], abs=1e-12)


@pytest.mark.parametrize("seed", range(50))
def test_the_fast_engine_gives_the_same_bits(case_of, seed):
    pytest.importorskip("hotcoco")
    dataset, predictions = case_of(seed)
    assert evaluate_coco(dataset, predictions, engine="fast") == evaluate_coco(dataset, predictions)


def test_the_order_of_the_images_does_not_matter(case_of):
    dataset, predictions = case_of(1)
    assert evaluate_coco(dataset, predictions[::-1]) == evaluate_coco(dataset, predictions)


def test_a_missing_fast_engine_is_an_error(dataset_of, monkeypatch):
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    with pytest.raises(UserError, match=r"pip install 'rcnn-family\[hotcoco\]'"):
        evaluate_coco(dataset_of({}), [], engine="fast")


def test_unknown_and_repeated_images_are_refused(dataset_of, prediction_of):
    dataset = dataset_of({1: []})
    with pytest.raises(ValueError, match="image 1 was predicted more than once"):
        evaluate_coco(dataset, [prediction_of(1, []), prediction_of(1, [])])
    with pytest.raises(ValueError, match="image 2 is not in val"):
        evaluate_coco(dataset, [prediction_of(2, [])])


def test_detections_are_converted_to_pixels_of_the_file():
    detections = Detections(
        boxes=torch.tensor([[[20.0, 30, 40, 60], [1, 1, 2, 2]], [[0, 0, 0, 0], [8, 8, 16, 16]], [[0, 0, 0, 0]] * 2]),
        scores=torch.tensor([[0.9, 0.8], [0.0, 0.7], [0, 0]]),
        labels=torch.tensor([[1, 0], [0, 2], [0, 0]]),
        valid=torch.tensor([[True, True], [False, True], [False, False]]),
    )
    scales = torch.tensor([[2.0, 3.0], [4.0, 4.0], [1.0, 1.0]])
    both, one, none = from_detections(detections, torch.tensor([11, 5, 7]), scales)
    np.testing.assert_allclose(both.boxes[0], [10, 10, 20, 20])
    assert (both.image_id, one.image_id, none.image_id) == (11, 5, 7)
    assert one.boxes.tolist() == [[2, 2, 4, 4]]
    assert (one.boxes.dtype, one.scores.dtype, one.labels.dtype) == (np.float32, np.float32, np.int64)
    assert one.labels.tolist() == [2]
    assert none.boxes.shape == (0, 4)
