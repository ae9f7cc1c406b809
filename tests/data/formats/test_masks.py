"""Every format that has masks gives the pixels that its file describes; a box without a mask stays a box."""

import base64
import io
import json
import shutil
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from detect.data.formats.shapes import polygon
from detect.data.limits import refuse_without_masks
from detect.data.read import read
from detect.errors import UserError

WIDTH, HEIGHT = 60, 40


def image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))


def rectangle(x1, y1, x2, y2):
    bitmap = np.zeros((HEIGHT, WIDTH), np.uint8)
    bitmap[y1:y2, x1:x2] = 1
    return bitmap


def disc(x, y, rx, ry):
    ys, xs = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    return (((xs - x) / rx) ** 2 + ((ys - y) / ry) ** 2 <= 1).astype(np.uint8)


def png(bitmap) -> bytes:
    file = io.BytesIO()
    Image.fromarray(bitmap * 255).save(file, "PNG")
    return file.getvalue()


SQUARE = [[10, 5], [30, 5], [30, 25], [10, 25]]
SHAPED = np.array([[0, 1, 1], [1, 1, 0]], np.uint8)
"""A mask of two rows in the window from (7, 8)."""


def shaped():
    bitmap = np.zeros((HEIGHT, WIDTH), np.uint8)
    bitmap[8:10, 7:10] = SHAPED
    return bitmap


def labelme(root):
    shapes = [
        {"label": "cat", "shape_type": "polygon", "points": SQUARE},
        {"label": "cat", "shape_type": "circle", "points": [[30, 20], [30, 30]]},
        {"label": "cat", "shape_type": "rectangle", "points": [[40, 20], [50, 30]]},
        {
            "label": "cat",
            "shape_type": "mask",
            "points": [[7, 8], [9, 9]],
            "mask": base64.b64encode(png(SHAPED)).decode(),
        },
    ]
    image(root / "a.png")
    document = {"version": "5.0", "shapes": shapes, "imagePath": "a.png", "imageHeight": HEIGHT, "imageWidth": WIDTH}
    (root / "a.json").write_text(json.dumps(document))
    return [rectangle(10, 5, 30, 25), disc(30, 20, 10, 10), None, shaped()]


def cvat(root):
    image(root / "images" / "a.png")
    (root / "annotations.xml").write_text(
        f'<annotations><image id="0" name="a.png" width="{WIDTH}" height="{HEIGHT}">'
        '<polygon label="cat" points="10,5;30,5;30,25;10,25"/>'
        '<ellipse label="cat" cx="30" cy="20" rx="12" ry="8"/>'
        '<box label="cat" xtl="40" ytl="20" xbr="50" ybr="30"/>'
        '<mask label="cat" rle="1,4,1" left="7" top="8" width="3" height="2"/>'
        "</image></annotations>"
    )
    return [rectangle(10, 5, 30, 25), disc(30, 20, 12, 8), None, shaped()]


def yolo(root):
    image(root / "images" / "train" / "a.png")
    (root / "data.yaml").write_text("names: [cat]\ntrain: images/train\n")
    (root / "labels" / "train").mkdir(parents=True)
    polygon = " ".join(f"{x / WIDTH} {y / HEIGHT}" for x, y in SQUARE)
    (root / "labels" / "train" / "a.txt").write_text(f"0 {polygon}\n0 0.75 0.625 0.2 0.25\n")
    return [rectangle(10, 5, 30, 25), None]


def voc(root):
    image(root / "JPEGImages" / "a.png")
    boxes = [(11, 6, 30, 25), (41, 21, 50, 30)]
    objects = "".join(
        "<object><name>cat</name><bndbox>"
        f"<xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>"
        for a, b, c, d in boxes
    )
    for folder in ("Annotations", "ImageSets/Main", "SegmentationObject"):
        (root / folder).mkdir(parents=True)
    (root / "Annotations" / "a.xml").write_text(f"<annotation><filename>a.png</filename>{objects}</annotation>")
    (root / "ImageSets" / "Main" / "train.txt").write_text("a\n")
    values = rectangle(10, 5, 30, 25) + 2 * rectangle(40, 20, 50, 30)
    values[20:30, 39] = 255  # the border of an object
    picture = Image.fromarray(values, mode="P")
    picture.putpalette([value for colour in ((0, 0, 0), (128, 0, 0), (0, 128, 0)) for value in colour])
    picture.save(root / "SegmentationObject" / "a.png")
    return [rectangle(10, 5, 30, 25), rectangle(40, 20, 50, 30)]


def via(root):
    image(root / "a.png")
    xs, ys = zip(*SQUARE, strict=True)
    shapes = [
        {"name": "polygon", "all_points_x": xs, "all_points_y": ys},
        {"name": "ellipse", "cx": 30, "cy": 20, "rx": 12, "ry": 8, "theta": 0},
        {"name": "rect", "x": 40, "y": 20, "width": 10, "height": 10},
    ]
    regions = [{"shape_attributes": shape, "region_attributes": {"class": "cat"}} for shape in shapes]
    document = {"a.png1": {"filename": "a.png", "size": 1, "regions": regions, "file_attributes": {}}}
    (root / "via.json").write_text(json.dumps(document))
    return [rectangle(10, 5, 30, 25), disc(30, 20, 12, 8), None]


def supervisely(root):
    image(root / "ds" / "img" / "a.png")
    data = base64.b64encode(zlib.compress(png(SHAPED))).decode()
    hole = [[15, 10], [20, 10], [20, 15], [15, 15]]
    objects = [
        {"geometryType": "polygon", "points": {"exterior": SQUARE, "interior": [hole]}},
        {"geometryType": "bitmap", "bitmap": {"origin": [7, 8], "data": data}},
        {"geometryType": "rectangle", "points": {"exterior": [[40, 20], [50, 30]], "interior": []}},
    ]
    (root / "ds" / "ann").mkdir(parents=True)
    document = {
        "size": {"width": WIDTH, "height": HEIGHT},
        "objects": [{"classTitle": "cat", **entry} for entry in objects],
    }
    (root / "ds" / "ann" / "a.png.json").write_text(json.dumps(document))
    return [rectangle(10, 5, 30, 25) - rectangle(15, 10, 20, 15), shaped(), None]


def label_studio(root):
    image(root / "a.png")
    size = {"original_width": WIDTH, "original_height": HEIGHT}
    points = [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in SQUARE]
    results = [
        {"type": "polygonlabels", "value": {"points": points, "polygonlabels": ["cat"]}},
        {"type": "ellipselabels", "value": {"x": 50, "y": 50, "radiusX": 20, "radiusY": 20, "ellipselabels": ["cat"]}},
        {"type": "rectanglelabels", "value": {"x": 60, "y": 50, "width": 20, "height": 20, "rectanglelabels": ["cat"]}},
    ]
    tasks = [{"data": {"image": "a.png"}, "annotations": [{"result": [{**size, **one} for one in results]}]}]
    (root / "tasks.json").write_text(json.dumps(tasks))
    return [rectangle(10, 5, 30, 25), disc(30, 20, 12, 8), None]


@pytest.mark.parametrize("write", [labelme, cvat, yolo, voc, via, supervisely, label_studio])
def test_masks_are_the_pixels_of_the_file(write, tmp_path):
    expected = write(tmp_path)
    dataset = read(tmp_path, "train")
    (record,) = dataset.records
    assert len(record.masks) == len(expected) == len(record.boxes) and not dataset.repaired
    for mask, bitmap in zip(record.masks, expected, strict=True):
        if bitmap is None:
            assert mask is None
            continue
        difference = (mask.bitmap(HEIGHT, WIDTH) != bitmap).sum()
        assert difference <= 0.05 * bitmap.sum(), (mask, difference)


def test_polygons_of_one_group_of_labelme_are_one_object(tmp_path):
    other = [[40, 10], [50, 10], [50, 20], [40, 20]]
    shapes = [
        {"label": "cat", "points": SQUARE, "group_id": 1},
        {"label": "dog", "points": SQUARE, "group_id": 1},
        {"label": "cat", "points": other, "group_id": 1},
        {"label": "cat", "points": other, "group_id": None},
        {"label": "cat", "points": [[10, 5], [50, 25]], "shape_type": "rectangle", "group_id": 1},
    ]
    image(tmp_path / "a.png")
    (tmp_path / "a.json").write_text(json.dumps({"version": "5.0", "shapes": shapes, "imagePath": "a.png"}))
    (record,) = read(tmp_path, "train").records
    assert record.boxes.tolist() == [[10, 5, 50, 25], [10, 5, 30, 25], [40, 10, 50, 20], [10, 5, 50, 25]]
    both = rectangle(10, 5, 30, 25) + rectangle(40, 10, 50, 20)
    assert np.array_equal(record.masks[0].bitmap(HEIGHT, WIDTH), both) and record.masks[3] is None


@pytest.mark.parametrize("step", [1, -1])
def test_a_mask_of_labelme_that_was_moved_lies_on_the_nearest_pixels(step, tmp_path):
    height, width = SHAPED.shape
    points = [[7.3, 8.4], [7.3 + width - 1, 8.4 + height - 1]][::step]
    shape = {"label": "cat", "shape_type": "mask", "points": points, "mask": base64.b64encode(png(SHAPED)).decode()}
    image(tmp_path / "a.png")
    (tmp_path / "a.json").write_text(json.dumps({"version": "5.0", "shapes": [shape], "imagePath": "a.png"}))
    (mask,) = read(tmp_path, "train").records[0].masks
    assert np.array_equal(mask.bitmap(HEIGHT, WIDTH), shaped())


@pytest.mark.parametrize("step", [1, -1])
def test_the_area_of_a_polygon_does_not_include_its_hole(step):
    hole = np.array([[15, 10], [20, 10], [20, 15], [15, 15]], np.float64)[::step]
    assert polygon(np.array(SQUARE, np.float64), [hole]).area() == 20 * 20 - 5 * 5


def test_pictures_beside_the_folder_of_voc_are_not_its_masks(tmp_path):
    voc(tmp_path / "whole")
    (tmp_path / "flat").mkdir()
    for name, folder in (("a.png", "JPEGImages"), ("a.xml", "Annotations")):
        shutil.copy(tmp_path / "whole" / folder / name, tmp_path / "flat" / name)
    shutil.copytree(tmp_path / "whole" / "SegmentationObject", tmp_path / "SegmentationObject")
    dataset = read(tmp_path / "flat", "train")
    assert dataset.records[0].masks is None and not dataset.repaired


def test_without_masks_there_are_none(tmp_path):
    image(tmp_path / "images" / "train" / "a.png")
    (tmp_path / "data.yaml").write_text("names: [cat]\ntrain: images/train\n")
    (tmp_path / "labels" / "train").mkdir(parents=True)
    (tmp_path / "labels" / "train" / "a.txt").write_text("0 0.5 0.5 0.2 0.25\n")
    assert read(tmp_path, "train").records[0].masks is None


@pytest.mark.parametrize(
    ("tag", "rule"),
    [
        ('<mask label="cat" rle="1,4,2" left="7" top="8" width="3" height="2"/>', "broken-mask"),
        ('<mask label="cat" rle="x" left="7" top="8" width="3" height="2"/>', "broken-mask"),
        ('<mask label="cat" rle="6" left="7" top="8" width="3" height="2"/>', "broken-mask"),
        ('<mask label="cat" rle="0,4000000" left="0" top="0" width="2000" height="2000"/>', "mask-size"),
    ],
)
def test_unusable_masks_are_left_out_and_reported(tag, rule, tmp_path):
    image(tmp_path / "images" / "a.png")
    (tmp_path / "annotations.xml").write_text(
        f'<annotations><image id="0" name="a.png" width="{WIDTH}" height="{HEIGHT}">{tag}'
        '<polygon label="cat" points="10,5;30,5;30,25;10,25"/></image></annotations>'
    )
    dataset = read(tmp_path, "train")
    (record,) = dataset.records
    assert [mask is None for mask in record.masks] == [True, False]
    assert rule in {defect.rule for defect in dataset.repaired}


def write_coco(root, segmentations, bbox=(10, 5, 20, 20)):
    image(root / "train" / "a.png")
    (root / "annotations").mkdir()
    annotations = [
        {"id": number, "image_id": 1, "category_id": 1, "bbox": bbox, "area": 4, "iscrowd": 0, "segmentation": one}
        for number, one in enumerate(segmentations, start=1)
    ]
    document = {
        "images": [{"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "cat"}],
    }
    (root / "annotations" / "instances_train.json").write_text(json.dumps(document))
    return read(root, "train")


@pytest.mark.parametrize(
    ("segmentation", "rule"),
    [
        ([[1, 2, 3, 4]], "short-polygon"),
        ([["a", 2, 3, 4, 5, 6]], "broken-mask"),
        ({"size": [HEIGHT, WIDTH], "counts": [1, 2]}, "broken-mask"),
        ({"size": [HEIGHT, WIDTH], "counts": "~~~~"}, "broken-mask"),
        ({"size": [10**9, 10**9], "counts": [10**18]}, "broken-mask"),
        ({"size": [20, 30], "counts": [100, 500]}, "mask-size"),
    ],
)
def test_damaged_masks_of_coco(segmentation, rule, tmp_path):
    whole = [[10, 5, 30, 5, 30, 25, 10, 25]]
    dataset = write_coco(tmp_path, [segmentation, whole])
    assert [mask is None for mask in dataset.records[0].masks] == [True, False]
    assert {defect.rule for defect in dataset.repaired} == {rule}


@pytest.mark.parametrize(
    "corners",
    [
        [10 / WIDTH, 5 / HEIGHT, 30 / WIDTH, 5 / HEIGHT, 30 / WIDTH, 25 / HEIGHT],  # fractions
        [1, 30, 1, 38, 8, 38, 8, 30],  # elsewhere
    ],
)
def test_masks_that_nearly_all_lie_elsewhere_are_left_out(corners, tmp_path):
    dataset = write_coco(tmp_path, [[corners]] * 6)
    assert dataset.records[0].masks is None
    assert "masks-elsewhere" in {defect.rule for defect in dataset.repaired}
    with pytest.raises(
        UserError, match=r"has a usable mask: .* masks-elsewhere, first .* are not in their boxes"
    ) as error:
        refuse_without_masks(dataset)
    assert "\n" not in str(error.value)
