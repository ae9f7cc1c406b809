"""LabelMe: one JSON file for each image, as X-AnyLabeling writes it too.

    a.jpg  a.json                                        side by side in any folder
    images/a.jpg  annotations/a.json                     in two folders of any names
    train/a.jpg  train/a.json  val/b.jpg  val/b.json     one folder for each split

    {"shapes": [{"label": "cat", "shape_type": "rectangle", "points": [[x, y], [x, y]]}, …],
     "imagePath": "a.jpg", "imageData": null, "imageHeight": 80, "imageWidth": 120}

Format: https://github.com/wkentaro/labelme. A rectangle has two opposite corners in any order, or all four; the points
of a circle are its centre and one on its edge; those of a mask are its first and its last pixel. Points and lines have
no area. `imageData` may contain the image itself, which is not read from there.

Polygons, circles, ellipses and `mask` shapes are read as masks, too; rectangles are boxes only.
Polygons with the same label and `group_id` are parts of one object.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import hypot
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from detect.data.annotations import Annotations
from detect.data.defects import DefectLog, as_json
from detect.data.formats.bounds import Box, of_ellipse, of_points
from detect.data.formats.json_files import as_class, load, objects, parse_files, points
from detect.data.formats.labelled import LabelledBox, LabelledImage
from detect.data.formats.shapes import ellipse, polygon, window
from detect.data.masks import Mask, Polygons
from detect.data.tree import Tree
from detect.files.fence import is_file

LOOKED_FOR = "JSON files with shapes and imagePath (LabelMe)"
_SHAPES = re.compile(rb'"shapes"\s*:\s*\[')
_BESIDE_SHAPES = re.compile(rb'"(imagePath|imageHeight|shape_type)"\s*:')
_IMAGE = re.compile(rb'"imageData"\s*:\s*"')
_WITHOUT_AREA = ("point", "points", "line", "linestrip")


def splits(tree: Tree) -> tuple[str, ...]:
    """Return the folders that are named after a split, or `all`."""
    return tuple(tree.by_split(_files(tree)))


def parse(tree: Tree, split: str, classes: Sequence[str] | None, log: DefectLog) -> Annotations:
    """Parse the JSON files of a split. `classes`: see `read`; by default all names in all files, sorted."""
    return parse_files(tree.by_split(_files(tree)), split, classes, log, lambda path, log: _read(tree, path, log))


def _files(tree: Tree) -> list[Path]:
    """Return the files in the folders that have annotations, without others such as a configuration."""
    folders = {path.parent for path in tree.samples(".json") if _is_labelme(tree, path)}
    paths = [path for path in tree.annotation_files(".json") if path.parent in folders]
    return [path for path in paths if tree.image_of(path) is not None or _is_labelme(tree, path)]


def _is_labelme(tree: Tree, path: Path) -> bool:
    head = tree.head(path)
    shapes = _SHAPES.search(head) and _BESIDE_SHAPES.search(head)
    return head.lstrip().startswith(b"{") and bool(shapes or _IMAGE.search(head))


def _read(tree: Tree, path: Path, log: DefectLog) -> Iterator[LabelledImage]:
    document = load(path, log, dict)
    if document is None:
        return
    boxes: list[LabelledBox] = []
    first: dict[tuple[str, str], int] = {}
    """Index of the first polygon of each group."""
    for place, shape in objects(document.get("shapes"), "shape", path, log):
        name = as_class(shape.get("label"), place, path, log)
        if name is None:
            continue
        place = f"{place} ({name[:60]})"
        kind = shape.get("shape_type") or "polygon"  # the first versions had only polygons
        if kind in _WITHOUT_AREA:
            log.add("shape-without-area", path, f"{place}: {kind}")
        elif kind == "polygon" and (corners := points(shape.get("points"))) is not None and len(corners) < 3:
            log.add("short-polygon", path, f"{place}: {len(corners)} corners")
        elif (box := _box(kind, points(shape.get("points")))) is None:
            log.add("broken-file", path, f"{place}: {as_json(kind)} with the points {as_json(shape.get('points'))}")
        else:
            mask, group = _mask(kind, points(shape.get("points")), shape.get("mask")), shape.get("group_id")
            part, index = LabelledBox(name, box, place, mask=mask), len(boxes)
            if group is not None and isinstance(mask, Polygons):
                index = first.setdefault((name, as_json(group)), index)
            boxes[index : index + 1] = [_joined(boxes[index], part) if index < len(boxes) else part]
    if (image := _image(tree, path, document, log)) is not None:
        width, height = document.get("imageWidth"), document.get("imageHeight")
        yield LabelledImage(image, path, None if width is None or height is None else (width, height), boxes)


def _joined(one: LabelledBox, other: LabelledBox) -> LabelledBox:
    """Return an object of two parts, both with polygons."""
    assert isinstance(one.mask, Polygons) and isinstance(other.mask, Polygons)
    corners = np.array([one.box, other.box]).reshape(-1, 2)
    return replace(one, box=of_points(corners), mask=Polygons((*one.mask.outlines, *other.mask.outlines)))


def _box(kind: object, corners: np.ndarray | None) -> Box | None:
    """Return the box of a shape, xyxy in pixels, or None if its points do not fit its kind."""
    if corners is None:
        return None
    if kind in ("rectangle", "polygon", "rotation", "oriented_rectangle", "quadrilateral", "cuboid"):
        return of_points(corners) if len(corners) >= 2 + (kind != "rectangle") else None
    if kind in ("circle", "ellipse", "mask") and len(corners) == 2:
        (x, y), (edge_x, edge_y) = corners.tolist()
        if kind == "circle":
            radius = hypot(edge_x - x, edge_y - y)
            return of_ellipse(x, y, radius, radius)
        left, top, right, bottom = of_points(corners)
        last_pixel = kind == "mask"
        return left, top, right + last_pixel, bottom + last_pixel
    return None


def _mask(kind: object, corners: np.ndarray | None, content: object) -> Mask | None:
    """Return the mask of a shape; a rectangle has none."""
    if corners is None or kind in ("rectangle", "rotation", "oriented_rectangle", "cuboid"):
        return None
    if kind in ("polygon", "quadrilateral"):
        return polygon(corners)
    (x, y), (edge_x, edge_y) = corners.tolist()
    if kind == "circle":
        radius = hypot(edge_x - x, edge_y - y)
        return ellipse(x, y, radius, radius)
    if kind == "ellipse":
        return ellipse((x + edge_x) / 2, (y + edge_y) / 2, abs(edge_x - x) / 2, abs(edge_y - y) / 2)
    return window(x, y, edge_x - x + 1, edge_y - y + 1, content) if isinstance(content, str) else None


def _image(tree: Tree, path: Path, document: dict[str, Any], log: DefectLog) -> Path | None:
    """Return the image with the stem of the JSON file, or else the one that the file names, which may not exist."""
    image = tree.image_of(path)
    if image is not None:
        return image
    name = document.get("imagePath")
    name = name if isinstance(name, str) and name else f"{path.stem}.jpg"
    found = tree.image(name, [path.parent], tree.split_of(path))
    if found is not None and is_file(found.path):
        if found.renamed:
            log.add("foreign-name", path, f"{name} is read as {found.path}")
        return found.path
    if isinstance(document.get("imageData"), str):
        log.add("embedded-image", path, f"{name} is only in its imageData")
        return None
    return path.parent / (PureWindowsPath(name).name or f"{path.stem}.jpg")
