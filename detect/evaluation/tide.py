"""What the errors cost: TIDE (Bolya et al. 2020, "TIDE: A General Toolbox for Identifying Object Detection Errors").

Each wrong detection has one kind of error, each missed truth that no mended detection could find is one more, and the
price of a kind is how far AP at IoU 0.5 rises when an oracle mends that kind alone (§2.3). The figures are those of the
authors' package, tidecv 1.0.1, and follow it where it leaves the paper:

- The best 100 detections of an image are looked at, of all classes together. COCO takes 100 of each class.
- A class without truths in which something was detected counts, with an AP of 0. COCO leaves it out. Hence `ap50` may
  lie below COCO's AP50.
- The kinds are tested in the order Loc, Cls, Dupe, Bkg, Both, and overlaps at the bounds 0.1 and 0.5 are Loc.
- A detection ignored in a crowd is classified and can be mended into a hit as if it were wrong.
- Cls and Loc share the truths: of all detections that could be mended into finding one, only the best is, even
  if it is of the other kind, and the others vanish. Where the truth was found already, a mended detection vanishes.
- A price below 0, which rounding of the recalls can make, becomes 0; those of FalsePos and FalseNeg do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from jaxtyping import Bool, Float64, Int8, Int32, Int64

from detect.data.dataset import Dataset
from detect.evaluation.coco import Prediction
from detect.evaluation.matching import Found, Truths, found_in, overlap, truths_of
from detect.ops.threads import in_threads

FOREGROUND = 0.5
BACKGROUND = 0.1
PER_IMAGE = 100
GRID = np.arange(101) / 100
"""tidecv's recalls, which are not to the last bit COCO's."""

KINDS = ("right", "Cls", "Loc", "Both", "Dupe", "Bkg", "ignored")
"""What a detection can be. It is ignored within a crowd, and beyond the best 100 of its image."""
RIGHT, CLS, LOC, BOTH, DUPE, BKG, IGNORED = range(7)
STATES = ("found", "missed", "crowd")
"""What a truth can be."""

_MAIN = {
    "Cls": ("classification", "on a truth (IoU ≥ 0.5), but of another class"),
    "Loc": ("localization", "of the right class, but the box is off (IoU 0.1 … 0.5)"),
    "Both": ("both", "of another class, and the box is off (IoU 0.1 … 0.5)"),
    "Dupe": ("duplicate", "right, but a better detection has found that truth before"),
    "Bkg": ("background", "on nothing (IoU ≤ 0.1 with every truth)"),
    "Miss": ("missed", "a truth that no detection finds, and none nearly finds"),
}
_SPECIAL = {
    "FalsePos": ("false positives", "all wrong detections put behind the right ones"),
    "FalseNeg": ("false negatives", "all truths that were not found left out"),
}


@dataclass(frozen=True, slots=True)
class Errors:
    """Prices in AP at IoU 0.5 as fractions, counts, and what each detection and each truth is."""

    ap50: float | None
    """TIDE's own; None where there is neither a truth nor a detection."""
    prices: dict[str, float | None]
    """Of Cls, Loc, Both, Dupe, Bkg, Miss, FalsePos and FalseNeg."""
    counts: dict[str, int]
    """Of wrong detections, or of truths; other than tidecv's, without the detections that crowds excuse."""
    kinds: dict[int, Int8[np.ndarray, " d"]]
    """By image id, the place in `KINDS` of each detection, in the order of its `Prediction`."""
    states: dict[int, Int8[np.ndarray, " n"]]
    """By image id, the place in `STATES` of each truth, in the order of its `Record`."""

    def summary(self) -> dict[str, Any]:
        """The prices and counts with what they mean, for the report."""

        def rows(of: dict[str, tuple[str, str]]) -> list[dict[str, Any]]:
            return [
                {"name": name, "short": key, "meaning": text, "dAP": self.prices[key], "count": self.counts[key]}
                for key, (name, text) in of.items()
            ]

        return {"AP50": self.ap50, "main": rows(_MAIN), "special": rows(_SPECIAL)}


def tide(dataset: Dataset, predictions: Sequence[Prediction]) -> Errors:
    """Takes the errors of a detector apart.

    Raises:
        ValueError: an unknown image, or one that was predicted twice.
    """
    truths, found = truths_of(dataset), found_in(dataset, predictions)
    verdict = _judge(truths, found)
    ap50, prices = _prices(truths, found, verdict)
    kinds = np.where(verdict.excused, IGNORED, verdict.kinds).astype(np.int8)
    counts = {name: int(np.sum(kinds == code)) for code, name in enumerate(KINDS) if RIGHT < code < IGNORED}
    missing = ~truths.crowd & ~verdict.found
    counts["Miss"] = int(np.sum(missing & ~verdict.reachable))
    counts |= {"FalsePos": sum(counts[name] for name in KINDS[CLS:IGNORED]), "FalseNeg": int(np.sum(missing))}
    in_order = np.empty_like(kinds)
    in_order[found.starts[found.image_of] + found.places] = kinds
    states = np.where(truths.crowd, 2, ~verdict.found).astype(np.int8)
    ids = sorted(record.id for record in dataset.records)  # none at all still make one, empty, split
    return Errors(
        *(ap50, prices, counts),
        kinds=dict(zip(ids, np.split(in_order, found.starts[1:-1]), strict=False)),
        states=dict(zip(ids, np.split(states, truths.starts[1:-1]), strict=False)),
    )


@dataclass(frozen=True, slots=True)
class _Verdict:
    kinds: Int8[np.ndarray, " D"]
    """Of each detection; IGNORED beyond the limit alone."""
    excused: Bool[np.ndarray, " D"]
    """Wrong, but in a crowd of its class."""
    targets: Int32[np.ndarray, " D"]
    """The truth that a Cls or Loc would have found; else -1."""
    found: Bool[np.ndarray, " G"]
    reachable: Bool[np.ndarray, " G"]
    """Not found, but the target of a detection."""


def _judge(truths: Truths, found: Found) -> _Verdict:
    kinds = np.full(len(found.labels), IGNORED, np.int8)
    excused, targets = np.zeros(len(kinds), bool), np.full(len(kinds), -1, np.int32)
    is_found = np.zeros(len(truths.labels), bool)

    def work(first: int, last: int) -> None:
        _classify(
            *(first, last, found.starts, found.boxes, found.labels),
            *(truths.starts, truths.boxes, truths.labels, truths.crowd, kinds, excused, targets, is_found),
        )

    in_threads(truths.images, work)
    reachable = np.zeros(len(is_found), bool)
    reachable[targets[targets >= 0]] = True
    return _Verdict(kinds, excused, targets, is_found, reachable & ~is_found)


def _prices(truths: Truths, found: Found, verdict: _Verdict) -> tuple[float | None, dict[str, float | None]]:
    """AP at IoU 0.5, and how far each oracle lifts it."""
    truth_labels = np.where(truths.crowd, -1, truths.labels)
    positives = np.bincount(truth_labels[~truths.crowd], minlength=truths.classes)
    looked_at = np.flatnonzero(verdict.kinds != IGNORED)
    kinds, labels, scores = verdict.kinds[looked_at], found.labels[looked_at], found.scores[looked_at]
    excused, target = verdict.excused[looked_at], verdict.targets[looked_at]
    right = kinds == RIGHT
    ap50 = _mean_ap(labels, scores, right, ~excused, positives)
    if ap50 is None:
        return None, dict.fromkeys([*_MAIN, *_SPECIAL])
    # The best detection that points at a truth nobody found would find it; the others that point there would vanish.
    order = np.argsort(-scores, kind="stable")
    order = order[target[order] >= 0]
    order = order[~verdict.found[target[order]]]
    chosen = order[np.unique(target[order], return_index=True)[1]]
    mended = np.zeros(len(kinds), bool)
    mended[chosen] = True
    # In tidecv's oracles the wrong detections come before the right ones of the same score.
    last = np.argsort(right, kind="stable")

    def lift(labels: np.ndarray, scores: np.ndarray, right: np.ndarray, kept: np.ndarray, wanted: np.ndarray) -> float:
        ap = _mean_ap(labels[last], scores[last], right[last], kept[last], wanted)
        return (ap or 0.0) - ap50

    prices: dict[str, float | None] = {}
    for name in KINDS[CLS:IGNORED]:
        of_kind = kinds == KINDS.index(name)
        now_right = of_kind & mended
        mended_labels = np.where(now_right, truth_labels[target], labels) if len(truth_labels) else labels
        kept = np.where(of_kind, now_right, ~excused)
        prices[name] = max(lift(mended_labels, scores, right | now_right, kept, positives), 0.0)

    def without(left_out: Bool[np.ndarray, " G"]) -> Int64[np.ndarray, " C"]:
        return positives - np.bincount(truth_labels[left_out & ~truths.crowd], minlength=truths.classes)

    prices["Miss"] = max(lift(labels, scores, right, ~excused, without(~verdict.found & ~verdict.reachable)), 0.0)
    prices["FalsePos"] = lift(labels, right.astype(float), right, ~excused, positives)
    prices["FalseNeg"] = lift(labels, scores, right, ~excused, without(~verdict.found))
    return ap50, prices


def _mean_ap(
    labels: Int64[np.ndarray, " d"],
    scores: Float64[np.ndarray, " d"],
    right: Bool[np.ndarray, " d"],
    kept: Bool[np.ndarray, " d"],
    positives: Int64[np.ndarray, " C"],
) -> float | None:
    """The mean AP of the classes that have truths or detections; detections of equal scores stay in their order."""
    chosen = np.flatnonzero(kept)
    chosen = chosen[np.lexsort((-scores[chosen], labels[chosen]))]
    counts = np.bincount(labels[chosen], minlength=len(positives))
    starts = np.concatenate([[0], np.cumsum(counts)])
    known = (counts > 0) | (positives > 0)
    return float(_average_precisions(right[chosen], starts, positives, GRID)[known].mean()) if known.any() else None


@numba.njit(cache=True, nogil=True)
def _average_precisions(right, starts, positives, grid):
    """AP of each class, its detections from `starts[c]` on, best first; 0 without truths: float64 [C]."""
    out = np.zeros(len(positives))
    precisions, recalls = np.empty(len(right)), np.empty(len(right))
    for c in range(len(positives)):
        first, last = starts[c], starts[c + 1]
        if positives[c] == 0:
            continue
        hits = 0
        for d in range(first, last):
            hits += right[d]
            precisions[d], recalls[d] = hits / (d - first + 1), hits / positives[c]
        for d in range(last - 1, first, -1):
            precisions[d - 1] = max(precisions[d - 1], precisions[d])
        d = first
        for recall in grid:
            while d < last and recalls[d] < recall:
                d += 1
            if d < last:
                out[c] += precisions[d] / len(grid)
    return out


@numba.njit(cache=True, nogil=True)
def _classify(
    first, last, starts, boxes, labels, truth_starts, truths, classes, crowd, kinds, excused, targets, found
):  # fmt: skip
    """Fills in `kinds`, `excused` and `targets` [D] and `found` [G] for the images `first` … `last` - 1."""
    for image in range(first, last):
        begin, end = truth_starts[image], truth_starts[image + 1]
        start, stop = starts[image], min(starts[image + 1], starts[image] + PER_IMAGE)
        iou = np.zeros((stop - start, end - begin))
        for d in range(start, stop):
            best, mine = 0.0, -1
            for g in range(begin, end):
                iou[d - start, g - begin] = overlap(boxes[d], truths[g], crowd[g])
                free = not (crowd[g] or found[g]) and classes[g] == labels[d]
                if free and iou[d - start, g - begin] > best:
                    best, mine = iou[d - start, g - begin], g
            if best >= FOREGROUND:
                kinds[d], found[mine] = RIGHT, True
        for d in range(start, stop):
            if kinds[d] == RIGHT:
                continue
            same, other, of_found = 0.0, 0.0, 0.0
            of_same, of_other = -1, -1
            for g in range(begin, end):
                shared = iou[d - start, g - begin]
                if crowd[g]:
                    excused[d] |= classes[g] == labels[d] and shared > FOREGROUND
                elif classes[g] != labels[d]:
                    if shared > other:
                        other, of_other = shared, g
                else:
                    if shared > same:
                        same, of_same = shared, g
                    if found[g]:
                        of_found = max(of_found, shared)
            if BACKGROUND <= same <= FOREGROUND:
                kinds[d], targets[d] = LOC, of_same
            elif other >= FOREGROUND:
                kinds[d], targets[d] = CLS, of_other
            elif of_found >= FOREGROUND:
                kinds[d] = DUPE
            elif max(same, other) <= BACKGROUND:
                kinds[d] = BKG
            else:
                kinds[d] = BOTH
