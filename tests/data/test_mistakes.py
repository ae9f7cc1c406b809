"""Mistakes that all boxes of a split share: recognised and converted, and never seen in a correct split."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from detect.data.annotations import Annotations, repair
from detect.data.defects import RULES, DefectLog
from detect.data.mistakes import Reading, correct_mistakes, corrected, find_mistake
from detect.errors import UserError

WIDE, HIGH = (120, 80), (80, 120)


def annotations_of(boxes, layout="sizes", sizes=(WIDE,), declared=None, normalised=False, first_pixel=0):
    """Return a split whose reader has made these boxes, xyxy, spread over the images, and the sizes of the images."""
    boxes = np.array(boxes, np.float64).reshape(-1, 4)
    n, m = len(sizes), len(boxes)
    annotations = Annotations(
        classes=("cat",),
        category_ids=(1,),
        paths=[Path(f"{index}.png") for index in range(n)],
        sources=[Path("a.json")] * n,
        declared=[declared] * n if declared is None or isinstance(declared[0], int) else list(declared),
        ids=None,
        boxes=boxes,
        image=np.arange(m, dtype=np.int64) % n,
        labels=np.zeros(m, np.int64),
        crowd=np.zeros(m, bool),
        difficult=np.zeros(m, bool),
        areas=np.full(m, np.nan),
        places=[f"box {row}" for row in range(m)],
        normalised=normalised,
        layout=layout,
        first_pixel=first_pixel,
    )
    return annotations, np.array(sizes, np.int64).reshape(-1, 2)


def true_boxes(count=12, sizes=(WIDE,), seed=0):
    """Draw boxes of whole pixels within their images."""
    random = np.random.default_rng(seed)
    limits = np.array(sizes)[np.arange(count) % len(sizes)]
    sides = random.integers(8, limits // 3, (count, 2))
    start = random.integers(0, limits - sides + 1)
    return np.hstack([start, start + sides]).astype(np.float64), limits.astype(np.float64)


def read_as(layout, numbers):
    """Return the boxes, xyxy, that a reader makes of four numbers."""
    first, second = numbers[:, :2], numbers[:, 2:]
    if layout == "voc":
        return np.hstack([first - (first < second), second])
    start, end = {
        "corners": (first, second),
        "sizes": (first, first + second),
        "centre": (first - second / 2, first + second / 2),
    }[layout]
    return np.hstack([start, end])


def sizes_of(boxes):
    return np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]])


def centres_of(boxes):
    return np.hstack([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]])


MISTAKES = {
    "COCO with corners": ("sizes", lambda b, s: b, {"corners-for-sizes"}),
    "COCO in fractions": ("sizes", lambda b, s: sizes_of(b / np.tile(s, 2)), {"fractions-for-pixels"}),
    "COCO with corners in fractions": (
        "sizes",
        lambda b, s: b / np.tile(s, 2),
        {"fractions-for-pixels", "corners-for-sizes"},
    ),
    "COCO with y first": ("sizes", lambda b, s: sizes_of(b)[:, [1, 0, 3, 2]], {"swapped-axes"}),
    "COCO as TensorFlow has it": ("sizes", lambda b, s: b[:, [1, 0, 3, 2]], {"corners-for-sizes", "swapped-axes"}),
    "corners with sizes": ("corners", lambda b, s: sizes_of(b), {"sizes-for-corners"}),
    "corners in fractions": ("corners", lambda b, s: b / np.tile(s, 2), {"fractions-for-pixels"}),
    "corners with y first": ("corners", lambda b, s: b[:, [1, 0, 3, 2]], {"swapped-axes"}),
    "VOC with sizes": ("voc", lambda b, s: np.add(sizes_of(b), (1, 1, 0, 0)), {"sizes-for-corners"}),
    "VOC in fractions": ("voc", lambda b, s: b / np.tile(s, 2), {"fractions-for-pixels"}),
    "YOLO in pixels": ("centre", lambda b, s: centres_of(b), {"pixels-for-fractions"}),
    "YOLO with corners": ("centre", lambda b, s: b / np.tile(s, 2), {"corners-for-sizes"}),
    "YOLO with corners in pixels": ("centre", lambda b, s: b, {"pixels-for-fractions", "corners-for-sizes"}),
}


@pytest.mark.parametrize("name", MISTAKES)
@pytest.mark.parametrize("count", [40, 400])
def test_a_mistake_is_recognised_and_converted(name, count, monkeypatch):
    monkeypatch.setattr("detect.data.mistakes.orientation", lambda path: 1)
    layout, write, rules = MISTAKES[name]
    boxes, limits = true_boxes(count, seed=count)
    start = read_as(layout, write(boxes, limits))
    voc = layout == "voc"
    annotations, sizes = annotations_of(
        start, "corners" if voc else layout, normalised=layout == "centre", first_pixel=int(voc)
    )
    log = DefectLog(Path("root"), "train")
    found = correct_mistakes(annotations, sizes, log)
    np.testing.assert_allclose(found.boxes, boxes, atol=1e-9)
    assert found.normalised is False
    with pytest.raises(UserError, match=rf"^root, split train: .*{count} of {count} boxes fit as .*--fix OUT"):
        log.raise_refused()
    assert {rule for rule in RULES if rule in str(_refusal(log))} >= rules
    assert set(find_mistake(annotations, sizes).rules) == rules
    kept = repair(found, sizes, DefectLog(Path("root"), "train"))
    np.testing.assert_array_equal(kept.boxes, boxes.astype(np.float32))


def test_the_corner_in_place_of_the_centre():
    """Large boxes leave their images to the left and above, as half of their size is taken off."""
    random = np.random.default_rng(0)
    sides = random.integers(np.array(WIDE) // 3, np.array(WIDE), (40, 2))
    start = random.integers(0, np.array(WIDE) - sides + 1)
    boxes = np.hstack([start, start + sides]).astype(np.float64)
    annotations, sizes = annotations_of(
        read_as("centre", sizes_of(boxes / np.tile(WIDE, 2))), "centre", normalised=True
    )
    mistake = find_mistake(annotations, sizes)
    assert mistake is not None and mistake.rules == ("corner-for-centre",)
    np.testing.assert_allclose(corrected(annotations, sizes, mistake.reading).boxes, boxes, atol=1e-9)


def _refusal(log):
    with pytest.raises(UserError) as error:
        log.raise_refused()
    return error.value


@pytest.mark.parametrize("scale", [(0.5, 0.5), (0.9, 0.9), (2, 2), (1, 4 / 3), (0.25, 0.5)])
def test_images_that_were_scaled_after_their_boxes_were_drawn(scale):
    boxes, _ = true_boxes(40)
    size = tuple(round(side * factor) for side, factor in zip(WIDE, scale, strict=True))
    annotations, sizes = annotations_of(boxes, "corners", [size] * 4, declared=WIDE)
    mistake = find_mistake(annotations, sizes)
    assert mistake.rules == ("scaled-images",) and "40 of 40 boxes" in mistake.detail
    right = boxes * np.tile(np.divide(size, WIDE), 2)
    np.testing.assert_allclose(corrected(annotations, sizes, mistake.reading).boxes, right)


def test_a_wrong_size_in_the_file_alone_proves_nothing():
    boxes, _ = true_boxes(40)
    assert find_mistake(*annotations_of(boxes, "corners", [WIDE] * 4, declared=(60, 40))) is None
    assert find_mistake(*annotations_of(boxes, "corners", [WIDE] * 4, declared=(240, 160))) is None


def test_boxes_before_a_rotation_by_exif_data_are_not_exchanged(tmp_path):
    boxes, _ = true_boxes(40)
    annotations, sizes = annotations_of(boxes, "corners", [HIGH] * 2)
    tags = Image.Exif()
    tags[0x0112] = 6
    for rotated in (False, True):
        paths = [tmp_path / f"{rotated}{index}.png" for index in range(2)]
        for path in paths:
            Image.new("RGB", WIDE if rotated else HIGH).save(path, **({"exif": tags} if rotated else {}))
        mistake = find_mistake(replace(annotations, paths=paths), sizes)
        assert (mistake is None) == rotated


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_few_boxes_of_another_unit_are_recognised(count):
    boxes, limits = true_boxes(count)
    fractions = annotations_of(boxes / np.tile(limits, 2), "sizes")
    assert find_mistake(*fractions).rules[0] == "fractions-for-pixels"
    pixels = annotations_of(read_as("centre", centres_of(boxes)), "centre", normalised=True)
    assert find_mistake(*pixels).rules == ("pixels-for-fractions",)


def test_another_split_with_a_mistake_decides_where_few_boxes_do_not():
    annotations, sizes = annotations_of(read_as("sizes", np.array([[10.0, 10, 40, 30], [5, 5, 30, 20]])), "sizes")
    assert find_mistake(annotations, sizes) is None
    expected = Reading("corners")
    assert find_mistake(annotations, sizes, expected).rules == ("corners-for-sizes",)
    boxes, _ = true_boxes(50)
    assert find_mistake(*annotations_of(boxes, "sizes"), expected) is None


def test_the_areas_of_a_mistaken_file_are_kept_if_they_fit_its_boxes():
    boxes, _ = true_boxes(12)
    annotations, sizes = annotations_of(read_as("sizes", boxes), "sizes")
    right = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    for areas, kept in ((right, right), (right * 0.7, right * 0.7), (boxes[:, 2:].prod(axis=1) + right, np.nan)):
        found = corrected(replace(annotations, areas=areas), sizes, Reading("corners"))
        np.testing.assert_array_equal(found.areas, np.broadcast_to(kept, right.shape))


# ---- correct splits --------------------------------------------------------------------------------------------------

KINDS = [("sizes", False, 0), ("corners", False, 0), ("corners", False, 1), ("centre", True, 0)]


@st.composite
def correct_splits(draw):
    """Draw a split with boxes of any place and size of a pixel or more within images of any shape."""
    sizes = draw(st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), min_size=1, max_size=5))
    if draw(st.booleans()):
        sizes = [(width, width) for width, _ in sizes]
    count = draw(st.integers(0, 40))
    corner = st.floats(0, 1)
    rows = draw(st.lists(st.tuples(corner, corner, corner, corner), min_size=count, max_size=count))
    limits = np.array([sizes[index % len(sizes)] for index in range(count)]).reshape(-1, 2)
    places = np.array(rows).reshape(-1, 4)
    sides = 1 + places[:, 2:] * (limits - 1)
    start = places[:, :2] * (limits - sides)
    boxes = np.hstack([start, start + sides])
    if draw(st.booleans()):
        boxes = np.round(boxes)
    declared = draw(st.sampled_from([None, sizes]))
    return boxes, sizes, declared


@pytest.mark.parametrize(("layout", "normalised", "first_pixel"), KINDS)
@settings(max_examples=150, deadline=None)
@given(split=correct_splits())
def test_a_correct_split_is_never_mistaken(layout, normalised, first_pixel, split):
    boxes, sizes, declared = split
    limits = np.tile(np.array([sizes[index % len(sizes)] for index in range(len(boxes))]).reshape(-1, 2), 2)
    annotations, actual = annotations_of(
        boxes / limits if normalised else boxes, layout, sizes, declared, normalised, first_pixel
    )
    assert find_mistake(annotations, actual) is None


@pytest.mark.parametrize(("layout", "normalised", "first_pixel"), KINDS)
@pytest.mark.parametrize("excess", [0.05, 0.3])
def test_careless_boxes_beyond_their_images_are_not_mistaken(layout, normalised, first_pixel, excess):
    """One large object in each image, with a box that exceeds it to any side."""
    random = np.random.default_rng(0)
    boxes = np.array([10, 10, 110, 70]) + random.uniform(-excess, excess, (200, 4)) * 80
    boxes = boxes / np.tile(WIDE, 2) if normalised else boxes
    annotations, sizes = annotations_of(boxes, layout, [WIDE] * 5, None, normalised, first_pixel)
    assert find_mistake(annotations, sizes) is None


@pytest.mark.parametrize("box", [(5, 5, -3, 9), (30, 30, 30, 30), (0, 0, 0, 0), (-500, 5, 500, 9), (np.nan, 1, 2, 3)])
def test_bad_boxes_are_left_to_the_repair(box):
    for count in (1, 3, 30):
        annotations, sizes = annotations_of([box] * count, "sizes")
        log = DefectLog(Path("root"), "train")
        assert correct_mistakes(annotations, sizes, log) is annotations
        log.raise_refused()


def test_a_split_without_images_or_boxes_or_readable_images():
    assert find_mistake(*annotations_of([], "sizes")) is None
    annotations, sizes = annotations_of([[0.1, 0.1, 0.2, 0.2]], "sizes")
    assert find_mistake(annotations, sizes * 0) is None
