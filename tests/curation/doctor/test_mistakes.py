"""Mistakes that all boxes of a split share: one finding, and a copy with the true boxes that is trained on."""

import io
import json

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console

from detect.curation.check import run_check
from detect.curation.doctor.diagnosis import CHECKS
from detect.curation.doctor.examine import examine
from detect.curation.doctor.repair.copy import write_repaired_copy
from detect.data.datamodule import DetectionData
from detect.data.defects import RULES
from detect.data.options import DataOptions
from detect.data.read import read
from detect.errors import UserError

WIDTH, HEIGHT = 120, 80
COUNT = {"train": 12, "val": 6}
RED = (220, 40, 40)
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def draw(split, index, size=(WIDTH, HEIGHT)):
    """Return a picture with three rectangles, and their boxes as x, y, width and height."""
    random = np.random.default_rng([len(split), index])
    pixels = random.integers(0, 60, (size[1], size[0], 3)).astype(np.uint8)
    sides = random.integers(8, (size[0] // 3, size[1] // 3), (3, 2))
    start = random.integers(0, np.array(size) - sides + 1)
    for (x, y), (w, h) in zip(start, sides, strict=True):
        pixels[y : y + h, x : x + w] = RED
    return pixels, np.hstack([start, sides])


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_coco(root, bbox, size=(WIDTH, HEIGHT), **fields):
    """Write a COCO set whose boxes are `bbox` of x, y, width and height."""
    (root / "annotations").mkdir(parents=True)
    for split, count in COUNT.items():
        images, annotations = [], []
        for index in range(count):
            pixels, boxes = draw(split, index)
            save(root / split / f"{index}.png", cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))
            images.append({"id": index + 1, "file_name": f"{index}.png", "width": WIDTH, "height": HEIGHT})
            for box in boxes.tolist():
                entry = {"id": len(annotations) + 1, "image_id": index + 1, "category_id": 1, "bbox": bbox(*box)}
                annotations.append(entry | {"area": box[2] * box[3], "iscrowd": 0} | fields)
        document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "red"}]}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))
    return root


def write_voc(root, corners, size=(WIDTH, HEIGHT)):
    for split, count in COUNT.items():
        for index in range(count):
            pixels, boxes = draw(split, index)
            save(root / "JPEGImages" / f"{split}{index}.png", cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))
            objects = "".join(
                "<object><name>red</name><bndbox>"
                + "".join(f"<{tag}>{n}</{tag}>" for tag, n in zip(_CORNERS, corners(*box), strict=True))
                + "</bndbox></object>"
                for box in boxes.tolist()
            )
            declared = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
            (root / "Annotations").mkdir(exist_ok=True)
            (root / "Annotations" / f"{split}{index}.xml").write_text(f"<annotation>{declared}{objects}</annotation>")
        (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        lines = "".join(f"{split}{index}\n" for index in range(count))
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text(lines)
    return root


def write_yolo(root, numbers):
    for split, count in COUNT.items():
        for index in range(count):
            pixels, boxes = draw(split, index)
            save(root / "images" / split / f"{index}.png", pixels)
            lines = "".join(f"0 {' '.join(map(str, numbers(*box)))}\n" for box in boxes.tolist())
            (root / "labels" / split).mkdir(parents=True, exist_ok=True)
            (root / "labels" / split / f"{index}.txt").write_text(lines)
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [red]\n")
    return root


SETS = {
    "coco corners": ("corners-for-sizes", lambda root: write_coco(root, lambda x, y, w, h: [x, y, x + w, y + h])),
    "coco fractions": (
        "fractions-for-pixels",
        lambda root: write_coco(root, lambda x, y, w, h: [x / WIDTH, y / HEIGHT, w / WIDTH, h / HEIGHT]),
    ),
    "coco swapped": ("swapped-axes", lambda root: write_coco(root, lambda x, y, w, h: [y, x, h, w])),
    "coco scaled": ("scaled-images", lambda root: write_coco(root, lambda *box: list(box), (60, 40))),
    "voc sizes": ("sizes-for-corners", lambda root: write_voc(root, lambda x, y, w, h: (x + 1, y + 1, w, h))),
    "voc fractions": (
        "fractions-for-pixels",
        lambda root: write_voc(root, lambda x, y, w, h: (x / WIDTH, y / HEIGHT, (x + w) / WIDTH, (y + h) / HEIGHT)),
    ),
    "voc scaled": (
        "scaled-images",
        lambda root: write_voc(root, lambda x, y, w, h: (x + 1, y + 1, x + w, y + h), (240, 160)),
    ),
    "yolo pixels": (
        "pixels-for-fractions",
        lambda root: write_yolo(root, lambda x, y, w, h: (x + w / 2, y + h / 2, w, h)),
    ),
    "yolo corners": (
        "corners-for-sizes",
        lambda root: write_yolo(root, lambda x, y, w, h: (x / WIDTH, y / HEIGHT, (x + w) / WIDTH, (y + h) / HEIGHT)),
    ),
    "yolo corner and size": (
        "corner-for-centre",
        lambda root: write_yolo(root, lambda x, y, w, h: (x / WIDTH, y / HEIGHT, w / WIDTH, h / HEIGHT)),
    ),
    "yolo polygons in pixels": (
        "pixels-for-fractions",
        lambda root: write_yolo(root, lambda x, y, w, h: (x, y, x + w, y, x + w, y + h, x, y + h)),
    ),
}


@pytest.mark.parametrize("name", SETS)
def test_the_copy_has_the_true_boxes(tmp_path, name):
    rule, write = SETS[name]
    root = write(tmp_path / "data")
    with pytest.raises(
        UserError, match=rf"^{root}, split train: .*1 × {rule}, first .* of 36 boxes fit as .*--fix OUT"
    ):
        DetectionData(DataOptions(root=root)).train  # noqa: B018
    report = examine(root, progress=False)
    errors = [finding for finding in report.findings if finding.severity == "error"]
    assert [(finding.rule, finding.split) for finding in errors] == [(rule, "train"), (rule, "val")]
    assert CHECKS[rule].repaired and RULES[rule].verdict == "refused" and report.boxes == 54
    assert {finding.rule for finding in report.findings} <= {rule, "tiny-box"}  # no noise

    log = write_repaired_copy(report, tmp_path / "copy")
    assert sum("all boxes are converted" in line for line in log) == 2
    data = DetectionData(DataOptions(root=tmp_path / "copy", val="val"))
    for dataset in (data.train, data.val):
        assert dataset.format == name.split()[0] and dataset.repaired == ()
        for record in dataset.records:
            boxes = draw(dataset.split, int("".join(filter(str.isdigit, record.path.stem))))[1]
            right = np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]]) * (record.width / WIDTH)
            np.testing.assert_allclose(np.sort(record.boxes, axis=0), np.sort(right, axis=0), atol=1e-4)
            np.testing.assert_allclose(
                record.areas, (record.boxes[:, 2:] - record.boxes[:, :2]).prod(axis=1), rtol=1e-4
            )


def test_polygons_and_masks_follow_the_boxes(tmp_path):
    root = write_coco(tmp_path / "scaled", lambda *box: list(box), (60, 40))
    for path in root.glob("annotations/*.json"):
        document = json.loads(path.read_text())
        for entry in document["annotations"]:
            x, y, width, height = entry["bbox"]
            entry["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
        path.write_text(json.dumps(document))
    write_repaired_copy(examine(root, progress=False), tmp_path / "copy")
    document = json.loads((tmp_path / "copy" / "annotations" / "instances_val.json").read_text())
    for entry in document["annotations"]:
        x, y, width, height = entry["bbox"]
        assert entry["segmentation"] == [pytest.approx([x, y, x + width, y, x + width, y + height, x, y + height])]
    assert (document["images"][0]["width"], document["images"][0]["height"]) == (60, 40)
    root = write_coco(
        tmp_path / "masks", lambda *box: list(box), (60, 40), segmentation={"size": [80, 120], "counts": ""}
    )
    log = write_repaired_copy(examine(root, progress=False), tmp_path / "copy2")
    assert sum(line.endswith("its mask is left out") for line in log) == 54


def test_keypoints_and_12_bits_are_mended(tmp_path):
    root = write_yolo(tmp_path / "data", lambda x, y, w, h: (0.5, 0.5, 0.2, 0.2, 0.45, 0.45, 2, 0.55, 0.55, 2))
    for path in root.rglob("*.png"):
        cv2.imwrite(str(path), cv2.imread(str(path)).astype(np.uint16) << 4)
    report = examine(root, progress=False)
    assert {finding.rule for finding in report.findings if finding.severity == "error"} == {
        "keypoint-lines",
        "12-bit-images",
    }
    write_repaired_copy(report, tmp_path / "copy")
    assert yaml.safe_load((tmp_path / "copy" / "data.yaml").read_text())["kpt_shape"] == [2, 3]
    record = read(tmp_path / "copy", "val").records[0]
    np.testing.assert_allclose(record.boxes[:1], [[48, 32, 72, 48]], rtol=1e-6)
    assert cv2.imread(str(record.path)).max() >= RED[0] - 1


def test_a_format_without_a_writer_of_its_own_is_written_as_coco(tmp_path):
    for split, count in COUNT.items():
        lines = ["filename,class,xmin,ymin,xmax,ymax"]
        for index in range(count):
            pixels, boxes = draw(split, index)
            save(tmp_path / "data" / split / f"{index}.png", pixels)
            lines += [f"{index}.png,red,{x},{y},{w},{h}" for x, y, w, h in boxes.tolist()]  # sizes for corners
        (tmp_path / "data" / f"{split}.csv").write_text("\n".join(lines))
    report = examine(tmp_path / "data", progress=False)
    assert report.format == "csv" and {"sizes-for-corners"} <= {finding.rule for finding in report.findings}
    write_repaired_copy(report, tmp_path / "copy")
    dataset = read(tmp_path / "copy", "val")
    assert dataset.format == "coco"
    for index, record in enumerate(dataset.records):
        boxes = draw("val", index)[1]
        np.testing.assert_array_equal(record.boxes, np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]]))


def run(root, fix):
    console = Console(width=200, file=io.StringIO())
    code = run_check(root, fix=fix, workers=1, console=console)
    return code, console.file.getvalue()


def test_a_copy_says_what_remains(tmp_path):
    root = write_coco(tmp_path / "data", lambda x, y, w, h: [x, y, x + w, y + h])
    code, text = run(root, tmp_path / "copy")
    assert code == 1 and text.endswith("MENDED.txt; no errors remain\n")
    path = root / "annotations" / "instances_val.json"
    document = json.loads(path.read_text())
    document["annotations"][0]["category_id"] = 7
    path.write_text(json.dumps(document))
    code, text = run(root, tmp_path / "copy2")
    assert code == 1 and text.endswith("; 1 error left to correct by hand: 1 × unknown-category\n")


@pytest.mark.parametrize("kind", ["boxes", "images", "no box"])
def test_a_repair_that_would_take_most_of_the_data_is_refused(tmp_path, kind):
    root = write_coco(tmp_path / "data", lambda x, y, w, h: [x, y, w, h])
    path = root / "annotations" / "instances_val.json"
    document = json.loads(path.read_text())
    for entry in document["annotations"][: {"boxes": 10, "images": 0, "no box": 18}[kind]]:
        entry["bbox"] = [5000 + entry["id"] * 3000, 5, 3, 3]
    path.write_text(json.dumps(document))
    for index in range(4 if kind == "images" else 0):
        (root / "val" / f"{index}.png").write_bytes(b"")
    left = {"boxes": "8 of 18 boxes", "images": "2 of 6 images", "no box": "0 of 18 boxes"}[kind]
    with pytest.raises(UserError, match=rf"^{root}: a repaired copy would have {left} of split val; .* before --fix$"):
        run(root, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
