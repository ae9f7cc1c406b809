"""Mosaic and mixup: by hand, and against the pixels of coloured rectangles."""

from itertools import chain

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from detect.curation.shapes import make_shapes
from detect.data.datamodule import DetectionData
from detect.data.masks import bounds
from detect.data.mosaic import FILL, Combination, Picture, draw, fit, make_mosaic, mix, move
from detect.data.options import DataOptions, MixupOptions, MosaicOptions
from detect.errors import UserError

STILL = MosaicOptions(scale=(1, 1), degrees=0, translate=0, shear=0)
COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]
IDENTITY = np.eye(3)


class Middle(np.random.Generator):
    """A generator of the middle of each range, which makes one corner of the mosaic the middle of the canvas."""

    def __init__(self):
        super().__init__(np.random.PCG64(0))

    def uniform(self, low, high, size=None):
        return np.full(size, (low + high) / 2) if size else (low + high) / 2

    def random(self, size=None):
        return self.uniform(0, 1, size)


def picture(size, boxes=(), colours=(), labels=(), masks=False, ground=0) -> Picture:
    """Return an image with a rectangle in each box; boxes are on whole pixels."""
    image = np.full((*size, 3), ground, np.uint8)
    bitmaps = np.zeros((len(boxes), *size), np.uint8)
    for row, (x1, y1, x2, y2) in enumerate(boxes):
        image[y1:y2, x1:x2] = colours[row] if colours else 255
        bitmaps[row, y1:y2, x1:x2] = 1
    labels = np.array(labels or range(len(boxes)), np.int64)
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return Picture(image, boxes, labels, np.zeros(len(boxes), bool), bitmaps if masks else None)


def flat(value: int, boxes=(), masks=False) -> Picture:
    """Return an image of 4 × 4 pixels of one value."""
    return picture((4, 4), boxes, [(value,) * 3] * len(boxes), [value] * len(boxes), masks, ground=value)


# ---- mosaic ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masks", [False, True])
def test_four_flat_images_by_hand(masks):
    """Images of 4 × 4 become 8 × 8 around (8, 8) of a mosaic of 16 × 16; the canvas shows 4 … 12."""
    boxes = [[(1, 1, 3, 3)], [(0, 2, 1, 4), (3, 0, 4, 1)], [], [(0, 0, 4, 4)]]
    out = make_mosaic([flat(10 * (i + 1), boxes[i], masks) for i in range(4)], (8, 8), STILL, Middle())
    quarters = [out.image[:4, :4], out.image[:4, 4:], out.image[4:, :4], out.image[4:, 4:]]
    for quarter, value in zip(quarters, (10, 20, 30, 40), strict=True):
        assert (quarter == value).all()
    # x → 2 x - 4 in the first and third image, 2 x + 4 in the others, clipped to the canvas; y likewise. The second box
    # of the second image lies beyond the canvas.
    assert out.boxes.tolist() == [[0, 0, 2, 2], [4, 0, 6, 4], [4, 4, 8, 8]]
    assert out.labels.tolist() == [10, 20, 40] and not out.crowd.any()
    if masks:
        assert [bounds(mask) for mask in out.masks] == [(0, 0, 2, 2), (4, 0, 6, 4), (4, 4, 8, 8)]
        assert out.masks.sum() == 4 + 8 + 16


def test_an_image_keeps_its_shape_and_the_rest_of_the_canvas_is_grey():
    half = MosaicOptions(scale=(0.5, 0.5), degrees=0, translate=0, shear=0)
    wide = picture((2, 4), ground=200)
    out = make_mosaic([wide] * 4, (8, 8), half, Middle())
    # Each image is 4 × 2 beside the middle.
    expected = np.full((8, 8, 3), FILL)
    expected[2:6] = 200
    assert np.array_equal(out.image, expected) and out.boxes.shape == (0, 4) and out.masks is None


def colour_bounds(image: np.ndarray, colour) -> tuple[int, int, int, int] | None:
    return bounds(((image > 127) == (np.array(colour) > 127)).all(axis=-1).astype(np.uint8))


def coloured(masks: bool) -> list[Picture]:
    sizes, boxes = [(60, 80), (80, 60), (40, 200), (150, 150)], [(10, 12, 40, 50), (5, 9, 33, 60), (50, 8, 160, 30)]
    boxes.append((30, 40, 100, 140))
    return [picture(sizes[i], [boxes[i]], [COLOURS[i]], [i], masks) for i in range(4)]


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_boxes_bound_the_pixels_of_their_objects(seed, masks):
    """Turned objects are bounded if they have masks; otherwise their boxes are larger, as after any rotation."""
    turned = {"degrees": 25, "shear": 8} if masks else {"degrees": 0, "shear": 0}
    options = MosaicOptions(scale=(0.4, 2.0), **turned)
    out = make_mosaic(coloured(masks), (96, 128), options, np.random.default_rng(seed))
    assert out.image.shape == (96, 128, 3)
    for label in range(4):
        seen = colour_bounds(out.image, COLOURS[label])
        rows = np.flatnonzero(out.labels == label)
        if seen is None or min(seen[2] - seen[0], seen[3] - seen[1]) < 3:
            continue
        assert len(rows) == 1
        np.testing.assert_allclose(out.boxes[rows[0]], seen, atol=1.01)
        if masks:
            object_ = ((out.image > 127) == (np.array(COLOURS[label]) > 127)).all(axis=-1)
            common = (object_ & out.masks[rows[0]].astype(bool)).sum()
            assert common / (object_ | out.masks[rows[0]].astype(bool)).sum() > 0.8


@pytest.mark.parametrize("seed", range(5))
def test_boxes_of_turned_objects_hold_their_pixels(seed):
    out = make_mosaic(coloured(False), (96, 128), MosaicOptions(), np.random.default_rng(seed))
    for box, label in zip(out.boxes, out.labels, strict=True):
        if (seen := colour_bounds(out.image, COLOURS[label])) is not None:
            assert (box[:2] <= np.add(seen[:2], 1)).all() and (box[2:] >= np.subtract(seen[2:], 1)).all()


def test_boxes_move_with_the_corners():
    boxes = np.array([[0, 0, 4, 2], [1, 1, 3, 9]], np.float32)
    quarter = np.array([[0, -1, 6], [1, 0, 0], [0, 0, 1.0]])  # x → 6 - y, y → x
    assert move(boxes, quarter, (10, 10)).tolist() == [[4, 0, 6, 4], [0, 1, 5, 3]]
    assert move(np.empty((0, 4)), quarter, (10, 10)).shape == (0, 4)


def test_narrow_boxes_are_dropped():
    one = picture((10, 10), [(0, 0, 1, 9), (0, 0, 2, 9), (4, 4, 6, 5)])
    assert draw(one, IDENTITY, np.zeros((10, 10, 3), np.uint8)).labels.tolist() == [1]


def test_an_object_without_a_mask_keeps_its_box():
    one = picture((10, 10), [(2, 2, 8, 8), (0, 0, 5, 5)], masks=True)
    one.masks[1] = 0
    out = draw(one, np.diag([2.0, 2, 1]), np.zeros((20, 20, 3), np.uint8))
    assert out.boxes.tolist() == [[4, 4, 16, 16], [0, 0, 10, 10]] and out.masks.sum(axis=(1, 2)).tolist() == [144, 0]


# ---- mixup -----------------------------------------------------------------------------------------------------------


def test_mixup_by_hand():
    """The other image, half as large as the canvas, is unflipped and in the middle."""
    one, other = flat(100, [(0, 0, 3, 3)]), flat(200, [(0, 1, 2, 4)])
    base = draw(one, fit(one, (8, 8)), np.zeros((8, 8, 3), np.uint8))
    out = mix(base, other, MixupOptions(scale=(0.5, 0.5)), Middle())
    expected = np.full((8, 8, 3), (100 + FILL) // 2)
    expected[2:6, 2:6] = 150
    assert np.array_equal(out.image, expected)
    assert out.boxes.tolist() == [[0, 0, 6, 6], [2, 3, 4, 6]] and out.labels.tolist() == [100, 200]


@pytest.mark.parametrize("seed", range(10))
def test_boxes_follow_the_mixed_image(seed):
    one, other = picture((96, 128)), coloured(True)[seed % 4]
    out = mix(one, other, MixupOptions(), np.random.default_rng(seed))
    seen = bounds((out.image.max(axis=-1) > 90).astype(np.uint8) & (np.ptp(out.image, axis=-1) > 60))
    if seen is not None and min(seen[2] - seen[0], seen[3] - seen[1]) > 2:
        np.testing.assert_allclose(out.boxes[0], seen, atol=1.01)
        np.testing.assert_allclose(out.boxes[0], bounds(out.masks[0]), atol=1.01)


def test_probabilities_choose():
    pictures = [flat(10), flat(20), flat(30)]

    def combine(mosaic, mixup, seed=0):
        return Combination(mosaic, mixup)(0, pictures.__getitem__, 3, (32, 32), seed)

    never, mixup = MosaicOptions(probability=0), MixupOptions(probability=1)
    assert combine(None, None) is None and combine(never, None) is None
    assert combine(never, mixup).image.shape == (32, 32, 3)
    half = [combine(MosaicOptions(probability=0.5), None, seed) is None for seed in range(100)]
    assert 35 < sum(half) < 65
    assert [Combination(*pair).most for pair in [(None, None), (never, None), (None, mixup), (never, mixup)]] == [
        *(1, 4, 2, 5)
    ]


# ---- loading ---------------------------------------------------------------------------------------------------------

BOTH = {"mosaic": MosaicOptions(), "mixup": MixupOptions(probability=0.5)}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shapes"
    return make_shapes(folder, images={"train": 8, "val": 3}, size=(64, 96), progress=False)


def data(root, masks=True, **options) -> DetectionData:
    given = {"root": root, "short_side": (48, 64), "long_side": 96, "batch_size": 2, "workers": 0} | BOTH | options
    return DetectionData(DataOptions(**given), seed=3, masks=masks)


def epochs(source: DetectionData, count: int = 2, closing_from: int | None = None) -> list[list]:
    source.closing_from = closing_from
    loader = source.train_dataloader()
    seen = []
    for epoch in range(count):
        loader.batch_sampler.set_epoch(epoch)
        seen.append(list(loader))
    return seen


def assert_equal_batches(one, other) -> None:
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.images.pixels, b.images.pixels) and torch.equal(a.images.sizes, b.images.sizes)
        for name in ("boxes", "labels", "valid", "crowd", "masks"):
            assert torch.equal(getattr(a.targets, name), getattr(b.targets, name))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(shapes, workers):
    alone, shared = epochs(data(shapes)), epochs(data(shapes, workers=workers))
    for one, other in zip(alone, shared, strict=True):
        assert_equal_batches(one, other)
    assert not torch.equal(alone[0][0].images.pixels, alone[1][0].images.pixels)


def test_an_epoch_continues_within(shapes):
    whole = epochs(data(shapes))[1]
    loader = data(shapes).train_dataloader()
    loader.batch_sampler.resume_at(1, 2)
    assert_equal_batches(list(loader), whole[2:])


def test_combined_images_fill_their_canvas_with_their_objects(shapes):
    for batch in chain(*epochs(data(shapes))):
        height, width = batch.images.pixels.shape[2:]
        assert batch.images.sizes.tolist() == [[height, width]] * 2 and not batch.closing
        boxes = batch.targets.boxes[batch.targets.valid]
        assert (boxes >= 0).all() and (boxes <= torch.tensor([width, height] * 2)).all()
        assert (boxes[:, 2:] - boxes[:, :2] > 1).all()
        assert batch.targets.masks[batch.targets.valid].flatten(1).any(1).all()


@pytest.mark.parametrize("workers", [0, 1])
def test_images_of_closing_epochs_are_plain(shapes, workers):
    """Also those of workers that have loaded mosaics before."""
    combined, plain = data(shapes, workers=workers), data(shapes, mosaic=None, mixup=None)
    first, last = epochs(combined, closing_from=1)
    assert_equal_batches(last, epochs(plain)[1])
    assert_equal_batches(first, epochs(data(shapes))[0])
    assert [bool(batch.closing) for batch in (*first, *last)] == [False] * len(first) + [True] * len(last)


def test_validation_images_are_plain(shapes):
    combined, plain = data(shapes).val_dataloader(), data(shapes, mosaic=None, mixup=None).val_dataloader()
    for one, other in zip(combined, plain, strict=True):
        assert torch.equal(one.images.pixels, other.images.pixels) and not one.closing


def test_combined_images_with_too_many_objects_are_found_before_the_first_batch(shapes):
    most = max(len(record.boxes) for record in data(shapes).train.records)
    data(shapes, max_objects=5 * most).train  # noqa: B018
    with pytest.raises(UserError, match=rf"{most} boxes, {5 * most} with mosaic or mixup, but data.max_objects is"):
        data(shapes, max_objects=5 * most - 1).train  # noqa: B018
    assert data(shapes, max_objects=most, mosaic=None, mixup=None).train


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mosaic": {"scale": (2.0, 0.1)}}, r"give the smaller number first: \[0.1, 2\]"),
        ({"mosaic": {"scale": (0.0, 1.0)}}, "greater than 0"),
        ({"mixup": {"probability": 2}}, "less than or equal to 1"),
        ({"mosaic": {}, "proposals": "store.db"}, "mosaic and mixup are for detectors without given proposals"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValidationError, match=message):
        DataOptions(**options)
