"""Joining of data sets, and selection of classes."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detect.data.masks import Polygons
from detect.data.merge import distinct, keep_classes, merge, refuse_unknown, unify_classes, with_labels
from detect.errors import UserError

A, B, C = (0, 0, 10, 10), (5, 5, 30, 20), (1, 2, 3, 4)


@pytest.fixture
def saved(tmp_path, dataset_of):
    """Makes a data set with image files, all of different colours, from boxes and labels by image id."""
    colours = iter(range(256))

    def make(folder: str, images: dict, classes, ids, format="coco", split="train"):
        root = tmp_path / folder
        root.mkdir(exist_ok=True)
        boxes = {number: [(box, label, "") for box, label in entries] for number, entries in images.items()}
        dataset = dataset_of(boxes, classes, ids)
        for record in dataset.records:
            Image.new("RGB", (40, 30), (next(colours), 0, 0)).save(root / f"{record.id}.png")
        records = [replace(record, path=root / f"{record.id}.png") for record in dataset.records]
        return replace(dataset, root=root, records=tuple(records), format=format, split=split)

    return make


def named_boxes(dataset):
    return {
        record.path.name: [
            (dataset.classes[label], tuple(box))
            for label, box in zip(record.labels, record.boxes.tolist(), strict=True)
        ]
        for record in dataset.records
    }


def test_names_that_differ_in_case_or_spaces_are_told(saved):
    one = saved("a", {1: [(A, 0)]}, ("cat", "red  dog"), (3, 7))
    other = saved("b", {2: [(C, 0)]}, ("Cat", "red dog"), (5, 6))
    both = merge([one, other])
    assert set(both.classes) == {"cat", "red  dog", "Cat", "red dog"}
    assert [(defect.rule, defect.path, defect.detail) for defect in both.repaired] == [
        ("similar-class", other.root, "Cat besides cat"),
        ("similar-class", other.root, "red dog besides red  dog"),
    ]


def test_one_data_set_stays_as_it_is(saved):
    dataset = saved("a", {1: [(A, 0)]}, ("cat",), (5,))
    assert merge([dataset]) is dataset


def test_classes_are_joined_by_name_and_keep_their_ids(saved):
    one = saved("a", {1: [(A, 0), (B, 1)]}, ("cat", "dog"), (3, 7))
    other = saved("b", {2: [(C, 0), (A, 1)], 9: []}, ("ant", "cat"), (5, 6))
    both = merge([one, other])
    assert (both.classes, both.category_ids) == (("cat", "ant", "dog"), (3, 5, 7))
    assert named_boxes(both) == {"1.png": [("cat", A), ("dog", B)], "2.png": [("ant", C), ("cat", A)], "9.png": []}
    assert [record.id for record in both.records] == [1, 2, 9]
    assert both.folders == (one.root, other.root) and both.root == one.root.parent and both.split == "train"


@pytest.mark.parametrize(
    ("first", "second", "joined"),
    [(("cat", "dog"), ("ant", "cat"), ("ant", "cat", "dog")), (("dog", "cat"), ("ant",), ("dog", "cat", "ant"))],
)
def test_ids_that_conflict_are_numbered_anew(saved, first, second, joined):
    """In alphabetical order where all data sets have it, as those of formats without ids do, else as they appear."""
    one = saved("a", {1: [(A, 0)]}, first, tuple(range(1, len(first) + 1)))
    other = saved("b", {2: [(A, 0)]}, second, tuple(range(1, len(second) + 1)))
    both = merge([one, other])
    assert both.classes == joined and both.category_ids == (1, 2, 3)
    assert named_boxes(both) == {"1.png": [(first[0], A)], "2.png": [(second[0], A)]}


def test_the_order_of_equal_classes_is_kept(saved):
    one, other = (saved(name, {name == "a": []}, ("dog", "cat"), ids) for name, ids in (("a", (9, 2)), ("b", (1, 2))))
    assert [(each.classes, each.category_ids) for each in unify_classes([one, other])] == [(("dog", "cat"), (9, 2))] * 2


def test_image_ids_that_conflict_are_numbered_anew(saved):
    both = merge([saved("a", {4: [], 7: []}, ("cat",), (1,)), saved("b", {7: [(A, 0)]}, ("cat",), (1,), split="new")])
    assert [(record.id, record.path.parent.name) for record in both.records] == [(1, "a"), (2, "a"), (3, "b")]
    assert both.split == "train + new"


def test_an_image_of_two_folders_is_read_once_and_told(saved):
    one = saved("a", {1: [(A, 0)], 2: []}, ("cat",), (1,))
    other = saved("b", {3: [(A, 0)], 4: [(B, 0)]}, ("cat",), (1,))
    shutil.copy(one.records[0].path, other.records[0].path)
    shutil.copy(one.records[1].path, other.records[1].path)
    both = merge([one, other])
    assert [record.id for record in both.records] == [1, 2]
    first, second = both.repaired
    assert (first.rule, first.path) == ("repeated-image", other.records[0].path)
    assert first.detail == f"the same image as {one.records[0].path}"
    assert second.detail == f"the same image as {one.records[1].path}; it has other boxes there"
    with_mask = replace(one.records[0], path=other.records[0].path, masks=(Polygons((np.eye(3, 2),)),))
    (third,) = merge([one, replace(other, records=(with_mask,))]).repaired
    assert third.detail == f"the same image as {one.records[0].path}; it has no masks there"


def test_equal_images_of_one_folder_are_kept(saved):
    one, other = saved("a", {1: [], 2: []}, ("cat",), (1,)), saved("b", {3: []}, ("cat",), (1,))
    shutil.copy(one.records[0].path, one.records[1].path)
    both = merge([one, other])
    assert len(both) == 3 and both.repaired == ()


def test_splits_that_overlap_are_joined_without_a_word(saved):
    train = saved("a", {1: [(A, 0)], 2: []}, ("cat",), (1,))
    whole = replace(train, split="trainval")
    both = merge([replace(train, records=train.records[:1]), whole])
    assert [record.id for record in both.records] == [1, 2] and both.repaired == ()
    assert both.root == train.root and both.folders == (train.root,) and both.split == "train + trainval"


def test_a_folder_in_several_spellings_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").mkdir()
    (tmp_path / "link").symlink_to("x")
    spellings = [Path("y"), Path("x"), Path("./x"), Path("y/../x"), tmp_path / "x", Path("link")]
    (tmp_path / "y").mkdir()
    assert distinct(spellings) == (Path("y"), Path("x"))


def test_kept_classes(saved):
    dataset = saved("a", {1: [(A, 2), (B, 0), (C, 1)], 2: [(A, 1)]}, ("ant", "bee", "cat"), (4, 2, 9))
    kept = keep_classes(dataset, ["cat", "ant"])
    assert (kept.classes, kept.category_ids) == (("ant", "cat"), (4, 9))
    assert named_boxes(kept) == {"1.png": [("cat", A), ("ant", B)], "2.png": []}
    labelled = with_labels(kept, ("cat", "dog", "ant"))
    assert labelled.classes == ("cat", "dog", "ant") and labelled.category_ids == (9, 1, 4)
    assert named_boxes(labelled) == named_boxes(kept)
    assert labelled.records[0].labels.tolist() == [0, 2] and labelled.records[0].areas.tolist() == [100.0, 375.0]


def test_a_class_that_does_not_exist():
    refuse_unknown([], ["cat"], "classes", "data")
    with pytest.raises(UserError, match=r"^classes: data has no class Catt; did you mean cat\?$"):
        refuse_unknown(["dog", "Catt"], ["cat", "dog"], "classes", "data")
    classes = [f"{number}" for number in range(12)]
    with pytest.raises(UserError, match=r"data has no class horse; its classes are 0, 1, .*, 9, … and 2 more$"):
        refuse_unknown(["horse"], classes, "classes", "data")


def test_the_union_of_no_boxes(dataset_of):
    (dataset,) = unify_classes([dataset_of({})])
    assert len(dataset) == 0 and np.array(dataset.category_ids).tolist() == [7, 3]
