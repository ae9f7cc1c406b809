"""YOLO: a text file of boxes for each image.

    data.yaml  images/train/a.jpg  labels/train/a.txt      Ultralytics: a YAML of any name has class names and splits
    data.yaml  train/images/a.jpg  train/labels/a.txt      Roboflow
    classes.txt  images/a.jpg  labels/a.txt                Label Studio and others: class names only, one per line
    classes.txt  a.jpg  a.txt                              LabelImg

Format: https://docs.ultralytics.com/datasets/detect. A line of a label file is a class with the centre, width and
height of the box, or with the corners of a polygon, all as fractions of the image's size. Keypoints: `yolo_lines`.

Lines of polygons are read as masks with the bounds as boxes.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from detect.data.annotations import Annotations, choose_classes
from detect.data.decode import SUFFIXES
from detect.data.defects import RULES, DefectLog, as_json
from detect.data.formats.shapes import polygon
from detect.data.formats.yolo_lines import find_keypoints, line_box
from detect.data.masks import Polygons
from detect.data.tree import ALL, Tree, usual_split
from detect.errors import UserError, one_line, reason
from detect.files.fence import Fence, OutsideError, inside, is_file, is_folder, is_yaml_bomb

LOOKED_FOR = "a YAML file with names, or classes.txt and label files (YOLO)"
_LOADER = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
"""Reads every value as text: the class `no` is not False and `1e3` not a number. libyaml is faster if available."""
_NO_SPLITS = {"path", "names", "nc", "download", "kpt_shape", "flip_idx", "channels", "kpt_names", "roboflow"}
_LINE = re.compile(rb"\d+(\.0*)?([ \t]+[-+.\deE]+){4,}[ \t]*(\r|\n|$)")
Line = tuple[int, int, list[float]]
"""Number, class and the other numbers of a line."""
Shape = tuple[int, int]
"""Number of keypoints and of the numbers of each."""
_MAX_FOLDERS = 32
"""Folders at the end of a path that are looked for in the data folder."""


@dataclass(frozen=True, slots=True)
class Description:
    """Classes and splits of a data set."""

    file: Path
    """File with the class names."""
    names: dict[int, str]
    splits: dict[str, list[str]]
    """Folders, lists or images of each split. Empty if the folders of the images are the splits."""
    base: Path
    """Folder to which these are relative."""
    keypoints: Shape | None = None
    """Keypoints that follow the box in a line."""


def splits(tree: Tree) -> tuple[str, ...]:
    """Return the splits that the YAML file names and that exist, or those that the folders of the images name."""
    document = _document(tree)
    if document is None:
        return tuple(_by_folder(tree)) if _names_file(tree) else ()
    named = _entries(document[0], tree)
    present = [split for split, entries in named.items() if any(_place(tree, document[1], name) for name in entries)]
    return tuple(present or named or (_by_folder(tree) if "names" in document[0] else ()))


def parse(tree: Tree, split: str, classes: Sequence[str] | None, log: DefectLog) -> Annotations:
    """Parse the label files of a split. `classes`: see `read`; by default the names of the YAML, by index."""
    description = describe(tree, log)
    is_named = split in description.splits
    images = images_of(tree, description, split, log) if is_named else _by_folder(tree)[split]
    for absent in description.splits.keys() - {split, *splits(tree)}:
        places = ", ".join(description.splits[absent])
        log.add("absent-split", description.file, f"{absent} names {places}, which does not exist")
    return parse_labels(tree, description, images, classes, log)


def parse_labels(
    tree: Tree, description: Description, images: Sequence[Path], classes: Sequence[str] | None, log: DefectLog
) -> Annotations:
    """Parse the label file of each image."""
    names = description.names
    chosen, category_ids, label_of = choose_classes(names, classes)
    sources = [label_file(tree, image) for image in images]
    lines = [list(read_lines(source, log)) for source in sources]
    keypoints = description.keypoints or _undeclared_keypoints(description, lines, log)
    boxes, image, labels, places = [], [], [], []
    masks: list[Polygons | None] = []
    for index, source in enumerate(sources):
        for number, category, values in lines[index]:
            try:
                box = line_box(values, keypoints)
            except ValueError:
                shown = " ".join(f"{value:g}" for value in (category, *values))
                log.add("broken-file", source, f"line {number} is not {_expected(keypoints)}: {shown[:60]}")
                continue
            if category not in label_of:
                rule = "unknown-class" if category in names else "unknown-category"
                name = names.get(category, f"which is not one of names in {description.file.name}")
                log.add(rule, source, f"line {number}: class {category}, {name}")
            boxes.append(box)
            masks.append(polygon(np.array(values).reshape(-1, 2)) if len(values) > 4 and not keypoints else None)
            image.append(index)
            labels.append(label_of.get(category, -1))
            places.append(f"line {number}")
    return Annotations(
        classes=chosen,
        category_ids=category_ids,
        paths=list(images),
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
        layout="centre",
        masks=masks if any(masks) else None,
    )


# ------------------------------------------------------------------------------------------------- classes and splits


def description_file(tree: Tree) -> Path | None:
    """Return the file with the names of the classes, or None."""
    document = _document(tree)
    return document[1] if document else _names_file(tree)


def describe(tree: Tree, log: DefectLog) -> Description:
    """Return the classes and splits of a data set for which `splits` is not empty."""
    document = _document(tree)
    if document is None:
        path = _names_file(tree)
        assert path is not None
        return Description(path, listed_names(path, log), {}, tree.root)
    values, path = document
    names = _names(values, path)
    if "nc" in values and (not isinstance(values["nc"], str) or values["nc"].strip() != str(len(names))):
        log.add("class-count", path, f"nc is {as_json(values['nc'])}, but names has {len(names)}")
    base = inside(tree.root, tree.root, values.get("path") or "") if isinstance(values.get("path"), str) else None
    base = base if base and is_folder(base) else path.parent  # `path` is often a folder on the author's machine
    return Description(path, names, _entries(values, tree), base, _keypoints(values, path))


def _document(tree: Tree) -> tuple[dict[str, Any], Path] | None:
    """Return the content and path of the YAML file in the data folder that has the names of the classes."""
    official = tree.root / "data.yaml"
    if tree.entry is not None or is_file(official):
        path = tree.entry or official
        return (load_yaml(path, tree.fence), path) if path.suffix.lower() in (".yaml", ".yml") else None
    found = []
    for path in sorted([*tree.root.glob("*.yaml"), *tree.root.glob("*.yml")]):
        if re.search(rb"^[\"']?names[\"']?[ \t]*:", tree.head(path), re.MULTILINE):
            found.append(path)
    if len(found) > 1:
        listing = " and ".join(path.name for path in found[:3])
        raise UserError(one_line(f"{tree.root}: {listing} all name classes; give one of these files as the root"))
    return (load_yaml(found[0], tree.fence), found[0]) if found else None


def load_yaml(path: Path, fence: Fence) -> dict[str, Any]:
    """Return the content of a YAML file, with all values as text.

    Raises:
        UserError: it is not a YAML mapping, or may not be read.
    """
    try:
        text = fence.read(path).decode("utf-8-sig")
        if is_yaml_bomb(text, aliases=0):
            raise UserError(f"{path}: it has YAML aliases or deep nesting; write the names and paths without them")
        document = yaml.load(text, _LOADER)
    except UserError:
        raise
    except OutsideError as error:
        raise UserError(one_line(f"{path}: {error}; {RULES['path-outside-root'].action}")) from None
    except Exception as error:  # malformed files raise many kinds of exceptions
        cause = reason(error, 300) or type(error).__name__
        raise UserError(one_line(f"{path}: it is not YAML ({cause}); correct the file")) from None
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
        raise UserError(f"{path}: it has no names and no splits; add names: and train:")
    return document


def _entries(document: Mapping[str, Any], tree: Tree) -> dict[str, list[str]]:
    """Return the folders or lists of each key that names a split: the usual names, and keys of existing paths."""
    found = {}
    for key, value in document.items():
        entries = value if isinstance(value, list) else [value]
        if key in _NO_SPLITS or not value:
            continue
        is_text = all(isinstance(entry, str) for entry in entries)
        if usual_split(key) or (is_text and all(_place(tree, tree.root, entry) for entry in entries)):
            found[key] = [entry if isinstance(entry, str) else as_json(entry) for entry in entries]
    return found


def _names(document: Mapping[str, Any], path: Path) -> dict[int, str]:
    names = document.get("names")
    if isinstance(names, list):
        names = {str(index): name for index, name in enumerate(names)}
    if not isinstance(names, dict) or not all(re.fullmatch(r"\d{1,9}", str(index)) for index in names):
        raise UserError(f"{path}: names is neither a list nor a mapping of index to name; write the class names there")
    if not all(isinstance(name, str) and name for name in names.values()):
        raise UserError(f"{path}: one of the names is not text; write the class names there")
    if len(set(names.values())) < len(names):
        raise UserError(f"{path}: two of the names are the same; give every class a different name")
    return dict(sorted((int(index), name) for index, name in names.items()))


def _keypoints(document: Mapping[str, Any], path: Path) -> Shape | None:
    """Return `kpt_shape`."""
    shape = document.get("kpt_shape")
    if shape is None:
        return None
    if not isinstance(shape, list) or not re.fullmatch(r"[1-9]\d{0,3} [23]", " ".join(map(str, shape))):
        raise UserError(f"{path}: kpt_shape is {as_json(shape)}; write [number of keypoints, 2 or 3]")
    return int(shape[0]), int(shape[1])


def _names_file(tree: Tree) -> Path | None:
    """Return the file with one class name per line of a data set without YAML, if there are label files."""
    if tree.annotation_files(".data"):  # it names the class names: Darknet
        return None
    files = tree.files if tree.entry is None else (tree.entry,)
    paths = [path for path in files if path.name.lower() in ("classes.txt", "_darknet.labels", "obj.names")]
    paths.sort(key=lambda path: len(path.parts))
    if len({tree.head(path).strip() for path in paths}) > 1:
        raise UserError(one_line(f"{paths[0]}: {paths[1]} has other class names; make both files the same"))
    return paths[0] if paths and has_labels(tree) else None


def has_labels(tree: Tree) -> bool:
    """Return whether a text file begins like a label file."""
    texts = (path for path in tree.files if path.suffix.lower() == ".txt")
    return any(_LINE.match(tree.head(path).lstrip()) for path in texts)


def listed_names(path: Path, log: DefectLog) -> dict[int, str]:
    """Return the class names of a file with one per line."""
    try:
        lines = [line.strip() for line in log.need(path).decode("utf-8-sig").splitlines()]
    except ValueError as error:
        log.stop("broken-file", path, f"it is not a list of names: {error}")
    while lines and not lines[-1]:
        lines.pop()
    if len(set(lines)) < len(lines) or not all(lines):
        log.stop("broken-file", path, "a name is missing or given twice; write a different one into every line")
    return dict(enumerate(lines))


# ------------------------------------------------------------------------------------------------------------- images


def images_of(tree: Tree, description: Description, split: str, log: DefectLog) -> list[Path]:
    """Return the images of a split: sorted from a folder, or in the order of a list."""
    path = description.file
    images: dict[Path, None] = {}
    for name in description.splits[split]:
        target = _place(tree, description.base, name)
        if target is None and inside(tree.root, description.base, name.removeprefix("../")) is None:
            log.stop("path-outside-root", path, f"{split}: {name}")
        if target is None:
            problem = f"{split} names {name[:300]}, which does not exist below {tree.root}"
            raise UserError(one_line(f"{path}: {problem}; correct the entry, or move the file into the data folder"))
        if is_folder(target):
            files = (image for image in sorted(target.rglob("*")) if image.suffix.lower() in SUFFIXES)
            start = len(str(target))
            images.update(dict.fromkeys(image for image in files if f"{os.sep}." not in str(image)[start:]))
            continue
        for image in _listed(tree, description.base, target, split, log):
            if image in images:
                log.add("duplicate-image", target, f"{image} is listed twice")
            images[image] = None
    return list(images)


def _place(tree: Tree, base: Path, name: str) -> Path | None:
    """Return the folder or file of a split: `name` in `base` or, without its first folders, in the data folder.

    Roboflow writes ../train/images and means train/images; many files have the folders of their author's machine.
    """
    parts = [part for part in re.split(r"[/\\]", name) if part not in ("", ".", "..")][-_MAX_FOLDERS:]
    direct = inside(tree.root, base, name.removeprefix("../"))
    tails = [tree.root.joinpath(*parts[start:]) for start in range(len(parts))]
    for path in [direct, *tails] if direct else tails:
        if path.absolute() != tree.root.absolute() and "\0" not in name and (is_folder(path) or is_file(path)):
            return path
    return None


def _listed(tree: Tree, base: Path, path: Path, split: str, log: DefectLog) -> Iterator[Path]:
    """Yield the images of a list, whose paths are relative to the list's folder (`./`) or to the data folder."""
    try:
        lines = log.need(path).decode("utf-8-sig").splitlines()
    except ValueError as error:
        log.stop("broken-file", path, f"it is not a list of images: {error}")
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line:
            continue
        found = tree.image(line, [path.parent if line.startswith("./") else base], split)
        if found is None or found.path.absolute() == tree.root.absolute():
            log.add("path-outside-root", path, f"line {number}: {line}")
            continue
        if found.renamed:
            log.add("foreign-name", path, f"line {number}: {line} is read as {found.path}")
        yield found.path


def _by_folder(tree: Tree) -> dict[str, list[Path]]:
    """Return the images in the folders of images with labels, by the split that the folder is named after."""
    in_folder = defaultdict(list)
    for image in tree.images:
        in_folder[image.parent].append(image)
    labelled = {
        folder for folder, images in in_folder.items() if any(is_file(label_file(tree, image)) for image in images)
    }
    groups = tree.by_split(image for image in tree.images if image.parent in labelled)
    return {split: images for split, images in groups.items() if images or split != ALL}


def label_file(tree: Tree, image: Path) -> Path:
    """Return the label file of an image, in the folder `labels` or beside the image."""
    paths = [folder / f"{image.stem}.txt" for folder in (_labels_folder(tree.root, image.parent), image.parent)]
    found = next(filter(is_file, paths), None)
    return found or next(filter(is_file, map(tree.spelled, paths)), paths[0])


@lru_cache(maxsize=1024)
def _labels_folder(root: Path, folder: Path) -> Path:
    """Return a folder of images with the last `images` in its path replaced by `labels`."""
    parts = list(folder.absolute().relative_to(root.absolute()).parts)
    for index in range(len(parts) - 1, -1, -1):
        if parts[index].lower() == "images":
            parts[index] = "labels"
            break
    return root.joinpath(*parts)


# ------------------------------------------------------------------------------------------------------------- labels


def _undeclared_keypoints(description: Description, lines: Sequence[Sequence[Line]], log: DefectLog) -> Shape | None:
    """Return the shape of the keypoints of lines that have some although the YAML has no `kpt_shape`; log them."""
    values = [values for of_file in lines for *_, values in of_file]
    found = find_keypoints(values)
    if found is not None:
        number, (count, size) = sum(len(line) > 4 for line in values), found
        detail = f"{number} of {len(values)} lines are boxes with {count} keypoints of {size} numbers, no polygons"
        log.add("keypoint-lines", description.file, f"{detail}; it has no kpt_shape: {list(found)}")
    return found


def read_lines(path: Path, log: DefectLog) -> Iterator[Line]:
    """Yield line number, class and the other numbers of each line; a missing file yields nothing."""
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
        except (ValueError, OverflowError):
            log.add("broken-file", path, f"line {number} is not {_expected(None)}: {line[:60]}")
            continue
        yield number, int(category), values


def _expected(keypoints: tuple[int, int] | None) -> str:
    if keypoints:
        return f"a class and four numbers, with {keypoints[0] * keypoints[1]} more for its keypoints (kpt_shape)"
    return "a class and four numbers, or a class and the corners of a polygon"
