"""Confidence intervals of metrics by the bootstrap over images (Efron & Tibshirani 1993, ch. 13).

A resample draws as many images as the data set has, with replacement. The 95 % interval of a metric lies between the
2.5th and the 97.5th percentile of its values over the resamples. Images are drawn, not objects, because the objects of
an image are not independent. Two detectors are compared on the same resamples, so that images that are hard for both
cancel out.

AP grows as the number of ground truths falls, since the interpolated precision is the highest one at a recall or above,
and a resample has fewer distinct ground truths than the data set. The percentiles are too high by this bias (ch. 10),
sometimes higher than the metric itself, and are corrected for it. The interval predicts AP on other test sets of this
size. On 250 synthetic sets of 100 images and 20 classes it contained the expected AP in 94 % of the cases, without the
correction in 77 %.

Letters: B resamples and the data set itself, I images, C classes, G ground truths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int32

from detect.evaluation.flat import FlatDetections, FlatGroundTruths
from detect.evaluation.matching import AREA_RANGES, match_area
from detect.evaluation.weighted import CLASS_METRICS, weighted_coco, weighted_voc

_METRICS = {
    "all": {name: name for name in CLASS_METRICS},
    "small": {"APs": "AP", "ARs": "AR100"},
    "medium": {"APm": "AP", "ARm": "AR100"},
    "large": {"APl": "AP", "ARl": "AR100"},
}
"""Metrics by area range, each with the class metric whose mean it is."""
MIN_IMAGES = 5
"""Minimum number of images with ground truths for an interval; with fewer, intervals are too narrow."""

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Resamples:
    """Metrics of the data set, in row 0, and of each resample; NaN where a resample has no ground truth."""

    metrics: dict[str, Float64[np.ndarray, " B"]]
    """COCO's twelve metrics and, of boxes, VOC07 and VOC."""
    areas: dict[str, dict[str, Float64[np.ndarray, " B"]]]
    """`CLASS_METRICS` of each of `AREA_RANGES`, mean over the classes."""
    classes: dict[str, Float64[np.ndarray, "B C"]]
    """`CLASS_METRICS` of each class and, of boxes, VOC07 and VOC."""
    images: dict[str, int]
    """Number of images with ground truths, for each metric."""
    images_of_class: list[int]
    """Number of images with ground truths, for each class."""


def draw_weights(num_images: int, resamples: int, seed: int) -> Int32[np.ndarray, "B I"]:
    """Draw the number of times that each resample contains each image; row 0 is the data set itself, all 1."""
    generator = np.random.default_rng(seed)
    weights = np.ones((1 + resamples, num_images), np.int32)
    for row in weights[1:] if num_images else ():
        row[:] = np.bincount(generator.integers(0, num_images, num_images), minlength=num_images)
    return weights


def resample(
    ground_truths: FlatGroundTruths, detections: FlatDetections, weights: Int32[np.ndarray, "B I"]
) -> Resamples:
    """Compute all metrics for each row of image weights; of masks only COCO's.

    The number of threads does not change the result.
    """
    areas: dict[str, dict[str, np.ndarray]] = {}
    images: dict[str, int] = {}
    classes: dict[str, np.ndarray] = {}
    for area, (low, high) in AREA_RANGES.items():
        matches = match_area(ground_truths, detections, low, high)
        class_metrics = weighted_coco(ground_truths, detections, matches, weights)
        areas[area] = {name: class_mean(values) for name, values in class_metrics.items()}
        images |= dict.fromkeys(_METRICS[area], count_images(ground_truths, matches.positives))
        classes = classes or class_metrics  # the first area range is "all"
    metrics = {name: areas[area][source] for area, names in _METRICS.items() for name, source in names.items()}
    voc = weighted_voc(ground_truths, detections, weights) if ground_truths.masks is None else {}
    metrics |= {name: class_mean(values) for name, values in voc.items()}
    images |= dict.fromkeys(voc, count_images(ground_truths, ~(ground_truths.crowd | ground_truths.difficult)))
    images_of_class = [
        count_images(ground_truths, ~ground_truths.crowd & (ground_truths.labels == label))
        for label in range(ground_truths.num_classes)
    ]
    return Resamples(metrics, areas, classes | voc, images, images_of_class)


def confidence_interval(values: Float64[np.ndarray, " B"], images: int) -> Interval | None:
    """Return the 95 % interval of a metric in 0 … 1.

    Args:
        values: the metric of the data set, then that of each resample.
        images: number of images with ground truths.

    Returns:
        Low and high end; None without resamples or with fewer than `MIN_IMAGES` images.
    """
    corrected = _bias_corrected(values)
    if images < MIN_IMAGES or not len(corrected):
        return None
    low, high = np.percentile(corrected, [2.5, 97.5]).clip(0.0, 1.0)
    return float(low), float(high)


def paired_difference(
    ours: Float64[np.ndarray, " B"], theirs: Float64[np.ndarray, " B"], images: int
) -> dict[str, Any]:
    """Compare two detectors on the same resamples.

    Args:
        ours: a metric of one detector: of the data set, then of each resample.
        theirs: the metric of the other detector.
        images: number of images with ground truths.

    Returns:
        `difference` (`ours` minus `theirs`), its 95 % `interval`, and `p`, the share of the resamples in which the
        difference has the other sign or is 0.
    """
    values = ours - theirs
    if np.isnan(values[0]):
        return {"difference": None, "interval": None, "p": None}
    result: dict[str, Any] = {"difference": float(values[0]), "interval": None, "p": None}
    corrected = _bias_corrected(values)
    if images >= MIN_IMAGES and len(corrected):
        result["interval"] = tuple(np.percentile(corrected, [2.5, 97.5]).tolist())
        result["p"] = float(np.mean(corrected * np.sign(values[0]) <= 0))
    return result


def class_mean(values: Float64[np.ndarray, "B C"]) -> Float64[np.ndarray, " B"]:
    """Return the mean over the classes that have ground truths; NaN without such classes."""
    known = ~np.isnan(values)
    total, count = np.where(known, values, 0.0).sum(axis=1), known.sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def count_images(ground_truths: FlatGroundTruths, chosen: Bool[np.ndarray, " G"]) -> int:
    """Return the number of images that have at least one of the chosen ground truths."""
    return len(np.unique(ground_truths.image_of[chosen]))


def _bias_corrected(values: Float64[np.ndarray, " B"]) -> Float64[np.ndarray, " b"]:
    """Return the values of the resamples except NaN, shifted so that their mean is the value of the data set."""
    known = values[1:][~np.isnan(values[1:])]
    return known - known.mean() + values[0] if len(known) and not np.isnan(values[0]) else known[:0]
