"""PASCAL VOC folders: `JPEGImages`, one XML file per image in `Annotations`, lists of images in `ImageSets/Main`.

Format: Everingham and Winn, "The PASCAL VOC 2012 Development Kit". Pixels are counted from 1 and both corners belong to
the box, so xmin … xmax becomes the interval from xmin - 1 to xmax here. If both are equal, the annotator has probably
clicked without drawing: this is read as a box without area, not as one pixel wide.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from detect.data.annotations import Annotations, choose_classes
from detect.data.decode import SUFFIXES
from detect.data.defects import DefectLog
from detect.errors import UserError, one_line
from detect.files.fence import Fence, inside, is_file

LOOKED_FOR = "ImageSets/Main/*.txt (VOC, here or in VOC2007, VOCdevkit/VOC2007)"
_FLAG = re.compile(r"\S+\s+(-1|0|1)")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class _Object(NamedTuple):
    name: str
    corners: tuple[float, ...]
    difficult: bool
    place: str


class _Image(NamedTuple):
    size: tuple[float, ...] | None
    objects: list[_Object]


_EMPTY = _Image(None, [])


def splits(root: Path, follow_links: bool = False) -> tuple[str, ...]:
    """Return the lists of images in `ImageSets/Main`, without the lists of a single class (`aeroplane_train`)."""
    base, fence = _base(root), Fence(root, follow_links)
    lists = [path for path in (base / "ImageSets" / "Main").glob("*.txt") if "_" in path.stem]
    class_lists = {path.stem for path in lists if fence.admits(path) and _is_class_list(base, path)}
    stems = {path.stem for path in (base / "ImageSets" / "Main").glob("*.txt")}
    return tuple(sorted(stems - class_lists))


def parse(root: Path, split: str, classes: Sequence[str] | None, log: DefectLog) -> Annotations:
    """Parse the XML files of a split. `classes`: see `read`; by default all names in `Annotations`, sorted."""
    base = _base(root)
    stems = list(_listed(base, split, log))
    sources = [base / "Annotations" / f"{stem}.xml" for stem in stems]
    trees: dict[Path, _Image] = {}
    # The classes must not depend on the split: unless they are given, every file of the folder is read.
    for path in dict.fromkeys(sources if classes is not None else [*sources, *sorted(base.glob("Annotations/*.xml"))]):
        if is_file(path):
            trees[path] = _read(path, log)
        else:
            log.add("missing-annotation", path, f"{split}.txt lists its image")
    names = sorted({entry.name for tree in trees.values() for entry in tree.objects})
    chosen, category_ids, _ = choose_classes(dict(enumerate(names if classes is None else classes, start=1)), classes)
    label_of = {name: label for label, name in enumerate(chosen)}

    files = _image_files(base)
    rows = [(image, entry) for image, path in enumerate(sources) for entry in trees.get(path, _EMPTY).objects]
    for image, entry in rows:
        if entry.name not in label_of:
            log.add("unknown-class", sources[image], f"{entry.place}: {entry.name}")
    corners = np.array([entry.corners for _, entry in rows], dtype=np.float64).reshape(-1, 2, 2)
    corners[:, 0] -= corners[:, 0] < corners[:, 1]
    return Annotations(
        classes=chosen,
        category_ids=category_ids,
        paths=[files.get(stem, base / "JPEGImages" / f"{stem}.jpg") for stem in stems],
        sources=sources,
        declared=[trees.get(path, _EMPTY).size for path in sources],
        ids=None,
        boxes=corners.reshape(-1, 4),
        image=np.array([image for image, _ in rows], dtype=np.int64),
        labels=np.array([label_of.get(entry.name, -1) for _, entry in rows], dtype=np.int64),
        crowd=np.zeros(len(rows), dtype=bool),
        difficult=np.array([entry.difficult for _, entry in rows], dtype=bool),
        areas=np.full(len(rows), np.nan),
        places=[entry.place for _, entry in rows],
        first_pixel=1,
    )


def _base(root: Path) -> Path:
    """Return the folder that contains `ImageSets`: `root`, or the only VOC year in it."""
    if (root / "ImageSets").is_dir():
        return root
    years = sorted(path.parent for pattern in ("VOC*", "VOCdevkit/VOC*") for path in root.glob(f"{pattern}/ImageSets"))
    if len(years) > 1:
        names = " and ".join(path.name for path in years)
        raise UserError(one_line(f"{root}: it contains {names}; give one of these folders as the root"))
    return years[0] if years else root


def _listed(base: Path, split: str, log: DefectLog) -> Iterator[str]:
    """Yield the stems of the images in the list of a split; file extensions in the list are tolerated."""
    path = base / "ImageSets" / "Main" / f"{split}.txt"
    try:
        lines = log.need(path).decode("utf-8-sig").splitlines()
    except ValueError as error:
        log.stop("broken-file", path, f"it is not a list of names: {error}")
    seen = set()
    for number, line in enumerate(lines, start=1):
        stem = line.strip()
        if stem.lower().endswith((".jpg", ".jpeg", ".png")):
            stem = stem.rpartition(".")[0]
        if not stem:
            continue
        if _has_flag(base, stem):
            kind = "the list of a single class: 1 means that the class is in the image, -1 that it is not, 0 difficult"
            log.stop("class-list", path, f"line {number}: {stem}: this is {kind}")
        if inside(base, base / "JPEGImages", stem) is None:
            log.add("path-outside-root", path, f"line {number}: {stem}")
        elif stem in seen:
            log.add("duplicate-image", path, f"line {number}: {stem} is listed twice")
        else:
            seen.add(stem)
            yield stem


def _is_class_list(base: Path, path: Path) -> bool:
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            return _has_flag(base, file.readline().strip())
    except OSError:  # reported when the split is read
        return False


def _has_flag(base: Path, line: str) -> bool:
    """Return whether a line is an image name and the flag of a class, instead of an image name with such an ending."""
    return bool(_FLAG.fullmatch(line)) and not is_file(base / "Annotations" / f"{line}.xml")


def _image_files(base: Path) -> dict[str, Path]:
    """Return the image file of each stem: `.jpg` files first, then other images, then other files."""

    def rank(path: Path) -> tuple[bool, bool, str]:
        return path.suffix.lower() not in SUFFIXES, path.suffix != ".jpg", path.name

    paths = sorted((base / "JPEGImages").glob("*"), key=rank, reverse=True)
    return {path.stem: path for path in paths}


def _read(path: Path, log: DefectLog) -> _Image:
    """Return the size and objects of an XML file; log invalid objects and leave them out."""
    content = log.read(path)
    if content is None:
        return _EMPTY
    try:
        tree = fromstring(content)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        log.add("broken-file", path, f"it is not XML: {error}")
        return _EMPTY
    objects = []
    for number, element in enumerate(tree.findall("object"), start=1):
        name = (element.findtext("name") or "").strip()
        place = f"object {number} ({name[:60]})"
        corners = _numbers(element.find("bndbox"), _CORNERS)
        if not name:
            log.add("broken-file", path, f"object {number} has no name")
        elif corners is None:
            log.add("broken-file", path, f"{place} has no bndbox of four numbers")
        else:
            objects.append(_Object(name, corners, (element.findtext("difficult") or "").strip() == "1", place))
    return _Image(_numbers(tree.find("size"), ("width", "height")), objects)


def _numbers(element: Element | None, names: Sequence[str]) -> tuple[float, ...] | None:
    if element is None:
        return None
    try:
        return tuple(float(element.findtext(name) or "") for name in names)
    except ValueError:
        return None
