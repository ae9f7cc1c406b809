"""Fully connected layers as two smaller ones, by truncated singular value decomposition (Girshick 2015, §3.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import PositiveInt
from torch import nn

from detect.backbones import BoxHead
from detect.errors import UserError

Ranks = tuple[PositiveInt, ...]
"""Ranks of the box head's fully connected layers, from the first on; see `factorize`."""


def factorize(box_head: BoxHead, ranks: Sequence[int]) -> None:
    """Replace, in place, the first fully connected layers by two untrained ones each, of the shapes of a truncated SVD.

    A layer of u × v weights becomes one of t × v without bias and one of u × t, with nothing in between: t(u + v)
    weights instead of uv.

    Args:
        box_head: the layers after region pooling.
        ranks: t of fc6, of fc7, and so on; further layers stay as they are.

    Raises:
        UserError: there are fewer layers than ranks, or a rank is not in 1 … the layer's full rank.
    """
    layers = _fully_connected(box_head)
    if len(ranks) > len(layers):
        raise UserError(
            f"svd: {len(ranks)} ranks, but the box head has {len(layers)} fully connected layers; give one for each "
            "that is to be compressed, from the first"
        )
    for (name, layer), rank in zip(layers.items(), ranks, strict=False):
        u, v = layer.weight.shape
        if not 1 <= rank <= min(u, v):
            raise UserError(f"svd: {rank}: {name} has {u} × {v} weights; give a rank of 1 … {min(u, v)}")
        factors = nn.Sequential(nn.Linear(v, rank, bias=False), nn.Linear(rank, u))
        box_head.set_submodule(name, factors.train(box_head.training))


@torch.no_grad()
def truncate(box_head: BoxHead, ranks: Sequence[int]) -> None:
    """Replace the layers as `factorize` and set their weights to the best approximation W ≈ U Σ Vᵀ, Σ with t values.

    The first layer is Σ Vᵀ, the second U with the old bias (eq. 5). U holds the first eigenvectors of W Wᵀ, in double
    precision, and Σ Vᵀ = Uᵀ W: less work than the whole decomposition, most of which would be discarded.
    """
    original = _fully_connected(box_head)
    factorize(box_head, ranks)
    for (name, layer), rank in zip(original.items(), ranks, strict=False):
        weight = layer.weight.double()
        u = torch.linalg.eigh(weight @ weight.mT).eigenvectors[:, -rank:].flip(1)  # eigenvalues are ascending
        factors = {"0.weight": u.mT @ weight, "1.weight": u, "1.bias": layer.bias}
        box_head.get_submodule(name).load_state_dict(factors)


def _fully_connected(box_head: BoxHead) -> dict[str, nn.Linear]:
    """Return the fully connected layers by name: fc6 and fc7, or those of a pyramid's box head; a res5 has none."""
    return {name: layer for name, layer in box_head.named_modules() if isinstance(layer, nn.Linear)}
