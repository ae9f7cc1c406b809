"""Entries of COCO files as other tools write them: ids that are not whole numbers, and boxes that a mask implies."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from jaxtyping import Float64
from pycocotools import mask as coco_mask

from detect.data.decode import MAX_PIXELS
from detect.data.defects import DefectLog, as_json
from detect.data.masks import RLE, Mask, Polygons

NO_BOX = [0, 0, 0, 0]
"""Box of an annotation that has neither a box nor a mask; it has no area."""
MAX_CORNER = 1e5
"""Pixels; pycocotools takes memory for each pixel of a polygon's outline, also far outside of the image."""
_NUMBERS = {int, float}
_WHOLE = re.compile(r"-?\d{1,18}")
Entry = dict[str, Any]
Numbers = tuple[float, float, float, float]


def normalise(document: dict[str, Any], path: Path, log: DefectLog) -> None:
    """Give a document whole numbers as ids and every annotation with a mask a box, in place; log the changes.

    Values that nobody can interpret are not changed.
    """
    images, categories, annotations = (_objects(document, kind) for kind in ("images", "categories", "annotations"))
    _number(images, annotations, "image", path, log)
    _number(categories, annotations, "category", path, log)
    for entry in annotations:
        if _is_key(entry.get("id")) and type(entry["id"]) is not int:
            image = as_json(entry.get("image_id"))
            log.add("id-not-number", path, f"annotation {as_json(entry['id'])} of image {image}")
        _imply_box(entry, path, log)


def is_number(value: object) -> bool:
    """Return whether a JSON value is a number that a float can hold; JSON integers are unbounded."""
    return type(value) is float or (type(value) is int and abs(value) < 2**63)


def are_polygons(mask: object) -> TypeGuard[list[list[float]]]:
    """Return whether the mask of an annotation is a list of polygons x y x y …."""
    return (
        isinstance(mask, list)
        and len(mask) > 0
        and all(isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in mask)
        and all(is_number(number) for polygon in mask for number in polygon)
    )


def mask_of(segmentation: object, place: str, path: Path, log: DefectLog) -> Mask | None:
    """Return the mask of an annotation, or None if it has none or an invalid one, which is logged."""
    if not segmentation or segmentation == [[]]:
        return None
    if not isinstance(segmentation, list):
        mask = _rle(segmentation) if isinstance(segmentation, dict) else None
        if mask is None:
            log.add("broken-mask", path, f"{place}: {as_json(segmentation)} is no run-length encoding of its size")
        return mask
    outlines = [outline for polygon in segmentation if (outline := _outline(polygon)) is not None]
    if len(outlines) < len(segmentation):
        log.add("broken-mask", path, f"{place}: {as_json(segmentation)} is no list of polygons [x, y, x, y, …]")
        return None
    whole = tuple(outline for outline in outlines if len(outline) > 2)
    if len(whole) < len(outlines):
        log.add("short-polygon", path, f"{place}: {len(outlines) - len(whole)} of {len(outlines)} polygons")
    return Polygons(whole) if whole else None


def valid_mask(segmentation: object) -> Mask | None:
    """Return a mask that can be used without a check but that of its size, or None if it is invalid."""
    if isinstance(segmentation, dict):
        return _rle(segmentation)
    outlines = [_outline(polygon) for polygon in segmentation] if isinstance(segmentation, list) else []
    valid = tuple(outline for outline in outlines if outline is not None and len(outline) > 2)
    is_near = len(valid) == len(outlines) > 0 and all(np.abs(outline).max() < MAX_CORNER for outline in valid)
    return Polygons(valid) if is_near else None


def _outline(polygon: object) -> Float64[np.ndarray, "k 2"] | None:
    """Return the corners of a polygon x y x y …, or None if it is not a list of pairs of numbers."""
    if not isinstance(polygon, list) or len(polygon) % 2 or not _NUMBERS.issuperset(map(type, polygon)):
        return None
    try:
        return np.array(polygon, dtype=np.float64).reshape(-1, 2)
    except OverflowError:  # JSON's whole numbers are unbounded
        return None


def _rle(mask: Entry) -> RLE | None:
    """Return a run-length encoded mask without empty runs, or None if it is invalid or larger than any image."""
    runs = _valid_runs(mask)
    if runs is None or sum(runs) > MAX_PIXELS:
        return None
    height, width = mask["size"]
    counts = mask["counts"]
    if type(counts) is not str or 0 in runs[1:]:
        runs = _without_empty_runs(runs)
        counts = coco_mask.frPyObjects({"size": [height, width], "counts": runs}, height, width)["counts"].decode()
    return RLE(height, width, counts.encode())


def _without_empty_runs(runs: Sequence[int]) -> list[int]:
    """Return the same pixels with no empty run but the first.

    pycocotools stops comparing two masks where both have an empty run, and returns too small an IoU.
    """
    joined = [0]
    for index, run in enumerate(runs):
        if index % 2 != len(joined) % 2:
            joined[-1] += run
        elif run:
            joined.append(run)
    return joined


def _objects(document: dict[str, Any], kind: str) -> list[Entry]:
    items = document.get(kind)
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


# ------------------------------------------------------------------------------------------------------------------ ids


def _is_small(value: object) -> TypeGuard[int]:
    """Return whether an id is a whole number that arrays can hold; hashes and UUIDs are too large."""
    return type(value) is int and abs(value) < 2**63


def _is_key(value: object) -> bool:
    return type(value) in (int, str) or (type(value) is float and abs(value) < 2**63)


def _as_int(value: object) -> int | None:
    """Return the whole number that an id is or spells, or None."""
    if type(value) is float and value.is_integer():
        return int(value)
    if type(value) is str and _WHOLE.fullmatch(value):
        return int(value)
    return value if _is_small(value) else None


def _number(entries: Sequence[Entry], annotations: Sequence[Entry], kind: str, path: Path, log: DefectLog) -> None:
    """Replace the ids of a kind of entry, and the references to them, if some are not whole numbers.

    They become the numbers that they spell if these are all different, else 1 … n in the order of the file.
    """
    keys = list(dict.fromkeys(entry["id"] for entry in entries if _is_key(entry.get("id"))))
    field = f"{kind}_id"
    are_numbers = all(map(_is_small, keys))
    if are_numbers:
        if all(_is_small(entry.get(field)) for entry in annotations):
            return
        known: dict[Any, int] = {key: key for key in keys}
    else:
        spelt = [number for key in keys if (number := _as_int(key)) is not None]
        distinct = len(set(spelt)) == len(keys)
        known = dict(zip(keys, spelt if distinct else range(1, len(keys) + 1), strict=True))
    text = f"an annotation's {field} %s" if are_numbers else ""
    by_number: dict[int | None, int] = {number: known[key] for key in keys if (number := _as_int(key)) is not None}
    for entry in entries:
        _replace(entry, "id", known.get, f"{kind} %s", path, log)
    for entry in annotations:
        _replace(entry, field, lambda value: known.get(value, by_number.get(_as_int(value))), text, path, log)


def _replace(entry: Entry, field: str, new: Callable[[Any], int | None], text: str, path: Path, log: DefectLog) -> None:
    """Replace the value of a field by a number; log it with `text`, if any."""
    value = entry.get(field)
    if not _is_key(value):
        return
    number = new(value)
    if number is None:  # a reference to nothing
        number = _as_int(value)
    if number is not None:
        if text and not _is_small(value):
            log.add("id-not-number", path, f"{text % as_json(value)} is {number} here")
        entry[field] = number


# ---------------------------------------------------------------------------------------------------------------- boxes


def _imply_box(entry: Entry, path: Path, log: DefectLog) -> None:
    """Fill in the box of an annotation without one, from its mask; without a mask the box has no area."""
    if entry.get("bbox") not in (None, []):
        return
    mask = entry.get("segmentation")
    box = _mask_box(mask) if isinstance(mask, dict) else None
    if are_polygons(mask):
        box = _polygons_box(mask)
    if box is not None:
        entry["bbox"] = list(box)
        image = as_json(entry.get("image_id"))
        log.add("implied-box", path, f"annotation {as_json(entry.get('id'))} of image {image}")
    elif "bbox" in entry and not mask:
        entry["bbox"] = list(NO_BOX)


def _polygons_box(polygons: list[list[float]]) -> Numbers:
    """Return x, y, width and height of polygons."""
    xs = [float(number) for polygon in polygons for number in polygon[::2]]
    ys = [float(number) for polygon in polygons for number in polygon[1::2]]
    return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)


def _mask_box(mask: Entry) -> Numbers | None:
    """Return x, y, width and height of a run-length encoded mask, or None if it is invalid.

    The runs count, column by column, pixels outside and inside of the object in turn. Only their sums are computed, so
    that the size of a hostile mask costs nothing.
    """
    runs = _valid_runs(mask)
    if runs is None:
        return None
    height, width = mask["size"]
    left, right, top, bottom, position = width, 0, height, 0, 0
    for index, run in enumerate(runs):
        if index % 2 and run:
            (first, start), (last, end) = divmod(position, height), divmod(position + run - 1, height)
            if first < last:  # the run continues in the next column
                start, end = 0, height - 1
            left, right = min(left, first), max(right, last + 1)
            top, bottom = min(top, start), max(bottom, end + 1)
        position += run
    return (left, top, right - left, bottom - top) if left < right else (0, 0, 0, 0)


def _valid_runs(mask: Entry) -> list[int] | None:
    """Return the runs of a run-length encoded mask, which cover the bitmap exactly, or None if it is invalid."""
    size, counts = mask.get("size"), mask.get("counts")
    if not isinstance(size, list) or len(size) != 2 or not all(type(side) is int and 0 < side < 2**31 for side in size):
        return None
    runs = _runs(counts) if type(counts) is str else counts
    if not isinstance(runs, list) or not all(type(run) is int and 0 <= run < 2**63 for run in runs):
        return None
    return runs if sum(runs) == size[0] * size[1] else None


def _runs(text: str) -> list[int] | None:
    """Return the runs of a compressed mask, or None if the text is invalid.

    pycocotools writes groups of six bits, of which five are data, least first, as letters from "0" on. From the fourth
    run on, the difference from the run before the last is written.
    """
    runs: list[int] = []
    value = shift = 0
    for letter in text:
        group = ord(letter) - 48
        if not 0 <= group < 64 or shift > 25:  # pycocotools reads up to 32 bits
            return None
        value |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    return None if shift else runs
