"""Masks that claim much more than they have, or do not fit their image: they cost nothing, and their boxes stay."""

import base64
import io
import json
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detect.data.read import read

WIDTH, HEIGHT = 60, 40
SQUARE = [10, 5, 30, 5, 30, 25, 10, 25]
ROTATED = Image.Exif()
ROTATED[0x0112] = 6  # shown turned to the right: 40 × 60


def image(path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(path, **options)


def coco(root, segmentation, **options):
    image(root / "train" / "a.jpg", **options)
    (root / "annotations").mkdir()
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 5, 20, 20], "area": 4, "iscrowd": 0}
    document = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT}],
        "annotations": [box | {"segmentation": segmentation}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (root / "annotations" / "instances_train.json").write_text(json.dumps(document))


def cvat(root, runs, width, height):
    image(root / "images" / "a.png")
    mask = f'<mask label="cat" rle="{runs}" left="0" top="0" width="{width}" height="{height}"/>'
    (root / "annotations.xml").write_text(
        f'<annotations><image id="0" name="a.png" width="{WIDTH}" height="{HEIGHT}">{mask}</image></annotations>'
    )


def labelme(root, content, last=(WIDTH - 1, HEIGHT - 1)):
    image(root / "a.png")
    shape = {"label": "cat", "shape_type": "mask", "points": [[0, 0], last], "mask": content}
    (root / "a.json").write_text(json.dumps({"version": "5.0", "shapes": [shape], "imagePath": "a.png"}))


def supervisely(root, content):
    image(root / "ds" / "img" / "a.png")
    (root / "ds" / "ann").mkdir(parents=True)
    bitmap = {"classTitle": "cat", "geometryType": "bitmap", "bitmap": {"origin": [0, 0], "data": content}}
    document = {"size": {"width": WIDTH, "height": HEIGHT}, "objects": [bitmap]}
    (root / "ds" / "ann" / "a.png.json").write_text(json.dumps(document))


def png(width, height) -> bytes:
    file = io.BytesIO()
    Image.new("1", (width, height), 1).save(file, "PNG")
    return file.getvalue()


def text(content: bytes) -> str:
    return base64.b64encode(content).decode()


SIDE = 11_000
"""Pixels; a mask of this size takes 121 MB."""
CASES = {
    "polygon-far-away": (lambda root: coco(root, [[10, 5, 1e300, 5, 30, -1e300]]), set()),
    "polygon-not-finite": (lambda root: coco(root, [[10, 5, float("nan"), 5, 30, 25]]), {"broken-mask"}),
    "polygon-of-many-corners": (lambda root: coco(root, [[0.5, 7] * (2**20 + 1)]), {"broken-mask"}),
    "polygon-back-and-forth": (lambda root: coco(root, [[1e6, 0, -1e6, 0] * 50_000]), {"broken-mask"}),
    "run-of-a-huge-image": (lambda root: coco(root, {"size": [10**9] * 2, "counts": [10**18]}), {"broken-mask"}),
    "runs-of-a-large-image": (lambda root: coco(root, {"size": [SIDE] * 2, "counts": [SIDE**2]}), {"mask-size"}),
    "runs-beyond-32-bits": (
        lambda root: coco(root, {"size": [HEIGHT, WIDTH], "counts": [2**32, HEIGHT * WIDTH]}),
        {"broken-mask"},
    ),
    "runs-too-short": (lambda root: coco(root, {"size": [HEIGHT, WIDTH], "counts": [1, 2]}), {"broken-mask"}),
    "runs-that-are-no-text": (lambda root: coco(root, {"size": [HEIGHT, WIDTH], "counts": "é\ud800"}), {"broken-mask"}),
    "cvat-large-window": (lambda root: cvat(root, f"0,{SIDE**2}", SIDE, SIDE), {"mask-size", "clipped"}),
    "cvat-negative-run": (lambda root: cvat(root, "3000,-600", WIDTH, HEIGHT), {"broken-mask"}),
    "cvat-run-beyond-64-bits": (lambda root: cvat(root, f"0,{2**64}", WIDTH, HEIGHT), {"broken-mask"}),
    "labelme-large-png": (lambda root: labelme(root, text(png(SIDE, SIDE))), {"broken-mask"}),
    "labelme-large-window": (
        lambda root: labelme(root, text(png(SIDE, SIDE)), (SIDE - 1, SIDE - 1)),
        {"mask-size", "clipped"},
    ),
    "labelme-no-base64": (lambda root: labelme(root, "€" * 99), {"broken-mask"}),
    "labelme-no-png": (lambda root: labelme(root, "A" * 10**6), {"broken-mask"}),
    "supervisely-large-png": (
        lambda root: supervisely(root, text(zlib.compress(png(SIDE, SIDE)))),
        {"mask-size", "clipped"},
    ),
}
MEASURE = """
import json, sys, time
from pathlib import Path
from detect.data.read import read
found = {}
for path in sorted(Path(sys.argv[1]).iterdir()):
    started = time.process_time()
    dataset = read(path, "train", progress=False)
    (record,) = dataset.records
    masks = record.masks or [None]
    pixels = [mask and int(mask.bitmap(record.height, record.width).sum()) for mask in masks]
    rules = sorted({defect.rule for defect in dataset.repaired})
    found[path.name] = len(record.boxes), pixels, rules, time.process_time() - started
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([found, int(peak.split()[1]) // 1024]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_hostile_masks_are_left_out_without_cost(tmp_path):
    for name, (write, _) in CASES.items():
        (tmp_path / name).mkdir()
        write(tmp_path / name)
    done = subprocess.run([sys.executable, "-c", MEASURE, tmp_path], capture_output=True, text=True, check=True)
    found, peak = json.loads(done.stdout)
    assert {name: set(rules) for name, (_, _, rules, _) in found.items()} == {
        name: rules for name, (_, rules) in CASES.items()
    }
    for name, (boxes, (pixels,), rules, seconds) in found.items():
        assert boxes == 1 and (pixels is None) == bool(rules) and seconds < 5, name
    assert peak < 400  # of which 70 are the imported modules, and 200 the JSON of two million numbers


def test_masks_of_an_image_that_exif_data_turns(tmp_path):
    """The decoded image is 40 × 60. A run-length encoding has a size, which is another; a polygon has none."""
    runs = {"size": [HEIGHT, WIDTH], "counts": [5, 20, WIDTH * HEIGHT - 25]}
    for name, segmentation in (("runs", runs), ("polygon", [SQUARE])):
        (tmp_path / name).mkdir()
        coco(tmp_path / name, segmentation, exif=ROTATED)
    dataset = read(tmp_path / "runs", "train")
    assert dataset.records[0].masks is None and "mask-size" in {defect.rule for defect in dataset.repaired}
    (record,) = read(tmp_path / "polygon", "train").records
    assert (record.width, record.height) == (HEIGHT, WIDTH)
    expected = np.zeros((WIDTH, HEIGHT), np.uint8)
    expected[5:25, 10:30] = 1
    assert np.array_equal(record.masks[0].bitmap(WIDTH, HEIGHT), expected)


@pytest.mark.parametrize("declared", [(2 * WIDTH, HEIGHT), (0, 0), ("x", "y")])
def test_the_size_in_the_file_does_not_decide_about_masks(declared, tmp_path):
    runs = {"size": [HEIGHT, WIDTH], "counts": [10 * HEIGHT + 5, 20, HEIGHT * WIDTH - 10 * HEIGHT - 25]}
    coco(tmp_path, runs)
    path = tmp_path / "annotations" / "instances_train.json"
    document = json.loads(path.read_text())
    document["images"][0] |= dict(zip(("width", "height"), declared, strict=True))
    path.write_text(json.dumps(document))
    dataset = read(tmp_path, "train")
    assert dataset.records[0].masks[0].area() == 20
    assert {defect.rule for defect in dataset.repaired} == {"size-mismatch"}


# ---- pictures of VOC -------------------------------------------------------------------------------------------------


def voc(root, save):
    image(root / "JPEGImages" / "a.jpg")
    for folder in ("Annotations", "ImageSets/Main", "SegmentationObject"):
        (root / folder).mkdir(parents=True)
    box = "<bndbox><xmin>11</xmin><ymin>6</ymin><xmax>30</xmax><ymax>25</ymax></bndbox>"
    (root / "Annotations" / "a.xml").write_text(
        f"<annotation><filename>a.jpg</filename><object><name>cat</name>{box}</object></annotation>"
    )
    (root / "ImageSets" / "Main" / "train.txt").write_text("a\n")
    save(root / "SegmentationObject" / "a.png")


def claimed(width, height) -> bytes:
    """Return a PNG whose header has another size than its pixels."""
    header = b"IHDR" + struct.pack(">II", width, height) + png(WIDTH, HEIGHT)[24:29]
    return png(WIDTH, HEIGHT)[:12] + header + struct.pack(">I", zlib.crc32(header)) + png(WIDTH, HEIGHT)[33:]


def ones(path, width=WIDTH, height=HEIGHT, **options):
    Image.new("P", (width, height), 1).save(path, **options)


@pytest.mark.parametrize(
    ("save", "rule"),
    [
        (lambda path: ones(path, WIDTH + 1), "mask-size"),
        (lambda path: ones(path, 9000, 9000), "mask-size"),
        (lambda path: path.write_bytes(claimed(60_000, 60_000)), "broken-mask"),
        (lambda path: path.write_bytes(png(WIDTH, HEIGHT)[:-20]), "broken-mask"),
        (lambda path: path.write_bytes(b"no image"), "broken-mask"),
        (lambda path: Image.new("L", (WIDTH, HEIGHT), 7).save(path), "broken-mask"),  # an object that does not exist
        (lambda path: ones(path, HEIGHT, WIDTH, exif=ROTATED), "mask-size"),  # the pixels are not turned
    ],
)
def test_pictures_of_voc_that_cannot_be_used(save, rule, tmp_path):
    voc(tmp_path, save)
    dataset = read(tmp_path, "train")
    assert dataset.records[0].masks is None and dataset.records[0].boxes.tolist() == [[10, 5, 30, 25]]
    assert {defect.rule for defect in dataset.repaired} == {rule}


@pytest.mark.parametrize("follow_links", [False, True])
def test_a_picture_of_voc_outside_of_the_folder_is_read_only_on_request(follow_links, tmp_path):
    ones(tmp_path / "outside.png")
    voc(tmp_path / "data", lambda path: path.symlink_to(tmp_path / "outside.png"))
    dataset = read(tmp_path / "data", "train", follow_links=follow_links)
    assert (dataset.records[0].masks is not None) == follow_links
    assert [defect.rule for defect in dataset.repaired] == ([] if follow_links else ["broken-mask"])


def test_voc_has_masks_of_the_first_254_objects(tmp_path):
    voc(tmp_path, lambda path: Image.new("L", (WIDTH, HEIGHT), 254).save(path))
    file = tmp_path / "Annotations" / "a.xml"
    before, one, after = re.split(r"(<object>.*</object>)", file.read_text())
    objects = (one.replace(">11<", f">{1 + k % 16}<").replace(">6<", f">{1 + k // 16}<") for k in range(256))
    file.write_text(before + "".join(objects) + after)
    dataset = read(tmp_path, "train")  # 255 is the colour of borders
    assert [k for k, mask in enumerate(dataset.records[0].masks, start=1) if mask is not None] == [254]


def test_an_area_that_no_number_holds_is_that_of_the_box(tmp_path):
    image(tmp_path / "a.png")
    shape = {"label": "cat", "shape_type": "polygon", "points": [[0, 0], [1e300, 0], [1e300, 1e300], [0, 1e300]]}
    (tmp_path / "a.json").write_text(json.dumps({"version": "5.0", "shapes": [shape], "imagePath": "a.png"}))
    (record,) = read(tmp_path, "train").records
    assert record.masks[0].bitmap(HEIGHT, WIDTH).all() and record.areas.tolist() == [WIDTH * HEIGHT]


@pytest.mark.parametrize("corners", [1, 2])
def test_a_polygon_of_labelme_or_cvat_with_few_corners_is_left_out(corners, tmp_path):
    for name in ("a", "b"):
        image(tmp_path / f"{name}.png")
    points, whole = [[5 * k, 7] for k in range(1, corners + 1)], [[0, 0], [20, 0], [20, 20]]
    shapes = [{"label": "cat", "shape_type": "polygon", "points": given} for given in (points, whole)]
    (tmp_path / "a.json").write_text(json.dumps({"version": "5.0", "shapes": shapes, "imagePath": "a.png"}))
    texts = [";".join(f"{x},{y}" for x, y in given) for given in (points, whole)]
    polygons = "".join(f'<polygon label="cat" points="{text}"/>' for text in texts)
    cvat = tmp_path / "cvat"
    cvat.mkdir()
    image(cvat / "b.png")
    header = f'<image id="0" name="b.png" width="{WIDTH}" height="{HEIGHT}">'
    (cvat / "annotations.xml").write_text(
        f"<annotations><version>1.1</version>{header}{polygons}</image></annotations>"
    )
    (tmp_path / "b.png").unlink()
    for folder, format in ((tmp_path, "labelme"), (cvat, "cvat")):
        dataset = read(folder, "all", format=format)
        assert dataset.records[0].boxes.tolist() == [[0, 0, 20, 20]]
        assert [defect.rule for defect in dataset.repaired] == ["short-polygon"]


def test_the_box_of_a_polygon_across_the_edge_bounds_what_is_visible(tmp_path):
    image(tmp_path / "a.png")
    points = [[50, 20], [90, -20], [90, 60]]  # at x = 60 it is 20 pixels high, in the corner it would be 80
    shape = {"label": "cat", "shape_type": "polygon", "points": points}
    (tmp_path / "a.json").write_text(json.dumps({"version": "5.0", "shapes": [shape], "imagePath": "a.png"}))
    (record,) = read(tmp_path, "all").records
    assert record.boxes.tolist() == pytest.approx(np.array([[50, 10, 60, 30]]), abs=1)
    assert record.areas.tolist() == [record.masks[0].bitmap(HEIGHT, WIDTH).sum()] and 90 < record.areas[0] < 110
