"""Create ML: one JSON list of images, with the centres of boxes."""

import numpy as np
import pytest
import supervision

from detect.data.read import read, splits
from detect.errors import UserError


def annotation(x, y, width, height, label="cat"):
    return {"label": label, "coordinates": {"x": x, "y": y, "width": width, "height": height}}


BOX = annotation(25, 40, 30, 40)


def entry(*annotations, image="a.jpg"):
    return {"image": image, "annotations": list(annotations)}


def test_roboflow(tmp_path, draw, dump):
    draw("train/a.jpg", "train/b.jpg", "valid/a.jpg")
    path = dump("train/_annotations.createml.json", [entry(BOX, annotation(1.5, 2, 3, 4, "ant")), entry(image="b.jpg")])
    dump("valid/_annotations.createml.json", [entry(annotation(60, 40, 120, 80, "dog"))])
    dataset = read(tmp_path, "train")
    assert (dataset.format, splits(tmp_path), dataset.classes) == (
        "createml",
        ("train", "valid"),
        ("ant", "cat", "dog"),
    )
    assert [record.path for record in dataset.records] == [tmp_path / "train/a.jpg", tmp_path / "train/b.jpg"]
    np.testing.assert_array_equal(dataset.records[0].boxes, [[10, 20, 40, 60], [0, 0, 3, 4]])
    assert dataset.records[0].labels.tolist() == [1, 0] and len(dataset.records[1].boxes) == 0
    validation = read(tmp_path, "val")
    assert validation.records[0].path == tmp_path / "valid/a.jpg" and validation.classes == dataset.classes
    np.testing.assert_array_equal(validation.records[0].boxes, [[0, 0, 120, 80]])
    assert read(path, "train").records[0].boxes.tolist() == [[10, 20, 40, 60], [0, 0, 3, 4]]


def test_the_keys_of_apple(tmp_path, draw, dump):
    draw("a.jpg")
    dump("annotations.json", [{"imagefilename": "a.jpg", "annotation": [BOX]}], encoding="utf-8-sig")
    assert splits(tmp_path) == ("all",)
    assert read(tmp_path, "train").records[0].boxes.tolist() == [[10, 20, 40, 60]]


def test_files_named_after_splits(tmp_path, draw, dump):
    draw("images/a.jpg", "images/b.jpg")
    dump("my_train.json", [entry(BOX)])
    dump("my_val.json", [entry(BOX, image="images\\b.JPG")])
    assert splits(tmp_path) == ("train", "val")
    dataset = read(tmp_path, "val")
    assert dataset.records[0].path == tmp_path / "images/b.jpg"
    assert [defect.rule for defect in dataset.repaired] == ["foreign-name"]


def test_more_files_than_are_sampled(tmp_path, draw, dump):
    for number in range(25):
        draw(f"{number}.jpg")
        dump(f"part {number}.json", [entry(BOX, image=f"{number}.jpg")])
    dump("zebra.json", {"unrelated": 1})
    assert splits(tmp_path) == ("all",) and len(read(tmp_path, "train")) == 25


def test_an_upper_case_suffix(tmp_path, draw, dump):
    draw("a.JPG")
    dump("TRAIN.JSON", [entry(BOX, image="A.jpg")])
    assert read(tmp_path, "train").records[0].path == tmp_path / "a.JPG"


def test_an_image_twice(tmp_path, draw, dump):
    draw("a.jpg")
    dump("a.json", [entry(BOX), entry(BOX)])
    with pytest.raises(
        UserError, match=r"1 × duplicate-image, first .*a\.json: a\.jpg is also in a\.json \(list every"
    ):
        read(tmp_path, "train")


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        (entry(BOX, image=5), r"image 2: the image's file name is 5, expected a text"),
        ({"annotations": []}, r"image 2: the image's file name is null, expected a text"),
        (entry(BOX | {"label": None}, image="b.jpg"), r"image 2, annotation 1: its class is null, expected a text"),
        (
            entry(annotation(1, 2, 3, "4"), image="b.jpg"),
            r"image 2, annotation 1 \(cat\) has no coordinates of",
        ),
        (
            entry(BOX | {"coordinates": [1, 2, 3, 4]}, image="b.jpg"),
            r"image 2, annotation 1 \(cat\) has no coord",
        ),
        (entry(3, image="b.jpg"), r"image 2, annotation 1 is 3, expected an object"),
        (
            {"image": "b.jpg", "annotations": {}},
            r"it has no list, but \{\}, where each image 2, annotation is",
        ),
        ("b.jpg", r"image 2 is \"b\.jpg\", expected an object"),
    ],
)
def test_malformed_files(tmp_path, draw, dump, wrong, problem):
    draw("a.jpg", "b.jpg")
    dump("a.json", [entry(BOX), wrong])
    with pytest.raises(UserError, match=rf"1 × broken-file, first .*a\.json: {problem}"):
        read(tmp_path, "train")


def test_a_file_that_is_cut_off(tmp_path, draw, dump):
    draw("a.jpg")
    path = dump("a.json", [entry(BOX)])
    path.write_text(path.read_text()[:-2])
    with pytest.raises(UserError, match=r"1 × broken-file, first .*a\.json: it is not JSON: "):
        read(tmp_path, "train")


def test_a_path_outside_of_the_folder(tmp_path, draw, dump):
    draw("a.jpg")
    dump("a.json", [entry(BOX), entry(image="../../etc/passwd")])
    with pytest.raises(UserError, match=r"1 × path-outside-root, first .*a\.json: it names the image \.\./\.\./etc"):
        read(tmp_path, "train")


def test_supervision_writes_what_is_read(tmp_path, draw):
    draw("a.jpg")
    boxes = np.array([[10, 20, 40, 60], [0, 1, 119, 79]], dtype=np.float32)
    found = {str(tmp_path / "a.jpg"): supervision.Detections(xyxy=boxes, class_id=np.array([1, 0]))}
    data = supervision.DetectionDataset(classes=["ant", "cat"], images=list(found), annotations=found)
    data.as_createml(annotations_path=str(tmp_path / "labels.json"))
    dataset = read(tmp_path, "train")
    np.testing.assert_allclose(dataset.records[0].boxes, boxes)
    assert [dataset.classes[label] for label in dataset.records[0].labels] == ["cat", "ant"]
