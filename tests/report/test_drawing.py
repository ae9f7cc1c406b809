import numpy as np
import pytest

from detect.report.drawing import COLOURS, draw_boxes

GREY = 128
# A square of 6 × 6 pixels with a corner at (20, 10) in a window with a margin.
SQUARE = np.pad(np.ones((6, 6), np.uint8), 1), 19, 9
FAR = np.array([[60, 60, 79, 79]], np.float32)


def grey(height=80, width=100):
    return np.full((height, width, 3), GREY, np.uint8)


def drawn(masks, labels=(0,), boxes=FAR):
    """Draw masks, with boxes and empty texts somewhere else."""
    boxes = np.repeat(boxes, len(labels), axis=0)
    return draw_boxes(grey(), boxes, np.array(labels, int), [""] * len(labels), masks)


def blend(label):
    return np.rint(GREY + 0.4 * (np.array(COLOURS[label]) - GREY)).astype(np.uint8)


def test_no_boxes_with_masks():
    image = grey()
    result = draw_boxes(image, np.empty((0, 4), np.float32), np.empty(0, int), [], masks=[])
    np.testing.assert_array_equal(result, image)
    assert result is not image


def test_a_mask_is_translucent_with_a_contour_in_the_colour_of_its_class():
    picture = drawn([SQUARE], [2])
    changed = (picture != drawn(None, [2])).any(axis=-1)
    expected = np.zeros((80, 100), bool)
    expected[10:16, 20:26] = True
    np.testing.assert_array_equal(changed, expected)
    assert (picture[11:15, 21:25] == blend(2)).all()
    for line in (picture[10, 20:26], picture[15, 20:26], picture[10:16, 20], picture[10:16, 25]):
        assert (line == COLOURS[2]).all()


def test_the_first_of_two_masks_is_on_top():
    bitmap, left, top = SQUARE
    picture = drawn([SQUARE, (bitmap, left + 3, top)], [1, 3])
    assert (picture[10:16, 25] == COLOURS[1]).all()
    twice = np.rint(blend(3) + 0.4 * (np.array(COLOURS[1]) - blend(3).astype(float))).astype(np.uint8)
    np.testing.assert_array_equal(picture[12, 24], twice)
    np.testing.assert_array_equal(picture[12, 26], blend(3))


def test_boxes_are_above_masks():
    whole = np.ones((80, 100), np.uint8), 0, 0
    with_mask, without = drawn([whole], [1]), drawn(None, [1])
    box_and_text = (without != GREY).any(axis=-1)
    np.testing.assert_array_equal(with_mask[box_and_text], without[box_and_text])


@pytest.mark.parametrize("bitmap", [np.zeros((0, 5), np.uint8), np.zeros((7, 7), np.uint8)])
def test_masks_without_pixels(bitmap):
    np.testing.assert_array_equal(drawn([(bitmap, 3, 4)]), drawn(None))
