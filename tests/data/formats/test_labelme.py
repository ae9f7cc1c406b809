"""LabelMe: one JSON file for each image, with shapes."""

import numpy as np
import pytest
import supervision

from detect.data.read import read, splits
from detect.errors import UserError


def shape(points, kind="rectangle", label="cat", **others):
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, "flags": {}} | others


def document(*shapes, path="a.jpg", **others):
    return {
        "version": "5.5.0", "flags": {}, "shapes": list(shapes), "imagePath": path, "imageData": None,
        "imageHeight": 80, "imageWidth": 120,
    } | others  # fmt: skip


BOX = shape([[10, 20], [40, 60]])


@pytest.mark.parametrize(
    ("points", "kind", "box"),
    [
        ([[10, 20], [40, 60]], "rectangle", [10, 20, 40, 60]),
        ([[40, 20], [10, 60]], "rectangle", [10, 20, 40, 60]),
        ([[10, 20], [40, 20], [40, 60], [10, 60]], "rectangle", [10, 20, 40, 60]),
        ([[10, 40], [30, 20.5], [50, 70]], "polygon", [10, 20.5, 50, 70]),
        ([[10, 40], [30, 20], [50, 40], [30, 60]], "rotation", [10, 20, 50, 60]),
        ([[50, 40], [53, 44]], "circle", [45, 35, 55, 45]),
        ([[10, 20], [39, 59]], "mask", [10, 20, 40, 60]),
        ([[10, 40], [30, 20.5], [50, 70]], None, [10, 20.5, 50, 70]),
    ],
)
def test_boxes(tmp_path, draw, dump, points, kind, box):
    draw("a.jpg")
    path = dump("a.json", document(shape(points, kind)))
    for place in (tmp_path, path):
        dataset = read(place, "train")
        assert (dataset.format, splits(place), dataset.classes, dataset.repaired) == ("labelme", ("all",), ("cat",), ())
        np.testing.assert_allclose(dataset.records[0].boxes, [box])


@pytest.mark.parametrize("kind", ["point", "points", "line", "linestrip"])
def test_shapes_without_area_are_left_out_and_counted(tmp_path, draw, dump, kind):
    draw("a.jpg")
    dump("a.json", document(shape([[1, 2], [30, 40]], kind, label="dot"), BOX))
    dataset = read(tmp_path, "train")
    assert dataset.records[0].boxes.tolist() == [[10, 20, 40, 60]] and dataset.classes == ("cat",)
    assert [(d.rule, d.detail) for d in dataset.repaired] == [("shape-without-area", f"shape 1 (dot): {kind}")]


def test_splits_and_classes_of_all_of_them(tmp_path, draw, dump):
    draw("train/a.jpg", "val/b.jpg")
    dump("train/a.json", document(BOX))
    dump("val/b.json", document(shape([[0, 0], [9, 9]], label="ant"), path="b.jpg"))
    assert splits(tmp_path) == ("train", "val")
    assert [read(tmp_path, split).classes for split in ("train", "val")] == [("ant", "cat")] * 2
    assert read(tmp_path, "val").records[0].path == tmp_path / "val" / "b.jpg"


@pytest.mark.parametrize(
    ("image", "annotations", "named"),
    [
        ("images/x.jpg", "annotations/x.json", "..\\images\\x.jpg"),
        ("images/x.JPG", "json/other.json", "..\\images\\x.jpg"),
        ("images/x.jpg", "json/other.json", "../images/x.jpg"),
        ("images/e\u0301.jpg", "json/\u00e9.json", "C:\\Users\\me\\\u00e9.jpg"),
    ],
)
def test_images_elsewhere(tmp_path, draw, dump, image, annotations, named):
    draw(image)
    dump(annotations, document(BOX, path=named), encoding="utf-8-sig")
    (record,) = read(tmp_path, "train").records
    assert record.path == tmp_path / image and record.boxes.tolist() == [[10, 20, 40, 60]]


def test_an_image_only_in_the_file(tmp_path, draw, dump):
    draw("b.jpg")
    path = dump("a.json", document(BOX, imageData="iVBORw0KGgo="))
    dump("b.json", document(BOX, path="b.jpg"))
    with pytest.raises(UserError, match=r"1 × embedded-image, first .*a\.json: a\.jpg is only in its imageData \(save"):
        read(tmp_path, "train")
    dataset = read(tmp_path, "train", skip_unreadable=True)
    assert [record.path.name for record in dataset.records] == ["b.jpg"]
    assert [(defect.rule, defect.path) for defect in dataset.repaired] == [("embedded-image", path)]


def test_a_missing_image(tmp_path, dump):
    dump("a.json", document(BOX, path="..\\x\\c.jpg"))
    with pytest.raises(UserError, match=r"1 × missing-image, first .*/c\.jpg: "):
        read(tmp_path, "train")


def test_other_json_files_beside(tmp_path, draw, dump):
    draw("a.jpg")
    dump("a.json", document(BOX))
    dump("config.json", {"colour": "red"})
    assert len(read(tmp_path, "train")) == 1


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (document(shape([[1, 2], [3, "x"]])), r"shape 1 \(cat\): \"rectangle\" with the points \[\[1, 2\], \[3, \"x"),
        (document(shape([[1, 2], [3, 4, 5]])), r"shape 1 \(cat\): "),
        (document(shape({}, "circle")), r"shape 1 \(cat\): \"circle\" with the points \{\}"),
        (document(BOX, shape([[1, 2]], "star")), r"shape 2 \(cat\): \"star\""),
        (document(BOX | {"label": [1]}), r"shape 1: its class is \[1\], expected a text"),
        (document(BOX, 7), r"shape 2 is 7, expected an object"),
        (document() | {"shapes": 5}, r"it has no list, but 5, where each shape is expected"),
        ([1], r"it contains \[1\], expected an object"),
    ],
)  # fmt: skip
def test_malformed_files(tmp_path, draw, dump, content, problem):
    draw("a.jpg", "b.jpg")
    dump("a.json", content)
    dump("b.json", document(BOX))
    with pytest.raises(UserError, match=rf"1 × broken-file, first .*a\.json: {problem}.*\(correct the file there\)$"):
        read(tmp_path, "train")


def test_numbers_that_are_none(tmp_path, draw, dump):
    draw("a.jpg")
    dump("a.json", document(shape([[float("nan"), 1], [2, 3]])))
    with pytest.raises(UserError, match=r"1 × nan-box, first .*a\.json: shape 1 \(cat\): box \(nan, 1, nan, 3\)"):
        read(tmp_path, "train")


def test_supervision_writes_what_is_read(tmp_path, draw):
    draw("a.jpg")
    boxes = np.array([[10, 20, 40, 60], [0, 1, 119, 79]], dtype=np.float32)
    found = {str(tmp_path / "a.jpg"): supervision.Detections(xyxy=boxes, class_id=np.array([1, 0]))}
    data = supervision.DetectionDataset(classes=["ant", "cat"], images=list(found), annotations=found)
    data.as_labelme(annotations_directory_path=str(tmp_path / "labels"))
    dataset = read(tmp_path, "train")
    np.testing.assert_allclose(dataset.records[0].boxes, boxes)
    assert [dataset.classes[label] for label in dataset.records[0].labels] == ["cat", "ant"]
