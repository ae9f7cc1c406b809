"""Supervisely: a project of datasets, with one JSON file for each image."""

import io
import zlib
from base64 import b64encode

import pytest
from PIL import Image

from detect.data.read import read, splits
from detect.errors import UserError


def figure(points, kind="rectangle", name="cat"):
    return {"classTitle": name, "geometryType": kind, "points": {"exterior": points, "interior": []}}


def bitmap(origin, width, height):
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, "PNG")
    data = b64encode(zlib.compress(file.getvalue())).decode()
    return {"classTitle": "cat", "geometryType": "bitmap", "bitmap": {"origin": origin, "data": data}}


def document(*figures):
    return {"description": "", "tags": [], "size": {"width": 120, "height": 80}, "objects": list(figures)}


BOX = figure([[10, 20], [40, 60]])


@pytest.fixture
def project(draw, dump):
    """Data folder of two datasets, whose images have the same name."""
    draw("train/img/a.jpg", "my val/img/a.jpg")
    dump("train/ann/a.jpg.json", document(BOX))
    dump("my val/ann/a.jpg.json", document(figure([[0, 0], [1, 2]], name="dog")))
    classes = [("dog", "polygon"), ("cat", "rectangle"), ("dot", "point")]
    dump("meta.json", {"classes": [{"title": title, "shape": shape} for title, shape in classes], "tags": []})


def test_datasets_are_splits(tmp_path, project):
    for place in (tmp_path, tmp_path / "meta.json"):
        assert splits(place) == ("my val", "train")
        dataset = read(place, "train")
        assert (dataset.format, dataset.classes, dataset.repaired) == ("supervisely", ("dog", "cat"), ())
        (record,) = dataset.records
        assert record.path == tmp_path / "train/img/a.jpg" and record.labels.tolist() == [1]
        assert record.boxes.tolist() == [[10, 20, 40, 60]]
    assert read(tmp_path, "my val").records[0].path == tmp_path / "my val/img/a.jpg"


def test_one_dataset_or_one_file(tmp_path, project):
    for place in ("train", "train/ann/a.jpg.json"):
        assert splits(tmp_path / place) == ("all",)
        dataset = read(tmp_path / place, "train")
        assert (dataset.classes, dataset.records[0].boxes.tolist()) == (("cat",), [[10, 20, 40, 60]])


@pytest.mark.parametrize(
    ("content", "box"),
    [
        (figure([[40, 20], [10, 60]]), [10, 20, 40, 60]),
        (figure([[10, 40], [30, 20.5], [50, 70]], "polygon"), [10, 20.5, 50, 70]),
        (bitmap([10, 20], 30, 40), [10, 20, 40, 60]),
    ],
)
def test_boxes(tmp_path, project, dump, content, box):
    dump("train/ann/a.jpg.json", document(content))
    assert read(tmp_path, "train").records[0].boxes.tolist() == [box]


def test_shapes_without_area(tmp_path, project, dump):
    dump("train/ann/a.jpg.json", document(figure([[1, 2]], "point", "dot"), figure([[1, 2], [9, 9]], "line"), BOX))
    dataset = read(tmp_path, "train")
    assert dataset.records[0].boxes.tolist() == [[10, 20, 40, 60]]
    assert [(d.rule, d.detail) for d in dataset.repaired] == [
        ("shape-without-area", "object 1 (dot): point"),
        ("shape-without-area", "object 2 (cat): line"),
    ]


def test_a_bitmap_that_is_a_bomb(tmp_path, project, dump):
    bomb = b64encode(zlib.compress(bytes(2**24), 9)).decode()
    dump("train/ann/a.jpg.json", document(bitmap([1, 2], 3, 4) | {"bitmap": {"origin": [1, 2], "data": bomb}}))
    with pytest.raises(UserError, match=r"a\.jpg\.json: object 1 \(cat\): \"bitmap\" without valid points or bitmap"):
        read(tmp_path, "train")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (document(BOX | {"classTitle": {}}), r"object 1: its class is \{\}, expected a text"),
        (document(BOX | {"points": [[1, 2], [3, 4]]}), r"object 1 \(cat\): \"rectangle\" without valid points"),
        (document(bitmap([1], 3, 4)), r"object 1 \(cat\): \"bitmap\" without valid points or bitmap"),
        (
            document(bitmap([1, 2], 3, 4) | {"bitmap": {"origin": [1, 2], "data": "é"}}),
            r"object 1 \(cat\): \"bitmap\"",
        ),
        (document(None), r"object 1 is null, expected an object"),
        (document() | {"objects": None}, r"it has no list, but null, where each object is expected"),
        (3, r"it contains 3, expected an object"),
    ],
)
def test_malformed_files(tmp_path, project, draw, dump, content, problem):
    draw("train/img/b.jpg")
    dump("train/ann/b.jpg.json", content)
    with pytest.raises(UserError, match=rf"1 × broken-file, first .*b\.jpg\.json: {problem}"):
        read(tmp_path, "train")


def test_missing_images_and_classes(tmp_path, project, dump):
    dump("meta.json", [])
    dump("train/ann/c.jpg.json", document(BOX))
    with pytest.raises(UserError, match=r"1 × missing-image, first .*/train/img/c\.jpg: .*; 1 × broken-file, .*meta"):
        read(tmp_path, "train")
