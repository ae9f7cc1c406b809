"""Open Images: fractions, names of classes, groups, and images that were not downloaded."""

import numpy as np
import pytest
from PIL import Image

from detect.data.read import read, splits
from detect.errors import UserError

HEADER = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside\n"
)


def row(id, name="/m/01", box=(0.1, 0.6, 0.2, 0.8), group=0):
    return f"{id},xclick,{name},1,{','.join(map(str, box))},0,0,{group},0,0\n"


def save(root, rows, *images, name="train-annotations-bbox.csv"):
    for image in images:
        (root / image).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(root / image)
    (root / name).write_text(HEADER + rows)


def test_boxes_names_and_groups(tmp_path):
    save(tmp_path, row("0a") + row("0a", "/m/02", (0, 1, 0, 0.5), group=1), "train/0a.jpg")
    (tmp_path / "class-descriptions-boxable.csv").write_text("/m/01,Person\n/m/02,Cat\n/m/03,Dog\n")
    dataset = read(tmp_path, "train")
    assert (dataset.format, dataset.classes, dataset.repaired) == ("openimages", ("Cat", "Person"), ())
    (record,) = dataset.records
    np.testing.assert_allclose(record.boxes, [[4, 6, 24, 24], [0, 0, 40, 15]], atol=1e-5)
    assert record.labels.tolist() == [1, 0] and record.crowd.tolist() == [False, True]


def test_without_descriptions_the_ids_are_the_names(tmp_path):
    save(tmp_path, row("0a"), "0a.jpg", name="mine.csv")
    assert splits(tmp_path) == ("all",) and read(tmp_path, "train").classes == ("/m/01",)


def test_the_challenge_has_fewer_columns(tmp_path):
    save(tmp_path, "", "0a.jpg")
    (tmp_path / "train-annotations-bbox.csv").write_text(
        "ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf\n0a,/m/01,0.1,0.6,0.2,0.8,1\n"
    )
    (record,) = read(tmp_path, "train").records
    assert record.crowd.tolist() == [True]


def test_splits_and_classes_of_all_images_that_are_there(tmp_path):
    save(tmp_path, row("0a") + row("0b", "/m/09"), "train/0a.jpg", "train/0b.jpg")
    save(tmp_path, row("0c", "/m/02"), "validation/0c.jpg", name="validation-annotations-bbox.csv")
    assert splits(tmp_path) == ("train", "validation")
    assert read(tmp_path, "train").classes == read(tmp_path, "val").classes == ("/m/01", "/m/02", "/m/09")
    assert [record.path for record in read(tmp_path, "val").records] == [tmp_path / "validation" / "0c.jpg"]


def test_images_that_were_not_downloaded(tmp_path):
    save(tmp_path, row("0a") + row("0b", "/m/02") + row("0c") + row("0b"), "train/0a.jpg")
    dataset = read(tmp_path, "train")
    assert [record.path.name for record in dataset.records] == ["0a.jpg"] and dataset.classes == ("/m/01",)
    (left,) = dataset.repaired
    assert left.rule == "partial-download" and left.detail == "2 of 3 images are not there"


def test_a_few_missing_images(tmp_path):
    save(tmp_path, row("0a") + row("0b") + row("0c"), "train/0a.jpg", "train/0b.jpg")
    with pytest.raises(UserError, match=r"1 × missing-image, first .*0c\.jpg: there is no such file"):
        read(tmp_path, "train")


def test_no_image_at_all(tmp_path):
    save(tmp_path, row("0a"))
    with pytest.raises(UserError, match=r"train-annotations-bbox\.csv: there are no images; put them into folders"):
        read(tmp_path, "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (row("0a", box=("x", 1, 0, 1)), r"broken-file, first .*bbox\.csv: line 3 has no class and box: 0a,xclick"),
        ("0a,xclick,/m/01\n", "line 3 has no class and box"),
        (row("0a", name=""), "line 3 has no class and box"),
        (row("0a", box=("nan", 1, 0, 1)), "1 × nan-box, first .*: line 3"),
        (row("0a", box=(0, 1e999, 0, 1)), "1 × nan-box"),
    ],
)
def test_damaged_rows(tmp_path, text, message):
    save(tmp_path, row("0a") + text, "train/0a.jpg")
    with pytest.raises(UserError, match=message):
        read(tmp_path, "train")


def test_text_that_is_not_utf_8(tmp_path):
    save(tmp_path, "", "train/0a.jpg")
    (tmp_path / "train-annotations-bbox.csv").write_bytes(HEADER.encode() + b"0a,\xff\n")
    with pytest.raises(UserError, match=r"bbox\.csv: line \d: it is not UTF-8"):
        read(tmp_path, "train")
