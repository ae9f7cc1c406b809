"""Masks in the data of a report."""

import base64
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from detect.data.masks import Polygons, encode
from detect.evaluation.coco import METRICS, evaluate_coco
from detect.evaluation.tide import tide
from detect.report.boundaries import EXTRA, MAX_PER_IMAGE, MISSED, draw_difference
from detect.report.breakdown import compare_runs
from detect.report.gallery import errors_by_image, gallery, outline_path
from detect.report.write import Origin, report_data

ORIGIN = Origin("masks")


def bitmap_of(x1, y1, x2, y2):
    bitmap = np.zeros((300, 400), np.uint8)
    bitmap[y1:y2, x1:x2] = 1
    return bitmap


def square(x1, y1, x2, y2):
    return Polygons((np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)], np.float64),))


def without_masks(predictions):
    return [replace(prediction, masks=None) for prediction in predictions]


@pytest.fixture
def one_object(dataset_of, prediction_of):
    """Return an object and a detection in its box, whose mask misses the lower quarter."""
    dataset = dataset_of({1: [((10, 10, 50, 50), 0, "")]})
    dataset = replace(dataset, records=(replace(dataset.records[0], masks=(square(10, 10, 50, 50),)),))
    masks = (encode(bitmap_of(10, 10, 50, 40)),)
    return dataset, [replace(prediction_of(1, [((10, 10, 50, 50), 0, 0.9)]), masks=masks)]


@pytest.mark.parametrize("seed", range(3))
def test_masks_are_added_to_the_report_of_boxes(mask_case_of, seed):
    dataset, predictions = mask_case_of(seed)
    data, boxes = report_data(dataset, predictions, ORIGIN), report_data(dataset, without_masks(predictions), ORIGIN)
    json.dumps(data, allow_nan=False)
    metrics = evaluate_coco(dataset, predictions)
    tiles = {row["name"]: row for row in data["metrics"][len(boxes["metrics"]) :]}
    assert list(tiles) == [f"mask {name}" for name in METRICS]
    for name, row in tiles.items():
        value = metrics[name.replace(" ", "_")]
        assert row["value"] == (None if value is None else pytest.approx(value, abs=1e-9))
    for row in data["classes"]:
        for name in ("mask_AP", "mask_AP50"):
            value = metrics["per_class"][row["name"]][name]
            assert row.pop(name) == (None if value is None else pytest.approx(value, abs=1e-9))
        row.pop("boundary_IoU")
    assert data["metrics"][: len(boxes["metrics"])] == boxes["metrics"] and data["classes"] == boxes["classes"]
    assert set(data) - set(boxes) == {"masks"}
    for name in ("thresholds", "confusion", "errors", "slices", "calibration", "oracles"):
        assert data[name] == boxes[name]


def test_one_mask(one_object):
    data = report_data(*one_object, ORIGIN)
    masks, (row, _) = data["masks"], data["classes"]
    assert (row["AP"], row["mask_AP"]) == (pytest.approx(1.0), pytest.approx(0.6))  # IoU 0.75 counts at 0.50 … 0.75
    assert data["curves"]["precision"]["masks 0.75"][0] == [1.0] * 101
    assert data["curves"]["precision"]["masks 0.50:0.95"][0] == [0.6] * 101
    assert masks["errors"]["AP50"] == pytest.approx(1.0)
    assert [size["AP"] for size in masks["sizes"]] == [None, pytest.approx(0.6), None]
    # The boundaries are frames of 10 pixels: 1200 and 1000 pixels. They share all but their lower parts.
    frames = (
        bitmap_of(10, 10, 50, 50) - bitmap_of(20, 20, 40, 40),
        bitmap_of(10, 10, 50, 40) - bitmap_of(20, 20, 40, 30),
    )
    assert row["boundary_IoU"] == 800 / 1400 == (frames[0] & frames[1]).sum() / (frames[0] | frames[1]).sum()
    boundary = masks["boundary"]
    assert sum(one["count"] for one in boundary["bins"]) == 1 and boundary["mean"] == row["boundary_IoU"]
    (worst,) = boundary["worst"]
    assert (worst["class"], worst["missed"], worst["extra"], worst["iou"]) == ("cat", 400, 0, 0.75)


def test_without_matches_there_are_no_boundaries(one_object):
    dataset, (prediction,) = one_object
    wrong = replace(prediction, masks=(encode(bitmap_of(100, 100, 150, 150)),))
    assert report_data(dataset, [wrong], ORIGIN)["masks"]["boundary"] is None


def test_missed_and_extra_pixels_have_their_colours(one_object):
    image = np.full((300, 400, 3), 100, np.uint8)
    drawn = draw_difference(image, bitmap_of(10, 10, 50, 50), bitmap_of(10, 20, 60, 50)).astype(int)
    blend = [np.rint(100 + 0.65 * (np.array(colour) - 100)).astype(int).tolist() for colour in (MISSED, EXTRA)]
    # The window begins 5 and 6 pixels before the masks, and is enlarged four times.
    assert drawn[4 * (15 - 5), 4 * (30 - 4)].tolist() == blend[0]
    assert drawn[4 * (35 - 5), 4 * (55 - 4)].tolist() == blend[1]
    assert drawn[4 * (35 - 5), 4 * (30 - 4)].tolist() == [100] * 3


def test_pictures_of_images_that_cannot_be_read_are_grey(one_object):
    (worst,) = report_data(*one_object, ORIGIN)["masks"]["boundary"]["worst"]
    picture = Image.open(io.BytesIO(base64.b64decode(worst["picture"].partition(",")[2])))
    assert max(picture.size) <= 320 and np.allclose(np.asarray(picture)[0, 0], 128, atol=3)


def test_an_image_does_not_fill_the_page(one_object):
    dataset, (prediction,) = one_object
    boxes = np.array([[10 + 60 * place, 10, 50 + 60 * place, 50] for place in range(5)], np.float32)
    record = dataset.records[0]
    columns = {"labels": np.zeros(5, np.int64), "crowd": np.zeros(5, bool), "difficult": np.zeros(5, bool)}
    masks = tuple(square(*box) for box in boxes.tolist())
    record = replace(record, boxes=boxes, areas=np.full(5, 1600.0), masks=masks, **columns)
    rles = tuple(mask.rle(300, 400) for mask in masks)
    found = replace(prediction, boxes=boxes, scores=np.full(5, 0.5, np.float32), labels=columns["labels"], masks=rles)
    boundary = report_data(replace(dataset, records=(record,)), [found], ORIGIN)["masks"]["boundary"]
    assert boundary["bins"][-1]["count"] == 5 and len(boundary["worst"]) == MAX_PER_IMAGE


def test_pictures_of_the_gallery_have_outlines(one_object):
    dataset, predictions = one_object
    predictions = [replace(predictions[0], labels=np.array([1]))]  # an error, so that the image is shown
    (entry,) = gallery(errors_by_image(dataset, predictions, tide(dataset, predictions)))
    assert entry["ground_truths"] == [[10, 10, 50, 50, 0, "missed", "M10 10 10 50 50 50 50 10z"]]
    assert entry["detections"][0][7] == "M10 10 10 40 50 40 50 10z"
    boxes = without_masks(predictions)
    (entry,) = gallery(errors_by_image(dataset, boxes, tide(dataset, boxes)))
    assert len(entry["ground_truths"][0]) == 6 and len(entry["detections"][0]) == 7


def test_outlines_keep_holes_and_simplify_large_images(dataset_of):
    record = replace(dataset_of({1: []}).records[0], width=400, height=300)
    ring = bitmap_of(10, 10, 50, 50) - bitmap_of(20, 20, 40, 40)
    assert outline_path(encode(ring), record).count("M") == 2
    assert outline_path(encode(np.zeros((300, 400), np.uint8)), record) == ""
    rows, columns = np.ogrid[:3000, :4000]
    disc = ((rows - 1500) ** 2 + (columns - 2000) ** 2 < 1000**2).astype(np.uint8)
    path = outline_path(encode(disc), replace(record, width=4000, height=3000))
    assert len(path) < 400  # instead of 4000 corners


def test_runs_with_masks_are_compared_by_their_masks(mask_case_of):
    dataset, predictions = mask_case_of(4)
    fewer = [replace(one, scores=one.scores / 2) if place % 2 else one for place, one in enumerate(predictions)]
    metrics, (pair,) = compare_runs(dataset, [predictions, fewer], resamples=5)
    values = [{row["name"]: row["value"] for row in of_run} for of_run in metrics]
    difference = {row["name"]: row["difference"] for row in pair["metrics"]}
    assert difference["mask AP"] == pytest.approx(values[1]["mask AP"] - values[0]["mask AP"])
    metrics, (pair,) = compare_runs(dataset, [predictions, without_masks(fewer)], resamples=5)
    assert "mask AP" not in {row["name"] for row in metrics[0]} | {row["name"] for row in pair["metrics"]}


def test_the_gallery_and_the_oracles_judge_by_the_mask(one_object):
    dataset, (prediction,) = one_object
    prediction = replace(prediction, masks=(encode(bitmap_of(10, 10, 50, 20)),))  # IoU 0.25, in a perfect box
    data = report_data(dataset, [prediction], ORIGIN)
    (image,) = data["gallery"]
    assert [row[6] for row in image["detections"]] == ["Loc"] and [row[5] for row in image["ground_truths"]] == [
        "missed"
    ]
    steps = {step["name"]: step["AP"] for step in data["masks"]["oracles"]}
    assert (steps["no oracle"], steps["perfect boxes"]) == (0.0, pytest.approx(1.0))
    assert data["oracles"][0]["AP"] == pytest.approx(1.0) and data["errors"]["AP50"] == pytest.approx(1.0)
