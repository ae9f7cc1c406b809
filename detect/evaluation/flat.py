"""Ground truths and detections of a data set as flat arrays, for the compiled kernels of this package.

The IoU of each detection with each ground truth of its image is computed once, of boxes or of masks. The kernels see
only these IoUs, so that all analyses of boxes are also analyses of masks.

Letters: I images (I1 is I + 1), D detections, G ground truths, C classes (C1 is C + 1), P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64

from detect.data.dataset import Dataset
from detect.data.masks import RLE, Polygons
from detect.data.records import Record
from detect.evaluation.coco import Kind, Prediction, by_image, corners, xywh
from detect.evaluation.overlaps import Overlaps, overlaps_of_boxes, overlaps_of_masks


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
    ranges: np.ndarray
    partners: np.ndarray
    ious: np.ndarray


@dataclass(frozen=True)
class FlatGroundTruths:
    """Ground truths of all images, concatenated in ascending order of the image ids.

    In an analysis of masks, an object without a mask is a crowd region with the shape of its box, as in
    `evaluate_coco`: it is ignored, and so are the detections in it.
    """

    num_classes: int
    starts: Int64[np.ndarray, " I1"]
    """Image i has the ground truths `starts[i] … starts[i + 1] - 1`."""
    boxes: Float64[np.ndarray, "G 4"]
    """x, y, width, height, as in COCO's arithmetic."""
    labels: Int64[np.ndarray, " G"]
    areas: Float64[np.ndarray, " G"]
    crowd: Bool[np.ndarray, " G"]
    difficult: Bool[np.ndarray, " G"]
    masks: tuple[RLE, ...] | None = None
    """Mask of each ground truth; None in an analysis of boxes."""

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

    def overlaps(
        self, image_of: Int64[np.ndarray, " D"], boxes: Float64[np.ndarray, "D 4"], masks: Sequence[RLE] | None
    ) -> Overlaps:
        """Return the overlaps of detections: of their masks in an analysis of masks, else of their boxes.

        Args:
            image_of: index of each detection's image, ascending.
            boxes: boxes x, y, width, height.
            masks: masks of the detections, needed in an analysis of masks.
        """
        if self.masks is None:
            return overlaps_of_boxes(image_of, boxes, self.starts, self.boxes, self.crowd)
        return overlaps_of_masks(image_of, masks or (), self.starts, self.masks, self.crowd)

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
    areas: Float64[np.ndarray, " D"]
    """Area of each box, or of each mask."""
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
    overlaps: Overlaps
    """Ground truths that each detection overlaps."""

    @cached_property
    def image_of(self) -> Int64[np.ndarray, " D"]:
        """Index of each detection's image."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))

    @property
    def arrays(self) -> DetectionArrays:
        """Arrays for kernels."""
        return DetectionArrays(self.starts, self.boxes, self.labels, self.ranks, *self.overlaps)


def flatten_ground_truths(dataset: Dataset, kind: Kind = "bbox") -> FlatGroundTruths:
    """Concatenate the ground truths of a data set, for an analysis of boxes or of masks."""
    records = sorted(dataset.records, key=lambda record: record.id)
    counts = [len(record.labels) for record in records]
    masks = tuple(mask for record in records for mask in _masks(record)) if kind == "segm" else None
    return FlatGroundTruths(
        num_classes=len(dataset.classes),
        starts=np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]),
        boxes=xywh(np.concatenate([np.empty((0, 4), np.float32), *(record.boxes for record in records)])),
        labels=np.concatenate([np.empty(0, np.int64), *(record.labels for record in records)]),
        areas=np.concatenate([np.empty(0), *(record.areas for record in records)]),
        crowd=np.concatenate([np.empty(0, bool), *(_ignored(record, kind) for record in records)]),
        difficult=np.concatenate([np.empty(0, bool), *(record.difficult for record in records)]),
        masks=masks,
    )


def _ignored(record: Record, kind: Kind) -> Bool[np.ndarray, " n"]:
    """Return the crowd regions and, in an analysis of masks, the objects without a mask."""
    if kind == "bbox":
        return record.crowd
    masks = record.masks or (None,) * len(record.labels)
    return record.crowd | np.array([mask is None for mask in masks], bool)


def _masks(record: Record) -> list[RLE]:
    """Return the mask of each object, and the pixels of the box of an object without a mask."""
    masks = record.masks or (None,) * len(record.labels)
    boxes = [Polygons((np.array(corners(box)).reshape(4, 2),)) for box in xywh(record.boxes).tolist()]
    return [(mask or box).rle(record.height, record.width) for mask, box in zip(masks, boxes, strict=True)]


def flatten_detections(
    dataset: Dataset, predictions: Sequence[Prediction], ground_truths: FlatGroundTruths | None = None
) -> FlatDetections:
    """Concatenate predictions; an image without a prediction has no detections.

    Args:
        dataset: images with their ground truths.
        predictions: at most one per image; with masks, if `ground_truths` has them.
        ground_truths: result of `flatten_ground_truths`; by default that of boxes.

    Raises:
        ValueError: an image is not in the data set, or was predicted twice.
    """
    ground_truths = ground_truths or flatten_ground_truths(dataset)
    of_image = by_image(predictions, dataset)
    ids = sorted(record.id for record in dataset.records)
    predicted = [(image, of_image[id_]) for image, id_ in enumerate(ids) if id_ in of_image]
    counts = [len(prediction.labels) for _, prediction in predicted]
    image_of = np.repeat(np.array([image for image, _ in predicted], np.int64), counts)
    boxes = xywh(np.concatenate([np.empty((0, 4), np.float32), *(prediction.boxes for _, prediction in predicted)]))
    areas, masks = boxes[:, 2] * boxes[:, 3], None
    if ground_truths.masks is not None:
        masks = [mask for _, prediction in predicted for mask in prediction.masks or ()]
        areas = np.array([mask.area() for mask in masks], np.float64)
    return sort_detections(
        image_of=image_of,
        boxes=boxes,
        areas=areas,
        scores=np.concatenate([np.empty(0), *(prediction.scores for _, prediction in predicted)]).astype(np.float64),
        labels=np.concatenate([np.empty(0, np.int64), *(prediction.labels for _, prediction in predicted)]),
        indices=np.concatenate([np.empty(0, np.int64), *(np.arange(count) for count in counts)]),
        overlaps=ground_truths.overlaps(image_of, boxes, masks),
        num_images=len(dataset.records),
        num_classes=len(dataset.classes),
    )


def sort_detections(
    image_of: Int64[np.ndarray, " D"],
    boxes: Float64[np.ndarray, "D 4"],
    areas: Float64[np.ndarray, " D"],
    scores: Float64[np.ndarray, " D"],
    labels: Int64[np.ndarray, " D"],
    indices: Int64[np.ndarray, " D"],
    *,
    overlaps: Overlaps,
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
        areas=areas[order],
        scores=scores,
        labels=labels,
        indices=indices[order],
        ranks=ranks,
        by_class=by_class,
        class_starts=np.searchsorted(labels[by_class], np.arange(num_classes + 1)),
        overlaps=overlaps._replace(ranges=overlaps.ranges[order]),
    )
