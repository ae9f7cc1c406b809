"""YOLO folders in Ultralytics' layout: `data.yaml`, a folder `images` and next to it a folder `labels`.

Format: https://docs.ultralytics.com/datasets/detect. A line of a label file is a class with the centre, width and
height of the box, or with the corners of a polygon, all as fractions of the image's size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from detect.data.annotations import Annotations, choose_classes
from detect.data.dataset import VALIDATION
from detect.data.decode import SUFFIXES
from detect.data.defects import RULES, AbsentSplitError, DefectLog, as_json
from detect.errors import UserError, one_line, reason
from detect.files.fence import LOADER, Fence, OutsideError, inside, is_file, is_folder, is_yaml_bomb

LOOKED_FOR = "data.yaml (YOLO)"
_PIXELS = 2.0
"""Boxes that exceed their image have fractions slightly above 1; numbers above this limit are pixels."""


def splits(root: Path, follow_links: bool = False) -> tuple[str, ...]:
    """Return the splits that `data.yaml` names: `train`, `val` or a synonym, `test`."""
    if not is_file(root / "data.yaml"):
        return ()
    document = load_yaml(root / "data.yaml", Fence(root, follow_links))
    return tuple(split for split in ("train", *VALIDATION, "test") if document.get(split))


def parse(root: Path, split: str, classes: Sequence[str] | None, log: DefectLog) -> Annotations:
    """Parse the label files of a split. `classes`: see `read`; by default `names` of `data.yaml`, by index."""
    path = root / "data.yaml"
    document = load_yaml(path, log.fence)
    names = _names(document, path)
    if document.get("nc", len(names)) != len(names):
        log.add("class-count", path, f"nc is {as_json(document['nc'])}, but names has {len(names)}")
    chosen, category_ids, label_of = choose_classes(names, classes)
    images = _images(root, document, split, log)
    sources = [_label_file(root, image) for image in images]

    boxes, image, labels, places = [], [], [], []
    for index, source in enumerate(sources):
        for number, category, box in _read(source, log):
            if category not in label_of:
                rule = "unknown-class" if category in names else "unknown-category"
                name = names.get(category, "which is not one of names in data.yaml")
                log.add(rule, source, f"line {number}: class {category}, {name}")
            boxes.append(box)
            image.append(index)
            labels.append(label_of.get(category, -1))
            places.append(f"line {number}")
    return Annotations(
        classes=chosen,
        category_ids=category_ids,
        paths=images,
        sources=sources,
        declared=[None] * len(images),
        ids=None,
        boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        image=np.array(image, dtype=np.int64),
        labels=np.array(labels, dtype=np.int64),
        crowd=np.zeros(len(boxes), dtype=bool),
        difficult=np.zeros(len(boxes), dtype=bool),
        areas=np.full(len(boxes), np.nan),
        places=places,
        normalised=True,
    )


def load_yaml(path: Path, fence: Fence) -> dict[str, Any]:
    """Return the content of `data.yaml`. Raise `UserError` if it is not a YAML mapping or may not be read."""
    try:
        text = fence.read(path).decode("utf-8-sig")
        if is_yaml_bomb(text, aliases=0):
            raise UserError(f"{path}: it has YAML aliases or deep nesting; write the names and paths without them")
        document = yaml.load(text, LOADER)
    except UserError:
        raise
    except OutsideError as error:
        raise UserError(one_line(f"{path}: {error}; {RULES['path-outside-root'].action}")) from None
    except Exception as error:  # values that do not match their tags raise nearly any exception
        cause = reason(error, 300) or type(error).__name__
        raise UserError(one_line(f"{path}: it is not YAML ({cause}); correct the file")) from None
    if not isinstance(document, dict):
        raise UserError(f"{path}: it has no names and no splits; add names: and train:")
    return document


def _names(document: dict[str, Any], path: Path) -> dict[int, str]:
    names = document.get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not all(type(index) is int and index >= 0 for index in names):
        raise UserError(f"{path}: names is neither a list nor a mapping of index to name; write the class names there")
    named = {index: name for index in sorted(names) if (name := _text(names[index])) is not None}
    if len(named) < len(names):
        raise UserError(f"{path}: one of the names is not text; write the class names there")
    if len(set(named.values())) < len(named):
        raise UserError(f"{path}: two of the names are the same; give every class a different name")
    return named


def _text(value: object) -> str | None:
    """Return a name or path, which YAML may have read as number, date or Boolean; None if it is not text."""
    if value is None or isinstance(value, (dict, list, set, tuple, bytes)):
        return None
    try:
        return str(value)
    except ValueError:  # an integer of thousands of digits
        return None


def _images(root: Path, document: dict[str, Any], split: str, log: DefectLog) -> list[Path]:
    """Return the images of a split: sorted from a folder, or in the order of a list."""
    path = root / "data.yaml"
    base = inside(root, root, _text(document.get("path")) or "")
    base = base if base and is_folder(base) else root  # `path` is often a folder on the author's machine
    entries = document[split] if isinstance(document[split], list) else [document[split]]
    images: dict[Path, None] = {}
    for entry in entries:
        name = _text(entry)
        if not name:
            log.stop("broken-file", path, f"{split}: {as_json(entry)} is not a path of a folder or a list")
        # Roboflow writes ../train/images and means train/images.
        target = inside(root, base, name.removeprefix("../"))
        if target is None:
            log.stop("path-outside-root", path, f"{split}: {name}")
        if is_folder(target):
            files = (image for image in sorted(target.rglob("*")) if image.suffix.lower() in SUFFIXES)
            images.update(dict.fromkeys(image for image in files if not image.name.startswith(".")))
        elif is_file(target):
            for image in _listed(root, base, target, log):
                if image in images:
                    log.add("duplicate-image", target, f"{image} is listed twice")
                images[image] = None
        else:
            raise AbsentSplitError(path, f"{split} names {str(target)[:300]}, which does not exist")
    return list(images)


def _listed(root: Path, base: Path, path: Path, log: DefectLog) -> Iterator[Path]:
    """Yield the images of a list, whose paths are relative to the list's folder (`./`) or to the data folder."""
    try:
        lines = log.need(path).decode("utf-8-sig").splitlines()
    except ValueError as error:
        log.stop("broken-file", path, f"it is not a list of images: {error}")
    for number, line in enumerate(map(str.strip, lines), start=1):
        if line:
            image = inside(root, path.parent if line.startswith("./") else base, line)
            if image is None or image.absolute() == root.absolute():
                log.add("path-outside-root", path, f"line {number}: {line}")
            else:
                yield image


def _label_file(root: Path, image: Path) -> Path:
    """Return the label file of an image: its path with the last folder `images` replaced by `labels`."""
    parts = list(image.absolute().relative_to(root.absolute()).parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return (root / Path(*parts)).with_suffix(".txt")


def _read(path: Path, log: DefectLog) -> Iterator[tuple[int, int, tuple[float, ...]]]:
    """Yield line number, class and xyxy as fractions of the image's size; a missing file yields nothing."""
    if not is_file(path):
        log.add("missing-label", path, "there is no such file")
        return
    content = log.read(path)
    if content is None:
        return
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except ValueError as error:
        log.add("broken-file", path, f"it is not text: {error}")
        return
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            continue
        try:
            category, *values = map(float, words)
            if category != int(category):
                raise ValueError
            box = _box(values)
        except (ValueError, OverflowError):
            expected = "a class and four numbers, or a class and the corners of a polygon"
            log.add("broken-file", path, f"line {number} is not {expected}: {line[:60]}")
            continue
        if _PIXELS < max(values) < np.inf:
            log.add("pixel-box", path, f"line {number}: {line[:60]}")
        yield number, int(category), box


def _box(values: list[float]) -> tuple[float, ...]:
    """Return the xyxy of a box given by centre, width and height, or of a polygon given by its corners."""
    if len(values) == 4:
        x, y, width, height = values
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2
    if len(values) < 6 or len(values) % 2:
        raise ValueError
    return min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])
