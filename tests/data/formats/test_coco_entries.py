"""Ids and boxes of COCO files as other tools write them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as oracle

from detect.data.defects import DefectLog
from detect.data.formats.coco_entries import NO_BOX, normalise
from detect.data.read import read
from detect.errors import UserError


def normalised(images=(1,), annotations=(), categories=(1,)):
    """Return a document with the given ids and annotations after `normalise`, and the rules of its defects."""
    document = {
        "images": [{"id": id, "file_name": f"{number}.png"} for number, id in enumerate(images)],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]} | entry for entry in annotations
        ],
        "categories": [{"id": id, "name": str(number)} for number, id in enumerate(categories)],
    }
    log = DefectLog(Path("root"), "train")
    normalise(document, Path("a.json"), log)
    return document, [defect.rule for defect in log.repaired]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([3, 1], [3, 1]),
        (["3", "1"], [3, 1]),
        ([3.0, 1.0], [3, 1]),
        (["007", 1], [7, 1]),
        (["img_1", "img_2"], [1, 2]),
        (["7", 7], [1, 2]),  # two images, whose ids spell the same number
        ([1.5, 2], [1, 2]),
        (["7", 7.0], [1, 2]),
        (["9" * 400, "b"], [1, 2]),
    ],
)
def test_ids_are_only_keys(before, after):
    entries = [{"image_id": id, "category_id": id} for id in before]
    document, rules = normalised(before, entries, before)
    assert [entry["id"] for entry in document["images"]] == after
    assert [entry["id"] for entry in document["categories"]] == after
    references = [[entry["image_id"], entry["category_id"]] for entry in document["annotations"]]
    assert references == [[id] * 2 for id in after]
    assert rules == ["id-not-number"] * 2 * sum(type(id) is not int for id in before)


def test_references_are_found_in_another_spelling():
    document, rules = normalised([5, 6], [{"image_id": "6"}, {"image_id": 5.0}, {"image_id": "x"}])
    assert [entry["image_id"] for entry in document["annotations"]] == [6, 5, "x"]
    assert rules == ["id-not-number"] * 2
    document, _ = normalised(["5", "6"], [{"image_id": 6}])
    assert document["annotations"][0]["image_id"] == 6


@pytest.mark.parametrize("value", [None, True, [], {}, float("nan"), float("inf")])
def test_other_values_are_no_ids(value):
    document, rules = normalised([1, value], [{"image_id": value}], [value])
    assert document["images"][1]["id"] is value and rules == []


def masks():
    random = np.random.default_rng(0)
    for height, width in ((1, 1), (5, 7), (40, 30), (300, 200)):
        for share in (0.01, 0.5, 1.0):
            yield (random.random((height, width)) < share).astype(np.uint8)
    block = np.zeros((50, 60), np.uint8)
    block[10:20, 5:33] = 1
    yield block
    yield block * 0


@pytest.mark.parametrize("compressed", [True, False])
def test_the_box_of_a_mask_is_that_of_pycocotools(compressed):
    for mask in masks():
        encoded = oracle.encode(np.asfortranarray(mask))
        expected = oracle.toBbox(encoded).tolist()
        if compressed:
            counts = encoded["counts"].decode()
        else:
            flat = mask.flatten(order="F")
            changes = np.flatnonzero(np.diff(flat)) + 1
            counts = np.diff([0, *changes, len(flat)]).tolist()
            counts = [0, *counts] if flat[0] else counts
        entry = {"bbox": None, "segmentation": {"size": list(mask.shape), "counts": counts}}
        document, rules = normalised(annotations=[entry])
        assert document["annotations"][0]["bbox"] == expected and rules == ["implied-box"]


def test_the_box_of_polygons():
    polygons = [[1, 2, 5, 2, 5, 9.5], [7, 3, 8, 3, 8, 4]]
    document, rules = normalised(annotations=[{"bbox": [], "segmentation": polygons}])
    assert document["annotations"][0]["bbox"] == [1, 2, 7, 7.5] and rules == ["implied-box"]
    document, rules = normalised(annotations=[{"bbox": [], "segmentation": []}])
    assert document["annotations"][0]["bbox"] == NO_BOX and rules == []


@pytest.mark.parametrize(
    "mask",
    [
        {"size": [10**9, 10**9], "counts": [0, 10**18]},  # a mask of 10¹⁸ pixels costs nothing
        {"size": [0, 5], "counts": []},
        {"size": [5, 5], "counts": [0, 24]},
        {"size": [5, 5], "counts": [30, -5]},
        {"size": [5, 5], "counts": [1e9]},
        {"size": [5, 5], "counts": "~~~~"},
        {"size": [5, 5], "counts": "o" * 10**6},
        {"size": [5, 5], "counts": "oo"},
        {"size": [5, 5], "counts": "é"},
        {"size": "5x5", "counts": "0"},
        {"size": [2**31, 5], "counts": "0"},
    ],
)
def test_hostile_masks(mask):
    document, _ = normalised(annotations=[{"bbox": None, "segmentation": mask}])
    box = document["annotations"][0]["bbox"]
    assert box is None or box == [0, 0, 10**9, 10**9]


def test_a_file_with_all_of_them_is_read(tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "train").mkdir()
    for name in "ab":
        Image.new("RGB", (40, 30)).save(tmp_path / "train" / f"{name}.png")
    square = [[4, 5, 14, 5, 14, 25, 4, 25]]
    annotations = [
        {"id": "x", "image_id": "two", "category_id": "c", "segmentation": square, "area": 200, "iscrowd": 0},
        {"id": "y", "image_id": "one", "category_id": "c", "bbox": [], "area": 0, "iscrowd": 0},
    ]
    images = [{"id": "one", "file_name": "a.png"}, {"id": "two", "file_name": "b.png"}]
    document = {"images": images, "annotations": annotations, "categories": [{"id": "c", "name": "cat"}]}
    path = tmp_path / "annotations" / "instances_train.json"
    path.write_text(json.dumps(document))
    first, second = read(tmp_path, "train").records
    assert (first.id, second.id) == (1, 2) and len(first.boxes) == 0
    np.testing.assert_array_equal(second.boxes, [[4, 5, 14, 25]])
    annotations[0]["segmentation"] = {"size": [30, 40], "counts": "?"}
    path.write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"annotations\[0\]: bbox is missing, expected four numbers"):
        read(tmp_path, "train")
