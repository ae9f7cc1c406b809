"""Mistakes that all boxes of a split share: numbers of another kind than the format has.

A box is *possible* in a reading of its four numbers if it has an area and lies within its image; it is *impossible* if
its corners are reversed, if it exceeds the image by far, or if it lies within one pixel. A split is mistaken if many of
its boxes are impossible as its format defines them and nearly all are possible in one other reading. Boxes that lie
within their images are never impossible, so a correct split is never mistaken, however few boxes it has.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64, Int64

from detect.data.annotations import MIN_SIDE, Annotations, Layout
from detect.data.decode import orientation
from detect.data.defects import DefectLog
from detect.data.masks import Mask, Polygons
from detect.errors import UserError

POSSIBLE = 0.95
"""Minimum share of the boxes that must be possible in another reading; the others may have defects of their own."""
IMPOSSIBLE = 0.1
"""Minimum share of impossible boxes. If corners are read as sizes, the boxes right of or below the centre are."""
OTHER_UNIT = 0.95
"""Minimum share of boxes with too small or too large numbers, if pixels are taken for fractions or the reverse."""
MIN_IMPOSSIBLE = 5
"""Minimum number of impossible boxes, so that a few careless boxes prove nothing."""
MIN_INSIDE = 10
"""Minimum number of boxes to recognise enlarged images, in which the old boxes are possible as well."""
SLACK = 2.0
"""Pixels by which a possible box may exceed its image."""
TOLERANCE = 0.02
"""Fraction of the image's side by which a possible box may exceed it, if that is more."""
EXCESS = 0.1
"""Fraction of the image's side, but at least `SLACK`, by which an impossible box exceeds it."""
MIN_IMAGE = 8
"""Pixels. In smaller images a box within one pixel is not impossible."""
MIN_SCALE = 0.02
"""Minimum difference of an image's scale from 1; less may come from rounding."""
ENLARGED = 1.2
"""Minimum scale of enlarged images."""
PIXELS = 2.0
"""Boxes that exceed their image have fractions slightly above 1; numbers above this limit are pixels."""
_OTHER_LAYOUTS: dict[Layout, tuple[Layout, ...]] = {
    "sizes": ("corners",),
    "corners": ("sizes",),
    "centre": ("corners", "sizes"),
}
_LOOKED_AT = 8  # images whose EXIF orientation is read


@dataclass(frozen=True, slots=True)
class Reading:
    """Meaning of the four numbers of a box."""

    layout: Layout
    fractions: bool = False
    """Whether the numbers are fractions of the image's size."""
    swapped: bool = False
    """Whether y precedes x, and height precedes width."""
    scaled: bool = False
    """Whether the numbers are pixels of the image size in the annotation file, not of the image."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """The reading that a split's boxes have, in place of the one that its format defines."""

    reading: Reading
    rules: tuple[str, ...]
    """Keys of `defects.RULES`."""
    source: Path
    """Annotation file of the first box."""
    detail: str
    """Number of boxes that the mistake concerns."""


def correct_mistakes(annotations: Annotations, sizes: Int64[np.ndarray, "i 2"], log: DefectLog) -> Annotations:
    """Return the annotations with the boxes that were probably meant; log the mistake, if any.

    Args:
        annotations: annotations of a whole split.
        sizes: actual width and height of each image; 0 if the image cannot be read.
        log: log to which the mistake is added, and each single box in pixels where the format has fractions.
    """
    mistake = find_mistake(annotations, sizes)
    if mistake is not None:
        for rule in mistake.rules:
            log.add(rule, mistake.source, mistake.detail)
        return corrected(annotations, sizes, mistake.reading)
    log_pixel_boxes(annotations, log)
    return annotations


def log_pixel_boxes(annotations: Annotations, log: DefectLog) -> None:
    """Log each box whose numbers are pixels although the split has fractions."""
    if not annotations.normalised:
        return
    largest = _written(annotations).max(axis=1, initial=0)
    for row in np.flatnonzero((largest > PIXELS) & np.isfinite(largest)).tolist():
        source = annotations.sources[annotations.image[row]]
        log.add("pixel-box", source, f"{annotations.places[row]}: it has the number {largest[row]:g}")


@np.errstate(over="ignore", invalid="ignore")  # numbers near the largest float are in no reading possible
def find_mistake(
    annotations: Annotations, sizes: Int64[np.ndarray, "i 2"], expected: Reading | None = None
) -> Mistake | None:
    """Return the mistake that the boxes of a split share, or None.

    Args:
        annotations: annotations of a whole split.
        sizes: actual width and height of each image; 0 if the image cannot be read.
        expected: reading of another split of the data set with a mistake, which needs less evidence.
    """
    split = _Split(annotations, sizes)
    if not split.count:
        return None
    if expected is not None:
        readings = [expected] if split.is_likely(expected) else []
    else:
        readings = [reading for reading in split.other_readings() if split.possible(reading).mean() >= POSSIBLE]
    if not readings:
        return None
    reading = max(readings, key=lambda one: split.possible(one).sum())  # the first of the best
    if reading.swapped and split.is_rotated():
        return None
    rules = tuple(split.rules(reading))
    return Mistake(reading, rules, annotations.sources[annotations.image[split.rows[0]]], split.describe(reading))


def corrected(annotations: Annotations, sizes: Int64[np.ndarray, "i 2"], reading: Reading) -> Annotations:
    """Return the annotations with boxes and polygons in pixels, by the given reading of the numbers in the file.

    A mistaken file often has mistaken areas: those that do not fit into the box become NaN.
    """
    boxes = _Split(annotations, sizes).boxes(reading, np.arange(len(annotations.boxes)))
    areas = annotations.areas
    with np.errstate(over="ignore", invalid="ignore"):
        if reading.scaled:
            areas = areas * _scales(annotations, sizes)[annotations.image].prod(axis=1)
        share = areas / (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        areas = np.where((share > 0.05) & (share < 1.01), areas, np.nan)
    masks = None if annotations.masks is None else _corrected_masks(annotations, sizes, reading)
    changed = replace(annotations, boxes=boxes, areas=areas, masks=masks)
    return replace(changed, layout="corners", first_pixel=0, normalised=False)


def _corrected_masks(annotations: Annotations, sizes: Int64[np.ndarray, "i 2"], reading: Reading) -> list[Mask | None]:
    """Return the masks with polygons in pixels; bitmaps cannot be in another unit.

    Polygons are in pixels if they exceed 1, even if the boxes of their file are fractions.
    """
    factors = sizes.astype(np.float64)
    if reading.scaled:
        factors = np.nan_to_num(_scales(annotations, sizes), nan=1)
    masks = list(annotations.masks or ())
    for row, mask in enumerate(masks):
        if not isinstance(mask, Polygons):
            continue
        in_fractions = annotations.normalised or max(float(outline.max()) for outline in mask.outlines) <= 1
        if reading.scaled or (reading.fractions and in_fractions):
            masks[row] = mask.scaled(*factors[annotations.image[row]])
    return masks


class _Split:
    """The boxes of a split that have finite numbers, an extent, and a readable image."""

    def __init__(self, annotations: Annotations, sizes: Int64[np.ndarray, "i 2"]) -> None:
        self.annotations = annotations
        self.limits = sizes[annotations.image].astype(np.float64)
        self.scales = _scales(annotations, sizes)
        self.numbers = _written(annotations)
        self.present = Reading(annotations.layout, annotations.normalised)
        with np.errstate(over="ignore", invalid="ignore"):
            extent = np.abs(annotations.boxes[:, 2:] - annotations.boxes[:, :2]).max(axis=1, initial=0)
        usable = np.isfinite(annotations.boxes).all(axis=1) & (extent > 0) & self.limits.all(axis=1)
        self.rows = np.flatnonzero(usable)
        self.count = len(self.rows)

    def boxes(self, reading: Reading, rows: Int64[np.ndarray, " n"]) -> Float64[np.ndarray, "n 4"]:
        """Return boxes as xyxy in pixels of their images."""
        numbers = self.numbers[rows][:, [1, 0, 3, 2]] if reading.swapped else self.numbers[rows]
        first, second = numbers[:, :2], numbers[:, 2:]
        origin = 0 if reading.fractions else self.annotations.first_pixel
        with np.errstate(over="ignore", invalid="ignore"):
            if reading.layout == "corners":
                start, end = first - origin * (first < second), second
            elif reading.layout == "sizes":
                start, end = first - origin, first - origin + second
            else:
                start, end = first - second / 2, first + second / 2
            factor = self.limits[rows] if reading.fractions else np.ones((len(rows), 2))
            if reading.scaled:
                factor = np.nan_to_num(self.scales[self.annotations.image[rows]], nan=1)
            return np.hstack([start * factor, end * factor])

    def possible(self, reading: Reading) -> Bool[np.ndarray, " n"]:
        """Return whether each box has an area, of more than a pixel, within its image."""
        boxes, limits = self.boxes(reading, self.rows), self.limits[self.rows]
        sides = boxes[:, 2:] - boxes[:, :2]
        slack = np.maximum(SLACK, TOLERANCE * limits)
        inside = (boxes[:, :2] >= -slack).all(axis=1) & (boxes[:, 2:] <= limits + slack).all(axis=1)
        return inside & (sides >= MIN_SIDE).all(axis=1) & ~_within_a_pixel(boxes, limits)

    def impossible(self, excess: float = EXCESS) -> Bool[np.ndarray, " n"]:
        """Return whether each box is impossible in the reading that the format defines."""
        boxes, limits = self.boxes(self.present, self.rows), self.limits[self.rows]
        reversed_ = (boxes[:, 2:] - boxes[:, :2] < -MIN_SIDE).any(axis=1)
        beyond = np.maximum(-boxes[:, :2], boxes[:, 2:] - limits) > np.maximum(SLACK, excess * limits)
        return reversed_ | beyond.any(axis=1) | self.other_unit()

    def other_unit(self) -> Bool[np.ndarray, " n"]:
        """Return whether the numbers of each box are too small for pixels, or too large for fractions."""
        if self.present.fractions:
            return self.numbers[self.rows].max(axis=1) > PIXELS
        boxes, limits = self.boxes(self.present, self.rows), self.limits[self.rows]
        return _within_a_pixel(boxes, limits, 1 + self.annotations.first_pixel)

    def other_readings(self) -> Iterator[Reading]:
        """Yield the readings for which the impossible boxes speak, the most common first."""
        present, impossible = self.present, self.impossible()
        layouts = [replace(present, layout=layout) for layout in _OTHER_LAYOUTS[present.layout]]
        if self.other_unit().mean() >= OTHER_UNIT:
            for reading in (present, *layouts):
                yield replace(reading, fractions=not present.fractions)
        if self.is_scaled():
            yield replace(present, scaled=True)
        if impossible.sum() >= MIN_IMPOSSIBLE and impossible.mean() >= IMPOSSIBLE:
            yield from layouts
            for reading in (present, *layouts):
                yield replace(reading, swapped=True)

    def is_likely(self, expected: Reading) -> bool:
        """Return whether the boxes fit the reading of another split of the data set."""
        if expected.scaled and not self.has_other_sizes():
            return False
        better = self.impossible().any() or self.count < MIN_IMPOSSIBLE
        return bool(expected != self.present and better and self.possible(expected).mean() >= POSSIBLE)

    def has_other_sizes(self) -> bool:
        """Return whether nearly all images with boxes have another size than their file says."""
        scales = self.scales[np.unique(self.annotations.image[self.rows])]
        differs = np.isfinite(scales).all(axis=1) & (np.abs(scales - 1) > MIN_SCALE).any(axis=1)
        return bool(differs.mean() >= POSSIBLE)

    def is_scaled(self) -> bool:
        """Return whether the boxes belong to the sizes that the file has for the images."""
        if self.present.fractions or not self.has_other_sizes():
            return False
        scales = self.scales[np.unique(self.annotations.image[self.rows])]
        usual = np.nanmedian(scales, axis=0)
        constant = (np.abs(scales / usual - 1) <= MIN_SCALE).all(axis=1).mean() >= POSSIBLE
        impossible = self.impossible(TOLERANCE if constant else EXCESS)
        if impossible.sum() >= MIN_IMPOSSIBLE and impossible.mean() >= IMPOSSIBLE:
            return True
        enlarged = usual.min() >= 1 - MIN_SCALE and usual.max() >= ENLARGED
        within = self.possible(replace(self.present, scaled=True))
        return bool(constant and enlarged and self.count >= MIN_INSIDE and within.all())

    def is_rotated(self) -> bool:
        """Return whether impossible boxes are in images that EXIF data rotates: they may be right before that."""
        images = np.unique(self.annotations.image[self.rows[self.impossible()]])[:_LOOKED_AT]
        try:
            return any(orientation(self.annotations.paths[image]) >= 5 for image in images)
        except UserError:  # the image vanished: it was readable a moment ago
            return True

    def rules(self, reading: Reading) -> Iterator[str]:
        """Yield the rules that name the differences from the reading that the format defines."""
        if reading.fractions != self.present.fractions:
            yield "fractions-for-pixels" if reading.fractions else "pixels-for-fractions"
        if reading.scaled:
            yield "scaled-images"
        if reading.layout != self.present.layout:
            is_corner = (self.present.layout, reading.layout) == ("centre", "sizes")
            other = "corner-for-centre" if is_corner else "sizes-for-corners"
            yield "corners-for-sizes" if reading.layout == "corners" else other
        if reading.swapped:
            yield "swapped-axes"

    def describe(self, reading: Reading) -> str:
        """Return the numbers of boxes that are possible in a reading and as the format defines them."""
        texts = {"corners": "x1 y1 x2 y2", "sizes": "x y width height", "centre": "centre x y, width, height"}
        meant = texts[reading.layout]
        if reading.swapped:
            meant = {"corners": "y1 x1 y2 x2", "sizes": "y x height width"}.get(
                reading.layout, "centre y x, height, width"
            )
        unit = "fractions of the image's size" if reading.fractions else "pixels"
        if reading.scaled:
            x, y = np.nanmedian(self.scales[self.annotations.image[self.rows]], axis=0)
            unit = f"pixels of the size in the file (the images are {x:.3g} × as wide and {y:.3g} × as high)"
        fit, before = int(self.possible(reading).sum()), int(self.possible(self.present).sum())
        place = self.annotations.places[self.rows[0]]
        numbers = " ".join(f"{number:g}" for number in self.numbers[self.rows[0]])
        rest = f"{before} of {self.count} do as the format has them" if before else "none does as the format has them"
        return f"{fit} of {self.count} boxes fit as {meant} in {unit}, {rest} ({place}: {numbers})"


def _written(annotations: Annotations) -> Float64[np.ndarray, "m 4"]:
    """Return the four numbers of each box as its file has them."""
    start, end = annotations.boxes[:, :2], annotations.boxes[:, 2:]
    with np.errstate(over="ignore", invalid="ignore"):
        if annotations.layout == "corners":
            return np.hstack([start + annotations.first_pixel * (start < end), end])
        if annotations.layout == "sizes":
            return np.hstack([start + annotations.first_pixel, end - start])
        return np.hstack([(start + end) / 2, end - start])


def _within_a_pixel(
    boxes: Float64[np.ndarray, "n 4"], limits: Float64[np.ndarray, "n 2"], longest: float = 1
) -> Bool[np.ndarray, " n"]:
    """Return whether each box has sides of at most `longest` pixels that are not whole numbers."""
    sides = np.abs(boxes[:, 2:] - boxes[:, :2])
    small = sides.max(axis=1, initial=0) <= longest
    return small & (sides % 1 != 0).any(axis=1) & (limits >= MIN_IMAGE).all(axis=1)


def _scales(annotations: Annotations, sizes: Int64[np.ndarray, "i 2"]) -> Float64[np.ndarray, "i 2"]:
    """Return the width and height of each image relative to those in its annotation file.

    They are NaN without such a size, and 1 if width and height are only exchanged, as by an EXIF orientation.
    """
    scales = np.full((len(sizes), 2), np.nan)
    for index, declared in enumerate(annotations.declared):
        if declared is None or not all(type(side) in (int, float) and 0 < side < np.inf for side in declared):
            continue
        width, height = map(int, sizes[index])
        swapped = tuple(declared) == (height, width)
        scales[index] = (1, 1) if swapped else (width / declared[0], height / declared[1])
    return scales
