"""VisDrone: one text file for each image, with eight numbers for each object.

    VisDrone2019-DET-train/images/a.jpg  VisDrone2019-DET-train/annotations/a.txt

    684,8,273,116,1,4,0,0       left, top, width, height, 0 to ignore or 1, class, truncation, occlusion

Format: https://github.com/VisDrone/VisDrone2018-DET-toolkit. Classes are numbers from 1. Objects of the classes 0
(ignored regions) and 11 (others), and those marked with 0, do not count in VisDrone's evaluation and are left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from detect.data.annotations import Annotations
from detect.data.defects import DefectLog
from detect.data.formats.bounds import from_corner
from detect.data.formats.labelled import LabelledBox, LabelledImage, to_annotations
from detect.data.tree import Tree, group_by_split, split_word

LOOKED_FOR = "text files with eight numbers (VisDrone)"
CLASSES = (
    *("pedestrian", "people", "bicycle", "car", "van"),
    *("truck", "tricycle", "awning-tricycle", "bus", "motor"),
)
_LINE = re.compile(rb"\s*(\d{1,6},){4}[01],\d\d?,-?\d,-?\d,?[ \t]*(?:[\r\n]|$)")


def splits(tree: Tree) -> tuple[str, ...]:
    """Return the splits that the folders are named after."""
    return tuple(_files(tree))


def parse(tree: Tree, split: str, classes: Sequence[str] | None, log: DefectLog) -> Annotations:
    """Parse the text files of a split. `classes`: see `read`; by default VisDrone's ten."""
    return to_annotations([_read(tree, path, log) for path in _files(tree)[split]], CLASSES, classes, log)


def _files(tree: Tree) -> dict[str, list[Path]]:
    """Return the text files of each split: those in the folders of files with VisDrone's columns."""
    folders = {path.parent for path in tree.samples(".txt") if _LINE.match(tree.head(path))}
    paths = (path for path in tree.annotation_files(".txt") if path.parent in folders)
    return group_by_split(
        (_split_of(tree, path), path) for path in paths if _LINE.match(tree.head(path)) or tree.image_of(path)
    )


def _split_of(tree: Tree, path: Path) -> str | None:
    """Return the split that the innermost folder of a file contains in its name, such as `VisDrone2019-DET-train`."""
    return next(filter(None, map(split_word, reversed(path.parent.relative_to(tree.root).parts))), None)


def _read(tree: Tree, path: Path, log: DefectLog) -> LabelledImage:
    """Return the content of a file; log invalid lines and ignored objects and leave them out."""
    missing = path.parent.parent / "images" / f"{path.stem}.jpg"
    image = LabelledImage(tree.image_of(path) or missing, path)
    try:
        lines = (log.read(path) or b"").decode("utf-8-sig").splitlines()
    except ValueError as error:
        log.add("broken-file", path, f"it is not text: {error}")
        return image
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            x, y, width, height, counts, kind, *_ = map(float, line.strip().rstrip(",").split(","))
            name = (None, *CLASSES, None)[int(kind)]
        except (ValueError, IndexError, OverflowError):
            log.add("broken-file", path, f"line {number} does not have the eight numbers of an object: {line[:60]}")
            continue
        if name is None or not counts:
            log.add("ignored-region", path, f"line {number}: class {kind:g}")
        else:
            image.boxes.append(LabelledBox(name, from_corner(x, y, width, height), f"line {number}"))
    return image
