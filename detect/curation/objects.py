"""Objects of a split as columns, for statistics. Crowds are not objects."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from detect.data.dataset import Dataset
from detect.errors import one_line

AREAS = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, np.inf)}
"""COCO's size ranges of objects, in square pixels; the upper limit is exclusive."""


@dataclass(frozen=True, slots=True)
class Objects:
    """Objects of a split as columns: `m` objects, `i` images."""

    boxes: Float64[np.ndarray, "m 4"]
    """xyxy in pixels."""
    labels: Int64[np.ndarray, " m"]
    areas: Float64[np.ndarray, " m"]
    """COCO's `area`."""
    image: Int64[np.ndarray, " m"]
    """Index of each object's image."""
    sizes: Int64[np.ndarray, "i 2"]
    """Width and height of each image."""

    @property
    def sides(self) -> Float64[np.ndarray, "m 2"]:
        """Width and height of each box."""
        return self.boxes[:, 2:] - self.boxes[:, :2]

    @property
    def counts(self) -> Int64[np.ndarray, " i"]:
        """Number of objects in each image."""
        return np.bincount(self.image, minlength=len(self.sizes))


def objects_of(dataset: Dataset) -> Objects:
    """Return all objects of a split, without crowds."""
    records = dataset.records
    kept = [~record.crowd for record in records]
    return Objects(
        boxes=np.concatenate([np.zeros((0, 4)), *(r.boxes[k] for r, k in zip(records, kept, strict=True))]),
        labels=np.concatenate([np.zeros(0, np.int64), *(r.labels[k] for r, k in zip(records, kept, strict=True))]),
        areas=np.concatenate([np.zeros(0), *(r.areas[k] for r, k in zip(records, kept, strict=True))]),
        image=np.repeat(np.arange(len(records)), [int(k.sum()) for k in kept]),
        sizes=np.array([(r.width, r.height) for r in records], dtype=np.int64).reshape(-1, 2),
    )


def cooccurrence(dataset: Dataset) -> Int64[np.ndarray, "C C"]:
    """Return the number of images with each pair of classes; the diagonal has the number of images per class."""
    shown = np.zeros((len(dataset), len(dataset.classes)), dtype=np.float32)
    for index, record in enumerate(dataset.records):
        shown[index, record.labels[~record.crowd]] = 1
    return (shown.T @ shown).astype(np.int64)  # exact: float32 represents integers up to 16 million


def shorten(name: str, length: int = 32) -> str:
    """Return a class name for a table or a picture: in one line, of at most `length` characters."""
    shown = one_line(name[: length + 1])
    return shown if len(shown) <= length else f"{shown[: length - 1]}…"
