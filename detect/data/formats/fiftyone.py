"""FiftyOne's own format: one JSON file with the boxes of all images, for each split or for all.

    labels.json  data/a.jpg
    train/labels.json  train/data/a.jpg                  one folder for each split

    {"classes": ["cat", "dog"],
     "labels": {"a": [{"label": "cat", "bounding_box": [x, y, width, height]}, …], "b": null, …}}

Format: https://docs.voxel51.com/user_guide/import_datasets.html, FiftyOneImageDetectionDataset. An image is called by
its path in `data` without suffix. x and y are the upper left corner; all four are fractions of the image's size. A
label may be an index of `classes`. An image with null has not been labelled. The format has no masks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from detect.data.annotations import Annotations
from detect.data.decode import SUFFIXES
from detect.data.defects import DefectLog, as_json
from detect.data.formats.bounds import from_corner
from detect.data.formats.json_files import (
    as_class,
    by_split,
    fitting,
    load,
    locate_image,
    numbers_in,
    objects,
    parse_files,
)
from detect.data.formats.labelled import LabelledBox, LabelledImage, image_path
from detect.data.tree import Tree

LOOKED_FOR = "a JSON file with labels and bounding_box (FiftyOne)"
_KEYS = (re.compile(rb'"labels"\s*:\s*\{'), re.compile(rb'"bounding_box"\s*:\s*\['))
_FIRST_KEY = re.compile(rb'\s*\{\s*"(classes|labels)"')


def splits(tree: Tree) -> tuple[str, ...]:
    """Return the folders, or names of several files, that are named after a split, or `all`."""
    return tuple(by_split(tree, _files(tree)))


def parse(tree: Tree, split: str, classes: Sequence[str] | None, log: DefectLog) -> Annotations:
    """Parse the files of a split. `classes`: see `read`; by default those that the files list, in their order."""
    files = by_split(tree, _files(tree))
    names: list[str] = []
    if classes is None:
        for path in (path for paths in files.values() for path in paths):
            names += filter(None, _classes(load(path, log.aside(), dict) or {}, path, log.aside()))

    def read(path: Path, log: DefectLog) -> Iterator[LabelledImage]:
        return _read(tree, path, log)

    return parse_files(files, split, classes, log, read, names=names, normalised=True)


def _files(tree: Tree) -> list[Path]:
    return fitting(tree, ".json", lambda head: _FIRST_KEY.match(head) and all(key.search(head) for key in _KEYS))


def _classes(document: dict[str, Any], path: Path, log: DefectLog) -> list[str]:
    """Return the names of the listed classes; in the place of an invalid name, which is logged, is an empty one."""
    listed = document.get("classes")
    if listed is None:
        return []
    if not isinstance(listed, list):
        log.add("broken-file", path, f"classes is {as_json(listed)}, expected a list")
        return []
    return [as_class(name, f"class {index}", path, log) or "" for index, name in enumerate(listed)]


def _read(tree: Tree, path: Path, log: DefectLog) -> Iterator[LabelledImage]:
    document = load(path, log, dict)
    if document is None:
        return
    classes, labels = _classes(document, path, log), document.get("labels")
    if not isinstance(labels, dict):
        log.add("broken-file", path, f"labels is {as_json(labels)}, expected an object")
        return
    for id, items in labels.items():
        if items is None:
            log.add("unlabelled-image", path, id[:200])
            continue
        name = id if Path(id).suffix.lower() in SUFFIXES else f"{id}.jpg"
        found = locate_image(tree, name, path)
        image = image_path(found and found._replace(renamed=False), id[:200], path, log)
        boxes = list(_boxes(items, classes, f"{id[:200]}, label", path, log))
        if image is not None:
            yield LabelledImage(image, path, boxes=boxes)


def _boxes(items: object, classes: list[str], what: str, path: Path, log: DefectLog) -> Iterator[LabelledBox]:
    for place, item in objects(items, what, path, log):
        label, corner = item.get("label"), item.get("bounding_box")
        if classes and type(label) is int:
            label = classes[label] if 0 <= label < len(classes) else None
        name = as_class(label, place, path, log)
        numbered = numbers_in(corner, 4)
        if name is not None and numbered is None:
            log.add("broken-file", path, f"{place}: bounding_box is {as_json(corner)}, expected four numbers")
        elif name is not None and numbered is not None:
            yield LabelledBox(name, from_corner(*numbered), f"{place} ({name[:60]})")
