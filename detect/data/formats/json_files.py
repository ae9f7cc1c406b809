"""JSON files of annotation tools: their content is checked value by value, and what does not fit is logged."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from detect.data.annotations import Annotations
from detect.data.defects import DefectLog, as_json
from detect.data.formats.coco_entries import is_number
from detect.data.formats.labelled import LabelledImage, class_names, image_path, to_annotations
from detect.data.tree import ALL, REST, FoundImage, Tree, split_in, words

Box = tuple[float, float, float, float]
T = TypeVar("T", dict, list)


# ---- values ----


def load(path: Path, log: DefectLog, kind: type[T]) -> T | None:
    """Return the content of a file that contains one JSON object or one list; log anything else and return None."""
    content = log.read(path)
    return None if content is None else decode(content, path, log, kind)


def decode(content: bytes, path: Path, log: DefectLog, kind: type[T], place: str = "") -> T | None:
    """Return JSON text as an object or a list; log anything else and return None. `place`: such as `line 3: `."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        log.add("broken-file", path, f"{place}it is not JSON: {error}")
        return None
    if isinstance(document, kind):
        return document
    expected = "an object" if kind is dict else "a list"
    log.add("broken-file", path, f"{place}it contains {as_json(document)}, expected {expected}")
    return None


def objects(items: object, what: str, path: Path, log: DefectLog) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place, such as `shape 3`, and the content of each object of a list; log everything else."""
    if not isinstance(items, list):
        log.add("broken-file", path, f"it has no list, but {as_json(items)}, where each {what} is expected")
        return
    for number, item in enumerate(items, start=1):
        if isinstance(item, dict):
            yield f"{what} {number}", item
        else:
            log.add("broken-file", path, f"{what} {number} is {as_json(item)}, expected an object")


def as_class(value: object, place: str, path: Path, log: DefectLog) -> str | None:
    """Return the name of a class, which some tools write as a whole number; log anything else and return None."""
    if isinstance(value, str) and value.strip():
        return value.strip()
    if type(value) is int and is_number(value):
        return str(value)
    log.add("broken-file", path, f"{place}: its class is {as_json(value)}, expected a text")
    return None


def numbers(values: Iterable[object]) -> tuple[float, ...] | None:
    """Return the values as floats, or None unless all of them are numbers."""
    values = tuple(values)
    return tuple(float(value) for value in values) if all(map(is_number, values)) else None  # type: ignore[arg-type]


def fields(entry: object, *names: str) -> tuple[float, ...] | None:
    """Return the fields of an object as floats, or None unless all of them are numbers."""
    return numbers(entry.get(name) for name in names) if isinstance(entry, dict) else None


def points(value: object) -> np.ndarray | None:
    """Return a list of [x, y] as an array of shape (n, 2), or None if it is not such a list or is empty."""
    if not isinstance(value, list) or not value or not all(type(pair) is list and len(pair) == 2 for pair in value):
        return None
    flat = numbers(number for pair in value for number in pair)
    return None if flat is None else np.array(flat).reshape(-1, 2)


def bounds(corners: np.ndarray) -> Box:
    """Return the smallest box, xyxy, with all points of an array of shape (n, 2)."""
    (left, top), (right, bottom) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    return left, top, right, bottom


def from_corner(x: float, y: float, width: float, height: float) -> Box:
    """Return the box, xyxy, with this upper left corner and size."""
    return x, y, x + width, y + height


def from_centre(x: float, y: float, half_width: float, half_height: float) -> Box:
    """Return the box, xyxy, around this centre."""
    return x - half_width, y - half_height, x + half_width, y + half_height


# ---- files ----


def fitting(tree: Tree, suffix: str, fits: Callable[[bytes], object]) -> list[Path]:
    """Return the files whose beginning fits, in the folders where one of the first files does."""
    folders = {path.parent for path in tree.samples(suffix) if fits(tree.head(path))}
    return [path for path in tree.annotation_files(suffix) if path.parent in folders and fits(tree.head(path))]


def by_split(tree: Tree, paths: Sequence[Path]) -> dict[str, list[Path]]:
    """Group files that list many images by split: their folder or, of several files, their own name tells it."""
    groups: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        own = split_in(words(path.stem)) if len(paths) > 1 else None
        groups[tree.split_of(path) or own or REST].append(path)
    return {ALL: groups[REST]} if set(groups) == {REST} else dict(sorted(groups.items()))


def find_image(tree: Tree, name: object, source: Path, place: str, log: DefectLog) -> Path | None:
    """Return the path of the image that a file calls `name`; if it has none within the root, log this."""
    if not isinstance(name, str) or not name:
        log.add("broken-file", source, f"{place}: the image's file name is {as_json(name)}, expected a text")
        return None
    return image_path(locate_image(tree, name, source), name, source, log)


def locate_image(tree: Tree, name: str, source: Path) -> FoundImage | None:
    """Return the image that a file calls `name`, by its path from the file's folder or the root, or from `images`."""
    homes = (source.parent, tree.root)
    folders = [home / inner for home in homes for inner in ("", "images", "data")]
    return tree.image(name, folders, tree.split_of(source))


def parse_files(
    files: Mapping[str, Sequence[Path]],
    split: str,
    classes: Sequence[str] | None,
    log: DefectLog,
    read: Callable[[Path, DefectLog], Iterable[LabelledImage]],
    *,
    names: Sequence[str] = (),
    normalised: bool = False,
) -> Annotations:
    """Return the annotations of a split.

    The classes must not depend on the split: unless they are given, the files of all splits are read.

    Args:
        files: the annotation files of each split.
        split: a key of `files`.
        classes: as for `read.read`: the classes of a trained model, or None.
        log: log to which the defects in the files of this split are added.
        read: returns the images of a file, and logs its defects.
        names: names of the classes that the data set lists, in their order; other names follow, sorted.
        normalised: whether boxes are fractions of the image's size instead of pixels.
    """
    images = [image for path in files[split] for image in read(path, log)]
    others: list[LabelledImage] = []
    if classes is None:
        paths = (path for name in files if name != split for path in files[name])
        others = [image for path in paths for image in read(path, log.aside())]
    first: dict[Path, Path] = {}
    for image in images:
        if image.path in first:
            log.add("duplicate-image", image.source, f"{image.path.name} is also in {first[image.path].name}")
        first.setdefault(image.path, image.source)
    every = dict.fromkeys([*names, *class_names([*images, *others])])
    return to_annotations(images, every, classes, log, normalised=normalised)
