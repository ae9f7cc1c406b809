"""Anchor ceiling against all anchors of the generator, and proposed anchors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detect.curation.doctor import anchor_recall
from detect.curation.doctor.anchor_recall import (
    Anchors,
    GroundTruths,
    best_overlaps,
    ceiling,
    ground_truths,
    kmeans,
    propose,
    shape_iou,
)
from detect.data.records import Record
from detect.data.transforms import Resize
from detect.models.anchors import AnchorGenerator
from detect.ops.boxes import iou_matrix


def record(boxes, width=200, height=100, crowd=()):
    n = len(boxes)
    boxes = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    flags = np.zeros(n, dtype=bool)
    flags[list(crowd)] = True
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1).astype(np.float64)
    return Record(1, Path("a.jpg"), width, height, boxes, np.zeros(n, np.int64), flags, np.zeros(n, bool), areas)


def made(boxes, canvas, image=None):
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    n = len(boxes)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    sizes = np.tile(np.array(image or canvas, dtype=np.float64), (n, 1))
    return GroundTruths(boxes, sizes, np.tile(np.array(canvas), (n, 1)), areas)


def test_no_ground_truths():
    none = ground_truths([record([])], Resize(100, 200), 1)
    assert len(none.boxes) == 0 and ceiling(none, Anchors(((32.0,),), (1.0,), (16,))) == {}
    assert ground_truths([], Resize(100, 200), 1).boxes.shape == (0, 4)


def test_by_hand():
    anchors = Anchors(sizes=((16.0,),), ratios=(1.0,), strides=(16,), offset=0.5)
    same = made([[16, 16, 32, 32], [16, 16, 32, 24], [20, 16, 36, 32], [0, 0, 64, 64]], (64, 64))
    np.testing.assert_allclose(best_overlaps(same, anchors), [1, 0.5, 12 / 20, 1 / 16])
    rows = ceiling(same, anchors)
    assert rows["all"] == {"truths": 4, "0.5": 0.75, "0.7": 0.25, "mean": pytest.approx((1 + 0.5 + 0.6 + 1 / 16) / 4)}
    assert rows["wide, 3 : 2 to 3 : 1"]["truths"] == 1 and rows["square"]["truths"] == 3
    assert rows["small, up to 32²"]["truths"] == 3 and rows["medium"]["truths"] == 1


def test_ground_truths_are_as_the_network_sees_them():
    seen = ground_truths([record([[10, 20, 50, 60], [0, 0, 9, 9]], crowd=[1])], Resize(50, 1000), 1)
    np.testing.assert_allclose(seen.boxes, [[5, 10, 25, 30]])
    assert seen.images.tolist() == [[50, 100]] and seen.canvases.tolist() == [[64, 128]]
    assert seen.areas.tolist() == [1600]  # of the file


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([None, 0.0, 8.0]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0.0, 0.5]),
)
def test_the_nearest_cell_has_the_best_of_all_anchors(seed, border, rounded, fitted, offset):
    rng = np.random.default_rng(seed)
    strides, sizes, ratios = (8, 16, 64), ((11.0,), (33.0,), (90.0,)), (0.4, 1.0, 2.3)
    height, width = (int(side) * 32 for side in rng.integers(1, 6, 2))
    image = height - int(rng.integers(0, 32)), width - int(rng.integers(0, 32))
    x, y = np.sort(rng.uniform(0, image[1], (6, 2)), axis=1), np.sort(rng.uniform(0, image[0], (6, 2)), axis=1)
    corners = np.stack([x[:, 0], y[:, 0], x[:, 1] + 0.1, y[:, 1] + 0.1], axis=1)
    generator = AnchorGenerator(strides, sizes, ratios, offset, rounded, fitted)
    every = generator([torch.zeros(1, 1, -(-height // s), -(-width // s)) for s in strides]).double()
    if border is not None:
        x1, y1, x2, y2 = every.unbind(-1)
        inside = (x1 >= -border) & (y1 >= -border) & (x2 <= image[1] + border) & (y2 <= image[0] + border)
        every = every[inside]
    expected = iou_matrix(torch.from_numpy(corners), every).amax(dim=1) if len(every) else torch.zeros(6)
    found = best_overlaps(
        made(corners, (height, width), image), Anchors(sizes, ratios, strides, offset, rounded, fitted, border)
    )
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_the_proposal_finds_the_shapes_of_the_data():
    """Ground truths of two sizes and two ratios, and anchors that fit none of them."""
    rng = np.random.default_rng(0)
    size, ratio = rng.choice([24.0, 80.0], 400), rng.choice([0.5, 2.0], 400)
    sides = np.stack([size / np.sqrt(ratio), size * np.sqrt(ratio)], axis=1)
    corner = rng.uniform(0, 512 - 120, (400, 2))
    data = made(np.concatenate([corner, corner + sides], axis=1), (512, 512))
    start = Anchors(sizes=((40.0,), (300.0,)), ratios=(0.9, 1.1), strides=(4, 8))
    better = propose(data, start)
    assert better.sizes == ((24.0,), (80.0,)) and better.ratios == (0.5, 2.0)
    assert ceiling(data, better)["all"]["0.7"] == 1 > ceiling(data, start)["all"]["0.7"]
    assert anchor_recall.as_yaml(better) == (
        "model:\n  rpn:\n    anchor_sizes: [24, 80]\n    anchor_ratios: [0.5, 2]\n"
    )
    shapes, mean = kmeans(sides, 4)
    assert mean == pytest.approx(1) and len(shapes) == 4


def test_a_proposal_is_never_worse():
    rng = np.random.default_rng(1)
    corner = rng.uniform(0, 200, (50, 2))
    data = made(np.concatenate([corner, corner + rng.uniform(2, 150, (50, 2))], axis=1), (384, 384))
    start = Anchors(sizes=((32.0, 64.0, 128.0),), ratios=(0.5, 1.0, 2.0), strides=(16,))
    better = propose(data, start)
    met = [[row["0.5"] + row["0.7"] for row in [ceiling(data, one)["all"]]] for one in (start, better)]
    assert met[1] > met[0]
    assert len(better.sizes[0]) == 3 and len(better.ratios) == 3
    assert propose(made([], (64, 64)), start) == start


def test_overlap_of_shapes():
    np.testing.assert_allclose(shape_iou(np.array([[2.0, 4.0]]), np.array([[2.0, 4.0], [4.0, 2.0]])), [[1, 4 / 12]])
    shapes, mean = kmeans(np.array([[3.0, 5.0]]), 4)
    assert shapes.tolist() == [[3, 5]] and mean == 1
