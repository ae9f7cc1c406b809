import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from detect.cli import main
from detect.curation.crops import crop, folder_names, to_imagefolder
from detect.curation.shapes import make_shapes
from detect.data.decode import decode
from detect.data.formats.imagefolder import read_imagefolder
from detect.data.read import read
from detect.errors import UserError

DATA = Path(os.environ.get("DETECT_DATA", "../shared/data"))


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    return make_shapes(folder, images={"train": 12, "val": 6}, size=(96, 128), progress=False)


def coco(root: Path, boxes: list[list[float]], names=("a", "b"), files=("1.png",), crowd: int = 0) -> Path:
    """Write grey images of 60 × 80 (height × width) with the same boxes of the first class; the last may be crowds."""
    (root / "annotations").mkdir(parents=True)
    images, annotations = [], []
    for number, file in enumerate(files, start=1):
        path = root / "train" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((60, 80, 3), 10 * number, np.uint8))
        images.append({"id": number, "file_name": file, "height": 60, "width": 80})
        for place, box in enumerate(boxes):
            iscrowd = int(place >= len(boxes) - crowd)
            one = {"bbox": box, "category_id": 1, "iscrowd": iscrowd, "area": box[2] * box[3]}
            annotations.append({"id": len(annotations) + 1, "image_id": number, **one})
    categories = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations" / "instances_train.json").write_text(json.dumps(content))
    return root


def check_crops(dataset, out: Path, margin: float) -> int:
    """Compare every crop with the pixels of its image, and return the number of crops."""
    count = 0
    for record in dataset.records:
        image = decode(record.path)
        for place, (box, label) in enumerate(zip(record.boxes, record.labels, strict=True)):
            file = out / dataset.split / dataset.classes[label] / f"{record.path.stem}_{place}.jpg"
            if (box[2:] - box[:2]).min() < 16:
                assert not file.exists()
                continue
            written, expected = decode(file), crop(image, box, margin)
            assert written.shape == expected.shape
            # Colour is stored at half the resolution.
            assert np.abs(written.mean(axis=2) - expected.mean(axis=2)).mean() < 4
            count += 1
    return count


def test_every_shape_becomes_an_image_of_its_class(shapes, tmp_path):
    done = to_imagefolder(shapes, tmp_path / "crops", progress=False)
    splits = {name: read(shapes, name) for name in ("train", "val")}
    count = sum(check_crops(dataset, tmp_path / "crops", margin=0.1) for dataset in splits.values())
    assert done.crops.total() == count > 20 and not done.renamed and not done.unreadable
    assert count + done.small == sum(len(record.boxes) for one in splits.values() for record in one.records)
    train = read_imagefolder(tmp_path / "crops", "train")
    val = read_imagefolder(tmp_path / "crops", "val", train.classes)
    assert len(train) + len(val) == count and set(train.classes) == set(splits["train"].classes)


def test_crop_by_hand():
    image = np.arange(20 * 30 * 3, dtype=np.uint32).reshape(20, 30, 3).astype(np.uint8)
    box = np.array([5, 4, 15, 14], np.float32)
    np.testing.assert_array_equal(crop(image, box, 0.0), image[4:14, 5:15])
    np.testing.assert_array_equal(crop(image, box, 0.25), image[1:17, 2:18])  # 2.5 pixels: all touched pixels
    np.testing.assert_array_equal(crop(image, box, 9.0), image)


def test_small_boxes_and_crowds_are_counted(tmp_path):
    root = coco(tmp_path / "in", [[0, 0, 16, 16], [0, 0, 15.5, 40], [10, 10, 40, 40]], crowd=1)
    done = to_imagefolder(root, tmp_path / "out", margin=0, progress=False)
    assert (done.crops, done.small, done.crowds) == ({"a": 1}, 1, 1)
    assert [path.relative_to(tmp_path / "out").as_posix() for path in tmp_path.rglob("*.jpg")] == ["train/a/1_0.jpg"]


def test_images_of_the_same_name_do_not_meet(tmp_path):
    root = coco(tmp_path / "in", [[0, 0, 20, 20]], files=("x/1.png", "y/1.png"))
    assert to_imagefolder(root, tmp_path / "out", progress=False).crops.total() == 2
    assert decode(tmp_path / "out/train/a/1_0.jpg").mean() == pytest.approx(10, abs=1)
    assert decode(tmp_path / "out/train/a/2_0.jpg").mean() == pytest.approx(20, abs=1)


def test_limit_and_split(shapes, tmp_path):
    to_imagefolder(shapes, tmp_path / "crops", ["val", "valid"], limit=2, progress=False)
    assert [path.name for path in (tmp_path / "crops").iterdir()] == ["val"]
    records = read(shapes, "val").records[:2]
    found = {path.stem.rpartition("_")[0] for path in (tmp_path / "crops").rglob("*.jpg")}
    assert found and found <= {record.path.stem for record in records}


def test_unreadable_images_are_reported(tmp_path):
    root = coco(tmp_path / "in", [[0, 0, 20, 20]], files=("1.png", "2.png", "3.png"))
    (root / "train" / "1.png").write_bytes(b"no image")
    damaged = root / "train" / "2.png"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 255  # complete, but its checksum is wrong
    damaged.write_bytes(content)
    done = to_imagefolder(root, tmp_path / "out", progress=False)
    assert "1.png: this is not an image" in done.unreadable[0]
    assert done.crops.total() + len(done.unreadable) == 3


@pytest.mark.parametrize(
    ("name", "folder"), [("traffic light", "traffic light"), ("a/b", "a_b"), ("..a", "a"), ("a\\..\n", "a_.._")]
)
def test_names_become_safe(name, folder):
    assert folder_names([name, "z"]) == {name: folder, "z": "z"}


def test_names_that_cannot_be_made_safe():
    for name in ("", "..", " . "):
        with pytest.raises(UserError, match="no folder can have this name"):
            folder_names([name])
    for pair in (("a/b", "a:b"), ("Cat", "cat")):
        with pytest.raises(UserError, match="would share a folder"):
            folder_names(pair)


def test_the_command(tmp_path, capsys):
    root = coco(tmp_path / "in", [[0, 0, 20, 20], [5, 5, 3, 30]], names=("a/../b", "c"))
    command = ["data", "convert", str(root), "--to", "imagefolder", "--out", str(tmp_path / "out"), "--split", "train"]
    assert main(command) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed == [
        "class 'a/../b': its folder is a_.._b",
        "1 images of 1 classes; 1 boxes with a side under 16 pixels and 0 crowds left out",
        str(tmp_path / "out"),
    ]
    assert (tmp_path / "out" / "train" / "a_.._b" / "1_0.jpg").is_file()
    assert main(command) == 2
    assert "the folder is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "test"], "there is no split test"),
        (["--limit", "0"], "--limit: 0; convert 1 image at least"),
        (["--margin", "-1"], "--margin: -1; give a fraction"),
        (["--margin", "nan"], "--margin: nan; give a fraction"),
    ],
)
def test_mistakes_leave_nothing_behind(shapes, tmp_path, capsys, arguments, message):
    out = tmp_path / "out"
    assert main(["data", "convert", str(shapes), "--to", "imagefolder", "--out", str(out), *arguments]) == 2
    assert message in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_a_data_set_without_a_box_to_crop(tmp_path):
    root = coco(tmp_path / "in", [[0, 0, 5, 5]])
    with pytest.raises(UserError, match="has no box to crop with sides of 16 pixels or more"):
        to_imagefolder(root, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not (DATA / "voc2007").is_dir(), reason="needs voc2007 in DETECT_DATA")
def test_crops_of_voc(tmp_path):
    lists = sorted((DATA / "voc2007").glob("**/ImageSets/Main/val.txt"))
    year = lists[0].parents[2]
    few = tmp_path / "VOC2007"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (few / folder).mkdir(parents=True)
    stems = lists[0].read_text().split()[:3]
    for stem in stems:
        for file in (f"JPEGImages/{stem}.jpg", f"Annotations/{stem}.xml"):
            shutil.copy(year / file, few / file)
    (few / "ImageSets" / "Main" / "val.txt").write_text("\n".join(stems))
    done = to_imagefolder(few, tmp_path / "out", margin=0.2, progress=False)
    assert done.crops.total() == check_crops(read(few, "val"), tmp_path / "out", margin=0.2) >= 3
