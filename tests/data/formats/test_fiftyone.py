"""FiftyOne: one JSON object with the boxes of all images."""

import numpy as np
import pytest

from detect.data.read import read, splits
from detect.errors import UserError


def label(name, *box):
    return {"label": name, "bounding_box": list(box), "confidence": None}


BOX = label("cat", 0.25, 0.25, 0.5, 0.25)


@pytest.mark.parametrize("classes", [None, ["dog", "cat"]])
def test_boxes(tmp_path, draw, dump, classes):
    draw("data/a.png", "data/sub/b.v2.jpg", "data/c.jpg")
    labels = {"a": [BOX, label("dog", 0, 0, 1, 1)], "sub/b.v2": [], "c.jpg": [BOX]}
    path = dump("labels.json", {"classes": classes, "labels": labels})
    for place in (tmp_path, path):
        dataset = read(place, "train")
        assert (dataset.format, splits(place), dataset.repaired) == ("fiftyone", ("all",), ())
        assert dataset.classes == tuple(classes or ["cat", "dog"])
        assert [record.path.name for record in dataset.records] == ["a.png", "b.v2.jpg", "c.jpg"]
        np.testing.assert_allclose(dataset.records[0].boxes, [[30, 20, 90, 40], [0, 0, 120, 80]])
        assert [dataset.classes[index] for index in dataset.records[0].labels] == ["cat", "dog"]


def test_indices_of_classes_and_splits(tmp_path, draw, dump):
    draw("train/data/a.jpg", "val/data/a.jpg")
    dump("train/labels.json", {"classes": ["dog", "cat"], "labels": {"a": [BOX | {"label": 1}]}})
    dump("val/labels.json", {"classes": ["dog", "cat", "ant"], "labels": {"a": [BOX | {"label": 2}]}})
    assert splits(tmp_path) == ("train", "val")
    for split, expected in (("train", 1), ("val", 2)):
        dataset = read(tmp_path, split)
        assert dataset.classes == ("dog", "cat", "ant") and dataset.records[0].labels.tolist() == [expected]
        assert dataset.records[0].path == tmp_path / split / "data/a.jpg"


def test_an_image_without_labels_is_left_out(tmp_path, draw, dump):
    draw("data/a.jpg", "data/b.jpg")
    dump("labels.json", {"classes": ["cat"], "labels": {"a": [BOX], "b": None}})
    dataset = read(tmp_path, "train")
    assert len(dataset) == 1
    assert [(defect.rule, defect.detail) for defect in dataset.repaired] == [("unlabelled-image", "b")]


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        (
            {"labels": {"a": [BOX, BOX | {"label": 1}]}, "classes": ["cat"]},
            r"a, label 2: its class is null, ",
        ),
        (
            {"labels": {"a": [BOX, label("cat", 1, 2, 3)]}},
            r"a, label 2: bounding_box is \[1, 2, 3\], expected four",
        ),
        ({"labels": {"a": [BOX, []]}}, r"a, label 2 is \[\], expected an object"),
        ({"labels": {"a": [BOX], "b": "cat"}}, r"it has no list, but \"cat\", where each b, label is expected"),
        ({"classes": 3, "labels": {"a": [BOX]}}, r"classes is 3, expected a list"),
        ({"classes": [None], "labels": {"a": [BOX]}}, r"class 0: its class is null, expected a text"),
    ],
)
def test_malformed_files(tmp_path, draw, dump, document, problem):
    draw("data/a.jpg", "data/b.jpg")
    dump("labels.json", document)
    with pytest.raises(UserError, match=rf"1 × broken-file, first .*labels\.json: {problem}"):
        read(tmp_path, "train")


def test_a_missing_image(tmp_path, dump):
    dump("labels.json", {"labels": {"a": [BOX]}})
    with pytest.raises(UserError, match=r"1 × missing-image, first .*/a\.jpg: "):
        read(tmp_path, "train")


def test_classification_is_another_format(tmp_path, draw, dump):
    draw("data/a.jpg")
    dump("labels.json", {"classes": ["cat"], "labels": {"a": 0}})
    with pytest.raises(UserError, match="no data set of a known format"):
        splits(tmp_path)
