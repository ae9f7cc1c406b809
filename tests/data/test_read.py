"""Detection of the format, names of splits and the check of images; the formats have separate tests."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detect.data.defects import summary
from detect.data.read import read, splits
from detect.errors import UserError

DATA = Path(os.environ.get("DETECT_DATA", Path(__file__).parents[2].parent / "shared" / "data"))


def save_coco(root, count, split="train"):
    (root / "annotations").mkdir(exist_ok=True)
    images = [{"id": id, "file_name": f"{id}.png", "width": 8, "height": 6} for id in range(count)]
    document = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))
    for id in range(count):
        Image.new("RGB", (8, 6)).save(root / f"{id}.png")


def test_folders_that_are_no_data_set(tmp_path):
    with pytest.raises(UserError, match="there is no such folder"):
        read(tmp_path / "none", "train")
    with pytest.raises(UserError, match=r"no data set of a known format \(coco, voc, yolo, .*; there is nothing"):
        splits(tmp_path)
    for number in range(12):
        (tmp_path / f"{number:02d}").mkdir()
    with pytest.raises(UserError, match=r"there is 00, 01, .* and \d+ more$"):
        read(tmp_path, "train")


def test_a_split_that_is_not_there(tmp_path):
    save_coco(tmp_path, 1)
    save_coco(tmp_path, 1, split="val")
    for name in ("test", "", "../val", "train2017"):
        with pytest.raises(UserError, match="name one of train, val"):
            read(tmp_path, name)


def test_the_names_of_the_validation_split(tmp_path):
    save_coco(tmp_path, 1, split="train")
    with pytest.raises(UserError, match="there is no split valid; name one of train"):
        read(tmp_path, "valid")
    save_coco(tmp_path, 1, split="val2017")
    assert [read(tmp_path, name).split for name in ("val", "valid", "validation")] == ["val2017"] * 3
    save_coco(tmp_path, 1, split="valid")
    assert read(tmp_path, "valid").split == "valid"
    with pytest.raises(UserError, match="there is no split val; name one of train, val2017, valid"):
        read(tmp_path, "val")


def test_the_root_may_be_text(tmp_path):
    save_coco(tmp_path, 1)
    assert splits(str(tmp_path)) == ("train",)
    assert read(str(tmp_path), "train").root == tmp_path


def test_order_and_ids_do_not_depend_on_the_threads(tmp_path):
    save_coco(tmp_path, 250)
    dataset = read(tmp_path, "train")
    assert [record.id for record in dataset.records] == list(range(250))
    assert all(record.path.stem == str(record.id) for record in dataset.records)


def test_no_bar_where_stderr_is_no_terminal(tmp_path, capfd):
    save_coco(tmp_path, 201)
    read(tmp_path, "train")
    assert capfd.readouterr() == ("", "")


def test_a_bar_on_a_terminal_from_201_images_on(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("FORCE_COLOR", "1")
    save_coco(tmp_path, 201)
    read(tmp_path, "train", progress=False)
    assert capfd.readouterr() == ("", "")
    read(tmp_path, "train")
    output = capfd.readouterr()
    assert output.out == "" and "Checking images" in output.err
    save_coco(tmp_path, 200)
    read(tmp_path, "train")
    assert capfd.readouterr() == ("", "")


def test_the_size_is_that_after_exif(tmp_path):
    save_coco(tmp_path, 1)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 6)).save(tmp_path / "0.png", exif=exif)
    dataset = read(tmp_path, "train")
    assert (dataset.records[0].width, dataset.records[0].height) == (6, 8)
    (defect,) = dataset.repaired
    assert defect.rule == "size-mismatch" and "EXIF" in defect.detail


def needs(name):
    return pytest.mark.skipif(not (DATA / name).is_dir(), reason=f"{name} is not in DETECT_DATA ({DATA})")


@needs("bccd")
@pytest.mark.parametrize(
    ("split", "images", "boxes", "repaired"), [("train", 205, 2804, 1), ("val", 87, 1137, 1), ("test", 72, 945, 0)]
)
def test_bccd(split, images, boxes, repaired):
    """Two of the 4,888 boxes are clicks without an extent."""
    dataset = read(DATA / "bccd", split)
    assert dataset.classes == ("Platelets", "RBC", "WBC")
    assert len(dataset) == images and sum(len(record.boxes) for record in dataset.records) == boxes
    assert [defect.rule for defect in dataset.repaired] == ["zero-area"] * repaired
    assert all((record.boxes[:, 2:] <= [record.width, record.height]).all() for record in dataset.records)


@needs("voc2007")
def test_voc2007():
    dataset = read(DATA / "voc2007", "val")
    assert len(dataset) == 500 and len(dataset.classes) == 20 and dataset.repaired == ()
    assert sum(len(record.boxes) for record in dataset.records) == 1421
    assert np.concatenate([record.boxes for record in dataset.records]).min() == 0
    assert "person 446" in summary(dataset)


def test_names_of_folders_and_splits_that_are_no_line(tmp_path):
    (tmp_path / "a\nb").mkdir()
    (tmp_path / "c").mkdir()
    with pytest.raises(UserError, match=r"there is a\?b") as error:
        splits(tmp_path)
    assert str(error.value).isprintable()
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "x\ny.txt").touch()
    (tmp_path / "ImageSets" / "Main" / "z.txt").touch()
    with pytest.raises(UserError, match=r"no split train; name one of x\?y, z") as error:
        read(tmp_path, "train")
    assert str(error.value).isprintable()
