"""How far the figures would move with other images: intervals by the bootstrap (Efron & Tibshirani 1993, ch. 13).

A resample draws as many images as there are, with replacement; a figure's 95 % interval lies between the 2.5th and the
97.5th percentile of the figure over the resamples. Images are drawn, not objects, as the objects of an image are not
independent. Two detectors are compared on the same draws: that an image is hard for both does not matter then.

AP is the higher, the fewer its truths, as precision is the best there is at a recall or beyond; and a resample holds
fewer different truths than the data. Its percentiles lie too high by that bias (ch. 10), at times above the figure
itself, and are moved down by it. The interval says what AP to expect on other test sets of this size. On 250 made sets
of 100 images and 20 classes it held the expected AP in 94 % of the cases, the percentiles as they come in 77 %.

An image that is drawn twice counts twice, and nothing else changes: the detections stay matched and sorted, and a
resample is a weighted running sum along each curve. Precision is highest right behind a hit, so that a curve needs
to be known only there.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numba
import numpy as np
from jaxtyping import Bool, Float64, Int8, Int32, Int64

from detect.evaluation.matching import AREAS, RECALLS, Found, Matches, Truths, of_area, overlap
from detect.ops.threads import in_threads

COLUMNS = ("AP", "AP50", "AP75", "AR1", "AR10", "AR100")
"""The figures of one class."""
_FIGURES = {
    "all": {name: name for name in COLUMNS},
    "small": {"APs": "AP", "ARs": "AR100"},
    "medium": {"APm": "AP", "ARm": "AR100"},
    "large": {"APl": "AP", "ARl": "AR100"},
}
LEAST_IMAGES = 5
"""A figure whose truths lie in fewer images has no interval: so few resample to something too narrow."""

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Resamples:
    """A figure as it is, in row 0, and in each resample; NaN where no truth was drawn."""

    figures: dict[str, Float64[np.ndarray, " B"]]
    """COCO's twelve, VOC07 and VOC."""
    areas: dict[str, dict[str, Float64[np.ndarray, " B"]]]
    """`COLUMNS` of each of `AREAS`, the mean over the classes."""
    classes: dict[str, Float64[np.ndarray, "B C"]]
    """`COLUMNS`, VOC07 and VOC of each class."""
    images: dict[str, int]
    """In how many images the truths of each figure lie."""
    images_of_class: list[int]


def draw(images: int, resamples: int, seed: int) -> Int32[np.ndarray, "B I"]:
    """How often each image is drawn in each resample; row 0 is the data set as it is."""
    random = np.random.default_rng(seed)
    weights = np.ones((1 + resamples, images), np.int32)
    for row in weights[1:] if images else ():
        row[:] = np.bincount(random.integers(0, images, images), minlength=images)
    return weights


def resample(truths: Truths, found: Found, weights: Int32[np.ndarray, "B I"]) -> Resamples:
    """All figures of a detector with the images weighted by each row, the same numbers with any number of threads."""
    areas: dict[str, dict[str, np.ndarray]] = {}
    images: dict[str, int] = {}
    classes: dict[str, np.ndarray] = {}
    for area, (low, high) in AREAS.items():
        matches = of_area(truths, found, low, high)
        of_class = weighted(truths, found, matches, weights)
        areas[area] = {column: class_mean(values) for column, values in of_class.items()}
        images |= dict.fromkeys(_FIGURES[area], spread(truths, matches.positives))
        classes = classes or of_class  # those of all sizes, which come first
    figures = {name: areas[area][column] for area, names in _FIGURES.items() for name, column in names.items()}
    voc = weighted_voc(truths, found, weights)
    figures |= {name: class_mean(values) for name, values in voc.items()}
    images |= dict.fromkeys(voc, spread(truths, ~(truths.crowd | truths.difficult)))
    in_images = [spread(truths, ~truths.crowd & (truths.labels == label)) for label in range(truths.classes)]
    return Resamples(figures, areas, classes | voc, images, in_images)


def interval(values: Float64[np.ndarray, " B"], images: int) -> Interval | None:
    """The 95 % interval of a figure in 0 … 1, of which `values` has the figure itself, then its resamples.

    None without resamples, or where the truths lie in fewer than `LEAST_IMAGES` images.
    """
    moved = _moved(values)
    if images < LEAST_IMAGES or not len(moved):
        return None
    low, high = np.percentile(moved, [2.5, 97.5]).clip(0.0, 1.0)
    return float(low), float(high)


def difference(ours: Float64[np.ndarray, " B"], theirs: Float64[np.ndarray, " B"], images: int) -> dict[str, Any]:
    """`ours` minus `theirs`, both on the same draws: the `difference`, its `interval`, and `p`.

    `p` is the share of resamples on the other side of 0, those at 0 included: how easily other images would have turned
    the order of the two around.
    """
    values = ours - theirs
    if np.isnan(values[0]):
        return {"difference": None, "interval": None, "p": None}
    result: dict[str, Any] = {"difference": float(values[0]), "interval": None, "p": None}
    moved = _moved(values)
    if images >= LEAST_IMAGES and len(moved):
        result["interval"] = tuple(np.percentile(moved, [2.5, 97.5]).tolist())
        result["p"] = float(np.mean(moved * np.sign(values[0]) <= 0))
    return result


def _moved(values: Float64[np.ndarray, " B"]) -> Float64[np.ndarray, " b"]:
    """The resamples that hold a truth, moved so that their mean is the figure itself."""
    known = values[1:][~np.isnan(values[1:])]
    return known - known.mean() + values[0] if len(known) and not np.isnan(values[0]) else known[:0]


def class_mean(values: Float64[np.ndarray, "B C"]) -> Float64[np.ndarray, " B"]:
    """The mean over the classes that have truths; NaN where none has."""
    known = ~np.isnan(values)
    total, count = np.where(known, values, 0.0).sum(axis=1), known.sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def spread(truths: Truths, chosen: Bool[np.ndarray, " G"]) -> int:
    """In how many images the chosen truths lie."""
    return len(np.unique(truths.image_of[chosen]))


def weighted(
    truths: Truths, found: Found, matches: Matches, weights: Int32[np.ndarray, "B I"]
) -> dict[str, Float64[np.ndarray, "B C"]]:
    """`COLUMNS` of each class with the images weighted by each row; NaN where a class has no truth.

    With weights that are whole numbers this is what pycocotools finds where each image stands so often in the data set.
    """
    curves = _Curves.of(truths, found, matches.hits, matches.ignored, matches.positives)
    out = np.full((len(weights), truths.classes, len(COLUMNS)), np.nan)

    def work(first: int, last: int) -> None:
        _coco(first, last, weights, RECALLS, out, *curves.arrays)

    in_threads(len(weights), work)
    return {name: out[:, :, column] for column, name in enumerate(COLUMNS)}


def weighted_voc(
    truths: Truths, found: Found, weights: Int32[np.ndarray, "B I"], iou: float = 0.5
) -> dict[str, Float64[np.ndarray, "B C"]]:
    """VOC07 and VOC of each class, by the rules of `evaluate_voc`; NaN where a class has no truth."""
    excused = truths.crowd | truths.difficult
    owner = np.full((1, len(found.labels)), -1, np.int32)
    first_of_truth = np.zeros((1, len(found.labels)), np.bool_)

    def match(first: int, last: int) -> None:
        _match_voc(
            *(first, last, found.starts, found.boxes, found.labels),
            *(truths.starts, truths.boxes, truths.labels, iou, owner[0], first_of_truth[0]),
        )

    in_threads(truths.images, match)
    ignored = (owner >= 0) & np.append(excused, False)[owner]  # -1 finds the appended False
    curves = _Curves.of(truths, found, first_of_truth & ~ignored, ignored, ~excused)
    out = np.full((len(weights), truths.classes, 2), np.nan)

    def work(first: int, last: int) -> None:
        _voc(first, last, weights, out, *curves.arrays)

    in_threads(len(weights), work)
    return {"VOC07": out[:, :, 0], "VOC": out[:, :, 1]}


@dataclass(frozen=True, slots=True)
class _Curves:
    """What is needed of the curves to weigh them: who counts, and the places where something is found.

    Most detections are wrong at every IoU. They are listed once, as images, class by class and best first; an event is
    a detection that is right at a threshold, or that counts there though it is not on the list, or the reverse.
    """

    counted: Int32[np.ndarray, " N"]
    """The image of each detection on the list."""
    counted_starts: Int64[np.ndarray, " C1"]
    positives: Int32[np.ndarray, " P"]
    """The image of each truth that is to be found, class by class."""
    positive_starts: Int64[np.ndarray, " C1"]
    images: Int32[np.ndarray, " E"]
    """The image of each event; events come by threshold, by class, best first."""
    before: Int32[np.ndarray, " E"]
    """How many of its class on the list come up to it, itself included."""
    right: Bool[np.ndarray, " E"]
    change: Int8[np.ndarray, " E"]
    """1 if it counts though it is not on the list, -1 for the reverse, else 0."""
    ranks: Int32[np.ndarray, " E"]
    event_starts: Int64[np.ndarray, "T C1"]

    @property
    def arrays(self) -> Any:
        """All of them, for the kernels."""
        return tuple(getattr(self, field.name) for field in fields(self))

    @classmethod
    def of(
        cls,
        truths: Truths,
        found: Found,
        hits: Bool[np.ndarray, "T D"],
        ignored: Bool[np.ndarray, "T D"],
        positives: Bool[np.ndarray, " G"],
    ) -> _Curves:
        order, labels = found.by_class, found.labels[found.by_class]
        image_of, ranks = found.image_of[order], found.ranks[order]
        listed = ~ignored[-1, order]  # at the strictest threshold, where the fewest belong to a truth
        each_class = np.arange(truths.classes + 1)
        counted_starts = np.searchsorted(labels[listed], each_class)
        up_to_here = np.cumsum(listed)
        events, change = [], []
        for row, left_out in zip(hits[:, order], ignored[:, order], strict=True):
            changed = listed.astype(np.int8) - ~left_out
            events.append(np.flatnonzero(row | (changed != 0)))
            change.append(-changed[events[-1]])
        event = np.concatenate(events)
        threshold = np.repeat(np.arange(len(hits)), [len(one) for one in events])
        wanted = np.flatnonzero(positives)
        wanted = wanted[np.argsort(truths.labels[wanted], kind="stable")]
        return cls(
            counted=image_of[listed].astype(np.int32),
            counted_starts=counted_starts,
            positives=truths.image_of[wanted].astype(np.int32),
            positive_starts=np.searchsorted(truths.labels[wanted], each_class),
            images=image_of[event].astype(np.int32),
            before=(up_to_here[event] - counted_starts[labels[event]]).astype(np.int32),
            right=hits[threshold, order[event]],
            change=np.concatenate(change).astype(np.int8),
            ranks=ranks[event].astype(np.int32),
            event_starts=np.searchsorted(
                threshold * truths.classes + labels[event],
                np.arange(len(hits))[:, None] * truths.classes + each_class,
            ),
        )


@numba.njit(cache=True, nogil=True)
def _running_sum(weights, images, sums):
    """`sums[i]`: the weight of the first i images."""
    sums[0] = 0
    for i in range(len(images)):
        sums[i + 1] = sums[i] + weights[images[i]]


@numba.njit(cache=True, nogil=True)
def _total(weights, images):
    total = 0
    for image in images:
        total += weights[image]
    return total


@numba.njit(cache=True, nogil=True)
def _walk(weights, first, last, images, before, right, change, sums, hits, precisions):
    """The hits so far and the best precision from there on, behind each hit of one class at one threshold.

    Fills in `hits` int64 and `precisions` float64, and returns how many there are.
    """
    n, found, extra = 0, 0, 0
    for e in range(first, last):
        # Without branches, which the weights make unpredictable: what is no hit is written over by the next event.
        weight = weights[images[e]]
        extra += change[e] * weight
        found += right[e] * weight
        hits[n] = found
        precisions[n] = found / (sums[before[e]] + extra + np.spacing(1.0))
        n += right[e] & (weight > 0)
    for k in range(n - 1, 0, -1):
        precisions[k - 1] = max(precisions[k - 1], precisions[k])
    return n


@numba.njit(cache=True, nogil=True)
def _coco(
    first, last, all_weights, recalls, out,
    counted, counted_starts, positive_images, positive_starts, images, before, right, change, ranks, event_starts,
):  # fmt: skip
    """Fills in the rows `first` … `last` - 1 of `out` [B, C, `COLUMNS`]."""
    thresholds, classes = event_starts.shape[0], event_starts.shape[1] - 1
    sums = np.empty(1 + len(counted), np.int64)
    hits, precisions = np.empty(1 + len(images), np.int64), np.empty(1 + len(images))
    for b in range(first, last):
        weights = all_weights[b]
        for c in range(classes):
            positives = _total(weights, positive_images[positive_starts[c] : positive_starts[c + 1]])
            if positives == 0:
                continue
            _running_sum(weights, counted[counted_starts[c] : counted_starts[c + 1]], sums)
            out[b, c] = 0
            found_1, found_10, found = 0, 0, 0
            for t in range(thresholds):
                start, stop = event_starts[t, c], event_starts[t, c + 1]
                n = _walk(weights, start, stop, images, before, right, change, sums, hits, precisions)
                area, r = 0.0, 0
                for k in range(n):
                    recall = hits[k] / positives
                    while r < len(recalls) and recalls[r] <= recall:
                        area += precisions[k]
                        r += 1
                area /= len(recalls)
                out[b, c, 0] += area / thresholds
                if t == 0:
                    out[b, c, 1] = area
                if t == 5:
                    out[b, c, 2] = area
                for e in range(start, stop):
                    weight = weights[images[e]] * right[e]
                    found_1 += weight * (ranks[e] < 1)
                    found_10 += weight * (ranks[e] < 10)
                found += hits[n - 1] if n else 0
            out[b, c, 3] = found_1 / (thresholds * positives)
            out[b, c, 4] = found_10 / (thresholds * positives)
            out[b, c, 5] = found / (thresholds * positives)


@numba.njit(cache=True, nogil=True)
def _voc(
    first, last, all_weights, out,
    counted, counted_starts, positive_images, positive_starts, images, before, right, change, ranks, event_starts,
):  # fmt: skip
    """Fills in the rows `first` … `last` - 1 of `out` [B, C, (VOC07, VOC)]."""
    starts = event_starts[0]
    sums = np.empty(1 + len(counted), np.int64)
    hits, precisions = np.empty(1 + len(images), np.int64), np.empty(1 + len(images))
    for b in range(first, last):
        weights = all_weights[b]
        for c in range(len(starts) - 1):
            positives = _total(weights, positive_images[positive_starts[c] : positive_starts[c + 1]])
            if positives == 0:
                continue
            _running_sum(weights, counted[counted_starts[c] : counted_starts[c + 1]], sums)
            n = _walk(weights, starts[c], starts[c + 1], images, before, right, change, sums, hits, precisions)
            points, area, tenths, so_far = 0.0, 0.0, 0, 0
            for k in range(n):
                area += precisions[k] * (hits[k] - so_far)
                so_far = hits[k]
                while tenths <= 10 and 10 * hits[k] >= tenths * positives:
                    points += precisions[k]
                    tenths += 1
            out[b, c, 0] = points / 11
            out[b, c, 1] = area / positives


@numba.njit(cache=True, nogil=True)
def _match_voc(first, last, starts, boxes, labels, truth_starts, truths, classes, iou, owner, is_first):
    """Fills in whose each detection is (int32 [D], -1 for nobody's), and whether no better one is that truth's."""
    for image in range(first, last):
        begin, end = truth_starts[image], truth_starts[image + 1]
        taken = np.zeros(end - begin, np.bool_)
        for d in range(starts[image], starts[image + 1]):
            most = 0.0
            for g in range(begin, end):
                if classes[g] == labels[d]:
                    shared = overlap(boxes[d], truths[g], False)
                    if shared > most:
                        most = shared
                        owner[d] = g
            if owner[d] >= 0 and most < iou:
                owner[d] = -1
            if owner[d] >= 0 and not taken[owner[d] - begin]:
                taken[owner[d] - begin] = is_first[d] = True
