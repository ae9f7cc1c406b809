"""Label Studio: one JSON file with a list of tasks, as it exports them as JSON or as JSON-MIN.

    project-1.json  images/ab12cd34-a.jpg                one file, and images of any folder

    [{"data": {"image": "/data/upload/1/ab12cd34-a.jpg"},
      "annotations": [{"result": [{"type": "rectanglelabels", "original_width": 120, "original_height": 80,
        "value": {"x": 10, "y": 20, "width": 50, "height": 25, "rotation": 0, "rectanglelabels": ["cat"]}}, …]}]}, …]

    [{"image": "/data/upload/1/ab12cd34-a.jpg", "label": [{"x": 10, …, "rectanglelabels": ["cat"]}, …]}, …]

Format: https://labelstud.io/guide/task_format. Numbers are percent of the image's width and height. x and y are the
upper left corner of a rectangle, around which it is turned clockwise, or the centre of an ellipse. Label Studio writes
eight digits before the name of an uploaded image. Its exports as COCO, VOC and YOLO are read as such.

Polygons, ellipses and what is painted with the brush are read as masks, too; rectangles are boxes only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from math import cos, hypot, inf, radians, sin
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import numpy as np

from detect.data.annotations import Annotations
from detect.data.decode import SUFFIXES
from detect.data.defects import DefectLog, as_json
from detect.data.formats.bounds import Box, from_centre, from_corner, of_points
from detect.data.formats.brush import box_of_runs, runs_of_brush
from detect.data.formats.json_files import (
    as_class,
    by_split,
    fields,
    fitting,
    load,
    locate_image,
    objects,
    parse_files,
    points,
)
from detect.data.formats.labelled import LabelledBox, LabelledImage, image_path
from detect.data.formats.shapes import ellipse, polygon, window
from detect.data.masks import Mask
from detect.data.tree import Tree
from detect.files.fence import is_file

LOOKED_FOR = "a JSON list with data and annotations, or with rectanglelabels (Label Studio)"
_LIST = re.compile(rb"\s*\[\s*\{")
_DATA = re.compile(rb'"data"\s*:\s*\{')
_ANNOTATIONS = re.compile(rb'"(annotations|completions)"\s*:\s*\[')
_LABELS = re.compile(rb'"(rectangle|polygon|ellipse|brush|keypoint)labels"\s*:\s*\[')
_UPLOAD = re.compile(r"^[0-9a-f]{8}-(?=.)")
_WITHOUT_AREA = ("keypointlabels", "vectorlabels")
_SHAPES = ("rectangle", "polygon", "ellipse")


def splits(tree: Tree) -> tuple[str, ...]:
    """Return the folders, or names of several files, that are named after a split, or `all`."""
    return tuple(by_split(tree, _files(tree)))


def parse(tree: Tree, split: str, classes: Sequence[str] | None, log: DefectLog) -> Annotations:
    """Parse the files of a split. `classes`: see `read`; by default all labels in all files, sorted."""

    def read(path: Path, log: DefectLog) -> Iterator[LabelledImage]:
        return _read(tree, path, log)

    return parse_files(by_split(tree, _files(tree)), split, classes, log, read, normalised=True)


def _files(tree: Tree) -> list[Path]:
    return fitting(tree, ".json", _is_label_studio)


def _is_label_studio(head: bytes) -> bool:
    tasks = _DATA.search(head) and _ANNOTATIONS.search(head)
    return bool(_LIST.match(head) and (tasks or _LABELS.search(head)))


def _read(tree: Tree, path: Path, log: DefectLog) -> Iterator[LabelledImage]:
    for place, task in objects(load(path, log, list) or [], "task", path, log):
        data = task.get("data")
        results = _results(task, path, place, log) if isinstance(data, dict) else _minimal_results(task)
        if results is None:
            continue
        image = _image(tree, data if isinstance(data, dict) else task, path, place, log)
        boxes = list(_boxes(results, path, place, log))
        if image is not None:
            yield LabelledImage(image, path, _size(results), boxes)


# ---- tasks ----


def _results(task: dict[str, Any], path: Path, place: str, log: DefectLog) -> list[Any] | None:
    """Return the results of the last annotation of a task that was not cancelled, or None if there is none."""
    annotations = task.get("annotations", task.get("completions"))
    entries = [entry for _, entry in objects(annotations, f"{place}, annotation", path, log)]
    valid = [entry for entry in entries if not entry.get("was_cancelled")]
    if not valid:
        log.add("unlabelled-image", path, place)
        return None
    if len(valid) > 1:
        log.add("several-annotations", path, f"{place} has {len(valid)}")
    chosen = next((entry for entry in reversed(valid) if entry.get("ground_truth")), valid[-1])
    results = chosen.get("result")
    if isinstance(results, list):
        return results
    log.add("broken-file", path, f"{place}: its result is {as_json(results)}, expected a list")
    return None


def _minimal_results(task: dict[str, Any]) -> list[Any]:
    """Return the results of a task of JSON-MIN, which are in lists of any name, as results of a full task."""
    lists = (value for value in task.values() if isinstance(value, list))
    values = [value for items in lists for value in items if isinstance(value, dict) and _label_key(value)]
    return [{**value, "value": value, "type": _label_key(value)} for value in values]


def _image(tree: Tree, data: dict[str, Any], path: Path, place: str, log: DefectLog) -> Path | None:
    """Return the image of a task, also without the digits that Label Studio has put before its name."""
    texts = {key: _local_name(text) for key, text in data.items() if isinstance(text, str)}
    names = [name for name in texts.values() if PurePosixPath(name).suffix.lower() in SUFFIXES]
    name = texts.get("image") or (names[0] if names else None)
    if name is None:
        log.add("broken-file", path, f"{place}: its data has no image: {as_json(data)}")
        return None
    folder, _, last = name.rpartition("/")
    found = [locate_image(tree, f"{folder}/{text}".lstrip("/"), path) for text in (last, _UPLOAD.sub("", last))]
    image = next((image for image in found if image is not None and is_file(image.path)), found[0])
    # An address on a server is the rule here, and not reported as foreign.
    return image_path(image and image._replace(renamed=False), name, path, log)


def _local_name(text: str) -> str:
    """Return the path in an address such as `/data/local-files/?d=a/b%20c.jpg` or `s3://bucket/b.jpg?token=1`."""
    path = text.partition("?d=")[2] or text.partition("?")[0]
    return unquote(path.partition("://")[2] or path).lstrip("/")


# ---- results ----


def _size(results: Sequence[Any]) -> tuple[Any, Any] | None:
    """Return the size of the image according to its first result."""
    sizes = [(item.get("original_width"), item.get("original_height")) for item in results if isinstance(item, dict)]
    return next((size for size in sizes if None not in size), None)


def _boxes(results: list[Any], path: Path, place: str, log: DefectLog) -> Iterator[LabelledBox]:
    ids = {as_json(item.get("id")) for item in results if isinstance(item, dict) and _label_key(item.get("value"))}
    for where, item in objects(results, f"{place}, result", path, log):
        value, kind = item.get("value"), item.get("type")
        key = _label_key(value)
        if value is None or key is None:
            # A shape may have its label in another result with the same id; choices and texts are no shapes.
            if kind in _SHAPES and as_json(item.get("id")) not in ids:
                log.add("broken-file", path, f"{where}: a {kind} without a label")
        elif item.get("image_rotation"):
            log.add("broken-file", path, f"{where}: it was drawn on an image that Label Studio showed turned")
        elif key in _WITHOUT_AREA:
            log.add("shape-without-area", path, f"{where}: {key}")
        elif (shape := _shape(item, value)) is None:
            log.add(
                "broken-file", path, f"{where}: {key} with {as_json(value)} is no rectangle, polygon, ellipse or brush"
            )
        else:
            box, mask = shape
            names = [as_class(label, where, path, log) for label in value[key]]
            named = [name for name in names if name is not None]
            yield from (LabelledBox(name, box, f"{where} ({name[:60]})", mask=mask) for name in named)


def _label_key(value: object) -> str | None:
    """Return the key of the labels of a shape, such as `rectanglelabels`."""
    items = value.items() if isinstance(value, dict) else ()
    return next((key for key, labels in items if key.endswith("labels") and isinstance(labels, list)), None)


def _ratio(item: dict[str, Any]) -> float | None:
    """Return the height of the image divided by its width."""
    size = fields(item, "original_width", "original_height")
    ratio = size[1] / size[0] if size and size[0] > 0 else 0.0
    return ratio if 0 < ratio < inf else None


def _shape(item: dict[str, Any], value: dict[str, Any]) -> tuple[Box, Mask | None] | None:
    """Return box and mask of a result, in fractions of the image's size, or None if it has no box."""
    if "rle" in value:
        return _brush(item, value["rle"])
    box = _box(value, _ratio(item))
    return None if box is None else (box, _mask(value, _ratio(item)))


def _brush(item: dict[str, Any], content: object) -> tuple[Box, Mask | None] | None:
    """Return box and mask of what is painted with the brush, or None if its bytes are damaged."""
    size = fields(item, "original_width", "original_height")
    if size is None or not isinstance(content, list) or not all(0 < side < 2**31 and side % 1 == 0 for side in size):
        return None
    width, height = map(int, size)
    try:
        runs = runs_of_brush(content, width, height)
    except ValueError:
        return None
    left, top, right, bottom = box_of_runs(runs, width)
    return (left / width, top / height, right / width, bottom / height), window(0, 0, width, height, runs)


def _mask(value: dict[str, Any], ratio: float | None) -> Mask | None:
    """Return the mask of a shape that has a box, in fractions of the image's size; a rectangle has none."""
    if "points" in value:
        corners = points(value["points"])
        return None if corners is None else polygon(corners / 100)
    shape = fields(value, "x", "y", "radiusX", "radiusY")
    turned = fields(value, "rotation") or (0.0,)
    if shape is None:
        return None
    x, y, a, b = (number / 100 for number in shape)
    return ellipse(x, y, a, b, radians(turned[0] % 360), ratio or 1.0)


def _box(value: dict[str, Any], ratio: float | None) -> Box | None:
    """Return the box of a shape, xyxy in fractions of the image's size, or None if the shape has none."""
    if "points" in value:
        corners = points(value["points"])
        return None if corners is None or len(corners) < 3 else of_points(corners / 100)
    turned = fields(value, "rotation") if value.get("rotation") else (0.0,)
    if turned is None or (turned[0] and ratio is None):
        return None
    angle, ratio = radians(turned[0] % 360), ratio or 1.0
    if (ellipse := fields(value, "x", "y", "radiusX", "radiusY")) is not None:
        x, y, a, b = (number / 100 for number in ellipse)
        across, down = hypot(a * cos(angle), b * sin(angle) * ratio), hypot(a * sin(angle) / ratio, b * cos(angle))
        return from_centre(x, y, across, down)
    if (rectangle := fields(value, "x", "y", "width", "height")) is None:
        return None
    x, y, width, height = (number / 100 for number in rectangle)
    if not angle:  # a negative size stays, and is reported
        return from_corner(x, y, width, height)
    side = np.array([width * cos(angle), width * sin(angle) / ratio])
    other = np.array([-height * sin(angle) * ratio, height * cos(angle)])
    corner = np.array([x, y])
    with np.errstate(over="ignore", invalid="ignore"):  # such boxes are reported by `repair`
        return of_points(np.array([corner, corner + side, corner + other, corner + side + other]))
