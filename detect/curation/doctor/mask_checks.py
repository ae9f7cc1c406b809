"""Checks of masks that the readers accept.

The thresholds give no finding on 1,791 masks of photographs of COCO, whose objects often are in several pieces, behind
poles or people. Of crowds, only the place is checked: they are in many pieces.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
from jaxtyping import Float64, Int64
from pycocotools import mask as coco_mask

from detect.curation.doctor.box_checks import ImageBoxes, images_with_boxes
from detect.curation.doctor.diagnosis import Finding
from detect.data.annotations import Annotations
from detect.data.masks import FITS, Mask, Polygons
from detect.errors import one_line

OUTSIDE = 0.05
"""Minimum distance of a mask beyond a side of its box, as a fraction of the box's side; at least `FITS` pixels."""
UNLIKE = 0.5
"""A mask and its box with a smaller IoU of their boxes are two different things."""
PIECES = 3
"""Minimum number of pieces of a scattered mask."""
PIECE = 0.05
"""Minimum part of a mask's area that counts as a piece."""
SCATTERED = 5.0
"""Minimum extent of all pieces, relative to that of the largest one; of an object of COCO, a couch, it is 4.2."""


def check_masks(split: str, annotations: Annotations, sizes: Int64[np.ndarray, "i 2"]) -> Iterator[Finding]:
    """Yield the findings on the masks of the boxes that the readers keep; none for a split without masks.

    Args:
        split: name of the split.
        annotations: the repaired annotations.
        sizes: width and height of each image.
    """
    if annotations.masks is None:
        return
    for image in images_with_boxes(split, annotations, sizes):
        yield from _check_image(image)
    missing = [row for row, mask in enumerate(annotations.masks) if mask is None and not annotations.crowd[row]]
    if missing:
        where = f"{annotations.places[missing[0]]} in {annotations.paths[annotations.image[missing[0]]].name}"
        objects = int((~annotations.crowd).sum())
        what = f"split {split}: {len(missing)} of {objects} objects have no mask, first {where}"
        yield Finding("no-mask", annotations.sources[annotations.image[missing[0]]], one_line(what), split=split)


def _check_image(image: ImageBoxes) -> Iterator[Finding]:
    masks, crowd = image.annotations.masks or (), image.annotations.crowd
    for row, index in enumerate(image.rows):
        mask = masks[index]
        if mask is None:
            continue
        rle = mask.rle(image.height, image.width)
        if not (box := coco_mask.toBbox(rle.coco()))[2:].all():
            yield image.finding("empty-mask", (row,), "the mask has no pixel")
        elif found := _compare(image.boxes[row], np.concatenate([box[:2], box[:2] + box[2:]])):
            yield image.finding(found[0], (row,), found[1], mask)
        elif not crowd[index] and (count := _pieces(mask, image)):
            yield image.finding("scattered-mask", (row,), f"the mask is in {count} pieces far from each other", mask)


def _compare(box: Float64[np.ndarray, " 4"], extent: Float64[np.ndarray, " 4"]) -> tuple[str, str] | None:
    """Return the rule and the problem if a mask, of which `extent` is the smallest box, does not fit its box."""
    if np.abs(box - extent).max() <= FITS:
        return None
    sides = box[2:] - box[:2]
    shared = (np.minimum(box[2:], extent[2:]) - np.maximum(box[:2], extent[:2])).clip(0).prod()
    overlap = shared / (sides.prod() + (extent[2:] - extent[:2]).prod() - shared)
    if overlap < UNLIKE:
        corners = ", ".join(f"{number:g}" for number in extent)
        return "mask-unlike-box", f"the smallest box around the mask, ({corners}), has IoU {overlap:.2f} with the box"
    beyond = np.concatenate([box[:2] - extent[:2], extent[2:] - box[2:]])
    if (beyond > np.maximum(FITS, OUTSIDE * np.tile(sides, 2))).any():
        return "mask-outside-box", f"the mask extends {beyond.max():.3g} pixels beyond the box"
    return None


def _pieces(mask: Mask, image: ImageBoxes) -> int:
    """Return the number of pieces of a mask if they are many and far from each other, else 0."""
    if isinstance(mask, Polygons) and len(mask.outlines) < PIECES:  # a bitmap takes much longer than all else
        return 0
    _, _, measures, _ = cv2.connectedComponentsWithStats(mask.bitmap(image.height, image.width), connectivity=8)
    pieces = measures[1:]  # without the background
    areas = pieces[:, cv2.CC_STAT_AREA]
    pieces = pieces[areas >= PIECE * areas.sum()]
    if len(pieces) < PIECES:
        return 0
    largest = pieces[pieces[:, cv2.CC_STAT_AREA].argmax(), 2:4].max()
    extent = (pieces[:, :2] + pieces[:, 2:4]).max(axis=0) - pieces[:, :2].min(axis=0)
    return len(pieces) if extent.max() > SCATTERED * largest else 0
