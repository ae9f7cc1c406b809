"""VGG Image Annotator (VIA), version 1 and 2: one JSON file, a project or an export, for each split or for all.

    via_project.json  a.jpg
    train/via_region_data.json  train/a.jpg              one folder for each split

    {"a.jpg1234": {"filename": "a.jpg", "size": 1234,
      "regions": [{"shape_attributes": {"name": "rect", "x": 10, "y": 20, "width": 30, "height": 40},
                   "region_attributes": {"class": "cat"}}, …]}, …}

Format: https://www.robots.ox.ac.uk/~vgg/software/via. A project has this under `_via_img_metadata`; version 1 numbers
the regions in an object. Coordinates are pixels. The class is the region's attribute class, label, type or name, or
else its only attribute. If no region of any file has an attribute, all are of one class, `object`. Points and lines
have no area.

Polygons, circles and ellipses are read as masks, too; rectangles are boxes only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detect.data.annotations import Annotations
from detect.data.defects import DefectLog, as_json
from detect.data.formats.bounds import Box, from_corner, of_ellipse, of_points
from detect.data.formats.json_files import (
    as_class,
    by_split,
    fields,
    find_image,
    fitting,
    load,
    numbers,
    objects,
    parse_files,
)
from detect.data.formats.labelled import LabelledBox, LabelledImage
from detect.data.formats.shapes import ellipse, polygon
from detect.data.masks import Polygons
from detect.data.tree import Tree

LOOKED_FOR = "a JSON file with filename, regions and shape_attributes (VIA)"
_PROJECT = re.compile(rb'"_via_(img_metadata|settings)"\s*:\s*\{')
_KEYS = (re.compile(rb'"filename"\s*:\s*"'), re.compile(rb'"regions"\s*:\s*[\[{]'))
_BESIDE_REGIONS = re.compile(rb'"(shape_attributes|file_attributes)"\s*:\s*\{')
_CLASS_KEYS = ("class", "label", "type", "name")
_WITHOUT_AREA = ("point", "polyline", "line")
_ONLY_CLASS = "object"


def splits(tree: Tree) -> tuple[str, ...]:
    """Return the folders, or names of several files, that are named after a split, or `all`."""
    return tuple(by_split(tree, _files(tree)))


def parse(tree: Tree, split: str, classes: Sequence[str] | None, log: DefectLog) -> Annotations:
    """Parse the files of a split. `classes`: see `read`; by default all classes in all files, sorted."""
    files = by_split(tree, _files(tree))
    documents = {path: load(path, log.aside(), dict) or {} for paths in files.values() for path in paths}
    has_classes = any(_attributes(region) for document in documents.values() for region in _regions(document))

    def read(path: Path, log: DefectLog) -> Iterator[LabelledImage]:
        document = documents[path] or load(path, log, dict) or {}  # the second time to log what is wrong
        return _read(tree, path, document, log, has_classes)

    return parse_files(files, split, classes, log, read)


def _files(tree: Tree) -> list[Path]:
    return fitting(tree, ".json", _is_via)


def _is_via(head: bytes) -> bool:
    is_export = all(key.search(head) for key in _KEYS) and _BESIDE_REGIONS.search(head)
    return head.lstrip().startswith(b"{") and bool(_PROJECT.search(head) or is_export)


def _entries(document: dict[str, Any]) -> dict[str, Any]:
    """Return what a file contains of each image."""
    metadata = document.get("_via_img_metadata")
    return metadata if isinstance(metadata, dict) else document


def _listed(regions: object) -> object:
    """Return the regions of an image as a list, which are in an object in version 1."""
    return list(regions.values()) if isinstance(regions, dict) else [] if regions is None else regions


def _regions(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield all valid regions of a file."""
    for entry in _entries(document).values():
        regions = _listed(entry.get("regions")) if isinstance(entry, dict) else None
        yield from (region for region in regions if isinstance(region, dict)) if isinstance(regions, list) else ()


def _attributes(region: dict[str, Any]) -> dict[str, Any]:
    attributes = region.get("region_attributes")
    return attributes if isinstance(attributes, dict) else {}


def _read(
    tree: Tree, path: Path, document: dict[str, Any], log: DefectLog, has_classes: bool
) -> Iterator[LabelledImage]:
    for key, entry in _entries(document).items():
        if not isinstance(entry, dict):
            log.add("broken-file", path, f"{key[:200]} is {as_json(entry)}, expected an object")
            continue
        name = entry.get("filename")
        image = find_image(tree, name, path, key[:200], log)
        boxes = []
        for place, region in objects(_listed(entry.get("regions")), f"{str(name)[:200]}, region", path, log):
            label = _class(region, place, path, log) if has_classes else _ONLY_CLASS
            box = _box(region.get("shape_attributes"), place, path, log)
            if label is not None and box is not None:
                mask = _mask(region["shape_attributes"])
                boxes.append(LabelledBox(label, box, f"{place} ({label[:60]})", mask=mask))
        if image is not None:
            yield LabelledImage(image, path, boxes=boxes)


def _class(region: dict[str, Any], place: str, path: Path, log: DefectLog) -> str | None:
    """Return the class of a region. A checkbox stores it as `{"cat": true}`."""
    attributes = _attributes(region)
    keys = [key for key in _CLASS_KEYS if key in attributes] or list(attributes)
    if len(keys) > 1 and keys[0] not in _CLASS_KEYS:
        names = ", ".join(keys)[:100]
        log.add("broken-file", path, f"{place} has the attributes {names}, one of which must be called class")
        return None
    value = attributes[keys[0]] if keys else None
    if isinstance(value, dict):
        chosen = [name for name, is_set in value.items() if is_set]
        value = chosen[0] if len(chosen) == 1 else None
    return as_class(value, place, path, log)


def _box(shape: object, place: str, path: Path, log: DefectLog) -> Box | None:
    """Return the box of a region, xyxy in pixels; log a region that has none."""
    kind = shape.get("name") if isinstance(shape, dict) else None
    if kind in _WITHOUT_AREA:
        log.add("shape-without-area", path, f"{place}: {kind}")
        return None
    box = _box_of(shape) if isinstance(shape, dict) else None
    if box is None:
        log.add("broken-file", path, f"{place}: {as_json(shape)} is no rect, polygon, circle or ellipse with numbers")
    return box


def _mask(shape: dict[str, Any]) -> Polygons | None:
    """Return the mask of a region that has a box; a rectangle has none."""
    match shape["name"]:
        case "polygon":
            return polygon(np.array([shape["all_points_x"], shape["all_points_y"]], np.float64).T)
        case "circle":
            circle = fields(shape, "cx", "cy", "r")
            return None if circle is None else ellipse(circle[0], circle[1], circle[2], circle[2])
        case "ellipse":
            shaped = fields(shape, "cx", "cy", "rx", "ry")
            angle = (fields(shape, "theta") or (0.0,))[0]
            return None if shaped is None else ellipse(shaped[0], shaped[1], shaped[2], shaped[3], angle)
    return None


def _box_of(shape: dict[str, Any]) -> Box | None:
    match shape.get("name"):
        case "rect":
            corner = fields(shape, "x", "y", "width", "height")
            return None if corner is None else from_corner(*corner)
        case "polygon":
            columns = [shape.get("all_points_x"), shape.get("all_points_y")]
            values = [numbers(column) if isinstance(column, list) else None for column in columns]
            if not values[0] or not values[1] or len(values[0]) != len(values[1]):
                return None
            return of_points(np.array(values).T)
        case "circle":
            circle = fields(shape, "cx", "cy", "r")
            return None if circle is None else of_ellipse(circle[0], circle[1], circle[2], circle[2])
        case "ellipse":
            ellipse, turned = fields(shape, "cx", "cy", "rx", "ry"), fields(shape, "theta") or (0.0,)
            if ellipse is None or not abs(turned[0]) < 1e6:
                return None
            x, y, rx, ry = ellipse
            return of_ellipse(x, y, rx, ry, turned[0])
    return None
