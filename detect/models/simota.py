"""SimOTA: the assignment of ground truths to cells of the pyramid (Ge et al. 2021, "YOLOX", §2.1).

A cell may be assigned to an object if its centre is within 1.5 cells of the object's centre. The cost of a pair is its
loss. Each object gets its cheapest cells, as many as the sum of its ten best IoUs with predicted boxes; a cell
chosen by several objects is assigned to the one for which it is cheapest.

Shapes: A cells, G ground truths, C classes. No tensor has A × G × C entries.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from detect.ops.boxes import iou_matrix

RADIUS = 1.5
"""Largest distance of the centres along each axis, in cells."""
CANDIDATES = 10
"""Number of IoUs that determine how many cells an object gets, and the maximum number of these cells."""
BOX_WEIGHT = 3.0
FAR = 1e6
"""Cost of a cell that may be assigned to another object, but is far from this one."""


class Assignment(NamedTuple):
    """Ground truth of each cell."""

    positive: Bool[Tensor, " A"]
    """Whether the cell is assigned to an object."""
    matched: Int[Tensor, " A"]
    """Index of that ground truth; meaningless for others."""
    iou: Float[Tensor, " A"]
    """IoU of the predicted box with that ground truth; meaningless for others."""


@torch.no_grad()
def assign(
    class_logits: Float[Tensor, "A C"],
    objectness: Float[Tensor, " A"],
    boxes: Float[Tensor, "A 4"],
    centres: Float[Tensor, "A 2"],
    strides: Float[Tensor, " A"],
    truths: Float[Tensor, "G 4"],
    labels: Int[Tensor, " G"],
    valid: Bool[Tensor, " G"],
) -> Assignment:
    """Assign the cells of one image to its ground truths.

    Args:
        class_logits: logits of the classes.
        objectness: logits of the objectness.
        boxes: predicted boxes, xyxy in pixels.
        centres: x and y of the centre of each cell in pixels.
        strides: pixels from one cell to the next.
        truths: boxes of the ground truths.
        labels: their classes, 0 … C-1.
        valid: False for padding.
    """
    # Each coordinate separately, so that the temporaries are G × A instead of G × A × 2.
    (x, y), (truth_x, truth_y) = centres.unbind(-1), ((truths[:, :2] + truths[:, 2:]) / 2).unbind(-1)
    reach = RADIUS * strides
    near = ((x - truth_x[:, None]).abs() < reach) & ((y - truth_y[:, None]).abs() < reach) & valid[:, None]
    candidate = near.any(dim=0) & valid[:, None]

    ious = iou_matrix(truths, boxes)
    costs = _class_costs(class_logits, objectness, labels) - BOX_WEIGHT * torch.log(ious + 1e-8) + FAR * ~near
    costs = costs.where(candidate, torch.inf)

    count = min(CANDIDATES, len(boxes))
    numbers = ious.where(candidate, 0.0).topk(count, dim=1).values.sum(dim=1).int().clamp(min=1)
    cheapest = costs.topk(count, dim=1, largest=False)
    chosen = (torch.arange(count, device=boxes.device) < numbers[:, None]) & cheapest.values.isfinite()

    cells, none = cheapest.indices.flatten(), torch.zeros_like(strides, dtype=torch.int64)
    rows = chosen * torch.arange(len(truths), device=boxes.device)[:, None]
    claims = none.scatter_add(0, cells, chosen.flatten().long())
    only = none.scatter_add(0, cells, rows.flatten())  # the ground truth, if there is one claim
    matched = torch.where(claims > 1, costs.argmin(dim=0), only)
    return Assignment(claims > 0, matched, ious.gather(0, matched[None]).squeeze(0))


def _class_costs(
    class_logits: Float[Tensor, "A C"], objectness: Float[Tensor, " A"], labels: Int[Tensor, " G"]
) -> Float[Tensor, "G A"]:
    """Return the binary cross entropy of √(class · objectness) for each ground truth's class, summed over classes.

    It is the sum for a cell without object, with one class exchanged.
    """
    scores = (class_logits.float().sigmoid() * objectness.float().sigmoid()[:, None]).sqrt()
    present, absent = scores.log().clamp(min=-100), torch.log1p(-scores).clamp(min=-100)  # limits of torch's loss
    return F.embedding(labels, (absent - present).T) - absent.sum(dim=1)
