"""Sampling of labelled boxes for the loss (Ren et al. 2015, §3.1.3; Girshick 2015, §2.3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sampler:
    """Samples `size` boxes an image at random: at most `positive_fraction` objects, the rest background."""

    size: int
    positive_fraction: float

    def __call__(self, labels: Int[Tensor, "B n"]) -> tuple[Int[Tensor, "B S"], Bool[Tensor, "B S"]]:
        """Return the indices of the sampled boxes, objects first, and which are valid; S = min(size, n)."""
        size = min(self.size, labels.shape[-1])
        most_positive = min(int(self.size * self.positive_fraction), size)
        # Uniform keys in [0, 1) shuffle each kind; the other kind, at -1, comes last.
        keys = torch.rand(labels.shape, device=labels.device)
        positive_keys, positives = torch.where(labels == 1, keys, -1.0).topk(most_positive)
        negative_keys, negatives = torch.where(labels == 0, keys, -1.0).topk(size)
        count = (positive_keys >= 0).sum(dim=-1, keepdim=True)
        slots = torch.arange(size, device=labels.device).expand(len(labels), -1)
        is_positive = slots < count
        # Slot s holds the s-th object; after the objects follows background.
        place = torch.where(is_positive, slots, most_positive + slots - count)
        indices = torch.cat([positives, negatives], dim=-1).gather(-1, place)
        valid = torch.cat([positive_keys, negative_keys], dim=-1).gather(-1, place) >= 0
        return indices, valid
