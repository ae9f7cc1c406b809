"""Which truth, if any, each anchor or proposal stands for (Ren et al. 2015, §3.1.2; Girshick 2015, §2.3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from detect.ops.boxes import area, intersection_matrix
from detect.structures import Targets

# A box that lies in a crowd region by this share of its own area is neither object nor background.
CROWD_SHARE = 0.7


@dataclass(frozen=True, slots=True)
class Matcher:
    """Labels boxes 1 (object), 0 (background) or -1 (ignored) by their IoU with the truths.

    Args:
        positive_iou: an object from here on.
        negative_iou: background below this; what lies between is ignored.
        negative_from: background from here on; what lies below is ignored.
        best_is_positive: the best boxes of every truth are objects whatever their IoU (for anchors).
    """

    positive_iou: float
    negative_iou: float
    best_is_positive: bool = False
    negative_from: float = 0.0

    def __call__(
        self, iou: Float[Tensor, "*b n G"], valid: Bool[Tensor, "*b G"]
    ) -> tuple[Int[Tensor, "*b n"], Int[Tensor, "*b n"]]:
        """The best truth of each box, and its label; truths that are not `valid` match nothing."""
        iou = iou.masked_fill(~valid.unsqueeze(-2), -1.0)
        best, indices = iou.max(dim=-1)
        positive = best >= self.positive_iou
        if self.best_is_positive:
            best_of_truth = iou.amax(dim=-2, keepdim=True)
            positive = positive | ((iou == best_of_truth) & (best_of_truth > 0)).any(dim=-1)
        negative = (best < self.negative_iou) & (best.clamp(min=0) >= self.negative_from)
        return indices, torch.where(positive, 1, torch.where(negative, 0, -1))


def match(
    boxes: Float[Tensor, "B n 4"], targets: Targets, matcher: Matcher, among: Bool[Tensor, "B n"] | None = None
) -> tuple[Int[Tensor, "B n"], Int[Tensor, "B n"]]:
    """`matcher` on boxes and truths; background that lies in a crowd region is ignored.

    Boxes that are not `among` those given are ignored as well, and a truth's best boxes are found without them.
    """
    # Truths along the rows: reductions over truths then run along contiguous boxes, which is several times faster.
    shared = intersection_matrix(targets.boxes, boxes)
    crowd = (targets.valid & targets.crowd).unsqueeze(-1)
    ignored = _mostly(shared * crowd, boxes)
    union = area(targets.boxes).unsqueeze(-1) + area(boxes).unsqueeze(-2) - shared
    iou = shared.div_(union.clamp_(min=1e-6))
    if among is not None:
        iou, ignored = iou.where(among.unsqueeze(-2), 0.0), ignored | ~among
    indices, labels = matcher(iou.mT, targets.valid & ~targets.crowd)
    return indices, torch.where(ignored & (labels == 0), -1, labels)


def in_crowd(crowds: Float[Tensor, "G 4"], boxes: Float[Tensor, "n 4"]) -> Bool[Tensor, " n"]:
    """Which boxes lie, for the most part, in crowd regions."""
    return _mostly(intersection_matrix(crowds, boxes), boxes)


def _mostly(shared: Float[Tensor, "*b G n"], boxes: Float[Tensor, "*b n 4"]) -> Bool[Tensor, "*b n"]:
    # A sum, not a matrix product: autocast would make that in half precision, in which large areas are infinite.
    return shared.sum(dim=-2) >= CROWD_SHARE * area(boxes).clamp(min=1e-6)
