"""COCO's metrics of masks equal those of pycocotools on the files to the last bit."""

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detect.data.dataset import Dataset
from detect.data.masks import Polygons, encode
from detect.errors import UserError
from detect.evaluation.coco import (
    METRICS,
    Prediction,
    coco_ground_truth,
    coco_results,
    evaluate_coco,
    from_detections,
    select_classes,
)
from detect.report.saved import evaluate_files
from detect.report.write import Origin, report_data
from detect.structures import Detections

HEIGHT, WIDTH = 60, 80


def square(x1, y1, x2, y2):
    return Polygons((np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)], np.float64),))


def bitmap_of(x1, y1, x2, y2):
    bitmap = np.zeros((HEIGHT, WIDTH), np.uint8)
    bitmap[y1:y2, x1:x2] = 1
    return bitmap


def one_object(dataset_of, mask) -> Dataset:
    dataset = dataset_of({1: [((10, 10, 50, 50), 0, "")]})
    return replace(dataset, records=(replace(dataset.records[0], height=HEIGHT, width=WIDTH, masks=(mask,)),))


def detected(prediction_of, *bitmaps) -> Prediction:
    prediction = prediction_of(1, [((10, 10, 50, 50), 0, 0.9 - 0.1 * place) for place in range(len(bitmaps))])
    return replace(prediction, masks=tuple(map(encode, bitmaps)))


def by_pycocotools(ground_truth: str, results: str) -> list[float]:
    """Evaluate the files as pycocotools does it if results have masks only."""
    truth = json.loads(ground_truth)
    truth["annotations"] = [
        annotation
        if "segmentation" in annotation
        else {**annotation, "iscrowd": 1, "segmentation": corners(annotation["bbox"])}
        for annotation in truth["annotations"]
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        listed = [{key: value for key, value in one.items() if key != "bbox"} for one in json.loads(results)]
        evaluation = COCOeval(coco, coco.loadRes(listed), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats.tolist()


def corners(box):
    x, y, width, height = box
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


@pytest.mark.parametrize("seed", range(12))
def test_pycocotools_on_the_files_gives_the_same_bits(mask_case_of, seed):
    pytest.importorskip("hotcoco")
    dataset, predictions = mask_case_of(seed)
    ground_truth, results = coco_ground_truth(dataset), coco_results(predictions, dataset)
    metrics = evaluate_coco(dataset, predictions)
    assert metrics == evaluate_coco(dataset, predictions, engine="fast")
    if results:  # `loadRes` fails on an empty list
        expected = by_pycocotools(json.dumps(ground_truth), json.dumps(results))
        assert [-1 if metrics[f"mask_{name}"] is None else metrics[f"mask_{name}"] for name in METRICS] == expected


def test_the_metrics_of_boxes_do_not_depend_on_masks(mask_case_of):
    dataset, predictions = mask_case_of(5)
    without = [replace(prediction, masks=None) for prediction in predictions]
    plain, both = evaluate_coco(dataset, without), evaluate_coco(dataset, predictions)
    assert {name: both[name] for name in METRICS} == {name: plain[name] for name in METRICS}
    assert "mask_AP" not in plain and not any("mask_AP" in row for row in plain["per_class"].values())
    assert list(both) == [*METRICS, "per_class", *(f"mask_{name}" for name in METRICS)]


def test_a_mask_is_compared_with_the_mask_not_with_the_box(dataset_of, prediction_of):
    """Half of the box is half of the union: IoU 0.5 counts at one of ten thresholds."""
    dataset = one_object(dataset_of, square(10, 10, 50, 50))
    metrics = evaluate_coco(dataset, [detected(prediction_of, bitmap_of(10, 10, 50, 30))])
    assert metrics["AP"] == pytest.approx(1.0)
    assert metrics["mask_AP"] == pytest.approx(0.1) and metrics["mask_AP50"] == pytest.approx(1.0)
    assert metrics["per_class"]["cat"]["mask_AP"] == pytest.approx(0.1)


def test_the_size_of_a_detection_is_that_of_its_mask(dataset_of, prediction_of):
    """A false mask of 25 pixels in a box of 1,600 is small: it is not a false positive among medium objects."""
    dataset = one_object(dataset_of, square(10, 10, 50, 50))
    metrics = evaluate_coco(dataset, [detected(prediction_of, bitmap_of(0, 0, 5, 5), bitmap_of(10, 10, 50, 50))])
    assert metrics["mask_AP"] == pytest.approx(0.5) and metrics["mask_APm"] == pytest.approx(1.0)


def test_detections_on_an_object_without_a_mask_are_ignored(dataset_of, prediction_of):
    dataset = dataset_of({1: [((10, 10, 50, 50), 0, ""), ((60, 5, 75, 20), 0, "")]})
    masks = (square(10, 10, 50, 50), None)
    dataset = replace(dataset, records=(replace(dataset.records[0], height=HEIGHT, width=WIDTH, masks=masks),))
    metrics = evaluate_coco(dataset, [detected(prediction_of, bitmap_of(61, 6, 74, 19), bitmap_of(10, 10, 50, 50))])
    assert metrics["mask_AP"] == pytest.approx(1.0) and metrics["mask_AR1"] == 0.0


def test_without_detections_the_metrics_of_masks_are_zero(dataset_of):
    dataset = one_object(dataset_of, square(10, 10, 50, 50))
    metrics = evaluate_coco(dataset, [replace(Prediction.empty(1), masks=())])
    assert metrics["mask_AP"] == 0.0 and metrics["mask_APs"] is None


def test_masks_are_pasted_into_the_image_file():
    detections = Detections(
        boxes=torch.tensor([[[20.0, 20.0, 100.0, 100.0], [0.0, 0.0, 0.0, 0.0]]]),
        scores=torch.tensor([[0.9, 0.0]]),
        labels=torch.zeros(1, 2, dtype=torch.int64),
        valid=torch.tensor([[True, False]]),
        masks=torch.ones(1, 2, 28, 28),
    )
    (one,) = from_detections(detections, torch.tensor([7]), torch.tensor([[2.0, 2.0]]), {7: (HEIGHT, WIDTH)})
    assert len(one.masks) == 1 and np.array_equal(one.masks[0].bitmap(HEIGHT, WIDTH), bitmap_of(10, 10, 50, 50))
    (selected,) = select_classes([one], ("cat", "dog"), ("dog",))
    assert selected.masks == ()


def test_results_and_ground_truths_have_the_masks(dataset_of, prediction_of):
    dataset = one_object(dataset_of, square(10, 10, 50, 50))
    (annotation,) = coco_ground_truth(dataset)["annotations"]
    assert annotation["segmentation"] == [[10, 10, 50, 10, 50, 50, 10, 50]]
    (result,) = coco_results([detected(prediction_of, bitmap_of(10, 10, 50, 50))], dataset)
    assert result["bbox"] == [10, 10, 40, 40] and result["segmentation"]["size"] == [HEIGHT, WIDTH]
    assert json.loads(json.dumps(result)) == result


# ---- files of others -------------------------------------------------------------------------------------------------


def write_files(tmp_path, ground_truth, results) -> tuple[Path, Path]:
    files = tmp_path / "truth.json", tmp_path / "results.json"
    for file, content in zip(files, (ground_truth, results), strict=True):
        file.write_text(json.dumps(content))
    return files


@pytest.mark.parametrize("seed", range(3))
def test_results_with_masks_only_are_evaluated_like_by_pycocotools(mask_case_of, tmp_path, seed):
    dataset, predictions = mask_case_of(seed)
    ground_truth = coco_ground_truth(dataset)
    results = [
        {key: value for key, value in result.items() if key != "bbox"} for result in coco_results(predictions, dataset)
    ]
    evaluation = evaluate_files(*write_files(tmp_path, ground_truth, results))
    expected = by_pycocotools(json.dumps(ground_truth), json.dumps(results))
    metrics = evaluation.metrics
    assert [-1 if metrics[f"mask_{name}"] is None else metrics[f"mask_{name}"] for name in METRICS] == expected


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [60, 80], "counts": [100]}, "segmentation of result 1 is damaged"),
        ({"size": [60, 80], "counts": "zzzzzzzz"}, "segmentation of result 1 is damaged"),
        ({"size": [10**9, 10**9], "counts": [10**18]}, "segmentation of result 1 is damaged"),
        ({"size": [80, 60], "counts": [4800]}, "segmentation of result 1 is 60 × 80, the image 80 × 60"),
        ([[1, 2, 3]], "segmentation of result 1 is damaged"),
        ([[0, 0, 1e9, 0, 1e9, 1e9]], "segmentation of result 1 is damaged"),
        ("RLE", "segmentation of result 1 is damaged"),
    ],
)
def test_damaged_masks_are_one_line(dataset_of, prediction_of, tmp_path, segmentation, message):
    dataset = one_object(dataset_of, square(10, 10, 50, 50))
    results = coco_results([detected(prediction_of, bitmap_of(10, 10, 50, 50))], dataset)
    results[0]["segmentation"] = segmentation
    with pytest.raises(UserError, match=message) as error:
        evaluate_files(*write_files(tmp_path, coco_ground_truth(dataset), results))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("image", "segmentation", "message"),
    [
        ({}, [[1, 2, 3]], "segmentation of annotation 1 is damaged"),
        ({}, [[]], "segmentation of annotation 1 is damaged"),
        ({}, {"size": [80, 60], "counts": [4800]}, "segmentation of annotation 1 is 60 × 80, the image 80 × 60"),
        ({"height": None}, [[10, 10, 50, 10, 50, 50]], "image 1 has no height and width"),
    ],
)
def test_unusable_masks_of_ground_truths_matter_only_to_results_with_masks(
    dataset_of, prediction_of, tmp_path, image, segmentation, message
):
    dataset = one_object(dataset_of, square(10, 10, 50, 50))
    ground_truth = coco_ground_truth(dataset)
    results = coco_results([detected(prediction_of, bitmap_of(10, 10, 50, 50))], dataset)
    ground_truth["annotations"][0]["segmentation"] = segmentation
    ground_truth["images"][0] = {key: image.get(key, value) for key, value in ground_truth["images"][0].items()}
    ground_truth["images"][0] = {key: value for key, value in ground_truth["images"][0].items() if value is not None}
    with pytest.raises(UserError, match=message):
        evaluate_files(*write_files(tmp_path, ground_truth, results))
    boxes_only = [{key: value for key, value in results[0].items() if key != "segmentation"}]
    evaluation = evaluate_files(*write_files(tmp_path, ground_truth, boxes_only))
    assert evaluation.metrics["AP"] == pytest.approx(1) and evaluation.dataset.records[0].masks is None


def test_the_box_of_a_result_without_pixels_is_empty(dataset_of, tmp_path):
    dataset = one_object(dataset_of, square(10, 10, 50, 50))
    mask = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH, 0]}
    results = [{"image_id": 1, "category_id": dataset.category_ids[0], "score": 0.9, "segmentation": mask}]
    evaluation = evaluate_files(*write_files(tmp_path, coco_ground_truth(dataset), results))
    assert not evaluation.predictions[0].boxes.any()


@pytest.mark.parametrize("compressed", [True, False])
def test_empty_runs_do_not_end_the_comparison_of_masks(dataset_of, tmp_path, compressed):
    dataset = one_object(dataset_of, square(10, 10, 50, 50))
    ground_truth = coco_ground_truth(dataset)
    runs = [HEIGHT * 10 + 10, 0, 0, *[40, HEIGHT - 40] * 39, 40, 0, 0, HEIGHT * (WIDTH - 50) + HEIGHT - 50]
    mask = {"size": [HEIGHT, WIDTH], "counts": runs}
    if compressed:
        mask["counts"] = coco_mask.frPyObjects(mask, HEIGHT, WIDTH)["counts"].decode()
    ground_truth["annotations"][0]["segmentation"] = mask
    results = [{"image_id": 1, "category_id": dataset.category_ids[0], "score": 0.9, "segmentation": mask}]
    evaluation = evaluate_files(*write_files(tmp_path, ground_truth, results))
    assert evaluation.metrics["mask_AP"] == pytest.approx(1) == evaluation.metrics["AP"]


def test_masks_for_some_results_only_are_refused(dataset_of, prediction_of, tmp_path):
    dataset = one_object(dataset_of, square(10, 10, 50, 50))
    results = coco_results([detected(prediction_of, *[bitmap_of(10, 10, 50, 50)] * 2)], dataset)
    del results[1]["segmentation"]
    with pytest.raises(UserError, match="1 of 2 results have a segmentation"):
        evaluate_files(*write_files(tmp_path, coco_ground_truth(dataset), results))


def test_a_report_has_the_metrics_of_masks(mask_case_of):
    dataset, predictions = mask_case_of(3)
    metrics = {tile["name"]: tile for tile in report_data(dataset, predictions, Origin("masks"))["metrics"]}
    assert metrics["mask AP"]["value"] == pytest.approx(evaluate_coco(dataset, predictions)["mask_AP"], abs=1e-9)
    boxes = [replace(prediction, masks=None) for prediction in predictions]
    assert not [tile for tile in report_data(dataset, boxes, Origin("boxes"))["metrics"] if "mask" in tile["name"]]
