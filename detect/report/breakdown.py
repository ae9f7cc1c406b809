"""An evaluation taken apart: all that the report's page shows of what a detector gets right and wrong.

`analyse` looks at one detector, `compare` at several on the same images. Both give dicts, lists, numbers and None, as
JSON has them; figures are fractions in 0 … 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int32

from detect.data.dataset import Dataset
from detect.evaluation.bootstrap import (
    Resamples,
    class_mean,
    difference,
    draw,
    interval,
    resample,
    spread,
    weighted,
)
from detect.evaluation.coco import Prediction
from detect.evaluation.confusion import EDGES, bins, confusion
from detect.evaluation.matching import (
    AREAS,
    RECALLS,
    Found,
    Matches,
    Tables,
    Truths,
    found_in,
    match,
    tables,
    truths_of,
)
from detect.evaluation.oracles import oracles

MEANINGS = {
    "AP": "average precision, mean over IoU 0.50 … 0.95",
    "AP50": "average precision at IoU 0.50",
    "AP75": "average precision at IoU 0.75",
    "APs": "AP of small truths, up to 32² pixels",
    "APm": "AP of medium truths, 32² … 96² pixels",
    "APl": "AP of large truths, from 96² pixels",
    "AR1": "average recall, mean over IoU 0.50 … 0.95, with 1 detection of each class an image",
    "AR10": "average recall with 10 detections of each class an image",
    "AR100": "average recall with 100 detections of each class an image",
    "ARs": "AR100 of small truths",
    "ARm": "AR100 of medium truths",
    "ARl": "AR100 of large truths",
    "VOC07": "mean average precision as in VOC2007: IoU 0.50, 11 recalls",
    "VOC": "mean average precision as in VOC2010 to 2012: IoU 0.50, area under the curve",
}
"""The figures in the order of the report."""
DIGITS = 4
"""To which curves are rounded: what a plot can show, at a third of the size."""
CROWDING = {"1": (1, 1), "2 – 4": (2, 4), "5 – 9": (5, 9), "10 – 19": (10, 19), "20 and more": (20, 10**9)}
RATIOS = {
    "under 1 : 3": (0.0, 1 / 3),
    "1 : 3 – 3 : 4": (1 / 3, 3 / 4),
    "3 : 4 – 4 : 3": (3 / 4, 4 / 3),
    "4 : 3 – 3 : 1": (4 / 3, 3.0),
    "from 3 : 1": (3.0, np.inf),
}
SIZES = {"under 32²": "small", "32² – 96²": "medium", "over 96²": "large"}


def analyse(
    dataset: Dataset, predictions: Sequence[Prediction], *, resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Everything about one detector: figures, classes, curves, confusion, slices, calibration and oracles.

    The result is the same with any number of threads.

    Args:
        dataset: the truths.
        predictions: at most one an image.
        resamples: of the bootstrap; without any there are no intervals.
        seed: of the bootstrap.

    Raises:
        ValueError: an unknown image, or one that was predicted twice.
    """
    truths, found = truths_of(dataset), found_in(dataset, predictions)
    weights = draw(truths.images, resamples, seed)
    samples = resample(truths, found, weights)
    matches = match(truths, found)
    curves = tables(truths, found, matches)
    positives = _positives(truths)
    return {
        "figures": _figures(samples),
        "classes": _classes(dataset, found, samples, positives),
        "curves": _curves(curves),
        "thresholds": _thresholds(found, matches, positives),
        "confusion": {"edges": EDGES.tolist(), "events": confusion(truths, found), "truths": positives},
        "slices": _slices(truths, found, samples, weights),
        "calibration": _calibration(found, matches),
        "oracles": oracles(truths, found),
    }


def compare(
    dataset: Dataset, runs: Sequence[Sequence[Prediction]], *, resamples: int = 1000, seed: int = 0
) -> tuple[list[list[dict[str, Any]]], list[dict[str, Any]]]:
    """What each run gains on the first one, by the paired bootstrap.

    Returns:
        The figures of each run, as `analyse` has them; and for each run but the first its number as `run`, and the
        `difference`, `interval` and `p` (see `bootstrap.difference`) of all `figures` and of the AP of all `classes`.

    Raises:
        ValueError: an unknown image, or one that was predicted twice.
    """
    truths = truths_of(dataset)
    weights = draw(truths.images, resamples, seed)
    samples = [resample(truths, found_in(dataset, run), weights) for run in runs]
    pairs = [
        {"run": number, **_gains(dataset, samples[0], samples[number], _positives(truths))}
        for number in range(1, len(runs))
    ]
    return [_figures(one) for one in samples], pairs


def _gains(dataset: Dataset, first: Resamples, other: Resamples, positives: list[int]) -> dict[str, Any]:
    figures = [
        {"name": name, **difference(other.figures[name], first.figures[name], first.images[name])} for name in MEANINGS
    ]
    ours, theirs = other.classes["AP"], first.classes["AP"]
    classes = [
        {
            "name": name,
            "truths": positives[label],
            **difference(ours[:, label], theirs[:, label], first.images_of_class[label]),
        }
        for label, name in enumerate(dataset.classes)
    ]
    return {"figures": figures, "classes": classes}


def _positives(truths: Truths) -> list[int]:
    return np.bincount(truths.labels[~truths.crowd], minlength=truths.classes).tolist()


def _figures(samples: Resamples) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "meaning": meaning,
            "value": _known(samples.figures[name][0]),
            "interval": interval(samples.figures[name], samples.images[name]),
        }
        for name, meaning in MEANINGS.items()
    ]


def _classes(dataset: Dataset, found: Found, samples: Resamples, positives: list[int]) -> list[dict[str, Any]]:
    detections = np.diff(found.class_starts).tolist()
    return [
        {
            "name": name,
            "truths": positives[label],
            "detections": detections[label],
            "AP_interval": interval(samples.classes["AP"][:, label], samples.images_of_class[label]),
            **{key: _known(samples.classes[key][0, label]) for key in ("AP", "AP50", "AP75", "AR100", "VOC")},
        }
        for label, name in enumerate(dataset.classes)
    ]


def _curves(curves: Tables) -> dict[str, Any]:
    """Precision at each recall, and the score that gives it; the rows of classes without truths are None."""
    known = np.all(curves.recall >= 0, axis=0)
    at_50, at_75, overall = curves.precision[0].T, curves.precision[5].T, curves.precision.mean(axis=0).T
    precision = {"0.50": at_50, "0.75": at_75, "0.50:0.95": overall}
    return {
        "recall": RECALLS.round(2).tolist(),
        "precision": {iou: _rows(rows, known) for iou, rows in precision.items()},
        "mean": {iou: _rows(_class_means(rows, known), np.array([known.any()]))[0] for iou, rows in precision.items()},
        "scores": {"0.50": _rows(curves.scores[0].T, known)},
    }


def _class_means(rows: Float64[np.ndarray, "C R"], known: Bool[np.ndarray, " C"]) -> Float64[np.ndarray, "1 R"]:
    return rows.sum(axis=0, keepdims=True, where=known[:, None]) / max(known.sum(), 1)


def _rows(rows: Float64[np.ndarray, "C R"], known: Bool[np.ndarray, " C"]) -> list[list[float | None]]:
    return [row.round(DIGITS).tolist() if there else [None] * len(row) for row, there in zip(rows, known, strict=True)]


def _thresholds(found: Found, matches: Matches, positives: list[int]) -> dict[str, Any]:
    """How many right and wrong detections of each class reach each score, at IoU 0.50."""
    right, ignored = matches.hits[0], matches.ignored[0]
    bin_of = bins(found.scores)

    def reaching(chosen: Bool[np.ndarray, " D"]) -> list[list[int]]:
        counts = np.zeros((len(positives), len(EDGES)), np.int64)
        np.add.at(counts, (found.labels[chosen], bin_of[chosen]), 1)
        return counts[:, ::-1].cumsum(axis=1)[:, ::-1].tolist()

    return {
        "edges": EDGES.tolist(),
        "hits": reaching(right),
        "false": reaching(~right & ~ignored),
        "truths": positives,
    }


def _slices(
    truths: Truths, found: Found, samples: Resamples, weights: Int32[np.ndarray, "B I"]
) -> list[dict[str, Any]]:
    """The figures of parts of the truths.

    The other truths are ignored as crowds are, and so is what finds them. A detection that finds nothing is wrong in
    the part to which it would belong as a truth.
    """
    sizes = []
    for name, area in SIZES.items():
        low, high = AREAS[area]
        inside = ~truths.crowd & (truths.areas >= low) & (truths.areas <= high)
        sizes.append(_row(name, samples.areas[area], truths, inside))
    parts = {"crowding": _by_crowding(truths, found), "aspect ratio": _by_ratio(truths, found)}
    rows = {"size": sizes}
    for part, slices in parts.items():
        rows[part] = []
        for name, inside, outside in slices:
            of_class = weighted(truths, found, match(truths, found, ~inside, outside), weights)
            values = {column: class_mean(figures) for column, figures in of_class.items()}
            rows[part].append(_row(name, values, truths, inside & ~truths.crowd))
    return [{"name": name, "meaning": meaning, "rows": rows[name]} for name, meaning in _SLICES.items()]


_SLICES = {
    "size": "the area of the truth, in square pixels",
    "crowding": "how many truths there are in the image",
    "aspect ratio": "width : height of the truth's box",
}


def _row(
    name: str, values: dict[str, Float64[np.ndarray, " B"]], truths: Truths, inside: Bool[np.ndarray, " G"]
) -> dict[str, Any]:
    figures = {key: _known(values[column][0]) for key, column in {"AP": "AP", "AP50": "AP50", "AR": "AR100"}.items()}
    limits = interval(values["AP"], spread(truths, inside))
    return {"name": name, "truths": int(inside.sum()), **figures, "AP_interval": limits}


_Slice = tuple[str, Bool[np.ndarray, " G"], Bool[np.ndarray, " D"]]
"""A name, the truths that belong to it, and the detections that do not."""


def _by_crowding(truths: Truths, found: Found) -> Iterator[_Slice]:
    counts = np.bincount(truths.image_of[~truths.crowd], minlength=truths.images)
    for name, (low, high) in CROWDING.items():
        inside = (counts >= low) & (counts <= high)
        yield name, inside[truths.image_of], ~inside[found.image_of]


def _by_ratio(truths: Truths, found: Found) -> Iterator[_Slice]:
    of_truth, of_found = (boxes[:, 2] / np.maximum(boxes[:, 3], 1e-9) for boxes in (truths.boxes, found.boxes))
    for name, (low, high) in RATIOS.items():
        yield name, (of_truth >= low) & (of_truth < high), (of_found < low) | (of_found >= high)


def _calibration(found: Found, matches: Matches) -> dict[str, Any]:
    """Whether a score is the share of right detections (Guo et al. 2017, §2), at IoU 0.50, in ten bins of equal width.

    `ece`, the expected calibration error, is the mean distance of score and precision, weighted by the detections.
    """
    kept = ~matches.ignored[0]
    right, scores, tenth = matches.hits[0][kept], found.scores[kept], np.minimum(bins(found.scores[kept]) // 10, 9)
    rows: list[dict[str, Any]] = []
    for k in range(10):
        inside = tenth == k
        there = inside.any()
        rows.append(
            {
                "low": k / 10,
                "high": (k + 1) / 10,
                "score": float(scores[inside].mean()) if there else None,
                "precision": float(right[inside].mean()) if there else None,
                "count": int(inside.sum()),
            }
        )
    gaps = [row["count"] * abs(row["score"] - row["precision"]) for row in rows if row["count"]]
    return {"rows": rows, "ece": sum(gaps) / len(scores) if gaps else None}


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
