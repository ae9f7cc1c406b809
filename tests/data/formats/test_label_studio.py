"""Label Studio: a JSON list of tasks, in full and minimal form, and names of its other exports."""

from math import sqrt

import numpy as np
import pytest

from detect.data.read import read, splits
from detect.errors import UserError

SIZE = {"original_width": 120, "original_height": 80, "image_rotation": 0}


def result(label="cat", kind="rectanglelabels", **value):
    return SIZE | {"id": "x", "type": kind, "value": value | {kind: [label]}}


BOX = result(x=25, y=25, width=50, height=25, rotation=0)


def task(*results, image="/data/upload/1/ab12cd34-a.jpg", **annotation):
    return {"id": 1, "data": {"image": image}, "annotations": [{"result": list(results)} | annotation]}


@pytest.mark.parametrize(
    ("value", "kind", "box"),
    [
        ({"x": 25, "y": 25, "width": 50, "height": 25}, "rectanglelabels", [30, 20, 90, 40]),
        ({"x": 50, "y": 25, "width": 25, "height": 50, "rotation": 90}, "rectanglelabels", [20, 20, 60, 50]),
        ({"x": 50, "y": 50, "width": 10, "height": 15, "rotation": 45}, "rectanglelabels",
         [60 - 6 * sqrt(2), 40, 60 + 6 * sqrt(2), 40 + 12 * sqrt(2)]),
        ({"points": [[25, 25], [75, 25], [50, 50]]}, "polygonlabels", [30, 20, 90, 40]),
        ({"x": 50, "y": 50, "radiusX": 25, "radiusY": 10}, "ellipselabels", [30, 32, 90, 48]),
        ({"x": 50, "y": 50, "radiusX": 25, "radiusY": 10, "rotation": 90}, "ellipselabels", [52, 10, 68, 70]),
    ],
)  # fmt: skip
def test_boxes(tmp_path, draw, dump, value, kind, box):
    draw("images/ab12cd34-a.jpg")
    full = dump("project.json", [task(result(kind=kind, **value))])
    for place in (tmp_path, full):
        dataset = read(place, "train", format="label_studio")
        assert (dataset.format, splits(place), dataset.classes) == ("label_studio", ("all",), ("cat",))
        np.testing.assert_allclose(dataset.records[0].boxes, [box], rtol=1e-6)
    dump(
        "project.json", [{"image": "/data/upload/1/ab12cd34-a.jpg", "id": 1, "label": [SIZE | value | {kind: ["cat"]}]}]
    )
    np.testing.assert_allclose(read(tmp_path, "train").records[0].boxes, [box], rtol=1e-6)


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("images/a b.jpg", "/data/upload/1/ab12cd34-a%20b.jpg"),
        ("images/ab12cd34-a.jpg", "/data/upload/1/ab12cd34-a.jpg"),
        ("x/y/a.jpg", "/data/local-files/?d=x/y/a.jpg"),
        ("x/a.JPG", "s3://bucket/x/a.jpg?token=1"),
        ("x/a.jpg", "https://example.com/b/a.jpg"),
    ],
)
def test_images(tmp_path, draw, dump, image, name):
    draw(image)
    dump("project.json", [task(BOX, image=name)])
    dataset = read(tmp_path, "train")
    assert dataset.records[0].path == tmp_path / image and dataset.repaired == ()


def test_an_image_under_another_key(tmp_path, draw, dump):
    draw("a.jpg")
    dump("project.json", [{"data": {"text": "hello", "picture": "/data/a.jpg"}, "annotations": [{"result": [BOX]}]}])
    assert read(tmp_path, "train").records[0].path == tmp_path / "a.jpg"


def test_two_labels_and_results_that_are_no_shapes(tmp_path, draw, dump):
    draw("a.jpg")
    both = result(x=0, y=0, width=10, height=10) | {"value": BOX["value"] | {"rectanglelabels": ["cat", "dog"]}}
    choice = {"id": "y", "type": "choices", "value": {"choices": ["good"]}}
    shape = SIZE | {"id": "x", "type": "rectangle", "value": {"x": 25, "y": 25, "width": 50, "height": 25}}
    point = result(kind="keypointlabels", x=1, y=2, width=0.5)
    dump("project.json", [task(both, choice, {"type": "relation", "from_id": "x"}, shape, point, image="a.jpg")])
    dataset = read(tmp_path, "train")
    assert dataset.records[0].boxes.tolist() == [[30, 20, 90, 40]] * 2 and dataset.records[0].labels.tolist() == [0, 1]
    assert [(d.rule, d.detail) for d in dataset.repaired] == [
        ("shape-without-area", "task 1, result 5: keypointlabels")
    ]


def test_annotations_of_several_people(tmp_path, draw, dump):
    draw("a.jpg", "b.jpg", "c.jpg", "d.jpg")
    other = result("dog", x=0, y=0, width=10, height=10)
    several = task(BOX, image="a.jpg")
    several["annotations"] += [{"result": [other]}, {"result": [BOX, BOX], "was_cancelled": True}]
    truth = task(BOX, image="d.jpg", ground_truth=True)
    truth["annotations"] += [{"result": []}]
    unlabelled = {"data": {"image": "c.jpg"}, "annotations": []}
    dump("project.json", [several, task(BOX, image="b.jpg", was_cancelled=True), unlabelled, truth])
    dataset = read(tmp_path, "train")
    assert [record.path.name for record in dataset.records] == ["a.jpg", "d.jpg"]
    assert [record.boxes.tolist() for record in dataset.records] == [[[0, 0, 12, 8]], [[30, 20, 90, 40]]]
    assert [(d.rule, d.detail) for d in dataset.repaired] == [
        ("several-annotations", "task 1 has 2"),
        ("unlabelled-image", "task 2"),
        ("unlabelled-image", "task 3"),
        ("several-annotations", "task 4 has 2"),
    ]


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        (task(result(x=1, y=2, width="3", height=4)), r"task 2, result 1: rectanglelabels with .* is no rectangle"),
        (
            task(result(x=1, y=2, width=3, height=4, rotation=5) | {"original_width": None}),
            r"task 2, result 1: rect",
        ),
        (
            task(BOX | {"image_rotation": 90}),
            r"task 2, result 1: it was drawn on an image that Label Studio showed",
        ),
        (task(BOX | {"type": "rectangle", "value": {"x": 1}}), r"task 2, result 1: a rectangle without a label"),
        (
            task(result(kind="brushlabels", rle=[1], format="rle")),
            r"task 2, result 1: brushlabels with .* is no",
        ),
        (task(result(None, x=1, y=2, width=3, height=4)), r"task 2, result 1: its class is null, expected a text"),
        (task(5), r"task 2, result 1 is 5, expected an object"),
        (task(result={}), r"task 2: its result is \{\}, expected a list"),
        (task(BOX) | {"data": {"text": "hello"}}, r"task 2: its data has no image: \{\"text\": \"hello\"\}"),
        ([], r"task 2 is \[\], expected an object"),
    ],
)
def test_malformed_files(tmp_path, draw, dump, wrong, problem):
    draw("ab12cd34-a.jpg", "b.jpg")
    dump("project.json", [task(BOX, image="b.jpg"), wrong])
    with pytest.raises(UserError, match=rf"1 × broken-file, first .*project\.json: {problem}"):
        read(tmp_path, "train")


def test_a_missing_image(tmp_path, dump):
    dump("project.json", [task(BOX)])
    with pytest.raises(UserError, match=r"1 × missing-image, first .*/ab12cd34-a\.jpg: "):
        read(tmp_path, "train")


def test_its_coco_export(tmp_path, draw, dump):
    draw("images/ab12cd34-a.jpg")
    name = "..\\..\\label-studio\\media\\upload\\1\\ab12cd34-a.jpg"
    image = {"id": 0, "file_name": name, "width": 120, "height": 80}
    annotation = {"id": 0, "image_id": 0, "category_id": 0, "bbox": [30, 20, 60, 20], "iscrowd": 0, "area": 1200}
    dump("result.json", {"images": [image], "categories": [{"id": 0, "name": "cat"}], "annotations": [annotation]})
    dataset = read(tmp_path, "train")
    assert dataset.format == "coco" and dataset.records[0].path == tmp_path / "images/ab12cd34-a.jpg"
    assert dataset.records[0].boxes.tolist() == [[30, 20, 90, 40]]
    assert [defect.rule for defect in dataset.repaired] == ["foreign-name"]


def test_its_yolo_export(tmp_path, draw, dump):
    draw("images/ab12cd34-a.jpg")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/ab12cd34-a.txt").write_text("1 0.5 0.375 0.5 0.25\n")
    (tmp_path / "classes.txt").write_text("ant\ncat\n")
    dump("notes.json", {"categories": [{"id": 0, "name": "ant"}, {"id": 1, "name": "cat"}], "info": {"year": 2024}})
    dataset = read(tmp_path, "train")
    assert (dataset.format, dataset.classes) == ("yolo", ("ant", "cat"))
    assert dataset.records[0].boxes.tolist() == [[30, 20, 90, 40]] and dataset.records[0].labels.tolist() == [1]
