"""Selection of the images that a report shows, with thumbnails small enough to embed."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int8
from PIL import Image

from detect.data.dataset import Dataset
from detect.data.decode import decode
from detect.data.masks import Mask
from detect.data.outlines import trace
from detect.data.records import Record
from detect.errors import UserError
from detect.evaluation.coco import Prediction, by_image
from detect.evaluation.thresholds import DEFAULT_SCORE
from detect.evaluation.tide import KINDS, STATES, Errors

DRAWN_SCORE = 0.3
"""Minimum score of the detections on the page, unless the page starts at a lower score threshold."""
MAX_IMAGES = 60
MAX_WORST = 40
"""Maximum number of images chosen for their number of errors; others are examples of further classes and errors."""
MAX_PER_PAIR = 24
"""Maximum number of images for each pair of detectors in a comparison."""
THUMBNAIL_SIDE = 400
"""Longest side of a thumbnail in pixels."""


@dataclass(frozen=True, slots=True)
class ImageErrors:
    """One image with its detections and their errors."""

    record: Record
    prediction: Prediction
    kinds: Int8[np.ndarray, " d"]
    """Index into `KINDS` of each detection."""
    states: Int8[np.ndarray, " n"]
    """Index into `STATES` of each ground truth."""
    score_threshold: float = DEFAULT_SCORE
    """Minimum score of wrong detections that count as errors."""

    @property
    def missed(self) -> Bool[np.ndarray, " n"]:
        """Mask of the missed ground truths."""
        return self.states == STATES.index("missed")

    @property
    def wrong(self) -> Bool[np.ndarray, " d"]:
        """Mask of the wrong detections with a score of at least the threshold."""
        wrong = (self.kinds != KINDS.index("correct")) & (self.kinds != KINDS.index("ignored"))
        return wrong & (self.prediction.scores >= self.score_threshold)

    @property
    def num_errors(self) -> int:
        """Number of missed ground truths and wrong detections."""
        return int(self.missed.sum() + self.wrong.sum())

    @property
    def share_correct(self) -> float:
        """Matched ground truths / (matched ground truths + errors); 1 for an image without either."""
        matched = int(np.sum(self.states == STATES.index("matched")))
        return matched / (matched + self.num_errors) if matched + self.num_errors else 1.0

    @property
    def groups(self) -> set[tuple[str, int]]:
        """Classes and kinds of error that occur among the errors of this image."""
        labels = [*self.record.labels[self.missed].tolist(), *self.prediction.labels[self.wrong].tolist()]
        kinds = self.kinds[self.wrong].tolist()
        return {("class", label) for label in labels} | {("kind", kind) for kind in kinds}


def errors_by_image(
    dataset: Dataset, predictions: Sequence[Prediction], errors: Errors, score_threshold: float = DEFAULT_SCORE
) -> list[ImageErrors]:
    """Return the errors of each image at a score threshold, in the order of the data set."""
    predicted = by_image(predictions, dataset)
    no_kinds = np.empty(0, np.int8)
    return [
        ImageErrors(
            record,
            predicted.get(record.id, Prediction.empty(record.id)),
            errors.kinds.get(record.id, no_kinds),
            errors.states[record.id],
            score_threshold,
        )
        for record in dataset.records
    ]


def gallery(images: Sequence[ImageErrors]) -> list[dict[str, Any]]:
    """Select at most `MAX_IMAGES` images for the report, most errors first.

    An error is a missed ground truth, or a wrong detection with a score of at least the threshold. The first
    `MAX_WORST` images are those with the most errors. Others follow if their errors have a class or kind that occurs in
    fewer than two of the images before.
    """
    chosen: list[ImageErrors] = []
    shown: Counter[tuple[str, int]] = Counter()
    for image in sorted(images, key=lambda image: -image.num_errors):
        groups = image.groups
        is_new = any(shown[group] < 2 for group in groups)
        if groups and (len(chosen) < MAX_WORST or (is_new and len(chosen) < MAX_IMAGES)):
            chosen.append(image)
            shown.update(groups)
    return [
        thumbnail(image.record)
        | {
            "ground_truths": ground_truth_rows(image),
            "detections": detection_rows(image),
            "errors": image.num_errors,
        }
        for image in chosen
    ]


def largest_differences(runs: Sequence[Sequence[ImageErrors]]) -> list[dict[str, Any]]:
    """Select the `MAX_PER_PAIR` images whose `share_correct` differs most from the first run, for each other run."""
    images = []
    for number, run in enumerate(runs[1:], start=1):
        gains = np.array([image.share_correct - first.share_correct for image, first in zip(run, runs[0], strict=True)])
        for index in np.argsort(-np.abs(gains), kind="stable")[:MAX_PER_PAIR]:
            image_by_run = [image_errors[index] for image_errors in runs]
            if gains[index]:
                images.append(
                    thumbnail(image_by_run[0].record)
                    | {
                        "ground_truths": ground_truth_rows(image_by_run[0]),
                        "detections": [detection_rows(image) for image in image_by_run],
                        "share_correct": [image.share_correct for image in image_by_run],
                        "run": number,
                    }
                )
    return images


def thumbnail(record: Record) -> dict[str, Any]:
    """Return an image's name, id and size, and a small JPEG as a data URL; None if the image cannot be read."""
    entry = {"name": record.path.name, "id": record.id, "width": record.width, "height": record.height}
    try:
        image = Image.fromarray(decode(record.path))
    except UserError:
        return entry | {"thumbnail": None}
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BICUBIC)
    with io.BytesIO() as file:
        image.save(file, "JPEG", quality=80)
        return entry | {"thumbnail": f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"}


def ground_truth_rows(image: ImageErrors) -> list[list[Any]]:
    """Return each ground truth as x1, y1, x2, y2 in pixels of the file, label, state.

    With masks in the prediction, the outline of the mask follows (`outline_path`), or None.
    """
    record = image.record
    columns = zip(_corners(record.boxes), record.labels.tolist(), image.states.tolist(), strict=True)
    rows = [[*box, label, STATES[state]] for box, label, state in columns]
    if image.prediction.masks is None:
        return rows
    masks = record.masks or (None,) * len(rows)
    return [[*row, mask and outline_path(mask, record)] for row, mask in zip(rows, masks, strict=True)]


def detection_rows(image: ImageErrors) -> list[list[Any]]:
    """Return each detection to draw as x1, y1, x2, y2, label, score, kind; best first.

    These are the detections with a score of at least `DRAWN_SCORE` or the threshold, if that is lower. The outline of
    the mask follows (`outline_path`) if there are masks.
    """
    scores = image.prediction.scores.astype(np.float64)
    chosen = np.flatnonzero(image.prediction.scores >= np.float32(min(DRAWN_SCORE, image.score_threshold)))
    chosen = chosen[np.argsort(-scores[chosen], kind="stable")]
    boxes, labels = _corners(image.prediction.boxes[chosen]), image.prediction.labels[chosen].tolist()
    columns = zip(boxes, labels, scores[chosen].round(4).tolist(), image.kinds[chosen].tolist(), strict=True)
    rows = [[*box, label, score, KINDS[kind]] for box, label, score, kind in columns]
    masks = image.prediction.masks
    if masks is None:
        return rows
    return [[*row, outline_path(masks[i], image.record)] for row, i in zip(rows, chosen.tolist(), strict=True)]


def outline_path(mask: Mask, record: Record) -> str:
    """Return the outlines of a mask's pieces and holes as an SVG path, in pixels of the file.

    Outlines are simplified by at most a pixel of the thumbnail, and filled by the even-odd rule.
    """
    pixel = max(1.0, max(record.height, record.width) / THUMBNAIL_SIDE)
    path = []
    for outline in trace(mask.bitmap(record.height, record.width)):
        corners = cv2.approxPolyDP(outline.astype(np.int32)[:, None], pixel, closed=True)[:, 0]
        if len(corners) > 2:
            path.append(f"M{' '.join(map(str, corners.ravel().tolist()))}z")
    return "".join(path)


def _corners(boxes: Float[np.ndarray, "n 4"]) -> list[list[float]]:
    return boxes.astype(np.float64).round(1).tolist()
