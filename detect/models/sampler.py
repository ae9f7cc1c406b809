"""Sampling of labelled boxes for the loss (Ren et al. 2015, §3.1.3; Girshick 2015, §2.3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sampler:
    """Samples `size` boxes per image at random: at most `positive_fraction` of them objects, the rest background."""

    size: int
    positive_fraction: float

    def __call__(self, labels: Int[Tensor, "B n"]) -> tuple[Int[Tensor, "B S"], Bool[Tensor, "B S"]]:
        """Return the indices of the sampled boxes, objects first, and a mask of the valid ones; S = min(size, n)."""
        size = min(self.size, labels.shape[-1])
        max_positives = min(int(self.size * self.positive_fraction), size)
        # Random keys in [0, 1) shuffle the boxes of one kind; all others have -1 and come last.
        keys = torch.rand(labels.shape, device=labels.device)
        others = torch.stack([labels != 1, labels != 0])
        keys_of_kinds = keys.repeat(2, 1, 1).masked_fill_(others, -1.0)
        (positive_keys, negative_keys), (positives, negatives) = keys_of_kinds.topk(size)
        positive_keys, positives = positive_keys[:, :max_positives], positives[:, :max_positives]
        count = (positive_keys >= 0).sum(dim=-1, keepdim=True)
        slots = torch.arange(size, device=labels.device).expand(len(labels), -1)
        is_positive = slots < count
        # Slot s holds the s-th object; the slots after the last object hold background.
        index = torch.where(is_positive, slots, max_positives + slots - count)
        indices = torch.cat([positives, negatives], dim=-1).gather(-1, index)
        valid = torch.cat([positive_keys, negative_keys], dim=-1).gather(-1, index) >= 0
        return indices, valid
