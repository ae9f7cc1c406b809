"""Masks survive where data sets are written."""

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from detect.curation.convert import convert, write_datasets
from detect.curation.mask_limits import fit_masks
from detect.curation.regroup import merge_copy, split_copy
from detect.curation.shapes import make_shapes
from detect.curation.writers import write_voc
from detect.data.dataset import Dataset
from detect.data.masks import Polygons, encode
from detect.data.outlines import outline_of
from detect.data.read import read, read_all
from detect.data.records import Record

DATA = Path(os.environ.get("DETECT_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
coco_mini = pytest.mark.skipif(not (DATA / "coco_mini").is_dir(), reason=f"coco_mini is not in DETECT_DATA ({DATA})")
HEIGHT, WIDTH = 40, 60


def bitmap(*boxes, holes=()):
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
    for x1, y1, x2, y2 in boxes:
        pixels[y1:y2, x1:x2] = 1
    for x1, y1, x2, y2 in holes:
        pixels[y1:y2, x1:x2] = 0
    return pixels


def polygon(*corners):
    return np.array(corners, np.float64)


def rectangle(x1, y1, x2, y2):
    return polygon((x1, y1), (x2, y1), (x2, y2), (x1, y2))


def record(*masks):
    n = len(masks)
    none = np.zeros(n, bool)
    boxes = np.tile(np.float32([5, 5, 25, 35]), (n, 1))
    return Record(1, Path("a.png"), WIDTH, HEIGHT, boxes, np.zeros(n, np.int64), none, none, np.ones(n), tuple(masks))


def iou(one, other, height, width):
    pair = one.rle(height, width).coco(), other.rle(height, width).coco()
    return coco_mask.iou([pair[0]], [pair[1]], [0])[0, 0]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    out = tmp_path_factory.mktemp("masks") / "shapes"
    return make_shapes(out, images={"train": 12, "val": 4}, size=(96, 128), progress=False)


def all_masks(dataset):
    """Return the bitmaps of each image, by file name."""
    return {
        one.path.name: [None if mask is None else mask.bitmap(one.height, one.width) for mask in one.masks or ()]
        for one in dataset.records
    }


def check_same_masks(one, other):
    first, second = all_masks(one), all_masks(other)
    assert first.keys() == second.keys() and any(map(len, first.values()))
    for name in first:
        for a, b in zip(first[name], second[name], strict=True):
            np.testing.assert_array_equal(a, b)


# ------------------------------------------------------------------------------------------------------------- outlines


def test_no_pixel_has_no_outline():
    assert outline_of(encode(bitmap()), HEIGHT, WIDTH) is None
    assert outline_of(Polygons((rectangle(70, 5, 80, 9),)), HEIGHT, WIDTH) is None


def test_one_polygon_stays_as_it_is_within_the_image():
    corners = polygon((3.25, 4.5), (17.75, 6.25), (9, 22.125))
    np.testing.assert_array_equal(outline_of(Polygons((corners,)), HEIGHT, WIDTH), corners)
    beyond = outline_of(Polygons((rectangle(50, 10, 60.5, 20),)), HEIGHT, WIDTH)
    np.testing.assert_array_equal(beyond, rectangle(50, 10, 60, 20))


def test_a_polygon_beyond_the_image_keeps_its_pixels():
    beyond = Polygons((polygon((-30, 5), (40, 20), (5, 70)),))
    outline = outline_of(beyond, HEIGHT, WIDTH)
    assert (outline >= 0).all() and (outline <= (WIDTH, HEIGHT)).all()
    np.testing.assert_array_equal(Polygons((outline,)).bitmap(HEIGHT, WIDTH), beyond.bitmap(HEIGHT, WIDTH))


def test_pieces_are_joined_at_their_nearest_corners():
    joined = outline_of(Polygons((rectangle(0, 0, 10, 10), rectangle(30, 0, 20, 10))), HEIGHT, WIDTH)
    assert len(joined) == 4 + 5 + 1
    expected = bitmap((0, 0, 10, 10), (20, 0, 30, 10))
    np.testing.assert_array_equal(Polygons((joined,)).bitmap(HEIGHT, WIDTH), expected)
    assert Polygons((joined,)).area() == 200  # the directions of the two polygons differed
    there = {tuple(map(tuple, joined[k : k + 2].tolist())) for k in range(9)}
    assert ((10, 0), (20, 0)) in there or ((10, 10), (20, 10)) in there


def test_overlapping_polygons_have_the_outline_of_their_union():
    overlapping = Polygons((rectangle(0, 0, 20, 20), rectangle(10, 10, 30, 30)))
    joined = Polygons((outline_of(overlapping, HEIGHT, WIDTH),))
    np.testing.assert_array_equal(joined.bitmap(HEIGHT, WIDTH), overlapping.bitmap(HEIGHT, WIDTH))
    assert joined.area() == pytest.approx(700, abs=1)


@pytest.mark.parametrize(
    "pixels",
    [
        bitmap((7, 9, 8, 10)),
        bitmap((0, 0, WIDTH, HEIGHT)),
        bitmap((5, 5, 40, 30), holes=[(10, 10, 20, 20), (25, 8, 30, 12)]),
        bitmap((0, 0, 3, 3), (40, 2, 50, 30), (20, 30, 21, 40), (3, 3, 6, 6)),
        bitmap((5, 5, 40, 30), (15, 12, 20, 15), holes=[(10, 10, 30, 20)]) | bitmap((15, 12, 20, 15)),
        (np.random.default_rng(0).random((HEIGHT, WIDTH)) > 0.6).astype(np.uint8),
    ],
    ids=["pixel", "image", "holes", "pieces", "island", "noise"],
)
def test_the_outline_of_a_bitmap_has_its_pixels(pixels):
    joined = Polygons((outline_of(encode(pixels), HEIGHT, WIDTH),))
    np.testing.assert_array_equal(joined.bitmap(HEIGHT, WIDTH), pixels)
    assert joined.area() == pytest.approx(pixels.sum(), rel=0.2)


# --------------------------------------------------------------------------------------------------------------- limits


def test_coco_has_no_limits_and_no_masks_are_none():
    changed = Counter()
    given = record(encode(bitmap((1, 1, 5, 5))), None)
    assert fit_masks(given, "coco", changed) is given
    for to in ("coco", "voc", "yolo"):
        assert fit_masks(record(), to, changed).masks == ()
        assert not any(fit_masks(record(None, None), to, changed).masks)
    assert not +changed


def test_yolo_has_one_polygon_for_each_object():
    changed = Counter()
    two = Polygons((rectangle(5, 5, 15, 35), rectangle(20, 5, 25, 35)))
    fitted = fit_masks(record(two, encode(bitmap()), None, encode(bitmap((5, 5, 20, 35)))), "yolo", changed)
    assert [None if mask is None else len(mask.outlines) for mask in fitted.masks] == [1, None, None, 1]
    assert changed == {
        "object loses its mask, which has no pixel": 1,
        "object has a box, not a polygon like the others": 1,
        "box replaced by that of its polygon": 1,
    }


def test_a_pixel_of_voc_belongs_to_the_smaller_object():
    changed = Counter()
    small, large, apart = bitmap((5, 5, 10, 10)), bitmap((0, 0, 20, 20)), bitmap((30, 30, 35, 35))
    hidden = bitmap((6, 6, 7, 7))  # below an object with as many pixels
    fitted = fit_masks(record(*map(encode, (small, large, apart, hidden, hidden)), None), "voc", changed)
    pixels = [None if mask is None else mask.bitmap(HEIGHT, WIDTH) for mask in fitted.masks]
    for drawn, expected in zip(pixels, (small & ~hidden & 1, large & ~small & 1, apart), strict=False):
        np.testing.assert_array_equal(drawn, expected)
    assert pixels[3] is None and pixels[5] is None
    np.testing.assert_array_equal(pixels[4], hidden)
    assert changed["mask loses pixels to a smaller object: in VOC a pixel belongs to one object"] == 3


def test_voc_counts_objects_up_to_254():
    changed = Counter()
    fitted = fit_masks(
        record(*[encode(bitmap((k % 60, k // 60, k % 60 + 1, k // 60 + 1))) for k in range(256)]), "voc", changed
    )
    assert [mask is None for mask in fitted.masks] == [False] * 254 + [True] * 2
    assert changed["mask left out: VOC has 254 in an image"] == 2


# ----------------------------------------------------------------------------------------------------------- data sets


def test_coco_to_coco_changes_no_mask(shapes, tmp_path):
    done = convert(shapes, tmp_path / "out", "coco", progress=False)
    train = read(shapes, "train", progress=False)
    check_same_masks(train, read(tmp_path / "out", "train", progress=False))
    count = sum(map(len, all_masks(train).values()))
    assert done.lines()[0] == f"train: 12 images, {count} boxes, {count} masks"
    assert done.lines()[-1] == "boxes and masks are converted: keypoints and poses are not read"


@coco_mini
def test_polygons_and_runs_of_coco_stay_equal(tmp_path):
    convert(DATA / "coco_mini", tmp_path / "out", "coco", progress=False)
    for split, before in read_all(DATA / "coco_mini", progress=False).items():
        after = read(tmp_path / "out", split, progress=False)
        for one, other in zip(before.records, after.records, strict=True):
            for a, b in zip(one.masks, other.masks, strict=True):
                assert type(a) is type(b)
                if isinstance(a, Polygons):
                    assert all(map(np.array_equal, a.outlines, b.outlines))
                else:
                    assert a == b


def polygons_in(folder, one):
    """Return the polygons in the label file of an image."""
    lines = (folder / f"{one.path.stem}.txt").read_text().splitlines()
    corners = (np.array(line.split()[1:], np.float64).reshape(-1, 2) for line in lines)
    return [Polygons((outline * (one.width, one.height),)) for outline in corners]


def test_a_label_file_of_yolo_has_the_pixels_of_each_object(shapes, tmp_path):
    done = convert(shapes, tmp_path / "out", "yolo", progress=False)
    assert done.masks["train"] == done.boxes["train"] > 0
    for one in read(shapes, "train", progress=False).records:
        for mask, polygon in zip(one.masks, polygons_in(tmp_path / "out" / "labels" / "train", one), strict=True):
            size = one.height, one.width
            np.testing.assert_array_equal(polygon.bitmap(*size), mask.bitmap(*size))


def test_boxes_among_polygons_are_counted_in_images_without_masks_too(shapes, tmp_path):
    dataset = read(shapes, "train", progress=False)
    first, *others = dataset.records
    plain = replace(dataset, records=(replace(first, masks=(None,) * len(first.boxes)), *others))
    done = write_datasets([plain], tmp_path / "out", "yolo", chosen=True, progress=False)
    assert done.changed["object has a box, not a polygon like the others"] == len(first.boxes) > 0


@coco_mini
def test_photographs_from_coco_to_yolo_keep_their_masks(tmp_path):
    convert(DATA / "coco_mini", tmp_path / "out", "yolo", progress=False)
    overlaps = []
    for split, dataset in read_all(DATA / "coco_mini", progress=False).items():
        folder = tmp_path / "out" / "labels" / split.removesuffix("2017")
        for one in dataset.records:
            masks = [mask for mask, crowd in zip(one.masks, one.crowd, strict=True) if not crowd]
            for mask, polygon in zip(masks, polygons_in(folder, one), strict=True):
                overlaps.append((iou(mask, polygon, one.height, one.width), mask.area()))
    assert len(overlaps) > 1700 and np.mean([overlap for overlap, _ in overlaps]) > 0.999
    assert min(overlap for overlap, area in overlaps if area >= 100) >= 0.95  # tiny objects depend on rounding


def test_voc_numbers_the_objects_of_an_image(shapes, tmp_path):
    convert(shapes, tmp_path / "out", "voc", ["train"], progress=False)
    files = {path.stem: path for path in (tmp_path / "out" / "SegmentationObject").iterdir()}
    for one in read(shapes, "train", progress=False).records:
        assert (one.path.stem in files) == bool(len(one.boxes))
        if len(one.boxes):
            with Image.open(files[one.path.stem]) as image:
                numbers = np.asarray(image)
            for number, mask in enumerate(one.masks, start=1):
                np.testing.assert_array_equal(numbers == number, mask.bitmap(one.height, one.width))


def test_the_image_of_masks_in_voc(tmp_path):
    given = record(encode(bitmap((0, 0, 20, 20))), None, Polygons((rectangle(30, 10, 50, 20),)))
    dataset = Dataset(tmp_path, "train", "coco", ("cat",), (1,), (given,))
    write_voc(tmp_path, "train", ["a.png"], dataset)
    with Image.open(tmp_path / "SegmentationObject" / "a.png") as image:
        assert image.mode == "P" and image.size == (WIDTH, HEIGHT)
        palette, numbers = image.getpalette(), np.asarray(image)
    np.testing.assert_array_equal(numbers, bitmap((0, 0, 20, 20)) + 3 * bitmap((30, 10, 50, 20)))
    assert palette[:15] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0, 0, 0, 128]
    assert palette[-3:] == [224, 224, 192]
    write_voc(tmp_path, "val", ["b.png"], replace(dataset, records=(replace(given, masks=None),)))
    assert not (tmp_path / "SegmentationObject" / "b.png").exists()


def test_a_divided_and_joined_set_keeps_its_masks(shapes, tmp_path):
    split_copy(shapes, tmp_path / "divided", {"val": 0.25}, progress=False)
    parts = read_all(tmp_path / "divided", progress=False)
    before = [all_masks(one) for one in read_all(shapes, progress=False).values()]
    number = sum(len(masks) for images in before for masks in images.values())
    assert sum(len(masks) for one in parts.values() for masks in all_masks(one).values()) == number > 0

    other = make_shapes(tmp_path / "other", images={"train": 5}, size=(96, 128), seed=1, progress=False)
    merge_copy([shapes, other], tmp_path / "joined", ["train"], progress=False)
    joined = list(all_masks(read(tmp_path / "joined", "train", progress=False)).values())
    parts = [read(root, "train", progress=False) for root in (shapes, other)]
    expected = [masks for one in parts for masks in all_masks(one).values()]
    for one, two in zip(joined, expected, strict=True):
        for a, b in zip(one, two, strict=True):
            np.testing.assert_array_equal(a, b)


def test_crops_show_the_whole_box(shapes, tmp_path):
    done = convert(shapes, tmp_path / "crops", "imagefolder", progress=False)
    assert done.lines()[-1] == f"{done.crops.total()} × mask not used: a crop shows the whole box"
