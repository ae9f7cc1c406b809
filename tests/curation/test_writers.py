"""Written numbers are read back unchanged in every format."""

from pathlib import Path

import numpy as np
import pytest

from detect.curation.writers import coco_boxes, voc_boxes, yolo_boxes
from detect.data.dataset import Dataset
from detect.data.records import Record

WIDTH, HEIGHT = 641, 483


def dataset(boxes) -> Dataset:
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    none = np.zeros(len(boxes), bool)
    record = Record(1, Path("a.jpg"), WIDTH, HEIGHT, boxes, none.astype(np.int64), none, none, none.astype(np.float64))
    return Dataset(Path(), "train", "coco", ("cat",), (1,), (record,))


def from_coco(numbers):
    return np.hstack([numbers[:, :2], numbers[:, :2] + numbers[:, 2:]])


def from_voc(numbers):
    first, last = numbers[:, :2], numbers[:, 2:]
    return np.hstack([first - (first < last), last])


def from_yolo(numbers):
    centre, side = numbers[:, :2], numbers[:, 2:]
    return np.hstack([centre - side / 2, centre + side / 2]) * (WIDTH, HEIGHT, WIDTH, HEIGHT)


def drawn(thinnest: float, count: int = 4000):
    """Return boxes at random float32 positions, on quarters of a pixel, on whole pixels, and along the image edges."""
    rng = np.random.default_rng(0)
    size = np.array([WIDTH, HEIGHT])
    kinds = [
        rng.uniform(0, size, (count, 2, 2)),
        rng.integers(0, 4 * size, (count, 2, 2)) / 4,
        rng.integers(0, size, (count, 2, 2)),
        rng.choice([0, 0.5, 1], (count, 2, 2)) * size,
        10 ** rng.uniform(-3, 2.5, (count, 2, 2)),
    ]
    ends = np.sort(np.choose(rng.integers(len(kinds), size=(count, 2, 2)), kinds), axis=1)
    ends[::7, 1] = np.minimum(ends[::7, 0] + thinnest * 10 ** rng.uniform(0, 1, (len(ends[::7]), 2)), size)
    ends = ends.astype(np.float32)
    return ends[(np.diff(ends.astype(np.float64), axis=1) > thinnest).all(axis=(1, 2))].reshape(-1, 4)


@pytest.mark.parametrize(
    ("write", "read", "thinnest"),
    [(coco_boxes, from_coco, 0.001), (voc_boxes, from_voc, 1.0), (yolo_boxes, from_yolo, 0.001)],
)
def test_every_box_comes_back(write, read, thinnest):
    expected = dataset(drawn(thinnest))
    back = read(write(expected))
    inside = np.clip(back, 0, (WIDTH, HEIGHT, WIDTH, HEIGHT))
    assert len(back) > 1500 and np.abs(back - inside).max() < 1e-9
    assert (back[:, 2:] - back[:, :2]).min() >= min(thinnest, 1)
    np.testing.assert_array_equal(inside.astype(np.float32), expected.records[0].boxes)


def test_boxes_are_written_as_a_person_would():
    given = dataset([[0, 0, WIDTH, HEIGHT], [12, 7, 20, 11], [0.1, 0.25, 10.2, 3.7]])
    np.testing.assert_array_equal(coco_boxes(given), [[0, 0, WIDTH, HEIGHT], [12, 7, 8, 4], [0.1, 0.25, 10.1, 3.45]])
    np.testing.assert_array_equal(voc_boxes(given), [[1, 1, WIDTH, HEIGHT], [13, 8, 20, 11], [1.1, 1.25, 10.2, 3.7]])
    whole, one = yolo_boxes(given)[:2]
    np.testing.assert_array_equal(whole, [0.5, 0.5, 1, 1])
    np.testing.assert_allclose(one, [16 / WIDTH, 9 / HEIGHT, 8 / WIDTH, 4 / HEIGHT], atol=1e-7)
    assert max(len(repr(float(number))) for number in one) <= 12


@pytest.mark.parametrize("write", [coco_boxes, voc_boxes, yolo_boxes])
def test_no_box(write):
    assert write(dataset([])).shape == (0, 4)
