"""Images and boxes of a split in columns, so that a large split is a few arrays and not millions of objects."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, overload

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64, UInt8

from detect.data.masks import RLE, Mask, Polygons

_AT_ONCE = 2**16  # rows
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Record:
    """One image and its boxes, in pixels of the image that `decode` returns (EXIF orientation applied)."""

    id: int
    path: Path
    width: int
    height: int
    boxes: Float[np.ndarray, "n 4"]
    """xyxy, inside the image, of positive area. float32, or float64 where metrics must match a file to the last bit."""
    labels: Int64[np.ndarray, " n"]
    """0 … C-1, the index of the class in `Dataset.classes`."""
    crowd: Bool[np.ndarray, " n"]
    """COCO's `iscrowd`: a region of many objects, neither ground truth nor background."""
    difficult: Bool[np.ndarray, " n"]
    """VOC's `difficult`: used in training, but left out of VOC's metrics."""
    areas: Float64[np.ndarray, " n"]
    """COCO's `area`, which divides ground truths into small, medium and large; without it, that of the mask or box."""
    masks: tuple[Mask | None, ...] | None = None
    """Mask of each box, None for a box without one; None for a data set without masks."""

    def select(self, kept: Bool[np.ndarray, " n"]) -> Record:
        """Return the record with only some of its boxes."""
        columns = ("boxes", "labels", "crowd", "difficult", "areas")
        masks = None if self.masks is None else tuple(self.masks[row] for row in np.flatnonzero(kept))
        return replace(self, **{name: getattr(self, name)[kept] for name in columns}, masks=masks)

    def has_boxes_of(self, other: Record) -> bool:
        """Return whether another record has the same boxes with the same labels."""
        columns = ("boxes", "labels", "difficult")
        return all(np.array_equal(getattr(self, name), getattr(other, name)) for name in columns)


@dataclass(frozen=True, slots=True)
class Masks(Sequence[Mask | None]):
    """Polygons and run-length encodings of `m` objects in columns; a mask is made when it is accessed."""

    outlines: Int64[np.ndarray, " m1"]
    """First outline of each mask in `corners_from`, and their number; a mask without outlines is no polygon."""
    corners_from: Int64[np.ndarray, " p1"]
    """First corner of each outline, and the number of corners."""
    corners: Float64[np.ndarray, "c 2"]
    counts: Int64[np.ndarray, " m1"]
    """First byte of each run-length encoding in `text`, and their number; a mask without bytes is no encoding."""
    text: UInt8[np.ndarray, " t"]
    sides: Int64[np.ndarray, "m 2"]
    """Height and width of the run-length encoded bitmaps."""

    @classmethod
    def of(cls, masks: Iterable[Mask | None]) -> Masks:
        """Return the masks in columns. Raise `TypeError` for masks that are in other files."""
        polygons: list[np.ndarray] = []
        outlines, counts, sides, text = [0], [0], [], bytearray()
        for mask in masks:
            if isinstance(mask, Polygons):
                polygons += mask.outlines
            elif isinstance(mask, RLE):
                text += mask.counts
            elif mask is not None:
                raise TypeError(f"{type(mask).__name__} is not a mask of a checked split")
            sides.append((mask.height, mask.width) if isinstance(mask, RLE) else (0, 0))
            outlines.append(len(polygons))
            counts.append(len(text))
        lengths = np.array([0, *map(len, polygons)], np.int64)
        return cls(
            np.array(outlines, np.int64),
            np.cumsum(lengths),
            np.concatenate([np.empty((0, 2)), *polygons]),
            np.array(counts, np.int64),
            np.frombuffer(bytes(text), np.uint8),
            np.array(sides, np.int64).reshape(-1, 2),
        )

    def __len__(self) -> int:
        return len(self.outlines) - 1

    @overload
    def __getitem__(self, key: int | np.integer) -> Mask | None: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[Mask | None, ...]: ...
    def __getitem__(self, key: int | np.integer | slice) -> Mask | tuple[Mask | None, ...] | None:
        rows = range(len(self))[key]
        return self._mask(rows) if isinstance(rows, int) else tuple(map(self._mask, rows))

    def _mask(self, row: int) -> Mask | None:
        first, last = self.outlines[row : row + 2].tolist()
        if first < last:
            bounds = self.corners_from[first : last + 1].tolist()
            return Polygons(tuple(np.array(self.corners[a:b]) for a, b in pairwise(bounds)))
        start, end = self.counts[row : row + 2].tolist()
        if start < end:
            height, width = self.sides[row].tolist()
            return RLE(height, width, self.text[start:end].tobytes())
        return None

    def take(self, rows: Int64[np.ndarray, " k"]) -> Masks:
        """Return some of the masks."""
        outlines, pieces = _take(self.outlines, np.arange(self.outlines[-1]), rows)
        corners_from, corners = _take(self.corners_from, self.corners, pieces)
        counts, text = _take(self.counts, self.text, rows)
        return Masks(outlines, corners_from, corners, counts, text, self.sides[rows])

    def numbers_of_corners(self) -> Int64[np.ndarray, " m"]:
        """Return the number of corners of each mask, 0 for one that is no polygon."""
        return np.diff(self.corners_from[self.outlines])

    def bounds(self) -> Float64[np.ndarray, "m 4"]:
        """Return x1, y1, x2, y2 of the corners of each mask, not finite if one of them is not, and NaN without any."""
        bounds = np.full((len(self), 4), np.nan)
        rows = np.flatnonzero(self.numbers_of_corners())
        if len(rows):
            starts = self.corners_from[self.outlines[rows]]
            bounds[rows, :2] = np.minimum.reduceat(self.corners, starts)
            bounds[rows, 2:] = np.maximum.reduceat(self.corners, starts)
        return bounds

    @property
    def given(self) -> Bool[np.ndarray, " m"]:
        """Whether each object has a mask."""
        return (np.diff(self.outlines) > 0) | (np.diff(self.counts) > 0)


@dataclass(frozen=True, slots=True, eq=False)
class Records(Sequence[Record]):
    """Images of a split and their boxes in columns; a record is made when it is accessed, with arrays of its own.

    The columns may lie in files that are mapped into memory, and then all processes of a machine share them.
    """

    folder: str
    """Start of the path of every image."""
    names: UInt8[np.ndarray, " t"]
    """Rest of the path of each image, one after the other."""
    names_from: Int64[np.ndarray, " i1"]
    """First byte of each name, and the number of bytes."""
    ids: Int64[np.ndarray, " i"]
    sizes: Int64[np.ndarray, "i 2"]
    """Width and height of each image."""
    boxes_from: Int64[np.ndarray, " i1"]
    """First box of each image, and the number of boxes."""
    boxes: Float[np.ndarray, "m 4"]
    labels: Int64[np.ndarray, " m"]
    crowd: Bool[np.ndarray, " m"]
    difficult: Bool[np.ndarray, " m"]
    areas: Float64[np.ndarray, " m"]
    masks: Masks | None

    @staticmethod
    def in_columns(
        folder: str,
        paths: Sequence[Path],
        ids: Sequence[int],
        sizes: Int64[np.ndarray, "i 2"],
        boxes_from: Int64[np.ndarray, " i1"],
        columns: Arrays,
        masks: Sequence[Mask | None] | None,
    ) -> Records:
        """Return the records with these columns of boxes; `folder` is cut off the paths if all start with it."""
        folder = folder if all(str(path).startswith(folder) for path in paths) else ""
        names = [os.fsencode(str(path).removeprefix(folder)) for path in paths]
        return Records(
            folder,
            np.frombuffer(b"".join(names), np.uint8),
            np.cumsum([0, *map(len, names)]),
            np.array(ids, np.int64),
            sizes,
            boxes_from,
            **columns,
            masks=None if masks is None else masks if isinstance(masks, Masks) else Masks.of(masks),
        )

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, key: int | np.integer) -> Record: ...
    @overload
    def __getitem__(self, key: slice) -> Records: ...
    def __getitem__(self, key: int | np.integer | slice) -> Record | Records:
        if isinstance(key, slice):
            return self.take(np.arange(len(self))[key])
        index = range(len(self))[key]
        (start, end), (first, last) = (
            self.boxes_from[index : index + 2].tolist(),
            self.names_from[index : index + 2].tolist(),
        )
        rows = slice(start, end)
        width, height = self.sizes[index].tolist()
        return Record(
            int(self.ids[index]),
            Path(self.folder + os.fsdecode(self.names[first:last].tobytes())),
            width,
            height,
            np.array(self.boxes[rows]),
            np.array(self.labels[rows]),
            np.array(self.crowd[rows]),
            np.array(self.difficult[rows]),
            np.array(self.areas[rows]),
            None if self.masks is None else self.masks[rows],
        )

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))

    def take(self, images: Int64[np.ndarray, " k"]) -> Records:
        """Return some of the images."""
        names_from, names = _take(self.names_from, self.names, images)
        boxes_from, rows = _take(self.boxes_from, np.arange(self.boxes_from[-1]), images)
        return Records(
            self.folder,
            names,
            names_from,
            self.ids[images],
            self.sizes[images],
            boxes_from,
            self.boxes[rows],
            self.labels[rows],
            self.crowd[rows],
            self.difficult[rows],
            self.areas[rows],
            None if self.masks is None else self.masks.take(rows),
        )

    def paths(self) -> list[Path]:
        """Return the path of each image."""
        bounds, text = self.names_from.tolist(), self.names.tobytes()
        return [Path(self.folder + os.fsdecode(text[start:end])) for start, end in pairwise(bounds)]

    def without_masks(self) -> Records:
        """Return the images with boxes only."""
        return replace(self, masks=None)

    @property
    def counts(self) -> Int64[np.ndarray, " i"]:
        """Number of boxes of each image."""
        return np.diff(self.boxes_from)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all arrays by name, from which `from_arrays` makes the same records."""
        own = {name: getattr(self, name) for name in _ARRAYS}
        masks = self.masks
        return own if masks is None else own | {f"masks.{name}": getattr(masks, name) for name in _MASK_ARRAYS}

    @staticmethod
    def from_arrays(folder: str, arrays: Arrays) -> Records:
        """Return the records of these arrays. Raise `KeyError` if one is missing."""
        has_masks = f"masks.{_MASK_ARRAYS[0]}" in arrays
        masks = Masks(**{name: arrays[f"masks.{name}"] for name in _MASK_ARRAYS}) if has_masks else None
        return Records(folder, **{name: arrays[name] for name in _ARRAYS}, masks=masks)


_ARRAYS = [field.name for field in fields(Records) if field.name not in ("folder", "masks")]
_MASK_ARRAYS = [field.name for field in fields(Masks)]


def columns(records: Sequence[Record]) -> Records:
    """Return records in columns, without their masks unless they are in columns already."""
    if isinstance(records, Records):
        return records
    names = ("boxes", "labels", "crowd", "difficult", "areas")
    empty: dict[str, Any] = {
        "boxes": np.empty((0, 4), np.float32),
        "labels": np.empty(0, np.int64),
        "crowd": np.empty(0, bool),
        "difficult": np.empty(0, bool),
        "areas": np.empty(0),
    }
    return Records.in_columns(
        "",
        [record.path for record in records],
        [record.id for record in records],
        np.array([(record.width, record.height) for record in records], np.int64).reshape(-1, 2),
        np.cumsum([0, *(len(record.boxes) for record in records)]),
        {name: np.concatenate([empty[name], *(getattr(record, name) for record in records)]) for name in names},
        None,
    )


def _take(
    bounds: Int64[np.ndarray, " n1"], elements: np.ndarray, rows: Int64[np.ndarray, " k"]
) -> tuple[Int64[np.ndarray, " k1"], np.ndarray]:
    """Return the elements of some rows side by side, and their bounds.

    Args:
        bounds: first element of each row, and the number of elements.
        elements: the elements of all rows.
        rows: index of each row to take.
    """
    starts, lengths = bounds[rows], bounds[rows + 1] - bounds[rows]
    new = np.concatenate([[0], np.cumsum(lengths)])
    taken = np.empty((new[-1], *elements.shape[1:]), elements.dtype)
    for first in range(0, len(rows), _AT_ONCE):  # the index of every element would take as much memory again
        part = slice(first, first + _AT_ONCE)
        begin, end = new[first], new[min(first + _AT_ONCE, len(rows))]
        place = np.repeat(starts[part] - new[:-1][part], lengths[part]) + np.arange(begin, end)
        taken[begin:end] = elements[place]
    return new, taken
