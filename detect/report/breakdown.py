"""Analysis of evaluations for the HTML report.

`analyse` takes one detector, `compare_runs` several on the same images. Both return dictionaries, lists, numbers and
None, as in JSON; metrics are fractions in 0 … 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int32

from detect.data.dataset import Dataset
from detect.evaluation.bootstrap import (
    Resamples,
    class_mean,
    confidence_interval,
    count_images,
    draw_weights,
    paired_difference,
    resample,
)
from detect.evaluation.coco import Prediction, have_masks
from detect.evaluation.confusion import SCORE_THRESHOLDS, confusion, score_bins
from detect.evaluation.flat import FlatDetections, FlatGroundTruths, flatten_detections, flatten_ground_truths
from detect.evaluation.matching import (
    AREA_RANGES,
    RECALL_THRESHOLDS,
    Matches,
    PrecisionRecall,
    match,
    precision_recall,
)
from detect.evaluation.oracles import oracles
from detect.evaluation.thresholds import best_score, count_positives, f1_scores
from detect.evaluation.weighted import weighted_coco
from detect.report.meanings import DETECTION_MEANINGS, MASK_MEANINGS

DIGITS = 4
"""Decimals of curves: enough for a plot, at a third of the file size."""
SIZES = {"under 32²": "small", "32² – 96²": "medium", "over 96²": "large"}
CROWDING = {"1": (1, 1), "2 – 4": (2, 4), "5 – 9": (5, 9), "10 – 19": (10, 19), "20 or more": (20, 10**9)}
RATIOS = {
    "under 1 : 3": (0.0, 1 / 3),
    "1 : 3 – 3 : 4": (1 / 3, 3 / 4),
    "3 : 4 – 4 : 3": (3 / 4, 4 / 3),
    "4 : 3 – 3 : 1": (4 / 3, 3.0),
    "over 3 : 1": (3.0, np.inf),
}
SLICE_MEANINGS = {
    "size": "area of the object in square pixels",
    "crowding": "number of objects in the image",
    "aspect ratio": "width : height of the object's box",
}


def analyse(
    dataset: Dataset, predictions: Sequence[Prediction], *, resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Analyse one detector: metrics, classes, curves, confusion, slices, calibration and oracles.

    The number of threads does not change the result.

    Args:
        dataset: images with their ground truths.
        predictions: at most one per image.
        resamples: number of bootstrap resamples; 0 gives no intervals.
        seed: seed of the bootstrap.

    Raises:
        ValueError: an image is not in the data set, or was predicted twice.
    """
    ground_truths, detections = flatten_ground_truths(dataset), flatten_detections(dataset, predictions)
    weights = draw_weights(ground_truths.num_images, resamples, seed)
    samples = resample(ground_truths, detections, weights)
    matches = match(ground_truths, detections)
    curves = precision_recall(ground_truths, detections, matches)
    class_counts = ground_truths.class_counts().tolist()
    scores = SCORE_THRESHOLDS.tolist()
    events = confusion(ground_truths, detections)
    return {
        "metrics": metric_rows(samples),
        "classes": _classes(dataset, detections, samples, class_counts),
        "curves": curve_rows(curves),
        "thresholds": _thresholds(detections, matches, class_counts),
        "confusion": {"scores": scores, "events": events, "ground_truths": class_counts},
        "slices": _slices(ground_truths, detections, samples, weights),
        "calibration": _calibration(detections, matches),
        "oracles": oracles(ground_truths, detections),
    }


def compare_runs(
    dataset: Dataset, runs: Sequence[Sequence[Prediction]], *, resamples: int = 1000, seed: int = 0
) -> tuple[list[list[dict[str, Any]]], list[dict[str, Any]]]:
    """Compare each run with the first one by the paired bootstrap.

    Args:
        dataset: images with their ground truths.
        runs: predictions of each detector.
        resamples: number of bootstrap resamples.
        seed: seed of the bootstrap.

    Returns:
        The metrics of each run, as in `analyse`, and those of masks if all runs have masks. For each run except the
        first: its index (`run`), and `difference`, `interval` and `p` (see `paired_difference`) of all `metrics` and of
        the AP of all `classes`.

    Raises:
        ValueError: an image is not in the data set, or was predicted twice.
    """
    ground_truths = flatten_ground_truths(dataset)
    weights = draw_weights(ground_truths.num_images, resamples, seed)
    samples = [resample(ground_truths, flatten_detections(dataset, run, ground_truths), weights) for run in runs]
    if all(have_masks(run) for run in runs):
        of_masks = flatten_ground_truths(dataset, "segm")
        for number, run in enumerate(runs):
            added = named_mask_metrics(resample(of_masks, flatten_detections(dataset, run, of_masks), weights))
            metrics, images = samples[number].metrics | added.metrics, samples[number].images | added.images
            samples[number] = replace(samples[number], metrics=metrics, images=images)
    class_counts = ground_truths.class_counts().tolist()
    pairs = [
        {"run": number, **_differences(dataset, samples[0], samples[number], class_counts)}
        for number in range(1, len(runs))
    ]
    return [metric_rows(of_run) for of_run in samples], pairs


def named_mask_metrics(of_masks: Resamples) -> Resamples:
    """Return the resampled metrics of masks with the prefix `mask_`."""
    metrics = {f"mask_{name}": values for name, values in of_masks.metrics.items()}
    images = {f"mask_{name}": number for name, number in of_masks.images.items()}
    return replace(of_masks, metrics=metrics, images=images)


def _differences(dataset: Dataset, first: Resamples, other: Resamples, class_counts: list[int]) -> dict[str, Any]:
    metrics = [
        {"name": _title(name), **paired_difference(other.metrics[name], first.metrics[name], first.images[name])}
        for name in DETECTION_MEANINGS | MASK_MEANINGS
        if name in first.metrics
    ]
    ours, theirs = other.classes["AP"], first.classes["AP"]
    classes = [
        {
            "name": name,
            "ground_truths": class_counts[label],
            **paired_difference(ours[:, label], theirs[:, label], first.images_of_class[label]),
        }
        for label, name in enumerate(dataset.classes)
    ]
    return {"metrics": metrics, "classes": classes}


def metric_rows(samples: Resamples) -> list[dict[str, Any]]:
    """Return `name`, `meaning`, `value` and `interval` of each resampled metric, in the order of the report."""
    return [
        {
            "name": _title(name),
            "meaning": meaning,
            "value": known_or_none(samples.metrics[name][0]),
            "interval": confidence_interval(samples.metrics[name], samples.images[name]),
        }
        for name, meaning in (DETECTION_MEANINGS | MASK_MEANINGS).items()
        if name in samples.metrics
    ]


def _title(metric: str) -> str:
    """Return `mask AP` for `mask_AP`."""
    return metric.replace("_", " ")


def _classes(
    dataset: Dataset, detections: FlatDetections, samples: Resamples, class_counts: list[int]
) -> list[dict[str, Any]]:
    num_detections = np.diff(detections.class_starts).tolist()
    return [
        {
            "name": name,
            "ground_truths": class_counts[label],
            "detections": num_detections[label],
            "AP_interval": confidence_interval(samples.classes["AP"][:, label], samples.images_of_class[label]),
            **{key: known_or_none(samples.classes[key][0, label]) for key in ("AP", "AP50", "AP75", "AR100", "VOC")},
        }
        for label, name in enumerate(dataset.classes)
    ]


def curve_rows(curves: PrecisionRecall) -> dict[str, Any]:
    """Return precision and score at each recall; the rows of classes without ground truths are None."""
    known = np.all(curves.recall >= 0, axis=0)
    at_50, at_75, overall = curves.precision[0].T, curves.precision[5].T, curves.precision.mean(axis=0).T
    precision = {"0.50": at_50, "0.75": at_75, "0.50:0.95": overall}
    return {
        "recall": RECALL_THRESHOLDS.round(2).tolist(),
        "precision": {iou: _rows(rows, known) for iou, rows in precision.items()},
        "mean": {iou: _rows(_class_means(rows, known), np.array([known.any()]))[0] for iou, rows in precision.items()},
        "scores": {"0.50": _rows(curves.scores[0].T, known)},
    }


def _class_means(rows: Float64[np.ndarray, "C R"], known: Bool[np.ndarray, " C"]) -> Float64[np.ndarray, "1 R"]:
    return rows.sum(axis=0, keepdims=True, where=known[:, None]) / max(known.sum(), 1)


def _rows(rows: Float64[np.ndarray, "C R"], known: Bool[np.ndarray, " C"]) -> list[list[float | None]]:
    return [
        row.round(DIGITS).tolist() if is_known else [None] * len(row) for row, is_known in zip(rows, known, strict=True)
    ]


def _thresholds(detections: FlatDetections, matches: Matches, class_counts: list[int]) -> dict[str, Any]:
    """Count the true and false positives of each class at each score threshold, and find that of the highest F1."""
    true_positives, false_positives = count_positives(detections, matches, len(class_counts))
    return {
        "scores": SCORE_THRESHOLDS.tolist(),
        "best": best_score(f1_scores(true_positives, false_positives, sum(class_counts))),
        "true_positives": true_positives.tolist(),
        "false_positives": false_positives.tolist(),
        "ground_truths": class_counts,
    }


_Slice = tuple[str, Bool[np.ndarray, " G"], Bool[np.ndarray, " D"]]
"""Name, ground truths inside the slice, and detections outside it."""


def _slices(
    ground_truths: FlatGroundTruths, detections: FlatDetections, samples: Resamples, weights: Int32[np.ndarray, "B I"]
) -> list[dict[str, Any]]:
    """Return the metrics of subsets of the ground truths.

    The other ground truths are ignored, as are the detections that match them. An unmatched detection counts as wrong
    in the slice to which it would belong as a ground truth.
    """
    rows = {"size": size_rows(ground_truths, samples)}
    for kind, slices in {"crowding": _by_crowding, "aspect ratio": _by_ratio}.items():
        rows[kind] = []
        for name, inside, outside in slices(ground_truths, detections):
            matches = match(ground_truths, detections, ~inside, outside)
            class_metrics = weighted_coco(ground_truths, detections, matches, weights)
            values = {metric: class_mean(of_classes) for metric, of_classes in class_metrics.items()}
            rows[kind].append(_slice_row(name, values, ground_truths, inside & ~ground_truths.crowd))
    return [{"name": kind, "meaning": meaning, "rows": rows[kind]} for kind, meaning in SLICE_MEANINGS.items()]


def size_rows(ground_truths: FlatGroundTruths, samples: Resamples) -> list[dict[str, Any]]:
    """Return the metrics of small, medium and large objects."""
    rows = []
    for name, area in SIZES.items():
        low, high = AREA_RANGES[area]
        inside = ~ground_truths.crowd & (ground_truths.areas >= low) & (ground_truths.areas <= high)
        rows.append(_slice_row(name, samples.areas[area], ground_truths, inside))
    return rows


def _slice_row(
    name: str,
    values: dict[str, Float64[np.ndarray, " B"]],
    ground_truths: FlatGroundTruths,
    inside: Bool[np.ndarray, " G"],
) -> dict[str, Any]:
    metrics = {
        key: known_or_none(values[metric][0]) for key, metric in {"AP": "AP", "AP50": "AP50", "AR": "AR100"}.items()
    }
    ap_interval = confidence_interval(values["AP"], count_images(ground_truths, inside))
    return {"name": name, "ground_truths": int(inside.sum()), **metrics, "AP_interval": ap_interval}


def _by_crowding(ground_truths: FlatGroundTruths, detections: FlatDetections) -> Iterator[_Slice]:
    counts = np.bincount(ground_truths.image_of[~ground_truths.crowd], minlength=ground_truths.num_images)
    for name, (low, high) in CROWDING.items():
        inside = (counts >= low) & (counts <= high)
        yield name, inside[ground_truths.image_of], ~inside[detections.image_of]


def _by_ratio(ground_truths: FlatGroundTruths, detections: FlatDetections) -> Iterator[_Slice]:
    gt_ratios, ratios = (
        boxes[:, 2] / np.maximum(boxes[:, 3], 1e-9) for boxes in (ground_truths.boxes, detections.boxes)
    )
    for name, (low, high) in RATIOS.items():
        yield name, (gt_ratios >= low) & (gt_ratios < high), (ratios < low) | (ratios >= high)


def _calibration(detections: FlatDetections, matches: Matches) -> dict[str, Any]:
    """Compare scores with precision (Guo et al. 2017, §2), at IoU 0.50, in ten bins of equal width.

    `ece`, the expected calibration error, is the mean absolute difference of score and precision, weighted by the
    number of detections.
    """
    kept = ~matches.ignored[0]
    hits, scores = matches.hits[0][kept], detections.scores[kept]
    bin_of = np.minimum(score_bins(scores) // 10, 9)
    rows: list[dict[str, Any]] = []
    for k in range(10):
        inside = bin_of == k
        any_inside = inside.any()
        rows.append(
            {
                "low": k / 10,
                "high": (k + 1) / 10,
                "score": float(scores[inside].mean()) if any_inside else None,
                "precision": float(hits[inside].mean()) if any_inside else None,
                "count": int(inside.sum()),
            }
        )
    gaps = [row["count"] * abs(row["score"] - row["precision"]) for row in rows if row["count"]]
    return {"rows": rows, "ece": sum(gaps) / len(scores) if gaps else None}


def known_or_none(value: float) -> float | None:
    """Return the value, or None for NaN."""
    return None if np.isnan(value) else float(value)
