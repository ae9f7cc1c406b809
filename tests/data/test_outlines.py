import numpy as np
import pytest

from detect.data.masks import Polygons, paste
from detect.data.outlines import trace


def bitmap_of(*boxes, size=(30, 40)):
    bitmap = np.zeros(size, np.uint8)
    for x1, y1, x2, y2 in boxes:
        bitmap[y1:y2, x1:x2] = 1
    return bitmap


def corners(outlines):
    return [sorted(map(tuple, outline.tolist())) for outline in outlines]


def area(outlines) -> list[float]:
    return [Polygons((outline,)).area() for outline in outlines]


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (6, 5)])
def test_no_pixels_have_no_outlines(size):
    assert trace(np.zeros(size, np.uint8)) == []


@pytest.mark.parametrize("box", [(10, 5, 20, 9), (3, 4, 4, 5), (0, 0, 40, 30), (7, 2, 8, 30)])
def test_a_rectangle_has_its_own_corners(box):
    outlines = trace(bitmap_of(box))
    x1, y1, x2, y2 = box
    assert corners(outlines) == [sorted([(x1, y1), (x1, y2), (x2, y1), (x2, y2)])]


def test_the_inner_corner_of_an_l():
    outlines = trace(bitmap_of((2, 3, 5, 10), (5, 7, 12, 10)))
    assert corners(outlines) == [[(2, 3), (2, 10), (5, 3), (5, 7), (12, 7), (12, 10)]]


def test_a_window_is_moved_to_its_place():
    outlines = trace(bitmap_of((1, 1, 3, 4), size=(5, 4)), left=100, top=50)
    assert corners(outlines) == [[(101, 51), (101, 54), (103, 51), (103, 54)]]


def test_pieces_and_holes_have_outlines_of_their_own():
    ring = bitmap_of((10, 10, 20, 20), (30, 2, 36, 4))
    ring[13:17, 13:18] = 0
    outlines = trace(ring)
    assert sorted(area(outlines)) == [12, 20, 100]
    assert [(13, 13), (13, 17), (18, 13), (18, 17)] in corners(outlines)


def test_filled_outlines_are_the_mask():
    """By the even-odd rule: the area of pixels is that of the pieces without that of the holes."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        y, x = np.mgrid[:28, :28]
        probabilities = (np.hypot(x - 13.5, y - 13.5) + rng.normal(0, 2, (28, 28)) < 11).astype(np.float32)
        left, top, width, height = rng.uniform((0, 0, 2, 2), (20, 10, 60, 50))
        window, *corner = paste(probabilities, (left, top, left + width, top + height), 60, 80)
        pasted, parity = np.zeros((60, 80), np.uint8), np.zeros((60, 80), np.uint8)
        pasted[corner[1] : corner[1] + window.shape[0], corner[0] : corner[0] + window.shape[1]] = window
        for outline in trace(window, *corner):
            parity ^= Polygons((outline,)).bitmap(60, 80)
        np.testing.assert_array_equal(parity, pasted)
