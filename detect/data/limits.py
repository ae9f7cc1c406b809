"""Limits that the annotations decide, checked before the first training step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from detect.data.dataset import Dataset
from detect.data.decode import decode
from detect.data.defects import summary_of_repairs
from detect.data.records import Record, Records, columns
from detect.data.transforms import Augmentation
from detect.errors import UserError, listed, one_line

TRIES = 8
"""Random draws of an augmentation on each image that is tried."""
MIN_LOST = 5
"""Minimum number of boxes that were left out, for a split that lost more than half of its boxes."""
_LOST_MASKS = ("broken-mask", "mask-size", "short-polygon", "masks-elsewhere")
_LOSSES = ("zero-area", "negative-size", "outside-image", "unknown-image")


def refuse_crowded(dataset: Dataset, max_objects: int, combined: int = 1) -> None:
    """Raise `UserError` if an image, or this many combined into one, has more boxes than a batch may hold."""
    counts = columns(dataset.records).counts
    crowded = int((counts * combined > max_objects).sum())
    if crowded:
        most = int(counts.argmax())
        together = f", {counts[most] * combined} with mosaic or mixup" if combined > 1 else ""
        problem = f"{counts[most]} boxes{together}, but data.max_objects is {max_objects}"
        others = f" ({crowded} images of the split {dataset.split} have too many)" if crowded > 1 else ""
        need = counts[most] * combined
        remedy = f"raise it with --data.max_objects {need}, which needs more memory, or remove boxes"
        raise UserError(one_line(f"{dataset.records[most].path}: {problem}{others}; {remedy}"))


def refuse_without_masks(dataset: Dataset) -> None:
    """Raise `UserError` if no object of a split has a mask."""
    if not _has_masks(dataset.records):
        problem = f"no object of the split {dataset.split} has a mask, and the model learns masks"
        if any(defect.rule in _LOST_MASKS for defect in dataset.repaired):
            problem = f"no object of the split {dataset.split} has a usable mask: {summary_of_repairs(dataset)}"
        remedy = "annotate polygons or masks, or train a model that detects boxes, such as faster_rcnn"
        raise UserError(one_line(f"{dataset.root}: {problem}; {remedy}"))


def _has_masks(records: Sequence[Record]) -> bool:
    if isinstance(records, Records):
        return records.masks is not None and bool(records.masks.given.any())
    return any(mask is not None for record in records for mask in record.masks or ())


def refuse_losses(dataset: Dataset) -> None:
    """Raise `UserError` if the reader has left out more than half of the boxes of a split."""
    lost = sum(defect.rule in _LOSSES for defect in dataset.repaired)
    kept = len(columns(dataset.records).boxes)
    if lost > kept and lost >= MIN_LOST and kept:
        problem = f"{lost} of {lost + kept} boxes of the split {dataset.split} cannot be used"
        remedy = "correct them; detect data check shows all"
        raise UserError(one_line(f"{dataset.root}: {problem}: {summary_of_repairs(dataset)}; {remedy}"))


def try_augmentation(dataset: Dataset, augmentation: Augmentation, seed: int = 0) -> None:
    """Raise `UserError` if an augmentation fails on one of a few images: the first and the smallest ones."""
    if augmentation.compose is None:
        return
    for record in _extremes(dataset.records):
        image = decode(record.path)
        for draw in range(TRIES):
            try:
                augmentation(image, record.boxes.astype(np.float32), seed + draw)
            except UserError as error:
                raise UserError(f"{record.path}: {error}") from error


def _extremes(records: Sequence[Record]) -> list[Record]:
    sizes = columns(records).sizes
    chosen = sizes.prod(axis=1).argmin(), *sizes.argmin(axis=0)
    return [records[index] for index in dict.fromkeys([0, *map(int, chosen)])]


def unused_classes(dataset: Dataset) -> str | None:
    """Return one line that names the classes without a box in a split, or None."""
    boxes = columns(dataset.records)
    labels = np.unique(boxes.labels[~boxes.crowd]).tolist()
    names = [name for label, name in enumerate(dataset.classes) if label not in labels]
    if not names:
        return None
    classes = "1 class has" if len(names) == 1 else f"{len(names)} of {len(dataset.classes)} classes have"
    return one_line(f"{classes} no box in the split {dataset.split} and cannot be learned: {listed(names, 20)}")
