"""Darknet: a `.data` file that names the class names and the list of images of each split; labels as in YOLO.

    obj.data             classes = 2, train = data/train.txt, valid = data/valid.txt, names = data/obj.names
    obj.names            one class name per line
    train.txt            one image path per line
    obj_train_data/a.jpg  obj_train_data/a.txt

Format: https://github.com/AlexeyAB/darknet. CVAT writes it as "YOLO 1.1". The paths are those of the program that reads
them: `data/` stands for the data folder. Lines of polygons are read as masks, as in YOLO.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from detect.data.annotations import Annotations
from detect.data.defects import DefectLog
from detect.data.formats.yolo import Description, images_of, listed_names, parse_labels
from detect.data.tree import Tree, usual_split
from detect.errors import UserError, one_line
from detect.files.fence import is_file

LOOKED_FOR = "*.data with names = (Darknet)"
_LINE = re.compile(r"\s*(\w+)\s*=\s*(.*?)\s*$")


def splits(tree: Tree) -> tuple[str, ...]:
    """Return the splits of the `.data` file whose lists exist."""
    path = _data_file(tree)
    return () if path is None else tuple(_splits(tree, _values(tree, path)))


def parse(tree: Tree, split: str, classes: Sequence[str] | None, log: DefectLog) -> Annotations:
    """Parse the label files of a split. `classes`: see `read`; by default the listed names, by line."""
    path = _data_file(tree)
    assert path is not None
    values = _values(tree, path)
    names = _existing(tree, values["names"])
    if names is None:
        raise UserError(one_line(f"{path}: names is {values['names']}, which does not exist; add the file"))
    description = Description(names, listed_names(names, log), _splits(tree, values), path.parent)
    return parse_labels(tree, description, images_of(tree, description, split, log), classes, log)


def _data_file(tree: Tree) -> Path | None:
    """Return the only file that names class names and a list of training images."""
    paths = [path for path in tree.annotation_files(".data") if "names" in _values(tree, path)]
    if len(paths) > 1:
        listing = " and ".join(path.name for path in paths[:3])
        raise UserError(one_line(f"{tree.root}: {listing} describe data sets; give one of these files as the root"))
    return paths[0] if paths else None


def _values(tree: Tree, path: Path) -> dict[str, str]:
    lines = tree.head(path).decode("utf-8", errors="replace").splitlines()
    return {match[1]: match[2] for line in lines if (match := _LINE.match(line))}


def _splits(tree: Tree, values: dict[str, str]) -> dict[str, list[str]]:
    """Return the list of each split, by its path in the data folder."""
    lists = {key: _existing(tree, value) for key, value in values.items() if usual_split(key)}
    return {key: [path.relative_to(tree.root).as_posix()] for key, path in lists.items() if path is not None}


def _existing(tree: Tree, name: str) -> Path | None:
    """Return the file whose path ends like `name`, with as many of its folders as possible."""
    parts = [part for part in re.split(r"[/\\]", name) if part not in ("", ".", "..")]
    paths = (tree.root.joinpath(*parts[start:]) for start in range(len(parts)))
    return next((path for path in paths if is_file(path)), None)
