"""The multi-task losses (Girshick 2015, §2.3; Ren et al. 2015, §3.1.2), as masked means with static shapes."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F


def objectness_loss(
    logits: Float[Tensor, "*b"], labels: Int[Tensor, "*b"], valid: Bool[Tensor, "*b"]
) -> Float[Tensor, ""]:
    """Compute the binary cross-entropy of objectness, averaged over the valid samples."""
    losses = F.binary_cross_entropy_with_logits(logits.float(), (labels == 1).float(), reduction="none")
    return _mean(losses, valid)


def classification_loss(
    logits: Float[Tensor, "N K"], labels: Int[Tensor, " N"], valid: Bool[Tensor, " N"]
) -> Float[Tensor, ""]:
    """Compute the cross-entropy over classes and background, averaged over the valid samples."""
    return _mean(F.cross_entropy(logits.float(), labels, reduction="none"), valid)


def box_regression_loss(
    deltas: Float[Tensor, "*b 4"],
    regression_targets: Float[Tensor, "*b 4"],
    positive: Bool[Tensor, "*b"],
    valid: Bool[Tensor, "*b"],
    beta: float,
) -> Float[Tensor, ""]:
    """Compute smooth L1 of the positives' deltas, divided by the number of all valid samples, like the other loss."""
    losses = F.smooth_l1_loss(deltas.float(), regression_targets, beta=beta, reduction="none").sum(dim=-1)
    return torch.where(positive & valid, losses, 0.0).sum() / valid.sum().clamp(min=1)


def _mean(losses: Tensor, valid: Tensor) -> Tensor:
    # torch.where instead of a product: NaN of an invalid sample times zero would be NaN.
    return torch.where(valid, losses, 0.0).sum() / valid.sum().clamp(min=1)
