"""Large COCO files, read entry by entry into columns, so that their content is never in memory as Python objects.

Only files without any defect are read this way, because the messages about defects need the entries. `read_regular`
returns None for others, which `coco.parse` then reads as a whole.
"""

from __future__ import annotations

import json
import re
from array import array
from codecs import getincrementaldecoder
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from detect.data.formats.coco_entries import valid_mask
from detect.data.masks import RLE
from detect.data.records import Masks

MIN_BYTES = 2**23
"""Smaller files are read as a whole."""
_CHUNK = 2**22  # bytes
_SPACE = re.compile(r"[ \t\n\r]*")
_KEPT = ("id", "file_name", "width", "height")
"""Fields of an image that are used."""
_INT, _NUMBERS = {int}, {int, float}
_LIMIT = 2**63


class IrregularError(Exception):
    """The file, or an entry of it, is not as expected."""


class Places(Sequence[str]):
    """Location of each annotation in its file, as a text that is made when it is needed."""

    def __init__(self, ids: Int64[np.ndarray, " m"], images: Int64[np.ndarray, " m"]) -> None:
        self.ids, self.images = ids, images

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: Any) -> Any:
        return f"annotation {self.ids[row]} of image {self.images[row]}"


class Regular(NamedTuple):
    """Content of a file without defects in its entries: `m` annotations, as they are in the file."""

    images: list[dict[str, Any]]
    categories: list[dict[str, Any]]
    ids: Int64[np.ndarray, " m"]
    image_ids: Int64[np.ndarray, " m"]
    category_ids: Int64[np.ndarray, " m"]
    boxes: Float64[np.ndarray, "m 4"]
    """x, y, width, height."""
    areas: Float64[np.ndarray, " m"]
    crowd: np.ndarray
    masks: Masks | None


def read_regular(path: Path) -> Regular | None:
    """Return the content of a file, or None if an entry of it is not as expected, or refers to nothing."""
    try:
        with path.open("rb") as file:
            return _Reader(_Text(file)).read()
    except (IrregularError, OSError, ValueError, RecursionError):
        return None


class _Text:
    """Text of a file in pieces, of which only the part that is being parsed is in memory."""

    def __init__(self, file: Any) -> None:
        self._file, self._decoder = file, getincrementaldecoder("utf-8")()
        self._text, self._position, self._ended = "", 0, False

    def peek(self) -> str:
        """Return the next character that is not a space; empty at the end."""
        while True:
            match = _SPACE.match(self._text, self._position)
            assert match is not None
            self._position = match.end()
            if self._position < len(self._text) or self._ended:
                return self._text[self._position : self._position + 1]
            self._more()

    def take(self, expected: str) -> None:
        """Pass a character. Raise `IrregularError` if another comes."""
        if self.peek() != expected:
            raise IrregularError
        self._position += 1

    def value(self) -> Any:
        """Return the next value of JSON."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._position)
                # A number at the end may go on in the next piece.
                if end < len(self._text) or self._ended:
                    self._position = end
                    return value
            except ValueError:
                if self._ended:
                    raise
            self._more()

    def _more(self) -> None:
        """Read as much again as is not parsed yet, so that a long value is not parsed many times."""
        rest = self._text[self._position :]
        piece = self._file.read(max(_CHUNK, len(rest)))
        self._ended = not piece
        self._text, self._position = rest + self._decoder.decode(piece, final=self._ended), 0


_DECODER = json.JSONDecoder()


@dataclass
class _Reader:
    """Reader of a file, with the columns read so far."""

    text: _Text
    ids: array = field(default_factory=lambda: array("q"))  # id, image id and category id of each annotation in turn
    numbers: array = field(default_factory=lambda: array("d"))  # x, y, width, height and area of each
    crowd: array = field(default_factory=lambda: array("b"))
    corners: array = field(default_factory=lambda: array("d"))
    corners_from: array = field(default_factory=lambda: array("q", [0]))
    outlines: array = field(default_factory=lambda: array("q", [0]))
    counts: array = field(default_factory=lambda: array("q", [0]))
    runs: bytearray = field(default_factory=bytearray)
    sides: array = field(default_factory=lambda: array("q"))

    def read(self) -> Regular:
        """Return the content of the file. Raise `IrregularError` if an entry is not as expected."""
        found: dict[str, list[dict[str, Any]]] = {}
        for key in self._members():
            if key in found:
                raise IrregularError
            if key == "images":
                found[key] = [_image(entry) for entry in self._items()]
            elif key == "annotations":
                found[key] = []
                for entry in self._items():
                    self._add(entry)
            elif key == "categories":
                found[key] = self.text.value()
            else:
                self.text.value()
        if set(found) != {"images", "annotations", "categories"}:
            raise IrregularError
        regular = self._columns(found["images"], found["categories"])
        _check_references(regular)
        return regular

    def _members(self) -> Iterator[str]:
        """Yield the keys of the file's object; the caller reads the value of each."""
        self.text.take("{")
        while True:
            key = self.text.value()
            self.text.take(":")
            if type(key) is not str:
                raise IrregularError
            yield key
            if self.text.peek() == "}":
                break
            self.text.take(",")
        self.text.take("}")
        if self.text.peek():
            raise IrregularError

    def _items(self) -> Iterator[Any]:
        self.text.take("[")
        while self.text.peek() != "]":
            yield self.text.value()
            if self.text.peek() != "]":
                self.text.take(",")
        self.text.take("]")

    def _add(self, entry: Any) -> None:
        """Append an annotation to the columns."""
        try:
            ids = (entry["id"], entry["image_id"], entry["category_id"])
            box, area, crowd = entry["bbox"], entry["area"], entry["iscrowd"]
            numbers = (*box, area)
            regular = {*map(type, ids)} == _INT and {*map(type, numbers)} <= _NUMBERS and len(numbers) == 5
            if not regular or type(box) is not list or crowd not in (0, 1) or not area >= 0 or not isfinite(area):
                raise IrregularError
            self.ids.extend(ids)
            self.numbers.extend(numbers)
        except (KeyError, TypeError, OverflowError):
            raise IrregularError from None
        self.crowd.append(crowd)
        self._add_mask(entry.get("segmentation"))

    def _add_mask(self, segmentation: Any) -> None:
        sides = (0, 0)
        if isinstance(segmentation, list) and segmentation != [[]]:
            for polygon in segmentation:
                if type(polygon) is not list or len(polygon) < 6 or len(polygon) % 2:
                    raise IrregularError
                if not {*map(type, polygon)} <= _NUMBERS:
                    raise IrregularError
                self.corners.extend(polygon)
                self.corners_from.append(len(self.corners) // 2)
        elif segmentation and segmentation != [[]]:
            mask = valid_mask(segmentation) if isinstance(segmentation, dict) else None
            if not isinstance(mask, RLE):
                raise IrregularError
            self.runs += mask.counts
            sides = (mask.height, mask.width)
        self.outlines.append(len(self.corners_from) - 1)
        self.counts.append(len(self.runs))
        self.sides.extend(sides)

    def _columns(self, images: list[dict[str, Any]], categories: Any) -> Regular:
        ids = np.frombuffer(self.ids, np.int64).reshape(-1, 3).T if self.ids else np.empty((3, 0), np.int64)
        numbers = np.frombuffer(self.numbers, np.float64).reshape(-1, 5) if self.ids else np.empty((0, 5))
        masks = Masks(
            np.array(self.outlines, np.int64),
            np.array(self.corners_from, np.int64),
            np.frombuffer(self.corners, np.float64).reshape(-1, 2) if self.corners else np.empty((0, 2)),
            np.array(self.counts, np.int64),
            np.frombuffer(bytes(self.runs), np.uint8),
            np.array(self.sides, np.int64).reshape(-1, 2),
        )
        return Regular(
            images=images,
            categories=categories,
            ids=ids[0],
            image_ids=ids[1],
            category_ids=ids[2],
            boxes=numbers[:, :4],
            areas=numbers[:, 4],
            crowd=np.array(self.crowd, np.int8).astype(bool),
            masks=masks if len(masks.corners) or len(masks.text) else None,
        )


def _image(entry: Any) -> dict[str, Any]:
    """Return the fields of an image that are used."""
    if type(entry) is not dict or type(entry.get("id")) is not int or not -_LIMIT < entry["id"] < _LIMIT:
        raise IrregularError
    return {name: entry[name] for name in _KEPT if name in entry}


def _check_references(regular: Regular) -> None:
    """Raise `IrregularError` if ids occur twice, or annotations refer to nothing."""
    categories = regular.categories
    if type(categories) is not list or not all(type(one) is dict and type(one.get("id")) is int for one in categories):
        raise IrregularError
    images = np.array([image["id"] for image in regular.images], np.int64)
    known = np.array([one["id"] for one in categories if -_LIMIT < one["id"] < _LIMIT], np.int64)
    if len(known) < len(categories) or len(np.unique(images)) < len(images):
        raise IrregularError
    if len(np.unique(regular.ids)) < len(regular.ids):
        raise IrregularError
    if not np.isin(regular.image_ids, images).all() or not np.isin(regular.category_ids, known).all():
        raise IrregularError
