"""Records and masks in columns: the same as one object for each image."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from detect.data.masks import RLE, LabelledPixels, Polygons, encode
from detect.data.records import Masks, Record, Records, columns

TRIANGLE = Polygons((np.array([[1.0, 2], [8, 2], [1, 9]]),))
TWO = Polygons((np.array([[0.1, 0.2], [3, 0], [3, 4], [0, 4]]), np.array([[5.0, 5], [9, 5], [9, 9]])))
SQUARE = encode(np.pad(np.ones((3, 4), np.uint8), 5))


def record(number: int, masks=None) -> Record:
    boxes = np.arange(4 * number, dtype=np.float32).reshape(-1, 4)
    count = len(boxes)
    path = Path(f"data/train/größe {number}.jpg")
    return Record(
        number + 10,
        path,
        100 + number,
        200,
        boxes,
        np.arange(count) % 3,
        np.arange(count) % 2 > 0,
        np.arange(count) % 3 > 0,
        np.arange(count) / 3,
        masks,
    )


def packed(records: list[Record]) -> Records:
    """Return the records in columns, with their masks."""
    plain = columns(records)
    masks = [mask for one in records for mask in one.masks or ()]
    has_masks = any(one.masks is not None for one in records)
    names = ("boxes", "labels", "crowd", "difficult", "areas")
    return Records.in_columns(
        "data/",
        [one.path for one in records],
        plain.ids.tolist(),
        plain.sizes,
        plain.boxes_from,
        {name: getattr(plain, name) for name in names},
        masks if has_masks else None,
    )


def same_mask(one, other) -> bool:
    if isinstance(one, Polygons):
        pairs = zip(one.outlines, other.outlines, strict=True)
        return isinstance(other, Polygons) and all(np.array_equal(a, b) for a, b in pairs)
    return one == other


def same(one: Record, other: Record) -> bool:
    if (one.id, one.path, one.width, one.height) != (other.id, other.path, other.width, other.height):
        return False
    names = ("boxes", "labels", "crowd", "difficult", "areas")
    arrays = [(getattr(one, name), getattr(other, name)) for name in names]
    masks = (one.masks is None) == (other.masks is None)
    masks = masks and all(same_mask(a, b) for a, b in zip(one.masks or (), other.masks or (), strict=True))
    return masks and all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in arrays)


@pytest.fixture
def records() -> list[Record]:
    return [
        record(2, (TRIANGLE, None)),
        record(0, ()),
        record(3, (SQUARE, TWO, TRIANGLE)),
        record(1, (None,)),
    ]


def test_records_are_those_that_were_given(records):
    found = packed(records)
    assert len(found) == 4 and found.folder == "data/"
    assert all(same(a, b) for a, b in zip(found, records, strict=True))
    assert same(found[-1], records[-1]) and same(found[np.int64(2)], records[2])
    assert found.paths() == [one.path for one in records]
    assert found.counts.tolist() == [2, 0, 3, 1]
    with pytest.raises(IndexError):
        found[4]


def test_without_masks(records):
    assert all(one.masks is None for one in packed(records).without_masks())
    assert all(one.masks is None for one in packed([record(2), record(1)]))


@pytest.mark.parametrize("key", [slice(1, 3), slice(None, None, -1), slice(0, 0), slice(3, None)])
def test_slices(records, key):
    found = packed(records)[key]
    assert isinstance(found, Records)
    assert all(same(a, b) for a, b in zip(found, records[key], strict=True))


def test_taking_some_in_any_order(records):
    order = [3, 0, 0, 2]
    found = packed(records).take(np.array(order))
    assert all(same(a, records[index]) for a, index in zip(found, order, strict=True))
    again = found.take(np.array([1, 3]))
    assert same(again[0], records[0]) and same(again[1], records[2])


def test_blocks_of_rows_are_joined(records, monkeypatch):
    monkeypatch.setattr("detect.data.records._AT_ONCE", 2)
    order = [2, 1, 3, 0, 2]
    found = packed(records).take(np.array(order))
    assert all(same(a, records[index]) for a, index in zip(found, order, strict=True))


def test_a_record_has_arrays_of_its_own(records):
    found = packed(records)
    found[0].boxes[:] = -1
    found[0].masks[0].outlines[0][:] = -1
    assert same(found[0], record(2, (TRIANGLE, None)))


def test_arrays_and_pickles_make_the_same_records(records):
    found = packed(records)
    for copy in (Records.from_arrays("data/", found.arrays()), pickle.loads(pickle.dumps(found))):
        assert all(same(a, b) for a, b in zip(copy, records, strict=True))
    plain = found.without_masks()
    assert Records.from_arrays("data/", plain.arrays()).masks is None


def test_no_record():
    found = packed([])
    assert len(found) == 0 and list(found) == [] and found.boxes.shape == (0, 4) and len(found[:]) == 0
    assert columns(()).counts.tolist() == []


def test_a_folder_that_is_not_the_start_of_all_paths_is_not_cut_off(records):
    plain = columns(records)
    elsewhere = [*(one.path for one in records[:3]), Path("/other/a.jpg")]
    names = ("boxes", "labels", "crowd", "difficult", "areas")
    arrays = {name: getattr(plain, name) for name in names}
    found = Records.in_columns("data/", elsewhere, [1, 2, 3, 4], plain.sizes, plain.boxes_from, arrays, None)
    assert found.folder == "" and [one.path for one in found] == elsewhere


def test_columns_of_records_in_columns_are_themselves(records):
    found = packed(records)
    assert columns(found) is found


def test_masks():
    masks = Masks.of([TRIANGLE, None, SQUARE, TWO])
    assert masks.given.tolist() == [True, False, True, True]
    assert masks.numbers_of_corners().tolist() == [3, 0, 0, 7]
    bounds = masks.bounds()
    assert bounds[0].tolist() == [1, 2, 8, 9] and bounds[3].tolist() == [0, 0, 9, 9]
    assert np.isnan(bounds[1:3]).all()
    assert isinstance(masks[2], RLE) and masks[2] == SQUARE and masks[1:3] == (None, SQUARE)
    with pytest.raises(TypeError, match="LabelledPixels is not a mask of a checked split"):
        Masks.of([LabelledPixels(Path("a.png"), 1)])
