"""YOLO's folders, as Ultralytics defines them: `data.yaml`, images, and beside `images` the folder `labels`.

Format: https://docs.ultralytics.com/datasets/detect. A line of a label file is a class and the box's centre, width and
height, or a class and the corners of a polygon, all as fractions of the image's size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from detect.data.dataset import VALIDATION
from detect.data.decode import SUFFIXES
from detect.data.defects import RULES, Annotations, Findings, as_json, choose_classes, inside, is_file, is_folder
from detect.errors import UserError, one_line
from detect.files.fence import LOADER, Fence, OutsideError, is_yaml_bomb

LOOKED_FOR = "data.yaml (YOLO)"
_PIXELS = 2.0
"""A box that reaches out of its image has fractions a little over 1; what is over this was meant as pixels."""


def splits(root: Path, follow_links: bool = False) -> tuple[str, ...]:
    """Those of `train`, `val` (or one of its other names) and `test` that `data.yaml` names."""
    if not is_file(root / "data.yaml"):
        return ()
    document = _load(root / "data.yaml", Fence(root, follow_links))
    return tuple(split for split in ("train", *VALIDATION, "test") if document.get(split))


def parse(root: Path, split: str, classes: Sequence[str] | None, findings: Findings) -> Annotations:
    """What the label files of a split say. `classes` are as for `read`; by default `names` of `data.yaml`, by index."""
    path = root / "data.yaml"
    document = _load(path, findings.fence)
    names = _names(document, path)
    if document.get("nc", len(names)) != len(names):
        findings.add("class-count", path, f"nc is {as_json(document['nc'])}, but names has {len(names)}")
    chosen, category_ids, label_of = choose_classes(names, classes)
    images = _images(root, document, split, findings)
    sources = [_label_file(root, image) for image in images]

    boxes, image, labels, places = [], [], [], []
    for place, source in enumerate(sources):
        for number, category, box in _read(source, findings):
            if category not in label_of:
                rule = "unknown-class" if category in names else "unknown-category"
                name = names.get(category, "which names in data.yaml lacks")
                findings.add(rule, source, f"line {number}: class {category}, {name}")
            boxes.append(box)
            image.append(place)
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


def _load(path: Path, fence: Fence) -> dict[str, Any]:
    try:
        text = fence.read(path).decode("utf-8-sig")
        if is_yaml_bomb(text, aliases=0):
            raise UserError(f"{path}: it has YAML aliases or deep nesting; write the names and paths out")
        document = yaml.load(text, LOADER)
    except UserError:
        raise
    except OutsideError as error:
        raise UserError(one_line(f"{path}: {error}; {RULES['path-outside-root'].action}")) from None
    except Exception as error:  # values that are not what their tags say raise nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(one_line(f"{path}: it is no YAML ({reason[:300]}); correct the file")) from None
    if not isinstance(document, dict):
        raise UserError(f"{path}: it holds no names and no splits; write names: and train: into it")
    return document


def _names(document: dict[str, Any], path: Path) -> dict[int, str]:
    names = document.get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not all(type(index) is int and index >= 0 for index in names):
        raise UserError(f"{path}: names is neither a list nor index: name; write the names of the classes there")
    named = {index: name for index in sorted(names) if (name := _text(names[index])) is not None}
    if len(named) < len(names):
        raise UserError(f"{path}: one of the names is no text; write the names of the classes there")
    if len(set(named.values())) < len(named):
        raise UserError(f"{path}: two of the names are the same; give every class its own")
    return named


def _text(value: object) -> str | None:
    """A name or path; YAML may have taken it for a number, a date or a truth value. None for what is no text."""
    if value is None or isinstance(value, (dict, list, set, tuple, bytes)):
        return None
    try:
        return str(value)
    except ValueError:  # an integer of thousands of digits
        return None


def _images(root: Path, document: dict[str, Any], split: str, findings: Findings) -> list[Path]:
    """The images of a split: sorted where a folder is given, in the order of the file where a list is."""
    path = root / "data.yaml"
    base = inside(root, root, _text(document.get("path")) or "")
    base = base if base and is_folder(base) else root  # `path` often names a folder of the machine the data comes from
    entries = document[split] if isinstance(document[split], list) else [document[split]]
    images: dict[Path, None] = {}
    for entry in entries:
        name = _text(entry)
        if not name:
            findings.stop("broken-file", path, f"{split}: {as_json(entry)} is no path of a folder or a list")
        # Roboflow writes ../train/images and means train/images.
        place = inside(root, base, name.removeprefix("../"))
        if place is None:
            findings.stop("path-outside-root", path, f"{split}: {name}")
        if is_folder(place):
            found = (image for image in sorted(place.rglob("*")) if image.suffix.lower() in SUFFIXES)
            images.update(dict.fromkeys(image for image in found if not image.name.startswith(".")))
        elif is_file(place):
            for image in _listed(root, base, place, findings):
                if image in images:
                    findings.add("duplicate-image", place, f"{image} stands there twice")
                images[image] = None
        else:
            what = f"{split} names {str(place)[:300]}, which is not there"
            raise UserError(one_line(f"{path}: {what}; correct the entry or add the folder"))
    return list(images)


def _listed(root: Path, base: Path, path: Path, findings: Findings) -> Iterator[Path]:
    """The images that a list names, by their path from the list's folder (`./`) or from the data folder."""
    try:
        lines = findings.need(path).decode("utf-8-sig").splitlines()
    except ValueError as error:
        findings.stop("broken-file", path, f"it is no list of images: {error}")
    for number, line in enumerate(map(str.strip, lines), start=1):
        if line:
            image = inside(root, path.parent if line.startswith("./") else base, line)
            if image is None or image.absolute() == root.absolute():
                findings.add("path-outside-root", path, f"line {number}: {line}")
            else:
                yield image


def _label_file(root: Path, image: Path) -> Path:
    """The label file of an image: `labels` in the place of the last folder `images`, or beside the image."""
    parts = list(image.absolute().relative_to(root.absolute()).parts)
    for place in range(len(parts) - 2, -1, -1):
        if parts[place] == "images":
            parts[place] = "labels"
            break
    return (root / Path(*parts)).with_suffix(".txt")


def _read(path: Path, findings: Findings) -> Iterator[tuple[int, int, tuple[float, ...]]]:
    """Line number, class and xyxy as fractions of the image's size. No file means no objects."""
    if not is_file(path):
        findings.add("missing-label", path, "there is no such file")
        return
    content = findings.read(path)
    if content is None:
        return
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except ValueError as error:
        findings.add("broken-file", path, f"it is no text: {error}")
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
            what = "a class and four numbers, or a class and the corners of a polygon"
            findings.add("broken-file", path, f"line {number} is not {what}: {line[:60]}")
            continue
        if _PIXELS < max(values) < np.inf:
            findings.add("pixel-box", path, f"line {number}: {line[:60]}")
        yield number, int(category), box


def _box(values: list[float]) -> tuple[float, ...]:
    """The xyxy of centre, width and height, or of the corners of a polygon."""
    if len(values) == 4:
        x, y, width, height = values
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2
    if len(values) < 6 or len(values) % 2:
        raise ValueError
    return min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])
