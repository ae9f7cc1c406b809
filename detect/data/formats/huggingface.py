"""Hugging Face's image folder: a `metadata.jsonl` with one image on each line, for each split or for all.

    train/metadata.jsonl  train/a.jpg                    one folder for each split

    {"file_name": "a.jpg", "objects": {"bbox": [[x, y, width, height], …], "categories": [0, …]}}

Format: https://huggingface.co/docs/datasets/image_dataset. x and y are the upper left corner, in pixels. The classes
are in categories, category, label or labels; numbers stay numbers, as their names are not in the file. `objects` may
also be a list with one object for each box.

Masks are read from `segmentation` beside bbox, in COCO's form: polygons in pixels, or run-length encodings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from detect.data.annotations import Annotations
from detect.data.defects import DefectLog, as_json
from detect.data.formats.bounds import from_corner
from detect.data.formats.coco_entries import mask_of
from detect.data.formats.json_files import as_class, by_split, decode, find_image, fitting, numbers_in, parse_files
from detect.data.formats.labelled import LabelledBox, LabelledImage
from detect.data.tree import Tree

LOOKED_FOR = "metadata.jsonl with file_name and objects (Hugging Face)"
_CLASS_KEYS = ("categories", "category", "labels", "label", "class", "classes", "name")
_KEYS = (re.compile(rb'"file_name"\s*:'), re.compile(rb'"objects"\s*:\s*[\[{]'), re.compile(rb'"bbox"\s*:\s*\['))


def splits(tree: Tree) -> tuple[str, ...]:
    """Return the folders, or names of several files, that are named after a split, or `all`."""
    return tuple(by_split(tree, _files(tree)))


def parse(tree: Tree, split: str, classes: Sequence[str] | None, log: DefectLog) -> Annotations:
    """Parse the files of a split. `classes`: see `read`; by default all names in all files, sorted."""
    return parse_files(by_split(tree, _files(tree)), split, classes, log, lambda path, log: _read(tree, path, log))


def _files(tree: Tree) -> list[Path]:
    return fitting(tree, ".jsonl", lambda head: all(key.search(head) for key in _KEYS))


def _read(tree: Tree, path: Path, log: DefectLog) -> Iterator[LabelledImage]:
    for number, line in enumerate((log.read(path) or b"").removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        place = f"line {number}"
        entry = decode(line, path, log, dict, f"{place}: ") if line.strip() else None
        if entry is None:
            continue
        image = find_image(tree, entry.get("file_name"), path, place, log)
        boxes = list(_boxes(entry.get("objects"), place, path, log))
        if image is not None:
            yield LabelledImage(image, path, boxes=boxes)


def _boxes(value: object, place: str, path: Path, log: DefectLog) -> Iterator[LabelledBox]:
    for number, (corner, label, segmentation) in enumerate(_objects(value, place, path, log), start=1):
        where = f"{place}: box {number}"
        name = as_class(label, where, path, log)
        numbered = numbers_in(corner, 4)
        if name is not None and numbered is None:
            log.add("broken-file", path, f"{where} is {as_json(corner)}, expected four numbers")
        elif name is not None and numbered is not None:
            mask = mask_of(segmentation, where, path, log)
            yield LabelledBox(name, from_corner(*numbered), f"{where} ({name[:60]})", mask=mask)


def _objects(value: object, place: str, path: Path, log: DefectLog) -> list[tuple[Any, Any, Any]]:
    """Return bbox, class and segmentation of each object; log a value that has none."""
    if value is None:
        return []
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        return [(item.get("bbox"), _class(item), item.get("segmentation")) for item in value]
    boxes, labels = (value.get("bbox"), _class(value)) if isinstance(value, dict) else (None, None)
    if isinstance(value, dict) and isinstance(boxes, list) and isinstance(labels, list) and len(boxes) == len(labels):
        return list(zip(boxes, labels, _segmentations(value, len(boxes), place, path, log), strict=True))
    if isinstance(boxes, list) and not boxes:
        return []
    log.add("broken-file", path, f"{place}: objects has no bbox and categories of the same number")
    return []


def _segmentations(objects: dict[str, Any], count: int, place: str, path: Path, log: DefectLog) -> list[Any]:
    """Return the segmentation of each of `count` boxes; of another number none, which is logged."""
    listed = objects.get("segmentation")
    if isinstance(listed, list) and len(listed) == count:
        return listed
    if listed:
        log.add("broken-mask", path, f"{place}: objects has not as many of segmentation as of bbox")
    return [None] * count


def _class(entry: dict[str, Any]) -> Any:
    return next((entry[key] for key in _CLASS_KEYS if key in entry), None)
