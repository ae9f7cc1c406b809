"""Checks of boxes and classes that the readers accept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64, Int64

from detect.curation.doctor.diagnosis import Finding, place_in
from detect.data.annotations import Annotations
from detect.data.masks import Mask
from detect.data.transforms import Resize
from detect.errors import one_line

SAME = 0.95
"""Minimum IoU at which two boxes of different classes are the same object."""
TINY = 2.0
"""Pixels. A box with a shorter side is too small to show an object."""
WHOLE = 0.5
"""Pixels. A box within this distance of all four edges covers the image."""
UNEVEN = 20
"""Minimum ratio of the box counts of the largest and the smallest class for a note."""
_MAX_BOXES = 4096  # images with more boxes are not searched for pairs, whose number grows with the square

Counts = Mapping[str, Mapping[str, int]]
"""Number of boxes by split and class."""


def check_boxes(
    split: str, annotations: Annotations, sizes: Int64[np.ndarray, "i 2"], resize: Resize | None
) -> Iterator[Finding]:
    """Yield the findings on the boxes that the readers keep.

    Args:
        split: name of the split.
        annotations: the repaired annotations.
        sizes: width and height of each image.
        resize: if given, a box is tiny by its size in the network's input, otherwise by its size in the file.
    """
    for image in images_with_boxes(split, annotations, sizes):
        yield from _check_image(image, resize)


class ImageBoxes:
    """The boxes of one image."""

    def __init__(
        self, split: str, annotations: Annotations, image: int, rows: Int64[np.ndarray, " n"], size: np.ndarray
    ) -> None:
        self.split, self.annotations, self.image, self.rows = split, annotations, image, rows
        self.width, self.height = map(int, size)
        self.boxes, self.labels = annotations.boxes[rows], annotations.labels[rows]

    def finding(self, rule: str, rows: Sequence[int], what: str, *masks: Mask) -> Finding:
        """Return a finding on some boxes, with the location of the last one, and perhaps the masks to draw."""
        where = self.annotations.places[self.rows[rows[-1]]]
        path = self.annotations.paths[self.image]
        boxes = tuple(tuple(map(float, self.boxes[row])) for row in rows)
        what = one_line(f"{where}: {what} in {path.name}, {self.width} × {self.height}")
        source = self.annotations.sources[self.image]
        return Finding(rule, source, what, place_in(where), self.split, (path,), boxes, masks)

    def name(self, row: int) -> str:
        """Return the class of a box."""
        label = self.labels[row]
        return self.annotations.classes[label] if label >= 0 else "an unknown class"

    def where(self, row: int) -> str:
        """Return the location of a box in its annotation file."""
        return self.annotations.places[self.rows[row]]


def images_with_boxes(split: str, annotations: Annotations, sizes: Int64[np.ndarray, "i 2"]) -> Iterator[ImageBoxes]:
    """Yield the boxes of each image that has some; for the arguments see `check_boxes`."""
    order = np.argsort(annotations.image, kind="stable")
    bounds = np.searchsorted(annotations.image[order], np.arange(len(annotations.paths) + 1))
    for image in np.flatnonzero(np.diff(bounds)):
        rows = order[bounds[image] : bounds[image + 1]]
        yield ImageBoxes(split, annotations, int(image), rows, sizes[image])


def _check_image(image: ImageBoxes, resize: Resize | None) -> Iterator[Finding]:
    boxes = image.boxes
    masks = image.annotations.masks
    of_image = None if masks is None else [masks[row] for row in image.rows]
    for first, second in _repeated(boxes, image.labels, of_image):
        yield image.finding("duplicate-box", (first, second), f"the same box and class as {image.where(first)}")
    for first, second in _conflicts(boxes, image.labels, image.annotations.crowd[image.rows]):
        what = f"{image.name(second)}, where {image.where(first)} has {image.name(first)}"
        yield image.finding("class-conflict", (first, second), what)
    width, height = image.width, image.height
    distance = np.abs(boxes - (0, 0, width, height)).max(axis=1)
    for row in np.flatnonzero(distance <= WHOLE):
        yield image.finding("whole-image-box", (int(row),), "the box covers the whole image")
    scale = 1.0 if resize is None else resize.size(height, width)[0] / height
    sides = (boxes[:, 2:] - boxes[:, :2]) * scale
    for row in np.flatnonzero(sides.min(axis=1) < TINY):
        size = f"{sides[row, 0]:.3g} × {sides[row, 1]:.3g} pixels"
        what = f"the box has {size}" if resize is None else f"the box has {size} in the network's input"
        yield image.finding("tiny-box", (int(row),), what)


def repeats(
    boxes: Float64[np.ndarray, "n 4"], labels: Int64[np.ndarray, " n"], masks: Sequence[Mask | None] | None
) -> Bool[np.ndarray, " n"]:
    """Return which boxes repeat another one with the same class; of these the first one, or the first mask, remains."""
    repeated = np.zeros(len(boxes), dtype=bool)
    repeated[[second for _, second in _repeated(boxes, labels, masks)]] = True
    return repeated


def _repeated(
    boxes: Float64[np.ndarray, "n 4"], labels: Int64[np.ndarray, " n"], masks: Sequence[Mask | None] | None
) -> Iterator[tuple[int, int]]:
    """Yield each box that others repeat, with each of these; boxes of unknown classes are skipped.

    A box without a mask repeats one with a mask. Masks of different areas are different objects.
    """
    rows_of: dict[tuple[float, ...], list[int]] = {}
    for row, key in enumerate(zip(*boxes.T.tolist(), labels.tolist(), strict=True)):
        if labels[row] >= 0:
            rows_of.setdefault(key, []).append(row)
    for rows in rows_of.values():
        first, *others = rows if masks is None else sorted(rows, key=lambda row: masks[row] is None)
        for other in others:
            if masks is None or _may_be_same(masks[first], masks[other]):
                yield first, other


def _may_be_same(mask: Mask | None, other: Mask | None) -> bool:
    """Return whether two masks in the same box may be those of one object."""
    if mask is None or other is None:
        return True
    small, large = sorted((mask.area(), other.area()))
    return not small < SAME * large  # damaged polygons may have no finite area


def _conflicts(
    boxes: Float64[np.ndarray, "n 4"], labels: Int64[np.ndarray, " n"], crowd: Bool[np.ndarray, " n"]
) -> Iterator[tuple[int, int]]:
    if len(np.unique(labels)) < 2 or len(boxes) > _MAX_BOXES:
        return
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    inner = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:]) - np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    shared = inner.clip(0).prod(axis=-1)
    same = shared >= SAME * (areas[:, None] + areas[None] - shared)
    one_object = (labels >= 0) & ~crowd
    same &= (labels[:, None] != labels[None]) & one_object[:, None] & one_object[None]
    for first, second in np.argwhere(np.triu(same, k=1)):
        yield int(first), int(second)


# -------------------------------------------------------------------------------------------------------------- classes


def check_classes(counts: Counts, files: Mapping[str, Path], complete: bool) -> Iterator[Finding]:
    """Yield the findings on the classes.

    Args:
        counts: number of boxes by split and class.
        files: file that represents each split in a finding.
        complete: true if `counts` has all splits of the data set.
    """
    total: dict[str, int] = {}
    for of_split in counts.values():
        for name, number in of_split.items():
            total[name] = total.get(name, 0) + number
    source = next(iter(files.values()))
    yield from _similar(total, source)
    for name, number in total.items():
        if not number and complete:
            yield Finding("empty-class", source, one_line(f"{name} has no box in any split"))
    for split, of_split in counts.items():
        absent = [name for name, number in total.items() if number and not of_split.get(name)]
        for name in absent if any(of_split.values()) else ():
            what = f"split {split} has no box of {name}; the other splits have {total[name]}"
            yield Finding("missing-class", files[split], one_line(what), split=split)
    used = {name: number for name, number in total.items() if number}
    if len(used) > 1:
        largest, smallest = max(used, key=lambda name: used[name]), min(used, key=lambda name: used[name])
        if used[largest] >= UNEVEN * used[smallest]:
            what = f"{used[largest]} boxes of {largest}, {used[smallest]} of {smallest}"
            yield Finding("imbalance", source, one_line(f"{what}: {used[largest] / used[smallest]:.0f} : 1"))


def _similar(names: Mapping[str, int], source: Path) -> Iterator[Finding]:
    spelt: dict[str, str] = {}
    for name in names:
        key = "".join(letter for letter in name.casefold() if letter.isalnum()) or name
        other = spelt.setdefault(key, name)
        if other != name:
            what = f"{name!r} ({names[name]} boxes) and {other!r} ({names[other]}) differ only in case or spaces"
            yield Finding("similar-classes", source, one_line(what))
