"""VisDrone: eight numbers, ten classes, ignored regions."""

import pytest
from PIL import Image

from detect.data.read import read, splits
from detect.errors import UserError


@pytest.fixture
def root(tmp_path):
    """Data folder with one training image and an empty validation image."""
    for split, text in (
        ("train", "4,5,20,15,1,4,0,1\n1,1,5,5,0,0,0,0\n2,2,9,9,1,11,0,0,\n0,0,9,9,1,1,0,0,\n"),
        ("val", "1,2,3,4,1,10,0,0"),
    ):
        base = tmp_path / f"VisDrone2019-DET-{split}"
        for folder in ("images", "annotations"):
            (base / folder).mkdir(parents=True)
        Image.new("RGB", (40, 30)).save(base / "images" / f"{split}_1.jpg")
        (base / "annotations" / f"{split}_1.txt").write_text(text)
    return tmp_path


def test_boxes_and_ignored_regions(root):
    assert splits(root) == ("train", "val")
    dataset = read(root, "train")
    (record,) = dataset.records
    assert dataset.format == "visdrone" and record.boxes.tolist() == [[4, 5, 24, 20], [0, 0, 9, 9]]
    assert [dataset.classes[label] for label in record.labels] == ["car", "pedestrian"]
    assert [(defect.rule, defect.detail) for defect in dataset.repaired] == [
        ("ignored-region", "line 2: class 0"),
        ("ignored-region", "line 3: class 11"),
    ]
    (other,) = read(root, "val").records
    assert other.boxes.tolist() == [[1, 2, 4, 6]] and dataset.classes[other.labels[0]] == "motor"


def test_one_part(root):
    assert splits(root / "VisDrone2019-DET-train") == ("all",)


@pytest.mark.parametrize("line", ["1,2,3", "1,2,3,4,1,x,0,0", "1,2,3,4,1,12,0,0", "1,2,3,4,1,nan,0,0"])
def test_damaged_lines(root, line):
    path = root / "VisDrone2019-DET-train" / "annotations" / "train_1.txt"
    path.write_text(f"4,5,20,15,1,4,0,1\n{line}\n")
    with pytest.raises(UserError, match=r"1 × broken-file, first .*: line 2 does not have the eight numbers"):
        read(root, "train")
