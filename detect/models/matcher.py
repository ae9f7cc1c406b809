"""Matching of anchors and proposals with ground truths (Ren et al. 2015, §3.1.2; Girshick 2015, §2.3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from detect.ops.boxes import area, intersection_matrix
from detect.structures import Targets

# A box with at least this fraction of its area in crowd regions is neither object nor background.
CROWD_SHARE = 0.7


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
        iou = iou.masked_fill(~valid.unsqueeze(-2), -1.0)
        best, indices = iou.max(dim=-1)
        positive = best >= self.positive_iou
        if self.best_is_positive:
            best_of_ground_truth = iou.amax(dim=-2, keepdim=True)
            positive = positive | ((iou == best_of_ground_truth) & (best_of_ground_truth > 0)).any(dim=-1)
        negative = (best < self.negative_iou) & (best.clamp(min=0) >= self.negative_iou_min)
        return indices, torch.where(positive, 1, torch.where(negative, 0, -1))


def match(
    boxes: Float[Tensor, "B n 4"], targets: Targets, matcher: Matcher, candidates: Bool[Tensor, "B n"] | None = None
) -> tuple[Int[Tensor, "B n"], Int[Tensor, "B n"]]:
    """Match boxes with the ground truths of their image; background in a crowd region is ignored.

    Boxes outside of `candidates` are also ignored, and are never the best box of a ground truth.
    """
    # Ground truths are rows: reductions over them then run along contiguous boxes, several times faster.
    shared = intersection_matrix(targets.boxes, boxes)
    crowd = (targets.valid & targets.crowd).unsqueeze(-1)
    ignored = _mostly(shared * crowd, boxes)
    union = area(targets.boxes).unsqueeze(-1) + area(boxes).unsqueeze(-2) - shared
    iou = shared.div_(union.clamp_(min=1e-6))
    if candidates is not None:
        iou, ignored = iou.where(candidates.unsqueeze(-2), 0.0), ignored | ~candidates
    indices, labels = matcher(iou.mT, targets.valid & ~targets.crowd)
    return indices, torch.where(ignored & (labels == 0), -1, labels)


def in_crowd(crowds: Float[Tensor, "G 4"], boxes: Float[Tensor, "n 4"]) -> Bool[Tensor, " n"]:
    """Return which boxes lie mostly in crowd regions."""
    return _mostly(intersection_matrix(crowds, boxes), boxes)


def _mostly(shared: Float[Tensor, "*b G n"], boxes: Float[Tensor, "*b n 4"]) -> Bool[Tensor, "*b n"]:
    # A sum, not a matrix product, which autocast would compute in half precision, where large areas overflow.
    return shared.sum(dim=-2) >= CROWD_SHARE * area(boxes).clamp(min=1e-6)
