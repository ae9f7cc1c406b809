"""CVAT's own XML, version 1.1: one file for all images of a task or project.

    annotations.xml  images/a.jpg  images/train/b.jpg

    <annotations>
      <image id="0" name="a.jpg" width="640" height="480" subset="train">
        <box label="cat" xtl="1.5" ytl="2" xbr="30" ybr="40" rotation="15.0"/>
        <polygon label="cat" points="1,2;30,2;30,40"/>
        <mask label="cat" rle="…" left="1" top="2" width="9" height="8"/>

Format: https://docs.cvat.ai/docs/other/xml_format. An object is the bounds of its shape; points,
lines, cuboids and tags are left out. "CVAT for video" has tracks instead of images: its boxes belong to the images
`frame_000000`, `frame_000001`, …, which must be there. The splits are the subsets.

Polygons, masks and ellipses are read as masks, too; boxes are boxes only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from io import BytesIO
from math import isfinite, radians
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import iterparse
from jaxtyping import Float64

from detect.data.annotations import Annotations
from detect.data.defects import DefectLog
from detect.data.formats import bounds
from detect.data.formats.labelled import LabelledBox, LabelledImage, image_path, to_annotations
from detect.data.formats.shapes import ellipse, polygon, window
from detect.data.masks import Mask
from detect.data.tree import ALL, REST, Tree, usual_split
from detect.errors import UserError, one_line

LOOKED_FOR = "XML with <annotations> (CVAT)"
_ROOT_ELEMENT = re.compile(rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<annotations\b", re.DOTALL)
_CONTENT = re.compile(rb"<(meta|image|track)\b")
_MAX_NAME = 60
_SHAPES = ("box", "polygon", "mask", "ellipse")
_WITHOUT_BOX = ("points", "polyline", "skeleton", "cuboid")
_FRAME = re.compile(r"frame_(\d{1,9})")
_LABEL_TYPES = (None, "any", "bbox", "rectangle", "polygon", "mask", "ellipse")


def splits(tree: Tree) -> tuple[str, ...]:
    """Return the subsets of the images."""
    names = set()
    for path in _files(tree):
        file = _File(tree, path, DefectLog(tree.root, ""))
        names |= {subset for subset, _ in file.images()} or {file.subset}
    return (ALL,) if names == {REST} else tuple(sorted(names))


def parse(tree: Tree, split: str, classes: Sequence[str] | None, log: DefectLog) -> Annotations:
    """Parse the files. `classes`: see `read`; by default the labels of the files, in their order."""
    images: dict[Path, LabelledImage] = {}
    names: dict[str, None] = {}
    for path in _files(tree):
        file = _File(tree, path, log)
        found = list(file.images(REST if split == ALL else split))
        names |= dict.fromkeys(file.labels)
        for _, image in found:
            if image is not None and image.path in images:
                log.add("duplicate-image", path, f"{image.path.name} is there twice")
            elif image is not None:
                images[image.path] = image
        names |= dict.fromkeys(sorted(file.names - names.keys()))
    return to_annotations(list(images.values()), names, classes, log)


def _files(tree: Tree) -> list[Path]:
    heads = ((path, tree.head(path)) for path in tree.annotation_files(".xml"))
    return [path for path, head in heads if _ROOT_ELEMENT.match(head) and _CONTENT.search(head)]


class _File:
    """Reader of one file, element by element.

    Args:
        tree: files of the data set.
        path: the file.
        log: log to which the defects of the images of the wanted split are added.
    """

    def __init__(self, tree: Tree, path: Path, log: DefectLog) -> None:
        self.subset = tree.split_of(path) or REST
        self.labels: list[str] = []
        """Labels that the file declares, in their order."""
        self.names: set[str] = set()
        """Labels of all objects that have a box."""
        self._tree, self._path, self._log = tree, path, log

    def images(self, wanted: str | None = None) -> Iterator[tuple[str, LabelledImage | None]]:
        """Yield the subset of each image, and the image if it is in the wanted one; None for an image without path."""
        frames: dict[int, LabelledImage] = {}
        for element in self._elements():
            if element.tag == "meta":
                self._read_meta(element)
            elif element.tag == "image":
                subset = _subset_name(element.get("subset")) or self.subset
                log = self._log if subset == wanted else DefectLog(self._tree.root, "")
                boxes = list(self._boxes(element, f"image {element.get('id', '?')[:20]}", log))
                yield subset, self._image(element, boxes, subset, log) if subset == wanted else None
            elif element.tag == "track":
                frames = frames or self._frames()
                self._read_track(element, frames)
        yield from ((self.subset, frame if self.subset == wanted else None) for _, frame in sorted(frames.items()))

    def _elements(self) -> Iterator[Element]:
        """Yield the children of the root element, each while it is in memory; log a file that is not XML."""
        content = self._log.read(self._path)
        if content is None:
            return
        depth, root = 0, None
        try:
            for event, element in iterparse(BytesIO(content), events=("start", "end")):
                root = element if root is None else root
                depth += 1 if event == "start" else -1
                if event == "end" and depth == 1:
                    yield element
                    root.clear()
        except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
            self._log.add("broken-file", self._path, f"it is not XML: {error}")

    def _read_meta(self, meta: Element) -> None:
        for label in meta.iter("label"):
            name = (label.findtext("name") or "").strip()
            if name and label.find("parent") is None and label.findtext("type") in _LABEL_TYPES:
                self.labels.append(name)
        subsets = (element.text for element in meta.iter("subset"))
        self.subset = next(filter(None, map(_subset_name, subsets)), self.subset)

    def _image(self, element: Element, boxes: list[LabelledBox], subset: str, log: DefectLog) -> LabelledImage | None:
        name = (element.get("name") or "").strip()
        if not name:
            log.add("broken-file", self._path, f"image {element.get('id')} has no name")
            return None
        parent = self._path.parent
        folders = [parent, parent / "images", parent / "images" / subset, self._tree.root]
        found = self._tree.image(name, folders, usual_split(subset))
        path = image_path(found, name, self._path, log)
        size = _numbers(element, "width", "height")
        return None if path is None else LabelledImage(path, self._path, size, boxes)

    def _boxes(self, element: Element, place: str, log: DefectLog) -> Iterator[LabelledBox]:
        """Yield the boxes of an image or a track; log other shapes, and those that are invalid."""
        for number, shape in enumerate(element, start=1):
            where = f"{place}, {shape.tag} {number}"
            name = (shape.get("label") or element.get("label") or "").strip()
            if shape.tag in _WITHOUT_BOX:
                log.add("shape-without-area", self._path, f"{where}: {name[:60]}")
            if shape.tag not in _SHAPES:
                continue
            if shape.tag == "polygon" and name and (shape.get("points") or "").count(";") < 2:
                log.add("short-polygon", self._path, f"{where}: {name[:60]}")
                continue
            box = _bounds(shape)
            if box is None or not name:
                log.add("broken-file", self._path, f"{where} has no label or no numbers of a {shape.tag}: {name[:60]}")
                continue
            self.names.add(name)
            yield LabelledBox(name, box, where, mask=_mask(shape))

    def _read_track(self, track: Element, frames: dict[int, LabelledImage]) -> None:
        """Add the boxes of a track to its frames."""
        place = f"track {track.get('id', '?')[:20]}"
        for shape in [shape for shape in track if shape.get("outside") == "1"]:
            track.remove(shape)
        numbered = [
            shape for shape in track if (shape.get("frame") or "").isdecimal() and len(shape.get("frame", "")) < 9
        ]
        for shape in numbered:
            number = int(shape.get("frame", ""))
            single = Element("track", track.attrib)
            single.append(shape)
            missing = LabelledImage(self._path.parent / f"frame_{number:06}.png", self._path)
            image = frames.setdefault(number, missing)
            image.boxes.extend(self._boxes(single, f"{place}, frame {number}", self._log))
        if len(numbered) < len(track):
            self._log.add("broken-file", self._path, f"{place} has a shape without frame")

    def _frames(self) -> dict[int, LabelledImage]:
        """Return the images of the frames of a video by their number."""
        named = [(path, match) for path in self._tree.images if (match := _FRAME.fullmatch(path.stem))]
        near = [pair for pair in named if pair[0].is_relative_to(self._path.parent)]
        frames = {int(match[1]): LabelledImage(path, self._path) for path, match in near or named}
        if not frames:
            problem = "it is CVAT for video, and the images of the frames (frame_000000.png, …) are not there"
            raise UserError(one_line(f"{self._path}: {problem}; export the task as CVAT for images, with its images"))
        return frames


def _subset_name(text: str | None) -> str:
    """Return the name of a subset; nothing for one that is no split, such as CVAT's default."""
    name = (text or "").strip()
    return "" if name.lower() in ("default", ALL) else name[:_MAX_NAME]


def _mask(shape: Element) -> Mask | None:
    """Return the mask of a shape with valid bounds; a box has none."""
    if shape.tag == "polygon":
        return polygon(_points(shape))
    if shape.tag == "ellipse":
        numbers, turn = _numbers(shape, "cx", "cy", "rx", "ry"), _numbers(shape, "rotation") or (0.0,)
        return None if numbers is None else ellipse(numbers[0], numbers[1], numbers[2], numbers[3], radians(turn[0]))
    place = _numbers(shape, "left", "top", "width", "height")
    if shape.tag != "mask" or place is None:
        return None
    try:
        runs = np.array([int(run) for run in (shape.get("rle") or "").split(",")], np.int64)
    except (ValueError, OverflowError):
        runs = np.zeros(1, np.int64)  # reported as damaged
    return window(place[0], place[1], place[2], place[3], runs)


def _points(shape: Element) -> Float64[np.ndarray, "n 2"]:
    """Return the corners of a polygon. Raise `ValueError` if they are not pairs of numbers."""
    pairs = [pair.split(",") for pair in (shape.get("points") or "").split(";")]
    return np.array([(float(x), float(y)) for x, y in pairs])


def _bounds(shape: Element) -> bounds.Box | None:
    """Return the bounds of a shape, or None if it lacks numbers."""
    if shape.tag == "polygon":
        try:
            return bounds.of_polygon(*_points(shape).T.tolist())
        except ValueError:
            return None
    keys = {"mask": ("left", "top", "width", "height"), "ellipse": ("cx", "cy", "rx", "ry")}
    numbers = _numbers(shape, *keys.get(shape.tag, ("xtl", "ytl", "xbr", "ybr")))
    turn = _numbers(shape, "rotation") if shape.get("rotation") else (0.0,)
    if numbers is None or turn is None or not isfinite(turn[0]):
        return None
    a, b, c, d = numbers
    if shape.tag == "mask":
        return bounds.from_corner(a, b, c, d)
    if shape.tag == "ellipse":
        return bounds.of_ellipse(a, b, c, d, radians(turn[0]))
    return bounds.of_rotated_box((a, b, c, d), radians(turn[0]))


def _numbers(element: Element, *names: str) -> tuple[float, ...] | None:
    try:
        return tuple(float(element.get(name) or "") for name in names)
    except ValueError:
        return None
