"""Mean and standard deviation of the box deltas of each class (Girshick 2015, §2.3)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from detect.models.box_coder import BoxCoder
from detect.models.matcher import Matcher, match
from detect.structures import Targets


class DeltaStatistics(nn.Module):
    """Normalises regression targets to mean 0 and variance 1 within each class, and restores predictions.

    Mean and standard deviation are buffers, so that checkpoints contain them; before `measure` they are 0 and 1.
    """

    mean: Float[Tensor, "C 4"]
    std: Float[Tensor, "C 4"]

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_classes, 4))
        self.register_buffer("std", torch.ones(num_classes, 4))

    def measure(
        self, images: Iterable[tuple[Float[Tensor, "R 4"], Targets]], box_coder: BoxCoder, matcher: Matcher
    ) -> None:
        """Measure the deltas of the positive proposals of all images.

        A class with fewer than two positive proposals keeps mean 0 and standard deviation 1.

        Args:
            images: proposals and ground truths of each image, at any scale; the ground truths are a batch of one.
            box_coder: encodes the boxes.
            matcher: decides which proposals are positive.
        """
        count, total, squares = (torch.zeros_like(self.mean, dtype=torch.float64) for _ in range(3))
        for boxes, targets in images:
            if not targets.boxes.shape[1]:
                continue
            matched, labels = (values[0] for values in match(boxes[None], targets, matcher))
            positive = labels == 1
            deltas = box_coder.encode(targets.boxes[0][matched[positive]], boxes[positive]).double()
            classes = targets.labels[0][matched[positive]]
            count.index_add_(0, classes, torch.ones_like(deltas))
            total.index_add_(0, classes, deltas)
            squares.index_add_(0, classes, deltas**2)
        mean = total / count.clamp(min=1)
        std = (squares / count.clamp(min=1) - mean**2).clamp(min=0).sqrt()
        # Avoid division by zero if all deltas are equal.
        known = (count > 1) & (std > 1e-4)
        self.mean.copy_(mean.where(known, 0.0))
        self.std.copy_(std.where(known, 1.0))

    def normalize(self, deltas: Float[Tensor, "*b 4"], labels: Int[Tensor, "*b"]) -> Float[Tensor, "*b 4"]:
        """Normalise regression targets by the statistics of their class; the values for background are not used."""
        labels = labels.clamp(max=len(self.mean) - 1)
        return (deltas - self.mean[labels]) / self.std[labels]

    def restore(self, deltas: Float[Tensor, "*b C 4"]) -> Float[Tensor, "*b C 4"]:
        """Undo `normalize` for the prediction of every class."""
        return deltas * self.std + self.mean
