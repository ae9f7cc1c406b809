"""Masks within the limits of a format: YOLO has one polygon per object, VOC has one object per pixel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from detect.data.masks import Mask, Polygons, encode
from detect.data.outlines import outline_of
from detect.data.records import Record

MAX_NUMBER = 254
"""Highest number of an object in VOC's images of masks; 0 is background and 255 is not labelled."""
BOX_AMONG_POLYGONS = "object has a box, not a polygon like the others"
"""Loss in YOLO's format, in which all objects of a data set have polygons or none."""
_MOVED = 0.5  # pixels between a box and the extent of its polygon


def fit_masks(record: Record, to: str, changed: Counter[str]) -> Record:
    """Return a record with masks that a format can store, and count the losses in `changed`.

    Args:
        record: image with its boxes, those that the format can store.
        to: `coco`, `voc` or `yolo`.
        changed: number of losses, by description.
    """
    if record.masks is None or not any(record.masks) or to == "coco":
        return record
    masks = _polygons(record, changed) if to == "yolo" else _disjoint(record, changed)
    return replace(record, masks=tuple(masks) if any(masks) else None)


def _polygons(record: Record, changed: Counter[str]) -> list[Mask | None]:
    """Return one polygon for each mask."""
    polygons: list[Mask | None] = []
    for mask, box in zip(record.masks or (), record.boxes, strict=True):
        outline = None if mask is None else outline_of(mask, record.height, record.width)
        if outline is None:
            changed[BOX_AMONG_POLYGONS if mask is None else "object loses its mask, which has no pixel"] += 1
        else:
            extent = np.concatenate([outline.min(axis=0), outline.max(axis=0)])
            changed["box replaced by that of its polygon"] += int(np.abs(extent - box).max() > _MOVED)
        polygons.append(None if outline is None else Polygons((outline,)))
    return polygons


def _disjoint(record: Record, changed: Counter[str]) -> Sequence[Mask | None]:
    """Return masks without common pixels: a smaller object is in front of a larger one."""
    masks = record.masks or ()
    changed[f"mask left out: VOC has {MAX_NUMBER} in an image"] += sum(mask is not None for mask in masks[MAX_NUMBER:])
    full = [None if mask is None else mask.rle(record.height, record.width) for mask in masks[:MAX_NUMBER]]
    areas = [0.0 if mask is None else mask.area() for mask in full]
    numbers = np.zeros((record.height, record.width), np.uint8)
    for index in sorted(range(len(full)), key=lambda index: -areas[index]):
        if (mask := full[index]) is not None:
            numbers[mask.bitmap(record.height, record.width) == 1] = index + 1
    left = np.bincount(numbers.ravel(), minlength=len(full) + 1)[1:].tolist()
    visible: list[Mask | None] = [None] * len(masks)
    for index, mask in enumerate(full):
        if mask is not None and left[index] < areas[index]:
            changed["mask loses pixels to a smaller object: in VOC a pixel belongs to one object"] += 1
            mask = encode((numbers == index + 1).astype(np.uint8)) if left[index] else None
        visible[index] = mask
    return visible
