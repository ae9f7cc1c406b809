"""The images from which most is to be learned, small enough to travel in a report."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int8
from PIL import Image

from detect.data.dataset import Dataset, Record
from detect.data.decode import decode
from detect.errors import UserError
from detect.evaluation.coco import Prediction, by_image
from detect.evaluation.tide import KINDS, STATES, Errors

SHOWN = 0.3
"""Detections of a lower score are not drawn."""
COUNTED = 0.5
"""Wrong detections of a lower score are no mistakes of their image."""
LIMIT = 60
OVERALL = 40
"""So many images are the worst of all; then come those that show what the others do not."""
PAIRED = 24
"""So many images are shown of each pair of detectors."""
SIDE = 400
"""Pixels of the longest side of a thumbnail."""


@dataclass(frozen=True, slots=True)
class Judged:
    """An image, what was found in it, and what of that is wrong."""

    record: Record
    prediction: Prediction
    kinds: Int8[np.ndarray, " d"]
    """Of each detection, in `KINDS`."""
    states: Int8[np.ndarray, " n"]
    """Of each truth, in `STATES`."""

    @property
    def missed(self) -> Bool[np.ndarray, " n"]:
        """The truths that were not found."""
        return self.states == STATES.index("missed")

    @property
    def wrong(self) -> Bool[np.ndarray, " d"]:
        """The detections that are mistakes."""
        wrong = (self.kinds != KINDS.index("right")) & (self.kinds != KINDS.index("ignored"))
        return wrong & (self.prediction.scores >= COUNTED)

    @property
    def mistakes(self) -> int:
        """How many there are of both."""
        return int(self.missed.sum() + self.wrong.sum())

    @property
    def share(self) -> float:
        """Right answers among all: 1 where every truth was found and nothing else."""
        right = int(np.sum(self.states == STATES.index("found")))
        return right / (right + self.mistakes) if right + self.mistakes else 1.0

    @property
    def shows(self) -> set[tuple[str, int]]:
        """The classes and the kinds of error that this is an example of."""
        labels = [*self.record.labels[self.missed].tolist(), *self.prediction.labels[self.wrong].tolist()]
        kinds = self.kinds[self.wrong].tolist()
        return {("class", label) for label in labels} | {("kind", kind) for kind in kinds}


def judge(dataset: Dataset, predictions: Sequence[Prediction], errors: Errors) -> list[Judged]:
    """Every image, in the order of the data set."""
    found = by_image(predictions, dataset)
    nothing = Prediction(-1, np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.int64))
    no_kinds = np.empty(0, np.int8)
    return [
        Judged(record, found.get(record.id, nothing), errors.kinds.get(record.id, no_kinds), errors.states[record.id])
        for record in dataset.records
    ]


def gallery(judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """At most `LIMIT` images as the report wants them, those with the most mistakes first.

    A mistake is a truth that was not found, or a wrong detection of score `COUNTED` or more. The first `OVERALL` are
    the worst of all; later ones are there if they show a class or a kind of error that fewer than two before them show.
    """
    chosen: list[Judged] = []
    shown: Counter[tuple[str, int]] = Counter()
    for one in sorted(judged, key=lambda one: -one.mistakes):
        shows = one.shows
        needed = any(shown[group] < 2 for group in shows)
        if shows and (len(chosen) < OVERALL or (needed and len(chosen) < LIMIT)):
            chosen.append(one)
            shown.update(shows)
    return [
        picture(one.record) | {"truths": truths_of(one), "detections": detections_of(one), "mistakes": one.mistakes}
        for one in chosen
    ]


def differing(runs: Sequence[Sequence[Judged]]) -> list[dict[str, Any]]:
    """For each run but the first, the `PAIRED` images in which it differs from the first one most, as the page wants.

    What differs is the share of right answers: of the truths found and the mistakes made, how many are truths found.
    """
    images = []
    for number, run in enumerate(runs[1:], start=1):
        gains = np.array([one.share - first.share for one, first in zip(run, runs[0], strict=True)])
        for place in np.argsort(-np.abs(gains), kind="stable")[:PAIRED]:
            sides = [judged[place] for judged in runs]
            if gains[place]:
                images.append(
                    picture(sides[0].record)
                    | {"truths": truths_of(sides[0]), "detections": [detections_of(side) for side in sides]}
                    | {"scores": [side.share for side in sides], "run": number}
                )
    return images


def picture(record: Record) -> dict[str, Any]:
    """An image's name, id, size and, as the address of a small JPEG, its thumbnail; None where it cannot be read."""
    shown = {"name": record.path.name, "id": record.id, "width": record.width, "height": record.height}
    try:
        image = Image.fromarray(decode(record.path))
    except UserError:
        return shown | {"thumbnail": None}
    image.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
    with io.BytesIO() as file:
        image.save(file, "JPEG", quality=80)
        return shown | {"thumbnail": f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"}


def truths_of(one: Judged) -> list[list[Any]]:
    """Each truth as x1, y1, x2, y2 in pixels of the file, label and state."""
    columns = zip(_corners(one.record.boxes), one.record.labels.tolist(), one.states.tolist(), strict=True)
    return [[*box, label, STATES[state]] for box, label, state in columns]


def detections_of(one: Judged) -> list[list[Any]]:
    """Each detection of score `SHOWN` or more as x1, y1, x2, y2, label, score, kind; best first."""
    scores = one.prediction.scores.astype(np.float64)
    chosen = np.flatnonzero(scores >= SHOWN)
    chosen = chosen[np.argsort(-scores[chosen], kind="stable")]
    boxes, labels = _corners(one.prediction.boxes[chosen]), one.prediction.labels[chosen].tolist()
    columns = zip(boxes, labels, scores[chosen].round(4).tolist(), one.kinds[chosen].tolist(), strict=True)
    return [[*box, label, score, KINDS[kind]] for box, label, score, kind in columns]


def _corners(boxes: Float[np.ndarray, "n 4"]) -> list[list[float]]:
    return boxes.astype(np.float64).round(1).tolist()
