"""Matching of anchors and proposals to ground truths (Ren et al. 2015, §3.1.2; Girshick 2015, §2.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from detect.ops.boxes import area, intersection_matrix
from detect.structures import Targets

# A box with at least this fraction of its area in crowd regions is neither object nor background.
CROWD_SHARE = 0.7
BLOCK_PAIRS = 2**25
"""Maximum number of pairs of a box and a ground truth that are compared at once: 134 MB for each temporary tensor."""


@dataclass(frozen=True, slots=True)
class Matcher:
    """Labels boxes 1 (object), 0 (background) or -1 (ignored) by their IoU with the ground truths.

    Args:
        positive_iou: minimum IoU of an object.
        negative_iou: background is below this IoU; boxes in between are ignored.
        best_is_positive: the boxes with the highest IoU with a ground truth are objects at any IoU (for anchors).
        negative_iou_min: background is at or above this IoU; boxes below it are ignored.
    """

    positive_iou: float
    negative_iou: float
    best_is_positive: bool = False
    negative_iou_min: float = 0.0

    def __call__(
        self, iou: Float[Tensor, "*b n G"], valid: Bool[Tensor, "*b G"]
    ) -> tuple[Int[Tensor, "*b n"], Int[Tensor, "*b n"]]:
        """Return the index of each box's best ground truth, and the box's label; only `valid` ground truths match."""
        overlap = self.best(iou, valid)
        return overlap.indices, self.label(overlap)

    def best(self, iou: Float[Tensor, "*b n G"], valid: Bool[Tensor, "*b G"]) -> Overlap:
        """Return the best ground truth of each box; only `valid` ground truths match."""
        iou = iou.masked_fill(~valid.unsqueeze(-2), -1.0)
        best, indices = iou.max(dim=-1)
        if not self.best_is_positive:
            return Overlap(best, indices, None)
        best_of_ground_truth = iou.amax(dim=-2, keepdim=True)
        return Overlap(best, indices, ((iou == best_of_ground_truth) & (best_of_ground_truth > 0)).any(dim=-1))

    def label(self, overlap: Overlap) -> Int[Tensor, "*b n"]:
        """Return the labels of the boxes."""
        best = overlap.iou
        positive = best >= self.positive_iou
        if overlap.is_best is not None:
            positive = positive | overlap.is_best
        negative = (best < self.negative_iou) & (best.clamp(min=0) >= self.negative_iou_min)
        labels = torch.full_like(best, -1, dtype=torch.int64)
        return labels.masked_fill_(negative, 0).masked_fill_(positive, 1)


class Overlap(NamedTuple):
    """Overlap of boxes with their best ground truths."""

    iou: Float[Tensor, "*b n"]
    """IoU of each box with its best ground truth; -1 without any."""
    indices: Int[Tensor, "*b n"]
    """Index of that ground truth."""
    is_best: Bool[Tensor, "*b n"] | None
    """Whether the box has the highest IoU with some ground truth; None if the matcher does not use it."""

    def merge(self, later: Overlap, start: int) -> Overlap:
        """Return the overlap with the ground truths of both; the indices of the later ones begin at `start`."""
        better = later.iou > self.iou
        is_best = None if self.is_best is None or later.is_best is None else self.is_best | later.is_best
        indices = torch.where(better, later.indices + start, self.indices)
        return Overlap(torch.maximum(self.iou, later.iou), indices, is_best)


def match(
    boxes: Float[Tensor, "B n 4"], targets: Targets, matcher: Matcher, candidates: Bool[Tensor, "B n"] | None = None
) -> tuple[Int[Tensor, "B n"], Int[Tensor, "B n"]]:
    """Match boxes to the ground truths of their image; background in a crowd region is ignored.

    Boxes outside of `candidates` are also ignored, and are never the best box of a ground truth. The ground truths are
    compared in blocks, so that the memory does not grow with their number.
    """
    step = max(1, BLOCK_PAIRS // max(1, boxes[..., 0].numel()))
    objects, crowds = targets.valid & ~targets.crowd, targets.valid & targets.crowd
    areas = area(boxes)
    overlap = in_crowds = None
    for start in range(0, targets.boxes.shape[1], step):
        block, valid, crowd = (field[:, start : start + step] for field in (targets.boxes, objects, crowds))
        # Ground truths are rows: reductions over them then run along contiguous boxes, several times faster.
        shared = intersection_matrix(block, boxes)
        # A sum, not a matrix product, which autocast would compute in half precision, where large areas overflow.
        of_crowds = (shared * crowd.unsqueeze(-1)).sum(dim=-2)
        union = area(block).unsqueeze(-1) + areas.unsqueeze(-2) - shared
        iou = shared.div_(union.clamp_(min=1e-6))
        if candidates is not None:
            iou = iou.where(candidates.unsqueeze(-2), 0.0)
        found = matcher.best(iou.mT, valid)
        overlap = found if overlap is None else overlap.merge(found, start)
        in_crowds = of_crowds if in_crowds is None else in_crowds + of_crowds
    assert overlap is not None and in_crowds is not None
    labels, ignored = matcher.label(overlap), _mostly(in_crowds, areas)
    if candidates is not None:
        ignored = ignored | ~candidates
    return overlap.indices, labels.masked_fill_(ignored & (labels == 0), -1)


def in_crowd(crowds: Float[Tensor, "G 4"], boxes: Float[Tensor, "n 4"]) -> Bool[Tensor, " n"]:
    """Return which boxes lie mostly in crowd regions."""
    return _mostly(intersection_matrix(crowds, boxes).sum(dim=-2), area(boxes))


def _mostly(shared: Float[Tensor, "*b n"], areas: Float[Tensor, "*b n"]) -> Bool[Tensor, "*b n"]:
    """Return which boxes share at least `CROWD_SHARE` of their area."""
    return shared >= CROWD_SHARE * areas.clamp(min=1e-6)
