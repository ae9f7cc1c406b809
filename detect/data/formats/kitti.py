"""KITTI: one text file for each image, with one object per line.

    training/image_2/000001.png  training/label_2/000001.txt      KITTI's own folders
    images/a.png  labels/a.txt                                    NVIDIA TAO and others

    Car 0.00 0 1.85 387.63 181.54 423.81 203.12 1.67 1.87 3.69 -16.53 2.39 58.49 1.57

The columns are class, truncation, occlusion, angle, left, top, right, bottom and seven more of the object in space; a
detector's results have a score as well. Format: the readme of KITTI's object development kit, from
https://www.cvlibs.net/datasets/kitti/eval_object.php. Pixels are counted from 0. Regions of the class DontCare are left
out: objects in them are not annotated.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from detect.data.annotations import Annotations
from detect.data.decode import SUFFIXES
from detect.data.defects import DefectLog
from detect.data.formats.labelled import LabelledBox, LabelledImage, names_of_boxes, to_annotations
from detect.data.tree import Tree
from detect.files.fence import is_file

LOOKED_FOR = "text files with 15 columns (KITTI)"
_IGNORED = "dontcare"
_NUMBER = rb"[ \t]+[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_LINE = re.compile(rb"\s*(?=\S*[A-Za-z])[^\s,:]+(?:" + _NUMBER + rb"){14,15}[ \t]*(?:[\r\n]|$)")


def splits(tree: Tree) -> tuple[str, ...]:
    """Return the splits that the folders are named after, such as `training`."""
    return tuple(tree.by_split(_files(tree)))


def parse(tree: Tree, split: str, classes: Sequence[str] | None, log: DefectLog) -> Annotations:
    """Parse the label files of a split. `classes`: see `read`; by default all names in all files, sorted."""
    files = tree.by_split(_files(tree))
    images = [_read(tree, path, log) for path in files.pop(split)]
    others: list[LabelledImage] = []
    if classes is None:  # they must not depend on the split
        others = [_read(tree, path, log.aside()) for paths in files.values() for path in paths]
    return to_annotations(images, names_of_boxes([*images, *others]), classes, log)


def _files(tree: Tree) -> list[Path]:
    """Return the label files: those in the folders of files with KITTI's columns, without lists of something else."""
    folders = {path.parent for path in tree.samples(".txt") if _LINE.match(tree.head(path))}
    paths = [path for path in tree.annotation_files(".txt") if path.parent in folders]
    return [path for path in paths if _LINE.match(tree.head(path)) or is_file(_image(tree, path))]


def _image(tree: Tree, label: Path) -> Path:
    """Return the image of a label file: in the folder of the same camera, or else the nearest."""
    folder = label.parent.with_name(label.parent.name.replace("label", "image"))
    paths = (folder / f"{label.stem}{suffix}" for suffix in (".png", ".jpg", *SUFFIXES))
    beside = next((path for path in paths if is_file(path)), None)
    return beside or tree.image_of(label) or folder / f"{label.stem}.png"


def _read(tree: Tree, path: Path, log: DefectLog) -> LabelledImage:
    """Return the content of a label file; log invalid lines and leave them out."""
    image = LabelledImage(_image(tree, path), path)
    content = log.read(path)
    try:
        lines = (content or b"").decode("utf-8-sig").splitlines()
    except ValueError as error:
        log.add("broken-file", path, f"it is not text: {error}")
        return image
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            continue
        place = f"line {number}"
        try:
            values = [float(word) for word in words[1:]]
        except ValueError:
            values = []
        if len(values) not in (14, 15):
            log.add("broken-file", path, f"{place} is not a class and 14 or 15 numbers: {line[:60]}")
        elif words[0].lower() == _IGNORED:
            log.add("ignored-region", path, f"{place}: {words[0]}")
        else:
            image.boxes.append(LabelledBox(words[0], tuple(values[3:7]), place))
    return image
