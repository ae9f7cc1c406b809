"""Darknet folders: obj.data, obj.names, lists of images, and labels beside the images."""

import numpy as np
import pytest
from PIL import Image

from detect.data.read import read, splits
from detect.errors import UserError


@pytest.fixture
def root(tmp_path):
    """Data folder as CVAT writes it, with one training image."""
    (tmp_path / "obj.data").write_text("classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = b/\n")
    (tmp_path / "obj.names").write_text("cat\ndog\n")
    (tmp_path / "train.txt").write_text("data/obj_train_data/a.jpg\n")
    (tmp_path / "obj_train_data").mkdir()
    Image.new("RGB", (40, 20)).save(tmp_path / "obj_train_data" / "a.jpg")
    (tmp_path / "obj_train_data" / "a.txt").write_text("1 0.5 0.5 0.5 0.25\n")
    return tmp_path


@pytest.mark.parametrize("file", ["", "obj.data"])
def test_boxes_and_classes(root, file):
    dataset = read(root / file, "train")
    assert (dataset.format, dataset.classes, splits(root)) == ("darknet", ("cat", "dog"), ("train",))
    (record,) = dataset.records
    np.testing.assert_array_equal(record.boxes, [[10, 7.5, 30, 12.5]])
    assert record.labels.tolist() == [1] and record.path == root / "obj_train_data" / "a.jpg"


def test_a_list_that_is_not_there(root):
    (root / "obj.data").write_text("train = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\n")
    assert splits(root) == ("train",)


def test_names_that_are_not_there(root):
    (root / "obj.names").unlink()
    with pytest.raises(UserError, match=r"obj\.data: names is data/obj\.names, which does not exist; add the file"):
        read(root, "train")


def test_two_files_that_describe_data(root):
    (root / "b.data").write_text("train = train.txt\nnames = obj.names\n")
    with pytest.raises(UserError, match=r"b\.data and obj\.data describe data sets; give one of these files"):
        splits(root)
