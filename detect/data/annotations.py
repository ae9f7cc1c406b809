"""Annotations of one split as its files contain them, and their repair.

A format's reader fills `Annotations`; `repair` then brings all boxes into their images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Float64, Int64

from detect.data.defects import DefectLog
from detect.data.masks import Mask, Polygons
from detect.data.records import Masks
from detect.data.usable_masks import are_usable, usable_masks

MIN_SIDE = 1e-3
"""Pixels. A box with a shorter side has no area."""
ROUNDING = 0.01
"""Pixels. A box that exceeds its image by less, because of rounding in the file, is clipped without a report."""

Layout: TypeAlias = Literal["corners", "sizes", "centre"]
"""Four numbers of a box in a file: x1 y1 x2 y2; x1 y1 width height; or centre x y, width, height."""


@dataclass(frozen=True, slots=True)
class Annotations:
    """Annotations of one split before they are compared with the images: `i` images and `m` boxes."""

    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    paths: list[Path]
    """Image files, which may not exist."""
    sources: list[Path]
    """Annotation file of each image."""
    declared: list[tuple[Any, ...] | None]
    """Width and height of each image according to its annotation file, or None."""
    ids: list[int] | None
    """Image ids, or None if the format has none."""
    boxes: Float64[np.ndarray, "m 4"]
    """xyxy in pixels of the image, or as fractions of its size if `normalised`."""
    image: Int64[np.ndarray, " m"]
    """Index of each box's image in `paths`."""
    labels: Int64[np.ndarray, " m"]
    """0 … C-1, or -1 for an unknown category."""
    crowd: Bool[np.ndarray, " m"]
    difficult: Bool[np.ndarray, " m"]
    areas: Float64[np.ndarray, " m"]
    """NaN if the file has none."""
    places: Sequence[str]
    """Location of each box in its annotation file, such as `line 3`."""
    normalised: bool = False
    layout: Layout = "corners"
    """Numbers from which the reader made the boxes, for `mistakes`."""
    first_pixel: int = 0
    """Number of an image's first pixel in the file."""
    masks: Sequence[Mask | None] | None = None
    """Mask of each box, None for a box without one; None if no box has one. Polygons are in the units of `boxes`."""


def choose_classes(
    names: Mapping[int, str], classes: Sequence[str] | None
) -> tuple[tuple[str, ...], tuple[int, ...], dict[int, int]]:
    """Return the classes, the category id of each class, and the label of each category id.

    Args:
        names: name of each category id of a file.
        classes: names of the labels; by default the file's, in the order of `names`. A class that the
            file does not have gets an unused id; a category that is not one of `classes` gets no label.
    """
    chosen = tuple(names.values()) if classes is None else tuple(classes)
    id_of = {name: id for id, name in names.items()}
    unused = count(max([0, *names]) + 1)
    category_ids = tuple(id_of[name] if name in id_of else next(unused) for name in chosen)
    label_of = {name: label for label, name in enumerate(chosen)}
    return chosen, category_ids, {id: label_of[name] for id, name in names.items() if name in label_of}


def repair(annotations: Annotations, sizes: Int64[np.ndarray, "i 2"], log: DefectLog) -> Annotations:
    """Return the annotations with all boxes in pixels, inside their images and, as float32, of positive area.

    Boxes that cannot be repaired are left out. Boxes without an area get the area of the mask or of the box.

    Args:
        annotations: the annotations of a split.
        sizes: actual width and height of each image; 0 if the image cannot be read: its boxes are left out.
        log: log to which the defects are added.
    """
    annotations = select(annotations, sizes[annotations.image].all(axis=1))
    limits = np.tile(sizes[annotations.image], 2).astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):  # such boxes are reported below
        boxes = annotations.boxes * limits if annotations.normalised else annotations.boxes
        inner = np.clip(boxes, 0, limits).astype(np.float32)
        sides = (boxes[:, 2:] - boxes[:, :2]).min(axis=1, initial=np.inf)
        inner_sides = (inner[:, 2:] - inner[:, :2]).min(axis=1, initial=np.inf)
        excess = np.abs(boxes - inner).max(axis=1, initial=0)
    # The first rule that applies to a box decides.
    rules: dict[str, Bool[np.ndarray, " m"]] = {
        "nan-box": ~np.isfinite(boxes).all(axis=1) | ~np.isfinite(sides),
        "negative-size": sides < 0,
        "zero-area": sides < MIN_SIDE,
        "outside-image": inner_sides < MIN_SIDE,
        "clipped": excess > ROUNDING,
    }
    names = np.array([*rules, ""])
    verdict = names[np.argmax([*rules.values(), np.ones(len(boxes), dtype=bool)], axis=0)]
    for row in np.flatnonzero(verdict != "").tolist():
        image = annotations.image[row]
        width, height = sizes[image]
        numbers = ", ".join(f"{number:g}" for number in boxes[row])
        detail = f"{annotations.places[row]}: box ({numbers}) in {annotations.paths[image].name}, {width} × {height}"
        log.add(str(verdict[row]), annotations.sources[image], detail)

    kept = (verdict == "") | (verdict == "clipped")
    repaired = select(replace(annotations, boxes=inner.astype(np.float64)), kept)
    repaired = _repair_masks(repaired, sizes, log)
    return _fill_areas(_fit_to_visible(repaired, np.flatnonzero(verdict[kept] == "clipped"), sizes))


def _repair_masks(annotations: Annotations, sizes: Int64[np.ndarray, "i 2"], log: DefectLog) -> Annotations:
    """Return the annotations with masks in pixels, without those that cannot be used, which are logged."""
    sizes = sizes[annotations.image]
    if isinstance(annotations.masks, Masks) and are_usable(annotations.masks, annotations.boxes, sizes):
        return annotations
    masks = list(annotations.masks or ())
    for row, mask in enumerate(masks):
        if isinstance(mask, Polygons) and annotations.normalised:
            masks[row] = mask.scaled(*sizes[row].tolist())
    masks, problems = usable_masks(masks, annotations.boxes, sizes, log.fence) if masks else ([], [])
    for rule, row, text in problems:
        log.add(rule, annotations.sources[annotations.image[row]], f"{annotations.places[row]}: {text}")
    return replace(annotations, masks=masks if any(masks) else None, normalised=False)


def _fit_to_visible(
    annotations: Annotations, clipped: Int64[np.ndarray, " c"], sizes: Int64[np.ndarray, "i 2"]
) -> Annotations:
    """Return the annotations with clipped boxes fitted to the part of their polygon that is in the image.

    A file without areas has boxes that bound the whole polygon; clipped, they can be much larger than that part.
    """
    boxes, areas = annotations.boxes.copy(), annotations.areas.copy()
    for row in clipped.tolist():
        mask = annotations.masks[row] if annotations.masks is not None else None
        if isinstance(mask, Polygons) and np.isnan(areas[row]):
            width, height = sizes[annotations.image[row]].tolist()
            visible = mask.rle(height, width)
            if visible.area():
                boxes[row], areas[row] = visible.bounds(), visible.area()
    return replace(annotations, boxes=boxes, areas=areas)


def _fill_areas(annotations: Annotations) -> Annotations:
    """Return the annotations with the area of the mask, or else of the box, in the place of each missing area."""
    boxes = annotations.boxes.astype(np.float32)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1).astype(np.float64)
    masks = annotations.masks or ()
    for row in np.flatnonzero(np.isnan(annotations.areas)).tolist() if masks else ():
        mask = masks[row]
        if mask is not None and 0 < (area := mask.area()) < np.inf:
            areas[row] = area
    return replace(annotations, areas=np.where(np.isnan(annotations.areas), areas, annotations.areas))


def select(annotations: Annotations, kept: Bool[np.ndarray, " m"]) -> Annotations:
    """Return the annotations with only some of their boxes."""
    if kept.all():
        return annotations
    columns = ("boxes", "image", "labels", "crowd", "difficult", "areas")
    chosen = {name: getattr(annotations, name)[kept] for name in columns}
    rows = np.flatnonzero(kept).tolist()
    masks = annotations.masks
    if isinstance(masks, Masks):
        masks = masks.take(np.flatnonzero(kept))
    elif masks is not None:
        masks = [masks[row] for row in rows]
    return replace(annotations, **chosen, places=[annotations.places[row] for row in rows], masks=masks)
