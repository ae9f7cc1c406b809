"""Masks of a result, probabilities within the boxes."""

import json
from dataclasses import replace

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from detect.data.masks import Polygons, paste_whole
from detect.prediction.result import Result
from detect.report.drawing import COLOURS

SIZE = (40, 60)
BOXES = [[10, 5, 30, 25], [2.5, 3.25, 55.75, 38.5], [40, 20, 70, 60]]
FULL = np.ones((28, 28), np.float32)


def disk(radius: float) -> np.ndarray:
    y, x = np.mgrid[:28, :28]
    return 1 / (1 + np.exp(np.hypot(x - 13.5, y - 13.5) - radius)).astype(np.float32)


PROBABILITIES = np.stack([FULL, disk(9), disk(12)])


def made(boxes=BOXES, masks=PROBABILITIES, **given) -> Result:
    n = len(boxes)
    arrays = np.array(boxes, np.float32).reshape(-1, 4), np.linspace(0.9, 0.3, n, dtype=np.float32), np.arange(n) % 2
    pixels = np.full((*SIZE, 3), 128, np.uint8)
    return Result(*arrays, ("a", "b"), (1, 2), SIZE, pixels=pixels, mask_probabilities=masks, **given)


def empty() -> Result:
    return made([], np.empty((0, 28, 28), np.float32))


@pytest.fixture
def result() -> Result:
    return made()


def test_boxes_only():
    result = made(masks=None)
    assert result.masks is result.encoded_masks() is result.polygons() is None
    assert "segmentation" not in result.to_coco(1)[0] and "segmentation" not in result.to_json()


def test_no_detections():
    result = empty()
    assert result.masks.shape == (0, *SIZE) and result.masks.dtype == bool
    assert result.encoded_masks() == () and result.polygons() == result.to_coco(1) == []
    np.testing.assert_array_equal(result.plot(), result.image)


def test_masks_are_pasted_into_the_image(result):
    masks = result.masks
    assert masks.dtype == bool and masks.shape == (3, *SIZE)
    expected = np.zeros(SIZE, bool)
    expected[5:25, 10:30] = True
    np.testing.assert_array_equal(masks[0], expected)
    for mask, probabilities, box in zip(masks, PROBABILITIES, BOXES, strict=True):
        np.testing.assert_array_equal(mask, paste_whole(probabilities, box, *SIZE))


def test_probabilities_are_kept_as_read_only_copies():
    given = PROBABILITIES.copy()
    result = made(masks=given)
    given[:] = 0
    np.testing.assert_array_equal(result.mask_probabilities, PROBABILITIES)
    with pytest.raises(ValueError, match="read-only"):
        result.mask_probabilities[0] = 0


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"mask_probabilities": PROBABILITIES[:2]}, r"mask_probabilities have shape \(2, 28, 28\), not \(3, m, m\)"),
        ({"mask_probabilities": PROBABILITIES[:, :27]}, "mask_probabilities have shape"),
        ({"mask_probabilities": PROBABILITIES[0]}, "mask_probabilities have shape"),
        ({"mask_probabilities": PROBABILITIES * np.nan}, "mask_probabilities contain NaN or infinity"),
    ],
)
def test_invalid_masks(masks, message, monkeypatch):
    monkeypatch.setattr(Result, "__init__", Result.__init__.__wrapped__)  # its own checks see the arguments
    arrays = BOXES, [0.9, 0.5, 0.3], [0, 1, 0]
    with pytest.raises(ValueError, match=message):
        Result(*arrays, ("a", "b"), (1, 2), SIZE, **masks)


@pytest.mark.parametrize("key", [0, -1, slice(1, None), slice(None, None, -1), [2, 0], np.array([False, True, True])])
def test_a_selection_keeps_masks_with_their_boxes(result, key):
    rows = np.atleast_1d(np.arange(3)[key])
    np.testing.assert_array_equal(result[key].masks, result.masks[rows])
    assert result[key].encoded_masks() == tuple(result.encoded_masks()[row] for row in rows)


def test_filters_select_masks(result):
    kept = result.filter(score=0.5, classes="b")
    assert len(kept) == 1
    np.testing.assert_array_equal(kept.masks[0], result.masks[1])
    assert len(result.filter(score=1.0).encoded_masks()) == 0


def test_encodings_are_those_of_coco(result):
    for entry, mask in zip(json.loads(json.dumps(result.to_coco(5))), result.masks, strict=True):
        assert list(entry) == ["image_id", "category_id", "bbox", "score", "segmentation"]
        np.testing.assert_array_equal(coco_mask.decode(entry["segmentation"]), mask)
    detections = json.loads(result.to_json())["detections"]
    assert [one["segmentation"] for one in detections] == [one["segmentation"] for one in result.to_coco(5)]


def test_polygons_of_a_square(result):
    square, *others = result.polygons()
    (outline,) = square
    assert sorted(map(tuple, outline.tolist())) == [(10, 5), (10, 25), (30, 5), (30, 25)]
    for outlines, mask in zip(others, result.masks[1:], strict=True):
        np.testing.assert_array_equal(Polygons(tuple(outlines)).bitmap(*SIZE), mask)


def test_masks_are_drawn_in_the_colours_of_their_classes(result):
    square = result[:1]
    difference = (square.plot() != replace(square, mask_probabilities=None).plot()).any(axis=-1)
    assert difference[8:22, 13:27].all() and not difference[:5].any() and not difference[:, :10].any()
    picture = result[1:2].plot()
    assert (picture == COLOURS[1]).all(axis=-1)[12:30].sum() > 2 * 18 * 2  # the box's sides and the contour


def test_masks_of_an_enlarged_picture_are_smooth(result):
    """Probabilities are pasted at the picture's size."""
    large = result[1:2].plot(width=600)
    assert large.shape == (400, 600, 3)
    blended = (large == np.rint(128 + 0.4 * (np.array(COLOURS[1]) - 128))).all(axis=-1)
    assert blended.sum() == pytest.approx(100 * result.masks[1].sum(), rel=0.1)


def test_pandas_has_a_column_of_polygons(result):
    pytest.importorskip("pandas")
    frame = result.to_pandas()
    assert list(frame.columns)[-2:] == ["name", "polygons"]
    assert frame["polygons"].tolist() == [[one.ravel().tolist() for one in outlines] for outlines in result.polygons()]
    assert len(empty().to_pandas()) == 0 and "polygons" not in made(masks=None).to_pandas()


def test_supervision_has_masks(result):
    supervision = pytest.importorskip("supervision")
    detections = result.to_supervision()
    assert isinstance(detections, supervision.Detections) and detections.mask.dtype == bool
    np.testing.assert_array_equal(detections.mask, result.masks)
    np.testing.assert_array_equal(detections[[2]].mask, result[2].masks)
    assert len(empty().to_supervision()) == 0 and made(masks=None).to_supervision().mask is None
