"""Analysis of masks for the HTML report, beside that of boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from detect.data.dataset import Dataset
from detect.evaluation.bootstrap import Resamples, draw_weights, resample
from detect.evaluation.boundary import MaskPair, compare_boundaries
from detect.evaluation.coco import Prediction
from detect.evaluation.flat import flatten_detections, flatten_ground_truths
from detect.evaluation.matching import match, precision_recall
from detect.evaluation.oracles import oracles
from detect.evaluation.tide import Errors, find_errors
from detect.report.boundaries import worst_boundaries
from detect.report.breakdown import curve_rows, known_or_none, metric_rows, named_mask_metrics, size_rows

BINS = 10


def add_masks(
    data: dict[str, Any],
    dataset: Dataset,
    predictions: Sequence[Prediction],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Errors:
    """Add the analysis of masks to the data of a report, and return the errors of the masks.

    Added are metrics, also of each class, curves with keys such as `masks 0.50`, and in `masks` the kinds of error, the
    AP by size, the oracles, and the boundaries.

    Args:
        data: the data, with the analysis of boxes.
        dataset: images with their ground truths.
        predictions: at most one per image, with masks.
        resamples: number of bootstrap resamples; 0 gives no intervals.
        seed: seed of the bootstrap.
    """
    ground_truths = flatten_ground_truths(dataset, "segm")
    detections = flatten_detections(dataset, predictions, ground_truths)
    samples = resample(ground_truths, detections, draw_weights(ground_truths.num_images, resamples, seed))
    matches = match(ground_truths, detections)
    pairs = compare_boundaries(dataset, predictions, ground_truths, detections, matches)
    data["metrics"] += metric_rows(named_mask_metrics(samples))
    for row, columns in zip(data["classes"], _classes(samples, pairs), strict=True):
        row |= columns
    curves = curve_rows(precision_recall(ground_truths, detections, matches))
    for name in ("precision", "mean", "scores"):
        data["curves"][name] |= {f"masks {iou}": rows for iou, rows in curves[name].items()}
    errors = find_errors(dataset, ground_truths, detections)
    data["masks"] = {
        "errors": errors.summary(),
        "sizes": size_rows(ground_truths, samples),
        "oracles": oracles(ground_truths, detections),
        "boundary": _boundary(pairs, dataset.classes),
    }
    return errors


def _classes(samples: Resamples, pairs: Sequence[MaskPair]) -> list[dict[str, float | None]]:
    """Return AP and AP50 of the masks of each class, and the mean Boundary IoU of its pairs."""
    count = samples.classes["AP"].shape[1]
    boundary_ious: list[list[float]] = [[] for _ in range(count)]
    for pair in pairs:
        boundary_ious[int(pair.prediction.labels[pair.detection])].append(pair.boundary_iou)
    return [
        {
            "mask_AP": known_or_none(samples.classes["AP"][0, label]),
            "mask_AP50": known_or_none(samples.classes["AP50"][0, label]),
            "boundary_IoU": float(np.mean(of_class)) if of_class else None,
        }
        for label, of_class in enumerate(boundary_ious)
    ]


def _boundary(pairs: Sequence[MaskPair], classes: Sequence[str]) -> dict[str, Any] | None:
    """Return the distribution of Boundary IoU in `BINS` bins, mean and median, and the worst pairs as pictures."""
    if not pairs:
        return None
    ious = np.array([pair.boundary_iou for pair in pairs])
    counts = np.bincount(np.minimum((ious * BINS).astype(int), BINS - 1), minlength=BINS)
    return {
        "bins": [
            {"low": low / BINS, "high": (low + 1) / BINS, "count": count} for low, count in enumerate(counts.tolist())
        ],
        "mean": float(ious.mean()),
        "median": float(np.median(ious)),
        "worst": worst_boundaries(pairs, classes),
    }
