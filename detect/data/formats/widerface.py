"""WIDER FACE: one text file for each split, with the faces of all its images.

    WIDER_train/images/0--Parade/a.jpg  wider_face_split/wider_face_train_bbx_gt.txt

    0--Parade/a.jpg
    2                              number of faces; for 0, one line of zeros follows
    449 330 122 149 0 0 0 0 0 0    left, top, width, height, blur, expression, illumination, invalid, occlusion, pose
    361 98 263 339 0 0 0 0 0 0

Format: the readme of http://shuoyang1213.me/WIDERFACE. Faces that are marked invalid are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from detect.data.annotations import Annotations
from detect.data.defects import DefectLog
from detect.data.formats.bounds import from_corner
from detect.data.formats.labelled import LabelledBox, LabelledImage, image_path, to_annotations
from detect.data.tree import Tree, group_by_split, split_word, usual_split

LOOKED_FOR = "wider_face_*_bbx_gt.txt (WIDER FACE)"
CLASS = "face"
_HEAD = re.compile(rb"\s*[^\r\n]+\.(jpe?g|png)\s*\n\d+\s*\n(-?\d+[ \t]+){9}-?\d+\s*(\n|$)", re.IGNORECASE)
_COLUMNS = 10
_INVALID = 7


def splits(tree: Tree) -> tuple[str, ...]:
    """Return the splits that the files are named after."""
    return tuple(_files(tree))


def parse(tree: Tree, split: str, classes: Sequence[str] | None, log: DefectLog) -> Annotations:
    """Parse the file of a split. `classes`: see `read`; by default only `face`."""
    images: dict[Path, LabelledImage] = {}
    for path in _files(tree)[split]:
        for image in _read(tree, path, split, log):
            if image.path in images:
                log.add("duplicate-image", path, f"{image.path.name} is there twice")
            images[image.path] = image
    return to_annotations(list(images.values()), (CLASS,), classes, log)


def _files(tree: Tree) -> dict[str, list[Path]]:
    paths = (path for path in tree.annotation_files(".txt") if _HEAD.match(tree.head(path)))
    return group_by_split((split_word(path.stem) or tree.split_of(path), path) for path in paths)


def _read(tree: Tree, path: Path, split: str, log: DefectLog) -> Iterator[LabelledImage]:
    """Yield the images of a file; log invalid lines and faces and leave them out."""
    try:
        lines = log.need(path).decode("utf-8-sig").splitlines()
    except ValueError as error:
        log.stop("broken-file", path, f"it is not text: {error}")
    image = None
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if len(words) == _COLUMNS and all(re.fullmatch(r"-?\d{1,9}", word) for word in words):
            values = [int(word) for word in words]
            if image is None:
                log.add("broken-file", path, f"line {number} has a face without an image before it: {line[:60]}")
            elif values[_INVALID]:
                log.add("ignored-region", path, f"line {number}: an invalid face")
            elif any(values):
                image.boxes.append(LabelledBox(CLASS, from_corner(*map(float, values[:4])), f"line {number}"))
        elif words and not (len(words) == 1 and words[0].isdecimal()):
            if image is not None:
                yield image
            image = _image(tree, path, line.strip(), split, number, log)
    if image is not None:
        yield image


def _image(tree: Tree, path: Path, name: str, split: str, number: int, log: DefectLog) -> LabelledImage | None:
    if not re.search(r"\.\w{3,4}$", name):
        log.add("broken-file", path, f"line {number} is neither an image nor the ten numbers of a face: {name[:60]}")
        return None
    found = tree.image(name, [tree.root, tree.root / f"WIDER_{split}" / "images"], usual_split(split))
    image = image_path(found, name, path, log)
    return None if image is None else LabelledImage(image, path)
