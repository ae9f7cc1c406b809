"""Create ML: one JSON file with a list of images, for each split or for all.

    train/_annotations.createml.json  train/a.jpg        Roboflow: one folder for each split
    annotations.json  a.jpg                              Apple: one file in the folder of the images

    [{"image": "a.jpg",
      "annotations": [{"label": "cat", "coordinates": {"x": 60, "y": 40, "width": 20, "height": 10}}]}, …]

Format: https://developer.apple.com/documentation/createml/building-an-object-detector-data-source. The keys are also
called imagefilename and annotation. x and y are the centre of the box, in pixels from the upper left corner of the
image. Create ML can be set to other units and anchors, which the file does not record: its defaults are assumed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from detect.data.annotations import Annotations
from detect.data.defects import DefectLog
from detect.data.formats.bounds import from_centre
from detect.data.formats.json_files import as_class, by_split, fields, find_image, fitting, load, objects, parse_files
from detect.data.formats.labelled import LabelledBox, LabelledImage
from detect.data.tree import Tree

LOOKED_FOR = "a JSON list with image and annotations (Create ML)"
_LIST = re.compile(rb"\s*\[\s*\{")
_KEYS = (
    re.compile(rb'"(image|imagefilename)"\s*:\s*"'),
    re.compile(rb'"annotations?"\s*:\s*\['),
    re.compile(rb'"coordinates"\s*:\s*\{'),
)


def splits(tree: Tree) -> tuple[str, ...]:
    """Return the folders, or names of several files, that are named after a split, or `all`."""
    return tuple(by_split(tree, _files(tree)))


def parse(tree: Tree, split: str, classes: Sequence[str] | None, log: DefectLog) -> Annotations:
    """Parse the files of a split. `classes`: see `read`; by default all labels in all files, sorted."""
    return parse_files(by_split(tree, _files(tree)), split, classes, log, lambda path, log: _read(tree, path, log))


def _files(tree: Tree) -> list[Path]:
    return fitting(tree, ".json", lambda head: _LIST.match(head) and all(key.search(head) for key in _KEYS))


def _read(tree: Tree, path: Path, log: DefectLog) -> Iterator[LabelledImage]:
    for place, entry in objects(load(path, log, list) or [], "image", path, log):
        image = find_image(tree, entry.get("image", entry.get("imagefilename")), path, place, log)
        boxes = _boxes(entry, path, place, log)
        if image is not None:
            yield LabelledImage(image, path, boxes=boxes)


def _boxes(entry: dict[str, Any], path: Path, place: str, log: DefectLog) -> list[LabelledBox]:
    items = entry.get("annotations", entry.get("annotation"))
    boxes = []
    for where, item in objects([] if items is None else items, f"{place}, annotation", path, log):
        name = as_class(item.get("label"), where, path, log)
        corners = fields(item.get("coordinates"), "x", "y", "width", "height")
        if name is not None and corners is None:
            log.add("broken-file", path, f"{where} ({name[:60]}) has no coordinates of four numbers")
        elif name is not None and corners is not None:
            x, y, width, height = corners
            boxes.append(LabelledBox(name, from_centre(x, y, width / 2, height / 2), f"{where} ({name[:60]})"))
    return boxes
