"""Columns of a table of boxes, found by the names in its header or by the first row of a table without header."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import dropwhile
from pathlib import PurePosixPath
from typing import Any

from detect.data.decode import SUFFIXES
from detect.data.formats import bounds
from detect.data.tree import usual_split

Box = tuple[float, ...]
Cells = Sequence[str]

UNASSIGNED = "unassigned"
"""AutoML's word for images that it divides itself."""

_IMAGE = (
    *("filename", "imagefilename", "imagefile", "imagename", "imagepath", "filepath", "path", "image", "imageid"),
    *("img", "imgname", "imgpath", "imgid", "file", "frame"),
)
_LABEL = (
    *("classname", "labelname", "categoryname", "class", "label", "category", "name", "objectname", "object"),
    *("celltype", "target", "species", "classid", "labelid", "categoryid"),
)
_SPLIT = ("split", "set", "subset", "partition", "usage", "mluse")
_SIZE = (("imagewidth", "imageheight"), ("imgwidth", "imgheight"), ("width", "height"), ("w", "h"))
_CORNERS = (
    *(("xmin", "ymin", "xmax", "ymax"), ("x1", "y1", "x2", "y2"), ("x0", "y0", "x1", "y1")),
    *(("left", "top", "right", "bottom"), ("xtl", "ytl", "xbr", "ybr"), ("minx", "miny", "maxx", "maxy")),
    ("startx", "starty", "endx", "endy"),
)
_SIDES = (("width", "height"), ("w", "h"))
_ORIGINS = (("x", "y"), ("xmin", "ymin"), ("x1", "y1"), ("left", "top"))
_CENTRES = (("xcenter", "ycenter"), ("xcentre", "ycentre"), ("centerx", "centery"), ("cx", "cy"))
_LISTS = ("bbox", "bndbox", "box", "boundingbox")
_PREFIX = re.compile(r"^(boundingbox|bndbox|bbox|box|roi|rect)(?=.)")


class NotABoxError(ValueError):
    """A cell that should have a box or a class, and has none."""


class ShapeWithoutAreaError(Exception):
    """A point or a line."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Columns of a table, by index."""

    delimiter: str
    image: int
    label: int | None
    """None: all objects are of one class."""
    box: tuple[int, ...]
    to_box: Callable[[list[str]], Box]
    """Conversion of the cells in `box` to xyxy."""
    size: tuple[int, int] | None = None
    split: int | None = None
    has_header: bool = True
    in_json: bool = False
    """Whether the cells are JSON, as VIA writes them."""


def header(head: bytes, delimiter: str = ",") -> list[str]:
    """Return the cells of the first line that is not empty."""
    lines = dropwhile(lambda line: not line.strip(), _text(head).splitlines())
    try:
        return [cell.strip() for cell in next(csv.reader([next(lines)], delimiter=delimiter), [])]
    except (StopIteration, csv.Error):
        return []


def find_layout(head: bytes) -> Layout | None:
    """Return the layout of a table that begins with `head`, or None if it is no table of boxes."""
    for delimiter in ",;\t":
        cells = header(head, delimiter)
        if len(cells) > 2 and (layout := _by_header(cells, delimiter) or _by_row(cells, delimiter)):
            return layout
    return None


def rows(content: bytes, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and cells of each row that is not empty.

    Raises:
        ValueError: it is not UTF-8 (or, with a byte order mark, UTF-16).
        csv.Error: a quote is not closed, or a cell is too long.
    """
    text = io.TextIOWrapper(io.BytesIO(content), _encoding(content), newline="")
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    for cells in reader:
        if any(map(str.strip, cells)):
            yield reader.line_num, cells


def _encoding(content: bytes) -> str:
    return "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"


def _text(head: bytes) -> str:
    return head.decode(_encoding(head), errors="replace")


# ------------------------------------------------------------------------------------------------------------- layouts


def _by_header(cells: Cells, delimiter: str) -> Layout | None:
    names: dict[str, int] = {}
    for index, cell in enumerate(cells):
        names.setdefault(re.sub(r"[^a-z0-9]", "", cell.lower()), index)
    image = _first(names, _IMAGE)
    if image is None:
        return None
    if "regionshapeattributes" in names and "regionattributes" in names:
        shape, label = names["regionshapeattributes"], names["regionattributes"]
        return Layout(delimiter, image, label, (shape,), lambda values: _shape(values[0]), in_json=True)
    boxed = names | {_PREFIX.sub("", name): index for name, index in names.items() if _PREFIX.match(name)}
    for to_box, alternatives in _conversions():
        boxes = [tuple(map(boxed.__getitem__, wanted)) for wanted in alternatives if {*wanted} <= boxed.keys()]
        if boxes:
            # Of x, y, w, h, width and height, the pair beside x and y is the size of the box.
            box = min(boxes, key=lambda columns: max(columns) - min(columns))
            size = next((found for pair in _SIZE if (found := _pair(names, pair)) and not {*found} & {*box}), None)
            return Layout(delimiter, image, _first(names, _LABEL), box, to_box, size, _first(names, _SPLIT))
    return None


def _conversions() -> Iterator[tuple[Callable[[list[str]], Box], list[tuple[str, ...]]]]:
    """Yield each way to write a box, with the names of its columns."""
    yield _corners, list(_CORNERS)
    yield _sizes, [(*origin, *sides) for sides in _SIDES for origin in _ORIGINS]
    yield _centred, [(*centre, *sides) for sides in _SIDES for centre in _CENTRES]
    yield _listed, [(name,) for name in _LISTS]


def _by_row(cells: Cells, delimiter: str) -> Layout | None:
    """Return the layout of a table without header by its first row."""

    def fits(count: int, image: int, numbers: slice) -> bool:
        right = len(cells) == count and PurePosixPath(cells[image]).suffix.lower() in SUFFIXES
        return right and all(not cell or _is_number(cell) for cell in cells[numbers])

    def layout(image: int, label: int, first: int, to_box: Callable[[list[str]], Box], **more: Any) -> Layout:
        box = tuple(range(first, first + (8 if to_box is _vertices else 4)))
        return Layout(delimiter, image, label, box, to_box, has_header=False, **more)

    if fits(11, 1, slice(3, 11)) and (usual_split(cells[0]) or cells[0].lower() in ("", UNASSIGNED)):
        return layout(1, 2, 3, _vertices, split=0)
    if fits(10, 0, slice(2, 10)):
        return layout(0, 1, 2, _vertices)
    if fits(6, 0, slice(1, 5)):
        return layout(0, 5, 1, _corners)
    if fits(8, 0, slice(1, 5)) and all(map(_is_number, cells[6:])):
        return layout(0, 5, 1, _corners, size=(6, 7))
    if fits(8, 5, slice(1, 5)) and all(map(_is_number, cells[6:])):
        return layout(5, 0, 1, _sizes, size=(6, 7))
    return None


def _first(names: dict[str, int], wanted: Sequence[str]) -> int | None:
    return next((names[name] for name in wanted if name in names), None)


def _pair(names: dict[str, int], wanted: tuple[str, str]) -> tuple[int, int] | None:
    return (names[wanted[0]], names[wanted[1]]) if wanted[0] in names and wanted[1] in names else None


def _is_number(cell: str) -> bool:
    with suppress(ValueError):
        return bool(number(cell)) or True
    return False


# --------------------------------------------------------------------------------------------------------------- boxes


def number(cell: str) -> float:
    """Return the number in a cell, with a point or a comma before its fraction. Raise `ValueError` if it has none."""
    try:
        return float(cell)
    except ValueError:
        return float(cell.replace(",", ".", 1))


def _corners(cells: list[str]) -> Box:
    return tuple(map(number, cells))


def _sizes(cells: list[str]) -> Box:
    x, y, width, height = map(number, cells)
    return bounds.from_corner(x, y, width, height)


def _centred(cells: list[str]) -> Box:
    x, y, width, height = map(number, cells)
    return bounds.from_centre(x, y, width / 2, height / 2)


def _listed(cells: list[str]) -> Box:
    return _sizes(cells[0].strip("[]() \t").replace(",", " ").split())


def _vertices(cells: list[str]) -> Box:
    xs = [number(cell) for cell in cells[::2] if cell]
    ys = [number(cell) for cell in cells[1::2] if cell]
    if len(xs) < 2 or len(ys) < 2:
        raise NotABoxError
    return min(xs), min(ys), max(xs), max(ys)


def _shape(text: str) -> Box:
    """Return the bounds of a shape of VIA."""
    shape = json.loads(text)
    try:
        match shape["name"]:
            case "rect":
                return bounds.from_corner(*(float(shape[key]) for key in ("x", "y", "width", "height")))
            case "circle":
                return bounds.of_ellipse(*(float(shape[key]) for key in ("cx", "cy", "r", "r")))
            case "ellipse":
                x, y, rx, ry = (float(shape[key]) for key in ("cx", "cy", "rx", "ry"))
                return bounds.of_ellipse(x, y, rx, ry, float(shape.get("theta", 0)))
            case "polygon":
                return bounds.of_polygon(*(list(map(float, shape[f"all_points_{axis}"])) for axis in "xy"))
            case "point" | "polyline":
                raise ShapeWithoutAreaError
    except (KeyError, TypeError, OverflowError):
        pass
    raise NotABoxError


def attribute(text: str) -> str:
    """Return the class of an object of VIA: the attribute named like a class, or else the only attribute."""
    values = json.loads(text or "{}")
    if not isinstance(values, dict):
        raise NotABoxError
    names = {re.sub(r"[^a-z0-9]", "", key.lower()): value for key, value in values.items()}
    value = next((names[name] for name in (*_LABEL, "type") if name in names), None)
    if value is None and len(values) == 1:
        value = next(iter(values.values()))
    if isinstance(value, dict):  # a checkbox
        chosen = [name for name, is_set in value.items() if is_set]
        value = chosen[0] if len(chosen) == 1 else None
    return value.strip() if isinstance(value, str) else ""
