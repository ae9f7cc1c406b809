"""Large splits are read once, until a file of them changes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detect.data import cache
from detect.data import read as reading
from detect.data.records import Records
from detect.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """Return a data folder that counts as large, with a cache of its own."""
    monkeypatch.setattr(cache, "MIN_FILES", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images = []
    (tmp_path / "data" / "train").mkdir(parents=True)
    (tmp_path / "data" / "annotations").mkdir()
    for number in range(1, 4):
        name = f"{number}.png"
        Image.new("RGB", (30, 20)).save(tmp_path / "data" / "train" / name)
        images.append({"id": number, "file_name": name})
    boxes = [[1, 2, 10, 10], [5, 5, 30, 8]]
    annotations = [
        {"id": number, "image_id": number, "category_id": 4, "bbox": box, "segmentation": [[1, 2, 11, 2, 11, 12]]}
        for number, box in enumerate(boxes, start=1)
    ]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 4, "name": "cat"}]}
    (tmp_path / "data" / "annotations" / "instances_train.json").write_text(json.dumps(content))
    return tmp_path / "data"


@pytest.fixture
def reads(monkeypatch) -> list:
    """Return a list with an entry for each time that the files were read."""
    found, original = [], reading._read

    def counted(*arguments):
        found.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(reading, "_read", counted)
    return found


def same(one, other) -> bool:
    arrays = one.records.arrays(), other.records.arrays()
    names = ("root", "split", "format", "classes", "category_ids", "repaired")
    return (
        all(getattr(one, name) == getattr(other, name) for name in names)
        and arrays[0].keys() == arrays[1].keys()
        and all(np.array_equal(arrays[0][name], arrays[1][name]) for name in arrays[0])
        and [record.path for record in one.records] == [record.path for record in other.records]
    )


def test_a_split_is_read_once(root, reads):
    first, second = reading.read(root, "train"), reading.read(root, "train")
    assert len(reads) == 1 and same(first, second)
    assert [defect.rule for defect in second.repaired] == [defect.rule for defect in first.repaired] != []
    assert isinstance(second.records, Records) and not second.records.boxes.flags.writeable
    record = second.records[0]
    assert record.boxes.flags.writeable and record.masks[0].outlines[0].tolist() == [[1, 2], [11, 2], [11, 12]]


def test_paths_follow_the_root_that_is_named(root, reads, monkeypatch):
    reading.read(root, "train")
    monkeypatch.chdir(root.parent)
    found = reading.read("data", "train")
    assert len(reads) == 1 and found.root == Path("data")
    assert found.records[0].path == Path("data/train/1.png") and found.repaired[0].path.parts[0] == "data"


def touch(root):
    (root / "train" / "1.png").touch()


def annotate(root):
    path = root / "annotations" / "instances_train.json"
    path.write_text(path.read_text().replace('"cat"', '"dog"'))


def replace_image(root):
    """Replace an image by another of the same number of bytes, with the old date."""
    path = root / "train" / "2.png"
    before = path.stat()
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    "change",
    [
        touch,
        annotate,
        replace_image,
        lambda root: (root / "train" / "new.png").write_bytes((root / "train" / "1.png").read_bytes()),
        lambda root: (root / "annotations" / "instances_val.json").write_text("{}"),
    ],
)
def test_a_changed_file_is_read_again(root, reads, change):
    reading.read(root, "train")
    time.sleep(0.02)  # the clock of the file system
    change(root)
    reading.read(root, "train")
    assert len(reads) == 2


def test_other_questions_have_other_answers(root, reads):
    for options in ({}, {"skip_unreadable": True}, {"classes": ["cat", "dog"]}, {"format": "coco"}, {}):
        reading.read(root, "train", **options)
    assert len(reads) == 3  # the format that was recognised is the one that was named
    assert reading.read(root, "train", classes=["cat", "dog"]).classes == ("cat", "dog")


def test_a_refused_split_is_not_kept(root, reads):
    (root / "train" / "1.png").unlink()
    for _ in range(2):
        with pytest.raises(UserError, match="missing-image"):
            reading.read(root, "train")
    assert len(reads) == 2


def test_a_small_folder_is_not_kept(root, reads, monkeypatch, tmp_path):
    monkeypatch.setattr(cache, "MIN_FILES", 100)
    reading.read(root, "train")
    reading.read(root, "train")
    assert len(reads) == 2 and not (tmp_path / "cache").exists()


@pytest.mark.parametrize("damage", ["dataset.json", "boxes.npy", "masks.corners.npy"])
def test_a_damaged_cache_is_read_again(root, reads, tmp_path, damage):
    first = reading.read(root, "train")
    (found,) = (tmp_path / "cache").rglob(damage)
    found.write_bytes(found.read_bytes()[:50])
    assert same(reading.read(root, "train"), first) and len(reads) == 2
    assert same(reading.read(root, "train"), first) and len(reads) == 2


def test_a_cache_that_cannot_be_written_is_done_without(root, reads, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(reading.read(root, "train")) == 3 and len(reads) == 1


def test_what_was_not_used_for_long_is_removed(root, reads, tmp_path):
    reading.read(root, "train")
    folder = tmp_path / "cache" / "detect" / "splits"
    for entry in folder.iterdir():
        os.utime(entry, (0, 0))
    (root / "train" / "1.png").touch()
    reading.read(root, "train")
    assert len([entry for entry in folder.iterdir() if entry.is_dir()]) == 1


def test_processes_share_one_reading(root, tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from detect.data import cache, read as reading\n"
        "cache.MIN_FILES, original = 1, reading._read\n"
        "def slow(*a):\n    print('read', flush=True); time.sleep(0.5); return original(*a)\n"
        "reading._read = slow\n"
        f"print(len(reading.read({str(root)!r}, 'train')), flush=True)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    running = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    texts = [process.communicate(timeout=60)[0] for process in running]
    assert sorted(texts) == ["3\n", "read\n3\n"]
