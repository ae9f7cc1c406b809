from dataclasses import replace

import numpy as np
import pytest

from detect.data.options import DataOptions
from detect.data.transforms import Augmentation, Resize, resize
from detect.errors import UserError

NONE = np.zeros((0, 4), np.float32)


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (600, 800, (300, 400)),  # the short side decides
        (800, 600, (400, 300)),
        (300, 900, (167, 500)),  # the long side decides: 500 / 900 · 300 = 166.7
        (150, 150, (300, 300)),  # enlarged
        (1, 9000, (1, 500)),  # never 0
    ],
)
def test_the_size_follows_the_short_side_unless_the_long_one_is_too_long(height, width, expected):
    assert Resize(short_side=300, long_side=500).size(height, width) == expected


def test_sides_in_training_and_evaluation():
    given = DataOptions(short_side=(320, 640), long_side=1000)
    assert given.train_sides == [(320, 1000), (640, 1000)] and given.eval_sides == (640, 1000)
    assert replace(given, eval_short_side=416).eval_sides == (416, 1000)
    square = replace(given, eval_short_side=416, long_side=None)
    assert square.train_sides == [(320, 320), (640, 640)] and square.eval_sides == (416, 416)
    assert Resize.for_evaluation(square).size(480, 640) == (312, 416)


@pytest.mark.parametrize("size", [(10, 20), (20, 40), (40, 80)])
def test_a_resized_image_has_the_size_and_a_constant_stays_constant(size):
    assert (resize(np.full((20, 40, 3), 77, np.uint8), size) == 77).all()
    assert resize(picture(20, 40), size).shape == (*size, 3)


def test_halving_averages_each_four_pixels():
    image = picture(8, 12)
    means = image.reshape(4, 2, 6, 2, 3).mean(axis=(1, 3))
    assert np.abs(resize(image, (4, 6)) - means).max() <= 1


def test_without_steps_nothing_changes():
    image, boxes = picture(8, 10), np.array([[1, 2, 3, 4]], np.float32)
    out, out_boxes, kept, _ = Augmentation([])(image, boxes, seed=3)
    assert out is image and out_boxes is boxes and kept.tolist() == [0]


@pytest.mark.parametrize(
    ("name", "pixels", "expected"),
    [
        ("HorizontalFlip", lambda image: image[:, ::-1], [[6, 2, 9, 5]]),  # of width 10: x → 10 - x
        ("VerticalFlip", lambda image: image[::-1], [[1, 3, 4, 6]]),  # of height 8
        ("Transpose", lambda image: image.transpose(1, 0, 2), [[2, 1, 5, 4]]),
    ],
)
def test_boxes_follow_the_pixels(name, pixels, expected):
    image, boxes = picture(8, 10), np.array([[1, 2, 4, 5]], np.float32)
    out, out_boxes, kept, _ = Augmentation([{name: {"p": 1.0}}])(image, boxes, seed=0)
    assert (out == pixels(image)).all()
    np.testing.assert_allclose(out_boxes, expected, atol=1e-4)
    assert kept.tolist() == [0]


def test_an_image_without_boxes_is_augmented_too():
    out, boxes, kept, _ = Augmentation([{"HorizontalFlip": {"p": 1.0}}])(picture(8, 10), NONE, seed=0)
    assert out.shape == (8, 10, 3) and boxes.shape == (0, 4) and kept.shape == (0,)


def test_the_indices_of_the_remaining_boxes_are_returned():
    crop = Augmentation([{"Crop": {"x_min": 10, "y_min": 0, "x_max": 20, "y_max": 20, "p": 1.0}}])
    boxes = np.array([[1, 1, 5, 5], [12, 3, 30, 9], [8, 0, 14, 4]], np.float32)  # outside, clipped right, clipped left
    image, out, kept, _ = crop(picture(20, 40), boxes, seed=0)
    assert image.shape == (20, 10, 3) and kept.tolist() == [1, 2]
    np.testing.assert_allclose(out, [[2, 3, 10, 9], [0, 0, 4, 4]], atol=1e-4)


def test_the_seed_alone_decides():
    steps = [{"HorizontalFlip": {"p": 0.5}}, {"ColorJitter": {"p": 1.0}}, {"RandomRotate90": {"p": 0.5}}]
    image, boxes = picture(16, 24), np.array([[1, 2, 9, 7]], np.float32)
    augmentation = Augmentation(steps)
    first = [augmentation(image, boxes, seed) for seed in (1, 2, 2**40 + 3)]
    for seed, (pixels, out, *_) in zip((2**40 + 3, 2, 1), reversed(first), strict=True):
        again = Augmentation(steps)(image, boxes, seed)
        assert (again[0] == pixels).all() and (again[1] == out).all()
    assert first[0][0].tobytes() != first[1][0].tobytes()


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (
            {"HorizontlFlip": {}},
            "data.augment: albumentations has no transform named 'HorizontlFlip'; did you mean ",
        ),
        ({"Xyzzy": None}, "no transform named 'Xyzzy'; the names are those of albumentations"),
        ({"Compose": {}}, "no transform named 'Compose'"),
        ({"HorizontalFlip": {"p": 2}}, "data.augment: HorizontalFlip: p: .*less than or equal to 1, not 2$"),
        ({"HorizontalFlip": {"prob": 1}}, "data.augment: HorizontalFlip: .*prob"),
        ({"HorizontalFlip": 0.5}, "data.augment: HorizontalFlip: .*mapping"),
    ],
)
def test_a_wrong_step_is_a_mistake_in_one_line(step, message):
    with pytest.raises(UserError, match=message) as caught:
        Augmentation([step])
    assert "\n" not in str(caught.value)


def test_steps_may_leave_the_boxes_alone():
    image, boxes = picture(8, 10), np.array([[1, 2, 3, 4]], np.float32)
    out, out_boxes, *_ = Augmentation([{"InvertImg": {"p": 1.0}}])(image, boxes, seed=0)
    assert (out == 255 - image).all()
    np.testing.assert_allclose(out_boxes, boxes, atol=1e-5)


def test_a_transform_that_fails_on_an_image_is_a_mistake_in_one_line():
    crop = Augmentation([{"Crop": {"x_min": 0, "y_min": 0, "x_max": 9, "y_max": 9, "p": 1.0}}])
    with pytest.raises(UserError, match=r"^data.augment: ValueError: .* on an image of 8 × 10; choose") as caught:
        crop(picture(8, 10), NONE, seed=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["Normalize", "ToFloat"])
def test_an_image_that_is_no_longer_8_bits_is_a_mistake(name):
    with pytest.raises(UserError, match="not 8-bit RGB"):
        Augmentation([{name: {"p": 1.0}}])(picture(8, 8), NONE, seed=0)


# ---- masks -----------------------------------------------------------------------------------------------------------


def bitmaps(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the bitmaps of boxes on whole pixels."""
    masks = np.zeros((len(boxes), height, width), np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int), strict=True):
        mask[max(0, y1) : y2, max(0, x1) : x2] = 1
    return masks


@pytest.mark.parametrize("name", ["HorizontalFlip", "VerticalFlip", "Transpose", "RandomRotate90"])
def test_masks_go_where_their_boxes_go(name):
    boxes = np.array([[1, 2, 4, 5], [0, 0, 10, 8], [6, 1, 8, 2]], np.float32)
    out = Augmentation([{name: {"p": 1.0}}])(picture(8, 10), boxes, 0, bitmaps(boxes, 8, 10))
    assert out.kept.tolist() == [0, 1, 2] and out.masks.dtype == np.uint8
    assert np.array_equal(out.masks, bitmaps(np.round(out.boxes), *out.image.shape[:2]))


@pytest.mark.parametrize("name", ["HorizontalFlip", "VerticalFlip", "Transpose"])
def test_flips_keep_boxes_of_one_pixel(name):
    boxes = np.array([[x, y, x + 1, y + 1] for x in range(49) for y in range(37)], np.float32)
    assert len(Augmentation([{name: {"p": 1.0}}])(picture(37, 49), boxes, 0).kept) == len(boxes)


def test_masks_of_boxes_that_are_gone_keep_their_place():
    crop = Augmentation([{"Crop": {"x_min": 10, "y_min": 0, "x_max": 20, "y_max": 20, "p": 1.0}}])
    boxes = np.array([[1, 1, 5, 5], [12, 3, 30, 9], [8, 0, 14, 4]], np.float32)
    out = crop(picture(20, 40), boxes, 0, bitmaps(boxes, 20, 40))
    assert out.kept.tolist() == [1, 2] and out.masks.shape == (3, 20, 10) and not out.masks[0].any()
    assert np.array_equal(out.masks[out.kept], bitmaps(np.round(out.boxes), 20, 10))


@pytest.mark.parametrize("steps", [[], [{"HorizontalFlip": {"p": 1.0}}], [{"Transpose": {"p": 1.0}}]])
def test_an_image_without_objects_has_no_masks(steps):
    out = Augmentation(steps)(picture(8, 10), NONE, 0, np.empty((0, 8, 10), np.uint8))
    assert out.masks.shape == (0, *out.image.shape[:2]) and len(out.boxes) == 0


def test_masks_do_not_change_boxes_or_pixels():
    steps = [{"Affine": {"rotate": [-30, 30], "scale": [0.8, 1.2], "p": 1.0}}, {"HorizontalFlip": {"p": 0.5}}]
    image, boxes = picture(40, 60), np.array([[5, 5, 25, 20], [30, 10, 50, 35]], np.float32)
    for seed in range(5):
        plain = Augmentation(steps)(image, boxes, seed)
        masked = Augmentation(steps)(image, boxes, seed, bitmaps(boxes, 40, 60))
        assert np.array_equal(plain.image, masked.image) and np.array_equal(plain.boxes, masked.boxes)
        assert set(np.unique(masked.masks)) <= {0, 1} and plain.masks is None
