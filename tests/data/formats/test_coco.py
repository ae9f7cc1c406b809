"""COCO files in the layouts of the COCO project and of Roboflow."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from detect.data.read import read, splits
from detect.errors import UserError

CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]


def save_image(path, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)


def annotation(id=1, image=1, category=3, bbox=(1, 2, 10, 20), **fields):
    return {"id": id, "image_id": image, "category_id": category, "bbox": list(bbox), "area": 5, "iscrowd": 0, **fields}


def save_json(path, annotations=(), names=("a.jpg",), categories=CATEGORIES):
    images = [{"id": id, "file_name": name, "width": 40, "height": 30} for id, name in enumerate(names, start=1)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": list(annotations), "categories": categories}))


def official(root, *arguments, split="train", **options):
    save_json(root / "annotations" / f"instances_{split}.json", *arguments, **options)


def test_no_image(tmp_path):
    official(tmp_path, names=())
    dataset = read(tmp_path, "train")
    assert len(dataset) == len(dataset.records) == 0 and dataset.classes == ("cat", "dog")


def test_an_image_without_boxes_is_kept(tmp_path):
    official(tmp_path)
    save_image(tmp_path / "train" / "a.jpg")
    (record,) = read(tmp_path, "train").records
    assert (record.id, record.width, record.height) == (1, 40, 30)
    assert record.boxes.shape == (0, 4) and record.boxes.dtype == np.float32
    assert record.labels.shape == record.crowd.shape == record.difficult.shape == record.areas.shape == (0,)


def test_boxes_labels_crowds_and_areas(tmp_path):
    entries = [
        annotation(1, 2, 7, (0, 0, 40, 30), iscrowd=1, area=600),
        annotation(2, 1, 3, (1.5, 2, 10, 20), area=55.5),
        annotation(3, 2, 3, (4, 5, 6, 7)),
    ]
    official(tmp_path, entries, names=("a.jpg", "b.jpg"))
    save_image(tmp_path / "train" / "a.jpg")
    save_image(tmp_path / "train" / "b.jpg")
    dataset = read(tmp_path, "train")
    assert (dataset.format, dataset.split, dataset.classes, dataset.category_ids) == (
        "coco",
        "train",
        ("cat", "dog"),
        (3, 7),
    )
    assert dataset.repaired == ()
    first, second = dataset.records
    np.testing.assert_array_equal(first.boxes, [[1.5, 2, 11.5, 22]])
    np.testing.assert_array_equal(first.areas, [55.5])
    np.testing.assert_array_equal(second.boxes, [[0, 0, 40, 30], [4, 5, 10, 12]])
    np.testing.assert_array_equal(second.labels, [1, 0])
    np.testing.assert_array_equal(second.crowd, [True, False])
    np.testing.assert_array_equal(second.areas, [600, 5])
    dtypes = [column.dtype for column in (first.boxes, first.labels, first.crowd, first.difficult, first.areas)]
    assert dtypes == [np.float32, np.int64, bool, bool, np.float64]


def test_iscrowd_may_be_a_boolean(tmp_path):
    official(tmp_path, [annotation(1, iscrowd=True), annotation(2, iscrowd=False)])
    save_image(tmp_path / "train" / "a.jpg")
    dataset = read(tmp_path, "train")
    assert dataset.records[0].crowd.tolist() == [True, False] and dataset.repaired == ()


@pytest.mark.parametrize("folder", ["train2017", "images/train2017", "images", "."])
def test_places_of_the_images(tmp_path, folder):
    official(tmp_path, split="train2017")
    save_image(tmp_path / folder / "a.jpg")
    assert read(tmp_path, "train2017").records[0].path == tmp_path / folder / "a.jpg"


def test_the_folder_of_the_split_comes_first(tmp_path):
    official(tmp_path, split="val")
    for folder in (".", "images", "val"):
        save_image(tmp_path / folder / "a.jpg")
    assert read(tmp_path, "val").records[0].path == tmp_path / "val" / "a.jpg"


def test_a_split_may_go_without_its_year(tmp_path):
    official(tmp_path, split="train2017")
    save_image(tmp_path / "train2017" / "a.jpg")
    assert read(tmp_path, "train").split == "train2017"
    official(tmp_path, split="train2014")
    with pytest.raises(UserError, match="no split train; name one of train2014, train2017"):
        read(tmp_path, "train")


def test_roboflow(tmp_path):
    placeholder = {"id": 0, "name": "cells", "supercategory": "none"}
    categories = [placeholder, *({**entry, "supercategory": "cells"} for entry in CATEGORIES)]
    for folder in ("train", "valid"):
        save_json(tmp_path / folder / "_annotations.coco.json", [annotation()], categories=categories)
        save_image(tmp_path / folder / "a.jpg")
    assert splits(tmp_path) == ("train", "valid")
    dataset = read(tmp_path, "val")
    assert dataset.records[0].path == tmp_path / "valid" / "a.jpg"
    assert (dataset.classes, dataset.category_ids) == (("cat", "dog"), (3, 7))


def test_a_category_0_that_is_used_is_no_placeholder(tmp_path):
    categories = [{"id": 0, "name": "cell"}, {"id": 1, "name": "nucleus", "supercategory": "cell"}]
    official(tmp_path, [annotation(category=0)], categories=categories)
    save_image(tmp_path / "train" / "a.jpg")
    dataset = read(tmp_path, "train")
    assert dataset.classes == ("cell", "nucleus") and dataset.records[0].labels.tolist() == [0]


def test_labels_follow_given_classes(tmp_path):
    official(tmp_path, [annotation(1, category=3), annotation(2, category=7)])
    save_image(tmp_path / "train" / "a.jpg")
    dataset = read(tmp_path, "train", classes=["horse", "dog", "cat"])
    assert dataset.records[0].labels.tolist() == [2, 1]
    assert dataset.classes == ("horse", "dog", "cat") and dataset.category_ids == (8, 7, 3)
    with pytest.raises(UserError, match=r"1 × unknown-class, first .*: annotation 2 of image 1: category 7 dog"):
        read(tmp_path, "train", classes=["cat"])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "7",
        "[" * 5000,
        '{"images": []}',
        '{"images": 3, "annotations": [], "categories": []}',
        "\xff",
        "\0",
    ],
)
def test_files_that_are_no_coco(tmp_path, text):
    path = tmp_path / "annotations" / "instances_train.json"
    path.parent.mkdir()
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"broken-file, first .*instances_train\.json") as error:
        read(tmp_path, "train")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "entry",
    [
        annotation(bbox=(1, 2, 3)),
        annotation(bbox=(1, 2, 3, "4")),
        annotation(bbox=(1, 2, 3, 10**400)),
        annotation(bbox=(), segmentation=[[1, 2]]),
        {**annotation(), "bbox": None, "segmentation": {"size": [2, 2], "counts": [1, 2]}},
        annotation(image=float("nan")),
        annotation(category=[[]]),
        annotation(image=2**64),
        7,
    ],
)
def test_entries_of_the_wrong_kind(tmp_path, entry):
    official(tmp_path, [annotation(), entry])
    save_image(tmp_path / "train" / "a.jpg")
    with pytest.raises(UserError, match=r"1 × broken-file, first .*: annotations\[1\]"):
        read(tmp_path, "train")


def test_two_categories_of_one_name(tmp_path):
    official(tmp_path, categories=[{"id": 1, "name": "cat"}, {"id": 2, "name": "cat"}])
    with pytest.raises(UserError, match="same name"):
        read(tmp_path, "train")


@pytest.mark.parametrize("name", ["x" * 5000, "x/" * 3000 + "y.jpg", "\ud800", "a\0b"])
def test_names_that_no_file_can_have(tmp_path, name):
    official(tmp_path, names=(name,))
    with pytest.raises(UserError, match=r"1 × (missing-image|path-outside-root)") as error:
        read(tmp_path, "train")
    assert str(error.value).isprintable() and len(str(error.value)) < 1500


def save_names(root, file, names, folder):
    """Write a COCO file whose images have these names and lie in a folder."""
    images = [{"id": id, "file_name": name, "width": 40, "height": 20} for id, name in enumerate(names, start=1)]
    boxes = [{"id": i["id"], "image_id": i["id"], "category_id": 1, "bbox": [1, 2, 3, 4], "area": 12} for i in images]
    document = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cat"}]}
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(json.dumps(document))
    for name in names:
        path = root / folder / re.split(r"[/\\]", name)[-1]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 20)).save(path)


@pytest.mark.parametrize(
    ("file", "folder", "split"),
    [
        ("labels.json", "data", "labels"),
        ("result.json", "images", "result"),
        ("annotations/train.json", "images", "train"),
        ("train.json", "images", "train"),
        ("annotations/instances_default.json", "images", "default"),
        ("a/c.json", "a/x/y", "c"),
    ],
)
def test_files_of_any_name(tmp_path, file, folder, split):
    save_names(tmp_path, file, ["1.jpg"], folder)
    (tmp_path / "results.json").write_text('[{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 1}]')
    (tmp_path / "captions.json").write_text('{"images": [], "annotations": []}')
    assert splits(tmp_path) == (split,)
    dataset = read(tmp_path, "train")
    assert dataset.records[0].path == tmp_path / folder / "1.jpg" and dataset.repaired[:-1] == ()
    assert read(tmp_path / file, "train").split == split


def test_files_of_the_same_name_are_named_by_their_folders(tmp_path):
    for split in ("train", "validation"):
        save_names(tmp_path, f"{split}/labels.json", ["1.jpg"], f"{split}/data")
    assert splits(tmp_path) == ("train", "validation")
    assert read(tmp_path, "val").records[0].path == tmp_path / "validation" / "data" / "1.jpg"


def test_no_file_stands_for_another_of_the_same_name(tmp_path):
    """CVAT writes `annotations/instances_default.json` for every task."""
    for task in ("one", "two"):
        save_names(tmp_path, f"{task}/annotations/instances_default.json", ["1.jpg"], f"{task}/images")
    assert splits(tmp_path) == ("one_annotations_default", "two_annotations_default")
    path = read(tmp_path, "two_annotations_default").records[0].path
    assert path == tmp_path / "two" / "images" / "1.jpg"


def test_many_files_in_a_folder(tmp_path):
    names = [f"fold{number}" for number in range(25)]
    for name in names:
        save_names(tmp_path, f"{name}.json", ["1.jpg"], "images")
    assert splits(tmp_path) == tuple(sorted(names))


def test_files_of_keypoints_beside_those_of_boxes(tmp_path):
    for name in ("instances_train2017", "person_keypoints_train2017"):
        save_names(tmp_path, f"coco/{name}.json", ["1.jpg"], "coco/train2017")
    assert splits(tmp_path) == ("train2017",)


@pytest.mark.parametrize("name", ["train\\a b.jpg", "/home/somebody/train/a b.jpg", "C:\\x\\train\\a b.JPG"])
def test_names_of_other_systems_are_counted(tmp_path, name):
    save_names(tmp_path, "annotations/instances_train.json", [name], "train")
    if name.endswith("JPG"):
        (tmp_path / "train" / "a b.JPG").rename(tmp_path / "train" / "a b.jpg")
    dataset = read(tmp_path, "train")
    assert dataset.records[0].path == tmp_path / "train" / "a b.jpg"
    assert [defect.rule for defect in dataset.repaired if defect.rule == "foreign-name"] == ["foreign-name"]
    assert f"is read as {tmp_path / 'train' / 'a b.jpg'}" in dataset.repaired[0].detail


def test_an_image_is_not_taken_from_another_split(tmp_path):
    save_names(tmp_path, "annotations/instances_val.json", ["1.jpg"], "train")
    with pytest.raises(UserError, match=r"1 × missing-image, first .*val/1\.jpg"):
        read(tmp_path, "val")


def test_a_byte_order_mark(tmp_path):
    save_names(tmp_path, "annotations/instances_train.json", ["1.jpg"], "train")
    path = tmp_path / "annotations" / "instances_train.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    path.rename(tmp_path / "x.json")
    assert len(read(tmp_path, "train")) == 1
