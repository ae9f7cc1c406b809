"""PASCAL VOC: one XML file for each image.

    JPEGImages/a.jpg  Annotations/a.xml  ImageSets/Main/train.txt      VOC's own folders, with a list for each split
    a.jpg  a.xml                                                       LabelImg: side by side in any folder
    images/a.jpg  annotations/a.xml                                    in two folders of any names
    train/a.jpg  train/a.xml  valid/b.jpg  valid/b.xml                 Roboflow: one folder for each split

Format: Everingham and Winn, "The PASCAL VOC 2012 Development Kit". Pixels are counted from 1 and both corners belong to
the box, so xmin … xmax becomes the interval from xmin - 1 to xmax here. If both are equal, the annotator has probably
clicked without drawing: this is read as a box without area, not as one pixel wide.

`SegmentationObject/a.png`, if it is there, has the masks: pixels of the value k belong to the k-th object of the XML
file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from detect.data.annotations import Annotations
from detect.data.decode import SUFFIXES
from detect.data.defects import DefectLog
from detect.data.formats.labelled import LabelledBox, LabelledImage, names_of_boxes, to_annotations
from detect.data.masks import LabelledPixels
from detect.data.tree import Tree
from detect.errors import UserError, one_line
from detect.files.fence import OutsideError, inside, is_file

LOOKED_FOR = "ImageSets/Main/*.txt or XML files with <annotation> (VOC)"
_FLAG = re.compile(r"\S+\s+(-1|0|1)")
_ROOT_ELEMENT = re.compile(rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<annotation\b(?!s)", re.DOTALL)
MASK_FOLDERS = ("SegmentationObject", "SegmentationClass")
"""Folders of images of masks, by object and by class."""
_BORDER = 255
"""Value of the pixels between an object and the background, which belong to neither."""
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def splits(tree: Tree) -> tuple[str, ...]:
    """Return the lists in `ImageSets/Main`, without the lists of a single class (`aeroplane_train`), or the folders."""
    base = _base(tree.root)
    lists = sorted((base / "ImageSets" / "Main").glob("[!.]*.txt"))
    if lists:
        single = {path for path in lists if "_" in path.stem and tree.fence.admits(path) and _is_class_list(base, path)}
        return tuple(path.stem for path in lists if path not in single)
    return tuple(tree.by_split(_files(tree)))


def parse(tree: Tree, split: str, classes: Sequence[str] | None, log: DefectLog) -> Annotations:
    """Parse the XML files of a split. `classes`: see `read`; by default all names in all XML files, sorted."""
    base, listed = _base(tree.root), None
    if (base / "ImageSets" / "Main").is_dir():
        listed = list(_listed(base, split, log))
        paths = [tree.spelled(base / "Annotations" / f"{stem}.xml") for stem in listed]
        others = sorted(base.glob("Annotations/**/[!.]*.xml"))
    else:
        others = _files(tree)
        paths = tree.by_split(others)[split]
    # The classes must not depend on the split: unless they are given, every file of the folder is read.
    labelled: dict[Path, LabelledImage] = {}
    for path in dict.fromkeys(paths if classes is not None else [*paths, *others]):
        if is_file(path):
            labelled[path] = _read(path, log)
        else:
            log.add("missing-annotation", path, f"{split}.txt lists its image")
    images = [labelled.get(path, LabelledImage(path.with_suffix(".jpg"), path)) for path in paths]
    if listed is None:
        files = [_image(tree, image) for image in images]
    else:
        by_stem, folder = _image_files(base), base / "JPEGImages"
        pairs = zip(listed, paths, strict=True)
        files = [by_stem.get(stem) or tree.image_of(path) or folder / f"{stem}.jpg" for stem, path in pairs]
    images = [replace(image, path=path) for image, path in zip(images, files, strict=True)]
    return replace(to_annotations(images, names_of_boxes(labelled.values()), classes, log), first_pixel=1)


def _files(tree: Tree) -> list[Path]:
    """Return the XML files in the folders that have annotations."""
    folders = {path.parent for path in tree.samples(".xml") if _ROOT_ELEMENT.match(tree.head(path))}
    return [path for path in tree.annotation_files(".xml") if path.parent in folders]


def _base(root: Path) -> Path:
    """Return the folder that contains `ImageSets`: `root`, or the only VOC year in it."""
    if (root / "ImageSets").is_dir():
        return root
    years = sorted(path.parent for pattern in ("VOC*", "VOCdevkit/VOC*") for path in root.glob(f"{pattern}/ImageSets"))
    if len(years) > 1:
        names = " and ".join(path.name for path in years)
        raise UserError(
            one_line(f"{root}: it contains {names}; give one of these folders as the root, or a list of several")
        )
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
        if stem.lower().endswith((".jpg", ".jpeg", ".png")) and not is_file(base / "Annotations" / f"{stem}.xml"):
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


def _read(path: Path, log: DefectLog) -> LabelledImage:
    """Return the content of an XML file, with the image that it names; log invalid objects and leave them out."""
    named = path.with_suffix(".jpg")
    content = log.read(path)
    if content is None:
        return LabelledImage(named, path)
    try:
        document = fromstring(content)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        log.add("broken-file", path, f"it is not XML: {error}")
        return LabelledImage(named, path)
    boxes, pixels = [], _pixels(path, log)
    for number, element in enumerate(document.findall("object"), start=1):
        name = (element.findtext("name") or "").strip()
        place = f"object {number} ({name[:60]})"
        corners = _numbers(element.find("bndbox"), _CORNERS)
        if not name:
            log.add("broken-file", path, f"object {number} has no name")
        elif corners is None:
            log.add("broken-file", path, f"{place} has no bndbox of four numbers")
        else:
            xmin, ymin, xmax, ymax = corners
            box = (xmin - (xmin < xmax), ymin - (ymin < ymax), xmax, ymax)
            mask = None if pixels is None or number >= _BORDER else LabelledPixels(pixels, number)
            boxes.append(LabelledBox(name, box, place, difficult=_is_set(element, "difficult"), mask=mask))
    named = path.parent / ((document.findtext("filename") or "").strip() or named.name)
    return LabelledImage(named, path, _numbers(document.find("size"), ("width", "height")), boxes)


def _pixels(path: Path, log: DefectLog) -> Path | None:
    """Return the image in which the pixels of the k-th object of an XML file have the value k, if there is one."""
    pixels = path.parent.parent / MASK_FOLDERS[0] / f"{path.stem}.png"
    if not is_file(pixels) or not pixels.is_relative_to(log.fence.root):
        return None
    if not log.fence.admits(pixels):
        log.add("broken-mask", pixels, f"{OutsideError()}; --data.follow_links true follows links")
        return None
    return pixels


def _image(tree: Tree, labelled: LabelledImage) -> Path:
    """Return the image with the stem of the XML file, or else the one that the file names."""
    path = labelled.source
    found = tree.image_of(path)
    if found is None:
        named = tree.image(labelled.path.name, [path.parent], tree.split_of(path))
        found = named.path if named and is_file(named.path) else path.with_suffix(".jpg")
    return found


def _is_set(element: Element, name: str) -> bool:
    return (element.findtext(name) or "").strip() == "1"


def _numbers(element: Element | None, names: Sequence[str]) -> tuple[float, ...] | None:
    if element is None:
        return None
    try:
        return tuple(float(element.findtext(name) or "") for name in names)
    except ValueError:
        return None
