"""KITTI: 15 or 16 columns, the folder of the camera, regions to ignore."""

import pytest
from PIL import Image

from detect.data.read import read, splits
from detect.errors import UserError

REST = "1.67 1.87 3.69 -16.53 2.39 58.49 1.57"


def line(name="Car", box="4 5 24.5 20", rest=REST):
    return f"{name} 0.00 0 1.85 {box} {rest}\n"


def save(root, labels, image="image_2", folder="label_2"):
    """Write an image and a label file for each stem."""
    for stem, text in labels.items():
        for place in (image, folder):
            (root / place).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(root / image / f"{stem}.png")
        (root / folder / f"{stem}.txt").write_text(text)
    return root


def test_boxes_and_ignored_regions(tmp_path):
    text = (
        line() + line("DontCare", "1 2 3 4", "-1 -1 -1 -1000 -1000 -1000 -10") + line("Van", "0 0 10 10", f"{REST} .5")
    )
    save(tmp_path / "training", {"000001": text, "000002": ""})
    save(tmp_path / "testing", {"000001": ""})
    (tmp_path / "testing" / "label_2" / "000001.txt").unlink()
    (tmp_path / "training" / "image_3").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "training" / "image_3" / "000001.png")
    assert splits(tmp_path) == ("training",)
    dataset = read(tmp_path, "train")
    first, second = dataset.records
    assert (dataset.format, dataset.classes) == ("kitti", ("Car", "Van"))
    assert first.path == tmp_path / "training" / "image_2" / "000001.png" and len(second.boxes) == 0
    assert first.boxes.tolist() == [[4, 5, 24.5, 20], [0, 0, 10, 10]] and first.labels.tolist() == [0, 1]
    (left,) = dataset.repaired
    assert left.rule == "ignored-region" and left.detail == "line 2: DontCare"


@pytest.mark.parametrize(
    ("image", "folder"), [("images", "labels"), ("data", "labels"), (".", "."), ("image_2", "label_2")]
)
def test_folders(tmp_path, image, folder):
    save(tmp_path, {"a": line()}, image, folder)
    dataset = read(tmp_path, "train")
    assert splits(tmp_path) == ("all",) and dataset.records[0].boxes.tolist() == [[4, 5, 24.5, 20]]
    assert read(tmp_path / folder / "a.txt", "train").records[0].path == tmp_path / image / "a.png"


def test_classes_are_those_of_all_splits(tmp_path):
    save(tmp_path / "train", {"a": line("Van")}, "images", "labels")
    save(tmp_path / "val", {"b": line("Car")}, "images", "labels")
    assert read(tmp_path, "train").classes == read(tmp_path, "val").classes == ("Car", "Van")


def test_other_text_files(tmp_path):
    save(tmp_path, {"a": line()})
    (tmp_path / "label_2" / "classes.txt").write_text("Car\nVan\n")
    (tmp_path / "label_2" / "notes.txt").write_text("")
    (tmp_path / "calib").mkdir()
    (tmp_path / "calib" / "a.txt").write_text("P0: " + "7.2e+02 " * 12 + "\n")
    assert len(read(tmp_path, "train")) == 1


@pytest.mark.parametrize("text", ["0 2 Pedestrian 0 0 " + "1 " * 12, "cat 1 2 3 4", "Car " + "1 " * 13, "0 " * 15])
def test_other_columns(tmp_path, text):
    save(tmp_path, {"a": text})
    with pytest.raises(UserError, match=r"no data set of a known format|YOLO's label files without class names"):
        splits(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Car 1 2\n", r"1 × broken-file, first .*a\.txt: line 2 is not a class and 14 or 15 numbers: Car 1 2"),
        (line(box="4 5 x 20"), "line 2 is not a class"),
        (line(box="4 5 nan 20"), r"1 × nan-box, first .*a\.txt: line 2"),
        (line("\udcff"), r"a\.txt: it is not text"),
    ],
)
def test_damaged_lines(tmp_path, text, message):
    save(tmp_path, {"a": ""})
    (tmp_path / "label_2" / "a.txt").write_text(line() + text, errors="surrogateescape")
    with pytest.raises(UserError, match=message):
        read(tmp_path, "train")


def test_a_missing_image(tmp_path):
    save(tmp_path, {"a": line(), "b": line()})
    (tmp_path / "image_2" / "b.png").unlink()
    with pytest.raises(UserError, match=r"1 × missing-image, first .*image_2/b\.png"):
        read(tmp_path, "train")
