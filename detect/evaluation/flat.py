"""Ground truths and detections of a data set as flat arrays, for the compiled kernels of this package.

Letters: I images (I1 is I + 1), D detections, G ground truths, C classes (C1 is C + 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numba
import numpy as np
from jaxtyping import Bool, Float64, Int64

from detect.data.dataset import Dataset
from detect.evaluation.coco import Prediction, by_image, xywh


class GroundTruthArrays(NamedTuple):
    """Arrays of `FlatGroundTruths`, for kernels."""

    starts: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray


class DetectionArrays(NamedTuple):
    """Arrays of `FlatDetections`, for kernels."""

    starts: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    ranks: np.ndarray


@dataclass(frozen=True)
class FlatGroundTruths:
    """Ground truths of all images, concatenated in ascending order of the image ids."""

    num_classes: int
    starts: Int64[np.ndarray, " I1"]
    """Image i has the ground truths `starts[i] … starts[i + 1] - 1`."""
    boxes: Float64[np.ndarray, "G 4"]
    """x, y, width, height, as in COCO's arithmetic."""
    labels: Int64[np.ndarray, " G"]
    areas: Float64[np.ndarray, " G"]
    crowd: Bool[np.ndarray, " G"]
    difficult: Bool[np.ndarray, " G"]

    @property
    def num_images(self) -> int:
        """Number of images."""
        return len(self.starts) - 1

    @cached_property
    def image_of(self) -> Int64[np.ndarray, " G"]:
        """Index of each ground truth's image."""
        return np.repeat(np.arange(self.num_images), np.diff(self.starts))

    @property
    def arrays(self) -> GroundTruthArrays:
        """Arrays for kernels."""
        return GroundTruthArrays(self.starts, self.boxes, self.labels, self.crowd)

    def class_counts(self) -> Int64[np.ndarray, " C"]:
        """Return the number of ground truths of each class, without crowd regions."""
        return np.bincount(self.labels[~self.crowd], minlength=self.num_classes)


@dataclass(frozen=True)
class FlatDetections:
    """Detections of all images, in the image order of `FlatGroundTruths`.

    In each image the highest scores come first, equal scores in the order of the `Prediction`.
    """

    starts: Int64[np.ndarray, " I1"]
    """Image i has the detections `starts[i] … starts[i + 1] - 1`."""
    boxes: Float64[np.ndarray, "D 4"]
    """x, y, width, height."""
    scores: Float64[np.ndarray, " D"]
    labels: Int64[np.ndarray, " D"]
    indices: Int64[np.ndarray, " D"]
    """Index of each detection in the `Prediction` of its image."""
    ranks: Int64[np.ndarray, " D"]
    """Number of detections of the same image and class that precede it."""
    by_class: Int64[np.ndarray, " D"]
    """Indices of the detections sorted by class, then descending score, equal scores in the order of the images."""
    class_starts: Int64[np.ndarray, " C1"]
    """Class c has the detections `by_class[class_starts[c] : class_starts[c + 1]]`."""

    @cached_property
    def image_of(self) -> Int64[np.ndarray, " D"]:
        """Index of each detection's image."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))

    @property
    def arrays(self) -> DetectionArrays:
        """Arrays for kernels."""
        return DetectionArrays(self.starts, self.boxes, self.labels, self.ranks)


def flatten_ground_truths(dataset: Dataset) -> FlatGroundTruths:
    """Concatenate the ground truths of a data set."""
    records = sorted(dataset.records, key=lambda record: record.id)
    counts = [len(record.labels) for record in records]
    return FlatGroundTruths(
        num_classes=len(dataset.classes),
        starts=np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]),
        boxes=xywh(np.concatenate([np.empty((0, 4), np.float32), *(record.boxes for record in records)])),
        labels=np.concatenate([np.empty(0, np.int64), *(record.labels for record in records)]),
        areas=np.concatenate([np.empty(0), *(record.areas for record in records)]),
        crowd=np.concatenate([np.empty(0, bool), *(record.crowd for record in records)]),
        difficult=np.concatenate([np.empty(0, bool), *(record.difficult for record in records)]),
    )


def flatten_detections(dataset: Dataset, predictions: Sequence[Prediction]) -> FlatDetections:
    """Concatenate predictions; an image without a prediction has no detections.

    Raises:
        ValueError: an image is not in the data set, or was predicted twice.
    """
    of_image = by_image(predictions, dataset)
    ids = sorted(record.id for record in dataset.records)
    predicted = [(image, of_image[id_]) for image, id_ in enumerate(ids) if id_ in of_image]
    counts = [len(prediction.labels) for _, prediction in predicted]
    return sort_detections(
        image_of=np.repeat(np.array([image for image, _ in predicted], np.int64), counts),
        boxes=xywh(np.concatenate([np.empty((0, 4), np.float32), *(prediction.boxes for _, prediction in predicted)])),
        scores=np.concatenate([np.empty(0), *(prediction.scores for _, prediction in predicted)]).astype(np.float64),
        labels=np.concatenate([np.empty(0, np.int64), *(prediction.labels for _, prediction in predicted)]),
        indices=np.concatenate([np.empty(0, np.int64), *(np.arange(count) for count in counts)]),
        num_images=len(dataset.records),
        num_classes=len(dataset.classes),
    )


def sort_detections(
    image_of: Int64[np.ndarray, " D"],
    boxes: Float64[np.ndarray, "D 4"],
    scores: Float64[np.ndarray, " D"],
    labels: Int64[np.ndarray, " D"],
    indices: Int64[np.ndarray, " D"],
    *,
    num_images: int,
    num_classes: int,
) -> FlatDetections:
    """Sort detections by image and score; equal scores of an image keep their order."""
    order = np.lexsort((-scores, image_of))
    image_of, labels, scores = image_of[order], labels[order], scores[order]
    groups = np.argsort(image_of * num_classes + labels, kind="stable")
    keys = (image_of * num_classes + labels)[groups]
    ranks = np.empty(len(order), np.int64)
    ranks[groups] = np.arange(len(order)) - np.searchsorted(keys, keys)
    by_class = np.lexsort((-scores, labels))
    return FlatDetections(
        starts=np.searchsorted(image_of, np.arange(num_images + 1)),
        boxes=boxes[order],
        scores=scores,
        labels=labels,
        indices=indices[order],
        ranks=ranks,
        by_class=by_class,
        class_starts=np.searchsorted(labels[by_class], np.arange(num_classes + 1)),
    )


@numba.njit(cache=True, nogil=True)
def overlap(box, gt_box, crowd):
    """Return the IoU of two boxes x, y, width, height, with the operations of pycocotools.

    If the ground truth is a crowd region, return the share of `box` that lies in it.
    """
    width = min(box[0] + box[2], gt_box[0] + gt_box[2]) - max(box[0], gt_box[0])
    height = min(box[1] + box[3], gt_box[1] + gt_box[3]) - max(box[1], gt_box[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared, area = width * height, box[2] * box[3]
    return shared / (area if crowd else area + gt_box[2] * gt_box[3] - shared)
