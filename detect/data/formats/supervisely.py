"""Supervisely: a project of datasets, which are the splits, with one JSON file for each image.

    meta.json                                            the classes
    train/img/a.jpg  train/ann/a.jpg.json                one folder for each dataset

    {"size": {"width": 120, "height": 80},
     "objects": [{"classTitle": "cat", "geometryType": "rectangle", "points": {"exterior": [[x, y], [x, y]]}}, …]}

Format: https://docs.supervisely.com/data-organization/annotation-json-format. A rectangle has two opposite corners. A
bitmap has the upper left corner of its pixels, `origin`, and a compressed PNG, whose size is that of the object. Points
and lines have no area. As in Supervisely's export to COCO, no pixel is added to width and height.

Bitmaps and polygons are read as masks, too; rectangles are boxes only.
"""

from __future__ import annotations

import binascii
import re
import zlib
from base64 import b64decode
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from detect.data.annotations import Annotations
from detect.data.defects import DefectLog, as_json
from detect.data.formats.bounds import Box, from_corner, of_points
from detect.data.formats.json_files import as_class, load, numbers_in, objects, parse_files, points
from detect.data.formats.labelled import LabelledBox, LabelledImage
from detect.data.formats.shapes import polygon, window
from detect.data.masks import Mask
from detect.data.tree import ALL, Tree
from detect.files.fence import is_file

LOOKED_FOR = "JSON files with objects in a folder ann, beside img (Supervisely)"
_OBJECTS = re.compile(rb'"objects"\s*:\s*\[')
_BESIDE_OBJECTS = re.compile(rb'"(size|geometryType)"\s*:')
_META = "meta.json"
_WITHOUT_AREA = ("point", "line", "graph", "point_3d")
_PNG = b"\x89PNG\r\n\x1a\n"


def splits(tree: Tree) -> tuple[str, ...]:
    """Return the names of the datasets, by their path in the project."""
    return tuple(_files(tree))


def parse(tree: Tree, split: str, classes: Sequence[str] | None, log: DefectLog) -> Annotations:
    """Parse the files of a dataset. `classes`: see `read`; by default those of meta.json, then other names, sorted."""
    names = [] if classes is not None else _classes(tree, log)
    return parse_files(_files(tree), split, classes, log, lambda path, log: _read(tree, path, log), names=names)


def _files(tree: Tree) -> dict[str, list[Path]]:
    """Return the annotation files of each dataset, or of the one whose file the user named."""
    named = tree.entry is not None and tree.entry.name != _META
    paths = tree.annotation_files(".json") if named else tree.files
    folders: dict[Path, list[Path]] = defaultdict(list)
    for path in paths:
        if path.suffix.lower() == ".json" and path.parent.name.lower() == "ann":
            folders[path.parent].append(path)
    meta = _meta(tree)
    project, datasets = tree.root if meta is None else meta.parent, {}
    for folder, files in folders.items():
        if any(_is_annotation(tree.head(path)) for path in files[:20]):
            parts = folder.parent.relative_to(project).parts if folder.is_relative_to(project) else folder.parts[-2:-1]
            datasets["/".join(part for part in parts if part != "datasets") or ALL] = files
    return datasets


def _meta(tree: Tree) -> Path | None:
    """Return the project's file with the classes, if there is one."""
    return min((path for path in tree.files if path.name == _META), key=lambda path: len(path.parts), default=None)


def _is_annotation(head: bytes) -> bool:
    return head.lstrip().startswith(b"{") and bool(_OBJECTS.search(head) and _BESIDE_OBJECTS.search(head))


def _classes(tree: Tree, log: DefectLog) -> list[str]:
    """Return the names of the classes in the project's meta.json, without those that have no area."""
    path = _meta(tree)
    if path is None:
        return []
    items = (load(path, log, dict) or {}).get("classes", [])
    entries = [entry for _, entry in objects(items, "class", path, log) if entry.get("shape") not in _WITHOUT_AREA]
    names = [as_class(entry.get("title"), f"class {number}", path, log) for number, entry in enumerate(entries, 1)]
    return [name for name in names if name is not None]


def _read(tree: Tree, path: Path, log: DefectLog) -> Iterator[LabelledImage]:
    document = load(path, log, dict)
    if document is None:
        return
    boxes = []
    for place, item in objects(document.get("objects"), "object", path, log):
        name, kind = as_class(item.get("classTitle"), place, path, log), item.get("geometryType")
        if name is None:
            continue
        place = f"{place} ({name[:60]})"
        if kind in _WITHOUT_AREA:
            log.add("shape-without-area", path, f"{place}: {kind}")
        elif (box := _box(item)) is None:
            log.add("broken-file", path, f"{place}: {as_json(kind)} without valid points or bitmap")
        else:
            boxes.append(LabelledBox(name, box, place, mask=_mask(item, box)))
    size = document.get("size")
    size = (size.get("width"), size.get("height")) if isinstance(size, dict) else (None, None)
    yield LabelledImage(_image(tree, path), path, None if None in size else size, boxes)


def _image(tree: Tree, path: Path) -> Path:
    """Return the image of `ann/a.jpg.json`, which is `img/a.jpg` and may not exist."""
    beside = path.parent.parent / "img" / path.stem
    if is_file(beside):
        return beside
    found = tree.image(path.stem, [beside.parent], tree.split_of(path))
    return tree.image_of(path) or (found.path if found else beside)


def _box(item: dict[str, Any]) -> Box | None:
    """Return the box of an object, xyxy in pixels, or None if it has none."""
    bitmap, outline = item.get("bitmap"), item.get("points")
    if isinstance(bitmap, dict):
        corner, size = numbers_in(bitmap.get("origin"), 2), _png_size(bitmap.get("data"))
        return None if corner is None or size is None else from_corner(corner[0], corner[1], *size)
    corners = points(outline.get("exterior")) if isinstance(outline, dict) else None
    return None if corners is None or len(corners) < 2 else of_points(corners)


def _mask(item: dict[str, Any], box: Box) -> Mask | None:
    """Return the mask of an object: its bitmap or its polygon with holes; a rectangle has none."""
    bitmap, outline = item.get("bitmap"), item.get("points")
    if isinstance(bitmap, dict):
        left, top, right, bottom = box
        return window(left, top, right - left, bottom - top, bitmap["data"])
    corners = points(outline.get("exterior")) if isinstance(outline, dict) else None
    if corners is None or not isinstance(outline, dict) or item.get("geometryType") == "rectangle":
        return None
    inner = outline.get("interior")
    holes = [hole for one in (inner if isinstance(inner, list) else []) if (hole := points(one)) is not None]
    return polygon(corners, holes)


def _png_size(data: object) -> tuple[int, int] | None:
    """Return width and height of a PNG, compressed with zlib, as base64, of which only the header is decoded."""
    if not isinstance(data, str):
        return None
    try:
        header = zlib.decompressobj().decompress(b64decode(data[:4096]), 24)
    except (binascii.Error, zlib.error, ValueError):
        return None
    if len(header) < 24 or not header.startswith(_PNG):
        return None
    return int.from_bytes(header[16:20]), int.from_bytes(header[20:24])
