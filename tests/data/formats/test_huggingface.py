"""Hugging Face: metadata.jsonl beside the images."""

import json

import numpy as np
import pytest

from detect.data.read import read, splits
from detect.errors import UserError


def line(boxes, labels, name="a.jpg", key="categories"):
    return {"file_name": name, "objects": {"bbox": boxes, key: labels}}


@pytest.fixture
def save(tmp_path):
    """Return a function that writes the lines of a file in the folder of a split."""

    def write(*lines, folder="train"):
        (tmp_path / folder).mkdir(exist_ok=True)
        text = "\r\n".join(item if isinstance(item, str) else json.dumps(item) for item in lines)
        (tmp_path / folder / "metadata.jsonl").write_text(text + "\n\n", encoding="utf-8-sig")

    return write


@pytest.mark.parametrize("key", ["categories", "category", "label"])
def test_boxes(tmp_path, draw, save, key):
    draw("train/a.jpg", "train/sub/b.jpg", "validation/a.jpg")
    save(line([[10, 20, 30, 40], [0, 0, 1.5, 2]], ["dog", "cat"], key=key), {"file_name": "sub/b.jpg", "objects": None})
    save(line([[1, 2, 3, 4]], ["ant"]), folder="validation")
    dataset = read(tmp_path, "train")
    assert (dataset.format, splits(tmp_path), dataset.classes) == (
        "huggingface",
        ("train", "validation"),
        ("ant", "cat", "dog"),
    )
    assert [record.path for record in dataset.records] == [tmp_path / "train/a.jpg", tmp_path / "train/sub/b.jpg"]
    assert dataset.records[0].boxes.tolist() == [[10, 20, 40, 60], [0, 0, 1.5, 2]] and not len(dataset.records[1].boxes)
    assert dataset.records[0].labels.tolist() == [2, 1]
    assert read(tmp_path, "val").records[0].path == tmp_path / "validation/a.jpg"
    assert read(tmp_path / "train" / "metadata.jsonl", "train").classes == ("cat", "dog")


def test_numbers_as_classes_and_a_list_of_objects(tmp_path, draw, save):
    draw("train/a.jpg", "train/b.jpg")
    objects = [{"bbox": [10, 20, 30, 40], "category": 10}, {"bbox": [1, 2, 3, 4], "category": 9}]
    save({"file_name": "a.jpg", "objects": objects}, line([[0, 0, 9, 9]], [0], "b.jpg"))
    dataset = read(tmp_path, "train")
    assert dataset.classes == ("0", "9", "10") and dataset.records[0].labels.tolist() == [2, 1]
    assert dataset.records[0].boxes.tolist() == [[10, 20, 40, 60], [1, 2, 4, 6]]


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ("{", r"line 2: it is not JSON: "),
        ("[1]", r"line 2: it contains \[1\], expected an object"),
        (line([], [], name=None), r"line 2: the image's file name is null, expected a text"),
        (line([[1, 2, 3, 4]], [], "b.jpg"), r"line 2: objects has no bbox and categories of the same number"),
        (line([[1, 2, 3]], ["cat"], "b.jpg"), r"line 2: box 1 is \[1, 2, 3\], expected four numbers"),
        (line([[1, 2, 3, 4]], [True], "b.jpg"), r"line 2: box 1: its class is true, expected a text"),
        ({"file_name": "b.jpg", "objects": 5}, r"line 2: objects has no bbox and categories of the same number"),
    ],
)
def test_malformed_lines(tmp_path, draw, save, wrong, problem):
    draw("train/a.jpg", "train/b.jpg")
    save(line([[10, 20, 30, 40]], ["cat"]), wrong)
    with pytest.raises(UserError, match=rf"1 × broken-file, first .*metadata\.jsonl: {problem}"):
        read(tmp_path, "train")


SQUARE = [[10, 20, 40, 20, 40, 60, 10, 60]]


def test_masks_in_columns_and_in_a_list_of_objects(tmp_path, draw, save):
    draw("train/a.jpg", "train/b.jpg")
    run = {"size": [80, 120], "counts": [10 * 80 + 20, 40, 120 * 80 - 10 * 80 - 60]}  # 1 × 40 pixels from (10, 20)
    columns = {"bbox": [[10, 20, 30, 40], [0, 0, 9, 9]], "categories": ["cat", "cat"], "segmentation": [SQUARE, None]}
    items = [{"bbox": [10, 20, 1, 40], "category": "cat", "segmentation": run}]
    save({"file_name": "a.jpg", "objects": columns}, {"file_name": "b.jpg", "objects": items})
    dataset = read(tmp_path, "train")
    square, line = np.zeros((80, 120), np.uint8), np.zeros((80, 120), np.uint8)
    square[20:60, 10:40], line[20:60, 10] = 1, 1
    first, second = (record.masks for record in dataset.records)
    assert np.array_equal(first[0].bitmap(80, 120), square) and first[1] is None
    assert np.array_equal(second[0].bitmap(80, 120), line) and not dataset.repaired


@pytest.mark.parametrize(
    ("segmentation", "rule", "detail"),
    [
        ([SQUARE], "broken-mask", "line 1: objects has not as many of segmentation as of bbox"),
        (5, "broken-mask", "line 1: objects has not as many of segmentation as of bbox"),
        ([SQUARE, "x"], "broken-mask", 'line 1: box 2: "x" is no run-length encoding of its size'),
        ([SQUARE, [[1, 2, 3, 4]]], "short-polygon", "line 1: box 2: 1 of 1 polygons"),
    ],
)
def test_masks_that_cannot_be_used_leave_their_boxes(tmp_path, draw, save, segmentation, rule, detail):
    draw("train/a.jpg")
    boxes = {"bbox": [[10, 20, 30, 40], [0, 0, 9, 9]], "categories": ["cat", "cat"]}
    save({"file_name": "a.jpg", "objects": boxes | {"segmentation": segmentation}})
    dataset = read(tmp_path, "train")
    assert len(dataset.records[0].boxes) == 2
    assert [(defect.rule, defect.detail) for defect in dataset.repaired] == [(rule, detail)]
