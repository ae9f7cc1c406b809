"""Loss of AP by kind of error: TIDE.

Bolya et al. 2020, "TIDE: A General Toolbox for Identifying Object Detection Errors". Each wrong detection has one kind
of error. Missed ground truths that no corrected detection could match are another kind. The dAP of a kind is the gain
in AP at IoU 0.5 if an oracle corrects this kind alone (§2.3). The numbers equal those of the authors' package, tidecv
1.0.1, which differs from the paper and from COCO:

- The 100 highest scores of an image are evaluated, over all classes. COCO evaluates 100 per class.
- A class with detections but without ground truths counts with an AP of 0; COCO leaves it out. Hence `ap50` can be
  lower than COCO's AP50.
- The kinds are tested in the order Loc, Cls, Dupe, Bkg, Both, and IoUs of exactly 0.1 and 0.5 are Loc.
- A detection that is ignored in a crowd region still has a kind, and can be corrected to a true positive.
- Cls and Loc share the ground truths: of all detections that could be corrected to match a ground truth, only the best
  is corrected, even if it has the other kind of error, and the others are removed. A corrected detection whose ground
  truth is matched already is removed.
- A negative dAP, which rounding of the recalls can cause, becomes 0, except for FalsePos and FalseNeg.

Letters: I images, D detections, d detections of one image or those evaluated, G ground truths, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numba
import numpy as np
from jaxtyping import Bool, Float64, Int8, Int32, Int64

from detect.data.dataset import Dataset
from detect.evaluation.coco import Kind, Prediction
from detect.evaluation.flat import FlatDetections, FlatGroundTruths, flatten_detections, flatten_ground_truths
from detect.ops.threads import in_threads

FOREGROUND_IOU = 0.5
BACKGROUND_IOU = 0.1
MAX_PER_IMAGE = 100
RECALL_THRESHOLDS = np.arange(101) / 100
"""tidecv's recall thresholds, which differ from COCO's in the last bit."""

KINDS = ("correct", "Cls", "Loc", "Both", "Dupe", "Bkg", "ignored")
"""Kinds of detections. A detection in a crowd region, or beyond the 100 highest scores of its image, is ignored."""
CORRECT, CLS, LOC, BOTH, DUPE, BKG, IGNORED = range(7)
STATES = ("matched", "missed", "crowd")
"""States of ground truths."""

_MAIN = {
    "Cls": ("classification", "on an object (IoU ≥ 0.5), but of another class"),
    "Loc": ("localization", "of the right class, but poorly localized (IoU 0.1 … 0.5)"),
    "Both": ("both", "of another class and poorly localized (IoU 0.1 … 0.5)"),
    "Dupe": ("duplicate", "correct, but a detection with a higher score matches the same object"),
    "Bkg": ("background", "not on an object (IoU ≤ 0.1 with all)"),
    "Miss": ("missed", "an object without a correct, Cls or Loc detection"),
}
_SPECIAL = {
    "FalsePos": ("false positives", "all wrong detections, ranked after the correct ones"),
    "FalseNeg": ("false negatives", "all missed objects, left out"),
}


@dataclass(frozen=True, slots=True)
class Errors:
    """Errors of a detector: dAP at IoU 0.5 in 0 … 1, counts, and the kind of each detection and ground truth."""

    ap50: float | None
    """TIDE's AP50; None without ground truths and detections."""
    delta_ap: dict[str, float | None]
    """dAP of Cls, Loc, Both, Dupe, Bkg, Miss, FalsePos and FalseNeg."""
    counts: dict[str, int]
    """Number of wrong detections or of ground truths of each kind. Unlike tidecv's, without ignored detections."""
    kinds: dict[int, Int8[np.ndarray, " d"]]
    """By image id, the index into `KINDS` of each detection, in the order of its `Prediction`."""
    states: dict[int, Int8[np.ndarray, " n"]]
    """By image id, the index into `STATES` of each ground truth, in the order of its `Record`."""

    def summary(self) -> dict[str, Any]:
        """Return AP50 and, for each kind of error, its name, meaning, dAP and count."""

        def rows(kinds: dict[str, tuple[str, str]]) -> list[dict[str, Any]]:
            return [
                {"name": name, "short": kind, "meaning": text, "dAP": self.delta_ap[kind], "count": self.counts[kind]}
                for kind, (name, text) in kinds.items()
            ]

        return {"AP50": self.ap50, "main": rows(_MAIN), "special": rows(_SPECIAL)}


def tide(dataset: Dataset, predictions: Sequence[Prediction], kind: Kind = "bbox") -> Errors:
    """Analyse the errors of a detector's boxes or masks.

    Raises:
        ValueError: an image is not in the data set, or was predicted twice.
    """
    ground_truths = flatten_ground_truths(dataset, kind)
    return find_errors(dataset, ground_truths, flatten_detections(dataset, predictions, ground_truths))


def find_errors(dataset: Dataset, ground_truths: FlatGroundTruths, detections: FlatDetections) -> Errors:
    """Analyse the errors of boxes or of masks, from the flat arrays of the data set and of the predictions."""
    outcome = _classify_errors(ground_truths, detections)
    ap50, delta_ap = _delta_ap(ground_truths, detections, outcome)
    kinds = np.where(outcome.ignored, IGNORED, outcome.kinds).astype(np.int8)
    counts = {name: int(np.sum(kinds == code)) for code, name in enumerate(KINDS) if CORRECT < code < IGNORED}
    missed = ~ground_truths.crowd & ~outcome.matched
    counts["Miss"] = int(np.sum(missed & ~_reachable(outcome)))
    counts |= {"FalsePos": sum(counts[name] for name in KINDS[CLS:IGNORED]), "FalseNeg": int(np.sum(missed))}
    in_order = np.empty_like(kinds)
    in_order[detections.starts[detections.image_of] + detections.indices] = kinds
    states = np.where(ground_truths.crowd, 2, ~outcome.matched).astype(np.int8)
    ids = sorted(record.id for record in dataset.records)
    # Not strict: without images np.split returns one empty array.
    return Errors(
        *(ap50, delta_ap, counts),
        kinds=dict(zip(ids, np.split(in_order, detections.starts[1:-1]), strict=False)),
        states=dict(zip(ids, np.split(states, ground_truths.starts[1:-1]), strict=False)),
    )


class _Outcome(NamedTuple):
    """Outcome of each detection and ground truth."""

    kinds: np.ndarray
    """Index into `KINDS` of each detection: int8 [D]; IGNORED only beyond `MAX_PER_IMAGE`."""
    ignored: np.ndarray
    """Wrong detections in a crowd region of their class: bool [D]."""
    targets: np.ndarray
    """Ground truth that a Cls or Loc detection would match after correction, else -1: int32 [D]."""
    matched: np.ndarray
    """Ground truths that a detection matches: bool [G]."""


def _classify_errors(ground_truths: FlatGroundTruths, detections: FlatDetections) -> _Outcome:
    count = len(detections.labels)
    outcome = _Outcome(
        kinds=np.full(count, IGNORED, np.int8),
        ignored=np.zeros(count, bool),
        targets=np.full(count, -1, np.int32),
        matched=np.zeros(len(ground_truths.labels), bool),
    )

    def work(first: int, last: int) -> None:
        _classify(first, last, detections.arrays, ground_truths.arrays, outcome)

    in_threads(ground_truths.num_images, work)
    return outcome


def _reachable(outcome: _Outcome) -> Bool[np.ndarray, " G"]:
    """Return the missed ground truths that a corrected detection would match."""
    reachable = np.zeros(len(outcome.matched), bool)
    reachable[outcome.targets[outcome.targets >= 0]] = True
    return reachable & ~outcome.matched


def _delta_ap(
    ground_truths: FlatGroundTruths, detections: FlatDetections, outcome: _Outcome
) -> tuple[float | None, dict[str, float | None]]:
    """Return AP at IoU 0.5 and the gain of each oracle."""
    gt_labels = np.where(ground_truths.crowd, -1, ground_truths.labels)
    positives = ground_truths.class_counts()
    evaluated = np.flatnonzero(outcome.kinds != IGNORED)
    kinds, labels, scores = outcome.kinds[evaluated], detections.labels[evaluated], detections.scores[evaluated]
    counted, targets = ~outcome.ignored[evaluated], outcome.targets[evaluated]
    correct = kinds == CORRECT
    ap50 = _mean_ap(labels, scores, correct, counted, positives)
    if ap50 is None:
        return None, dict.fromkeys([*_MAIN, *_SPECIAL])
    corrected = _corrected(scores, targets, outcome.matched)
    # In tidecv's oracles the wrong detections come before the correct ones of the same score.
    order = np.argsort(correct, kind="stable")

    def gain(
        labels: np.ndarray, scores: np.ndarray, correct: np.ndarray, kept: np.ndarray, gt_counts: np.ndarray
    ) -> float:
        ap = _mean_ap(labels[order], scores[order], correct[order], kept[order], gt_counts)
        return (ap or 0.0) - ap50

    delta_ap: dict[str, float | None] = {}
    for name in KINDS[CLS:IGNORED]:
        of_kind = kinds == KINDS.index(name)
        now_correct = of_kind & corrected
        new_labels = np.where(now_correct, gt_labels[targets], labels) if len(gt_labels) else labels
        kept = np.where(of_kind, now_correct, counted)
        delta_ap[name] = max(gain(new_labels, scores, correct | now_correct, kept, positives), 0.0)

    def positives_without(left_out: Bool[np.ndarray, " G"]) -> Int64[np.ndarray, " C"]:
        return positives - np.bincount(gt_labels[left_out & ~ground_truths.crowd], minlength=len(positives))

    missed = ~outcome.matched
    unreachable = positives_without(missed & ~_reachable(outcome))
    delta_ap["Miss"] = max(gain(labels, scores, correct, counted, unreachable), 0.0)
    delta_ap["FalsePos"] = gain(labels, correct.astype(float), correct, counted, positives)
    delta_ap["FalseNeg"] = gain(labels, scores, correct, counted, positives_without(missed))
    return ap50, delta_ap


def _corrected(
    scores: Float64[np.ndarray, " d"], targets: Int32[np.ndarray, " d"], matched: Bool[np.ndarray, " G"]
) -> Bool[np.ndarray, " d"]:
    """Return a mask of the detections that correction makes true positives, the best of each missed ground truth."""
    order = np.argsort(-scores, kind="stable")
    order = order[targets[order] >= 0]
    order = order[~matched[targets[order]]]
    corrected = np.zeros(len(scores), bool)
    corrected[order[np.unique(targets[order], return_index=True)[1]]] = True
    return corrected


def _mean_ap(
    labels: Int64[np.ndarray, " d"],
    scores: Float64[np.ndarray, " d"],
    correct: Bool[np.ndarray, " d"],
    kept: Bool[np.ndarray, " d"],
    positives: Int64[np.ndarray, " C"],
) -> float | None:
    """Return the mean AP of the classes that have ground truths or detections; equal scores keep their order."""
    chosen = np.flatnonzero(kept)
    chosen = chosen[np.lexsort((-scores[chosen], labels[chosen]))]
    counts = np.bincount(labels[chosen], minlength=len(positives))
    starts = np.concatenate([[0], np.cumsum(counts)])
    known = (counts > 0) | (positives > 0)
    return float(_average_precisions(correct[chosen], starts, positives)[known].mean()) if known.any() else None


@numba.njit(cache=True, nogil=True)
def _average_precisions(correct, starts, positives):
    """Return the AP of each class, 0 without ground truths: float64 [C].

    Class c has the detections `starts[c] … starts[c + 1] - 1`, highest scores first.
    """
    out = np.zeros(len(positives))
    precisions, recalls = np.empty(len(correct)), np.empty(len(correct))
    for c in range(len(positives)):
        first, last = starts[c], starts[c + 1]
        if positives[c] == 0:
            continue
        hits = 0
        for d in range(first, last):
            hits += correct[d]
            precisions[d], recalls[d] = hits / (d - first + 1), hits / positives[c]
        for d in range(last - 1, first, -1):
            precisions[d - 1] = max(precisions[d - 1], precisions[d])
        d = first
        for recall in RECALL_THRESHOLDS:
            while d < last and recalls[d] < recall:
                d += 1
            if d < last:
                out[c] += precisions[d] / len(RECALL_THRESHOLDS)
    return out


@numba.njit(cache=True, nogil=True)
def _classify(first, last, detections, ground_truths, outcome):
    """Fill in `outcome` for the images `first` … `last` - 1."""
    for image in range(first, last):
        start = detections.starts[image]
        stop = min(detections.starts[image + 1], start + MAX_PER_IMAGE)
        for d in range(start, stop):
            best, matched = 0.0, -1
            for p in range(detections.ranges[d, 0], detections.ranges[d, 1]):
                g, iou = detections.partners[p], detections.ious[p]
                free = not (ground_truths.crowd[g] or outcome.matched[g])
                if free and ground_truths.labels[g] == detections.labels[d] and iou > best:
                    best, matched = iou, g
            if best >= FOREGROUND_IOU:
                outcome.kinds[d], outcome.matched[matched] = CORRECT, True
        for d in range(start, stop):
            if outcome.kinds[d] != CORRECT:
                _classify_wrong(d, detections, ground_truths, outcome)


@numba.njit(cache=True, nogil=True)
def _classify_wrong(d, detections, ground_truths, outcome):
    """Fill in `outcome` of a wrong detection from its IoU with each ground truth of its image."""
    # Highest IoU with a ground truth of its class, of another class, and with a matched one of its class.
    same, other, duplicate = 0.0, 0.0, 0.0
    same_gt, other_gt, label = -1, -1, detections.labels[d]
    for p in range(detections.ranges[d, 0], detections.ranges[d, 1]):
        g, iou = detections.partners[p], detections.ious[p]
        if ground_truths.crowd[g]:
            outcome.ignored[d] |= ground_truths.labels[g] == label and iou > FOREGROUND_IOU
        elif ground_truths.labels[g] != label:
            if iou > other:
                other, other_gt = iou, g
        else:
            if iou > same:
                same, same_gt = iou, g
            if outcome.matched[g]:
                duplicate = max(duplicate, iou)
    if BACKGROUND_IOU <= same <= FOREGROUND_IOU:
        outcome.kinds[d], outcome.targets[d] = LOC, same_gt
    elif other >= FOREGROUND_IOU:
        outcome.kinds[d], outcome.targets[d] = CLS, other_gt
    elif duplicate >= FOREGROUND_IOU:
        outcome.kinds[d] = DUPE
    elif max(same, other) <= BACKGROUND_IOU:
        outcome.kinds[d] = BKG
    else:
        outcome.kinds[d] = BOTH
