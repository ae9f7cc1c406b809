"""Check that an exported model gives the same detections as its checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from detect.errors import UserError
from detect.export.sample_images import Image
from detect.prediction.predictor import Predictor
from detect.prediction.result import Result
from detect.prediction.sources import Frame
from detect.terminal import stage

MAX_SCORE_DIFFERENCE, MIN_IOU, MAX_MASK_DIFFERENCE = 1e-4, 0.999, 1e-3
"""Maximum score difference, minimum IoU and maximum difference of a mask's cells of matching detections."""

_Match = tuple[float, float, float]
"""Score difference, IoU and mask difference of a detection and its match."""
_EQUAL: _Match = 0.0, 1.0, 0.0


@dataclass(frozen=True, slots=True)
class Equality:
    """Outcome of a successful comparison."""

    images: int
    """Number of images, each compared separately."""
    batches: int
    """Number of additional batches of two images of one size."""
    detections: int
    score_difference: float
    """Maximum difference of two matched scores."""
    iou: float
    """Minimum IoU of two matched boxes."""
    mask_difference: float = 0.0
    """Maximum difference of a cell's probability in two matched masks."""


def check_equality(predictor: Predictor, run: Callable[[list[Frame]], Any], images: Sequence[Image]) -> Equality:
    """Compare the detections of a checkpoint and of its exported model, in single images and in batches of two.

    Each detection needs a match of the same class in the other model's detections. It may be missing only if its score
    is within 1e-4 of the score threshold, or of the last score if there are as many detections as allowed.

    Args:
        predictor: the checkpoint.
        run: the exported model, as a function from frames of one size to results.
        images: the images to compare on.

    Raises:
        UserError: a detection has no match.
    """
    options = predictor.checkpoint.config.model.postprocess
    batches = [[Frame(image)] for image in images] + [list(map(Frame, pair)) for pair in _pairs(images)]
    matches, detections = [_EQUAL], 0
    for batch in stage(batches, "comparing the detections with those of the checkpoint"):
        expected = list(predictor.predict(batch, batch_size=len(batch), device="cpu"))
        for original, exported in zip(expected, run(batch), strict=True):
            for result, other in ((original, exported), (exported, original)):
                floor = max(
                    [options.score_threshold, *(other.scores[-1:] if len(other) >= options.max_detections else [])]
                )
                matches += _compare(result, other, floor + MAX_SCORE_DIFFERENCE, len(batch))
            detections += len(original)
    differences, ious, mask_differences = zip(*matches, strict=True)
    worst = max(differences), min(ious), max(mask_differences)
    return Equality(len(images), len(batches) - len(images), detections, *worst)


def _pairs(images: Sequence[Image]) -> list[tuple[Image, Image]]:
    """Return a pair of images for each repeated size; without any, the first image and its mirror image."""
    first: dict[tuple[int, ...], Image] = {}
    pairs: dict[tuple[int, ...], tuple[Image, Image]] = {}
    for image in images:
        if image.shape in first:
            pairs.setdefault(image.shape, (first[image.shape], image))
        first.setdefault(image.shape, image)
    flipped = np.ascontiguousarray(images[0][:, ::-1])
    return list(pairs.values()) or [(images[0], flipped)]


def _compare(result: Result, other: Result, floor: float, batch_size: int) -> Iterator[_Match]:
    """Match the detections with a score above `floor`. Yield how far the matches differ."""
    unmatched = np.ones(len(other), bool)
    for row, (box, score, label) in enumerate(zip(result.boxes, result.scores, result.labels, strict=True)):
        if score <= floor:
            continue
        difference = np.abs(other.scores - score)
        iou, mask_difference = _iou(box, other.boxes), _mask_difference(result, row, other)
        matches = unmatched & (other.labels == label) & (difference <= MAX_SCORE_DIFFERENCE) & (iou >= MIN_IOU)
        matches &= mask_difference <= MAX_MASK_DIFFERENCE
        if not matches.any():
            raise UserError(
                f"the exported model differs: a {result.classes[label]} of score {score:.4f} at "
                f"{box.round(1).tolist()} in an image of {result.size[0]} × {result.size[1]} pixels, in a batch of "
                f"{batch_size}, has no match; no file was written; please report this with the checkpoint"
            )
        match = int(np.where(matches, iou, -1).argmax())
        unmatched[match] = False
        yield float(difference[match]), float(iou[match]), float(mask_difference[match])


def _mask_difference(result: Result, row: int, other: Result) -> Float[np.ndarray, " n"]:
    """Return the maximum difference of a mask from each of the other masks.

    Zeros if neither result has masks, and infinite if only one has them.
    """
    if result.mask_probabilities is None or other.mask_probabilities is None:
        return np.full(len(other), 0.0 if result.mask_probabilities is other.mask_probabilities else np.inf)
    return np.abs(other.mask_probabilities - result.mask_probabilities[row]).max(axis=(1, 2))


def _iou(box: Float[np.ndarray, " 4"], boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, " n"]:
    box, boxes = box.astype(np.float64), boxes.astype(np.float64)
    sides = (np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])).clip(0)
    intersection = sides.prod(axis=1)
    union = (box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) - intersection
    return intersection / union.clip(1e-9)
