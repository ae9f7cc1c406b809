"""Every layout is read by value, trained on, converted and checked, also as people and systems leave it on a disk."""

import shutil
import unicodedata

import pytest

from detect.cli import main
from detect.curation.doctor.examine import examine
from detect.data.datamodule import DetectionData
from detect.data.options import DataOptions
from detect.data.read import read, splits


@pytest.fixture
def assert_read(found, drawn):
    """Assert that a data folder has the boxes that were drawn, and no others except those of `extra`."""

    def check(root, sets, extra=()):
        assert sorted(splits(root)) == sorted(sets)
        for split, pictures in sets.items():
            dataset = read(root, split, progress=False)
            boxes = found(dataset)
            for picture in extra:
                assert boxes.pop(picture.content, []) == []
            assert boxes == drawn(pictures)

    return check


# ------------------------------------------------------------------------------------------------------- every command


def test_boxes_classes_and_splits(layout, tmp_path, assert_read):
    sets = layout.draw(tmp_path)
    assert_read(tmp_path, sets)
    datasets = [read(tmp_path, split, progress=False) for split in sets]
    assert {dataset.format for dataset in datasets} == {layout.format}
    assert {frozenset(dataset.classes) for dataset in datasets} == {frozenset(("red", "green"))}


def test_a_training_batch(layout, tmp_path, drawn):
    sets = layout.draw(tmp_path)
    split = next((name for name in sets if name.startswith("train")), next(iter(sets)))
    options = {"short_side": (80,), "long_side": 120, "batch_size": 2, "workers": 0, "augment": (), "val": None}
    data = DetectionData(DataOptions(root=tmp_path, train=split, **options))
    (batch,) = data.train_dataloader()
    targets = batch.targets
    boxes = [
        sorted(
            (data.classes[label], *box)
            for box, label in zip(
                targets.boxes[image][valid].round().tolist(), targets.labels[image][valid].tolist(), strict=True
            )
        )
        for image, valid in enumerate(targets.valid)
    ]
    assert sorted(boxes) == sorted(drawn(sets[split]).values())


def test_conversion_to_coco(layout, tmp_path, assert_read, capsys):
    sets = layout.draw(tmp_path / "data")
    assert main(["data", "convert", str(tmp_path / "data"), "--to", "coco", "--out", str(tmp_path / "out")]) == 0
    assert_read(tmp_path / "out", sets)


def test_the_check_finds_no_error(layout, tmp_path):
    sets = layout.draw(tmp_path)
    report = examine(tmp_path)
    assert report.count()["error"] == 0 and set(report.splits) == set(sets)
    assert report.boxes == sum(len(picture.boxes) for pictures in sets.values() for picture in pictures)


# ------------------------------------------------------------------------------------------- what systems do to folders


def texts(root):
    return [path for path in sorted(root.rglob("*")) if path.is_file() and path.suffix != ".jpg"]


def images(root):
    return sorted(root.rglob("*.jpg"))


def every_text(change):
    def change_all(root):
        for path in texts(root):
            path.write_bytes(change(path.read_bytes()))

    return change_all


def rubbish(root):
    """Add the files of Finder, Explorer and Jupyter to every folder, and those of Roboflow to the root."""
    for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._im0.jpg", "._im0.xml", "._im0.json", "._im0.txt"):
            (folder / name).write_bytes(b"\0\5\26\7\0\2\0\0Mac OS X")
        (folder / ".ipynb_checkpoints").mkdir()
        (folder / ".ipynb_checkpoints" / "im0-checkpoint.jpg").write_bytes(b"")
    for name in ("README.dataset.txt", "README.roboflow.txt", "README.md", "LICENSE"):
        (root / name).write_text("# pets > 2024-01-01\nhttps://universe.roboflow.com/pets\n\nProvided by a user\n")


def archive(root):
    """Put everything into one folder, and that into another one, as unpacked archives have it."""
    inner = root.with_name("inner")
    root.rename(inner)
    (root / "pets.v3 (1)").mkdir(parents=True)
    inner.rename(root / "pets.v3 (1)" / "My Pets")
    for path in texts(root):
        copy = root / "__MACOSX" / path.relative_to(root).parent / f"._{path.name}"
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(b"\0\5\26\7\0\2\0\0Mac OS X")
    (root / "README.txt").write_text("Photographs of pets")
    (root / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")


def upper_case_images(root):
    for path in images(root):
        path.rename(path.with_suffix(".JPG"))


def upper_case_annotations(root):
    for path in texts(root):
        if path.stem.startswith("im"):
            path.rename(path.with_name(path.stem + path.suffix.upper()))


def other_suffix(root):
    for path in images(root):
        path.rename(path.with_suffix(".jpeg"))


HABITS = {
    "byte-order-mark": every_text(lambda text: b"\xef\xbb\xbf" + text),
    "utf-16": every_text(lambda text: text.decode().encode("utf-16")),
    "line-ends-of-windows": every_text(lambda text: text.replace(b"\n", b"\r\n")),
    "no-line-end": every_text(bytes.rstrip),
    "empty-lines-at-the-end": every_text(lambda text: text + b"\n\n \n"),
    "rubbish": rubbish,
    "archive": archive,
    "upper-case-images": upper_case_images,
    "upper-case-annotations": upper_case_annotations,
    "other-suffix": other_suffix,
}


@pytest.mark.parametrize("habit", HABITS)
def test_a_folder_as_systems_leave_it(layout, habit, tmp_path, assert_read):
    sets = layout.draw(tmp_path / "data")
    HABITS[habit](tmp_path / "data")
    assert_read(tmp_path / "data", sets)


def test_images_without_annotations(layout, tmp_path, draw, assert_read):
    sets = layout.draw(tmp_path)
    for folder in {path.parent for path in images(tmp_path)}:
        (folder / "extra.jpg").write_bytes(draw(99).content)
    assert_read(tmp_path, sets, extra=[draw(99)])


# ------------------------------------------------------------------------------------------- names of files and classes

NAMES = {
    "letters": "Café 1 – Füße (копия) 猫 {}.jpg",
    "punctuation": 'Tom\'s 100% #{} & "co", [x]{{y}};z=1.jpg',
    "folders": "2024/Müller, Tag 1/a b/{}.jpg",
    "dots": "IMG.2024-01-{}_jpg.rf.0a1b.jpg",
    "two-suffixes": "{}.jpg.jpg",
    "digits": "{:012}.jpg",
    "huge-numbers": "2024010112000000000000{}.jpg",
    "splits": "train_test_{}.jpg",
}


@pytest.mark.parametrize("name", NAMES)
def test_names_of_images(layout, name, tmp_path, assert_read):
    sets = layout.draw(tmp_path, names=[NAMES[name].format(number) for number in range(2 * len(layout.splits))])
    assert_read(tmp_path, sets)


def test_letters_that_the_disk_decomposes(layout, tmp_path, assert_read):
    sets = layout.draw(tmp_path, names=[f"Café {number}.jpg" for number in range(2 * len(layout.splits))])
    for path in images(tmp_path):
        path.rename(path.with_name(unicodedata.normalize("NFD", path.name)))
    assert_read(tmp_path, sets)


def test_splits_with_equal_file_names(layout, tmp_path, assert_read):
    count = len(layout.splits)
    sets = layout.draw(tmp_path, names=[f"{number // count}.jpg" for number in range(2 * count)])
    if len(images(tmp_path)) == 2 * count:  # else the layout has one folder of images for all splits
        assert_read(tmp_path, sets)


@pytest.mark.parametrize(
    "classes",
    [("traffic light", "b<&>\"é, x: 'y' #1"), ("no", "yes"), ("1", "0"), ("Cat", "cat"), ("null", "None"), ("~", "-")],
    ids=["punctuation", "truth-values", "digits", "case", "nothing", "signs"],
)
def test_names_of_classes(layout, classes, tmp_path, assert_read):
    if layout.format == "kitti" and classes[0] in ("traffic light", "1"):
        pytest.skip("KITTI's columns are separated by spaces, and its first one tells it from YOLO's")
    assert_read(tmp_path, layout.draw(tmp_path, classes))


# ------------------------------------------------------------------------------------------------ spellings of the path


def test_spellings_of_the_folder(layout, tmp_path, monkeypatch, assert_read):
    sets = layout.draw(tmp_path / "my data")
    (tmp_path / "link").symlink_to(tmp_path / "my data")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    for spelling in ("../my data/", "./../my data", f"{tmp_path}//my data/.", "../link", "../link/"):
        assert_read(spelling, sets)
    monkeypatch.chdir(tmp_path / "my data")
    assert_read(".", sets)


def test_the_files_may_be_moved(layout, tmp_path, assert_read):
    sets = layout.draw(tmp_path / "one")
    shutil.move(tmp_path / "one", tmp_path / "another")
    assert_read(tmp_path / "another", sets)
