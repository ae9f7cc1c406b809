"""Writers of COCO, VOC and YOLO annotation files, from which the readers restore the same values.

Boxes are written with the smallest number of decimals that restores the same float32, and whole numbers without a
decimal point; COCO's masks are written as they are. Images are not written here; `names` has the file name of each
image.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias
from xml.etree.ElementTree import Element, ElementTree, SubElement, indent

import numpy as np
import yaml
from jaxtyping import Bool, Float32, Float64
from PIL import Image

from detect.data.annotations import MIN_SIDE
from detect.data.dataset import Dataset
from detect.data.masks import Mask, Polygons
from detect.data.outlines import outline_of
from detect.data.records import Record

DIGITS = 17
"""Maximum number of decimals, enough for a float64 below 1."""

FRACTION_DIGITS = 10
"""Number of decimals of a polygon's corners, as fractions of the image's size; they restore boxes of whole pixels."""

OUTSIDE = 1e-9
"""Pixels by which a written box may exceed its image because of rounding; the reader clips it."""

Numbers: TypeAlias = Float64[np.ndarray, "m 2"]
"""One number per box for the horizontal and one for the vertical axis."""


def write_coco(root: Path, split: str, names: Sequence[str], dataset: Dataset) -> None:
    """Write `annotations/instances_SPLIT.json`; the images belong in the folder SPLIT."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for name, record, boxes in zip(names, dataset.records, _each(dataset, coco_boxes(dataset)), strict=True):
        images.append({"id": record.id, "file_name": name, "width": record.width, "height": record.height})
        masks = record.masks or (None,) * len(boxes)
        columns = (boxes, record.labels, record.crowd, record.areas, masks)
        for box, label, crowd, area, mask in zip(*columns, strict=True):
            annotation = {
                "id": len(annotations) + 1,  # pycocotools evaluates an id of 0 incorrectly
                "image_id": record.id,
                "category_id": dataset.category_ids[label],
                "bbox": [_plain(number) for number in box],
                "area": _plain(area),
                "iscrowd": int(crowd),
            }
            if mask is not None:
                annotation["segmentation"] = _segmentation(mask, record)
            annotations.append(annotation)
    categories = [{"id": id, "name": name} for id, name in zip(dataset.category_ids, dataset.classes, strict=True)]
    document = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    file = root / "annotations" / f"instances_{split}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(document), encoding="utf-8")


def write_voc(root: Path, split: str, names: Sequence[str], dataset: Dataset) -> None:
    """Write `ImageSets/Main/SPLIT.txt` and an XML file per image in `Annotations`, with boxes by `voc_boxes`.

    The masks of an image are one PNG in `SegmentationObject`, in which the pixels of an object have its number in the
    XML file; a pixel of several masks belongs to the last one.
    """
    annotations, lists = root / "Annotations", root / "ImageSets" / "Main"
    annotations.mkdir(exist_ok=True)
    lists.mkdir(parents=True, exist_ok=True)
    for name, record, boxes in zip(names, dataset.records, _each(dataset, voc_boxes(dataset)), strict=True):
        tree = ElementTree(_voc_tree(name, record, boxes, dataset.classes))
        indent(tree)
        tree.write(annotations / f"{Path(name).stem}.xml", encoding="utf-8")
        masks = {number: mask for number, mask in enumerate(record.masks or (), start=1) if mask is not None}
        if masks:
            file = root / "SegmentationObject" / f"{Path(name).stem}.png"
            file.parent.mkdir(exist_ok=True)
            label_image(record.height, record.width, masks).save(file)
    stems = "".join(f"{Path(name).stem}\n" for name in names)
    (lists / f"{split}.txt").write_text(stems, encoding="utf-8")


def write_yolo(root: Path, split: str, names: Sequence[str], dataset: Dataset) -> None:
    """Write a label file per image in `labels/SPLIT`; the images belong in `images/SPLIT`.

    The line of an object with a mask has the polygon of `outline_of` instead of the box.
    """
    labels = root / "labels" / split
    labels.mkdir(parents=True)
    for name, record, boxes in zip(names, dataset.records, _each(dataset, yolo_boxes(dataset)), strict=True):
        lines = []
        for label, box, mask in zip(record.labels, boxes, record.masks or (None,) * len(boxes), strict=True):
            outline = None if mask is None else outline_of(mask, record.height, record.width)
            numbers = box if outline is None else np.round(outline / (record.width, record.height), FRACTION_DIGITS)
            lines.append(" ".join([str(label), *map(_text, numbers.ravel())]) + "\n")
        (labels / f"{Path(name).stem}.txt").write_text("".join(lines), encoding="utf-8")


def write_yaml(root: Path, splits: Sequence[str], classes: Sequence[str]) -> None:
    """Write YOLO's `data.yaml` without `path`: the data folder is then the file's, even after it was moved."""
    document = {split: f"images/{split}" for split in splits} | {"nc": len(classes), "names": list(classes)}
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    (root / "data.yaml").write_text(text, encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------------- boxes


def coco_boxes(dataset: Dataset) -> Float64[np.ndarray, "m 4"]:
    """Return left, top, width and height of all boxes of a split."""
    start, end, size = _columns(dataset)

    def write(digits: int) -> tuple[Numbers, Numbers]:
        first = np.round(start, digits)
        return first, np.round(end - first, digits)

    return np.hstack(_fewest_digits(write, lambda first, length: (first, first + length), start, end, size))


def voc_boxes(dataset: Dataset) -> Float64[np.ndarray, "m 4"]:
    """Return xmin, ymin, xmax and ymax of all boxes of a split, counted from 1 and inclusive.

    A box at most one pixel wide or high cannot be represented (see `detect.data.formats.voc`).
    """
    start, end, size = _columns(dataset)

    def write(digits: int) -> tuple[Numbers, Numbers]:
        return np.round(start + 1, digits), np.round(end, digits)

    def read(first: Numbers, last: Numbers) -> tuple[Numbers, Numbers]:
        return first - (first < last), last

    return np.hstack(_fewest_digits(write, read, start, end, size))


def yolo_boxes(dataset: Dataset) -> Float64[np.ndarray, "m 4"]:
    """Return centre, width and height of all boxes of a split, as fractions of the image's size."""
    start, end, size = _columns(dataset)

    def write(digits: int) -> tuple[Numbers, Numbers]:
        length = np.round((end - start) / size, digits)
        # One more digit for the half, so that a box at the edge keeps its 0.
        return np.round(start / size + length / 2, digits + 1), length

    def read(centre: Numbers, length: Numbers) -> tuple[Numbers, Numbers]:
        return (centre - length / 2) * size, (centre + length / 2) * size

    return np.hstack(_fewest_digits(write, read, start, end, size))


def _columns(dataset: Dataset) -> tuple[Numbers, Numbers, Numbers]:
    """Return the start and end of all boxes of a split on both axes, and the sizes of their images."""
    records = dataset.records
    boxes = np.concatenate([np.zeros((0, 4)), *(record.boxes for record in records)])
    sizes = np.array([(record.width, record.height) for record in records], dtype=np.float64).reshape(-1, 2)
    return boxes[:, :2], boxes[:, 2:], sizes.repeat([len(record.boxes) for record in records], axis=0)


def _fewest_digits(
    write: Callable[[int], tuple[Numbers, Numbers]],
    read: Callable[[Numbers, Numbers], tuple[Numbers, Numbers]],
    start: Numbers,
    end: Numbers,
    size: Numbers,
) -> tuple[Numbers, Numbers]:
    """Return the numbers with the fewest digits from which `read` restores the float32 box, per axis.

    Args:
        write: returns the two written numbers per axis for a number of digits.
        read: returns start and end for two written numbers.
        start: start of each box.
        end: end of each box.
        size: size of each box's image.
    """

    def is_exact(first: Numbers, second: Numbers) -> Bool[np.ndarray, "m 2"]:
        low, high = read(first, second)
        same = (_clip(low, size) == start) & (_clip(high, size) == end)
        return same & (low > -OUTSIDE) & (high < size + OUTSIDE) & (high - low >= MIN_SIDE)

    chosen = write(DIGITS)
    for digits in range(DIGITS - 1, -1, -1):
        candidate = write(digits)
        exact = is_exact(*candidate)
        chosen = np.where(exact, candidate[0], chosen[0]), np.where(exact, candidate[1], chosen[1])
    return chosen


def _clip(numbers: Numbers, size: Numbers) -> Float32[np.ndarray, "m 2"]:
    return np.clip(numbers, 0, size).astype(np.float32)


def _each(dataset: Dataset, boxes: Float64[np.ndarray, "m 4"]) -> Iterator[Float64[np.ndarray, "n 4"]]:
    """Return an iterator over the boxes of each image."""
    ends = np.cumsum([len(record.boxes) for record in dataset.records])
    return iter(np.split(boxes, ends)[: len(dataset)])


def _voc_tree(name: str, record: Record, boxes: Float64[np.ndarray, "n 4"], classes: Sequence[str]) -> Element:
    """Return the XML of an image. Old tools need `pose` and `truncated`, which are unknown here."""
    tree = Element("annotation")
    _add(tree, folder="JPEGImages", filename=name)
    _add(SubElement(tree, "size"), width=record.width, height=record.height, depth=3)
    for box, label, difficult in zip(boxes, record.labels, record.difficult, strict=True):
        entry = SubElement(tree, "object")
        _add(entry, name=classes[label], pose="Unspecified", truncated=0, difficult=int(difficult))
        corners = dict(zip(("xmin", "ymin", "xmax", "ymax"), map(_text, box), strict=True))
        _add(SubElement(entry, "bndbox"), **corners)
    return tree


def label_image(height: int, width: int, masks: Mapping[int, Mask]) -> Image.Image:
    """Return an image of masks with VOC's palette, in which the pixels of each mask have its number, 1 … 254."""
    numbers = np.zeros((height, width), np.uint8)
    for number, mask in masks.items():
        numbers[mask.bitmap(height, width) == 1] = number
    image = Image.fromarray(numbers)
    image.putpalette([_voc_colour(number, channel) for number in range(256) for channel in range(3)])
    return image


def _voc_colour(number: int, channel: int) -> int:
    """Return red, green or blue in VOC's palette: the bits 0, 3, 6 of a number are the highest of red, and so on."""
    return sum((number >> (3 * k + channel) & 1) << (7 - k) for k in range(3))


def _add(element: Element, **fields: str | int) -> None:
    for tag, value in fields.items():
        SubElement(element, tag).text = str(value)


def _segmentation(mask: Mask, record: Record) -> Any:
    """Return the `segmentation` of a COCO annotation."""
    if isinstance(mask, Polygons):
        return [[_plain(number) for number in outline] for outline in mask.segmentation()]
    return mask.rle(record.height, record.width).segmentation()


def _plain(number: float) -> int | float:
    whole = int(number)
    return whole if whole == number and abs(whole) < 2**53 else float(number)


def _text(number: float) -> str:
    """Format a number without an exponent, and without a decimal point if it is whole."""
    return np.format_float_positional(number, trim="-")
