"""Truncated SVD: each fully connected layer becomes two smaller ones (Girshick 2015, §3.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import PositiveInt
from torch import nn

from detect.backbones import BoxHead
from detect.errors import UserError

Ranks = tuple[PositiveInt, ...]
"""Ranks of the box head's first fully connected layers; see `factorize`."""


def factorize(box_head: BoxHead, ranks: Sequence[int]) -> None:
    """Replace each of the first fully connected layers by two untrained ones, in place.

    A layer of u × v weights becomes a layer of t × v weights without bias, followed directly by one of u × t:
    t(u + v) weights instead of uv, as in a truncated SVD.

    Args:
        box_head: the layers after region pooling.
        ranks: t of fc6, of fc7, and so on; layers without a rank stay as they are.

    Raises:
        UserError: there are fewer layers than ranks, or a rank is not in 1 … the layer's full rank.
    """
    layers = _fully_connected(box_head)
    if len(ranks) > len(layers):
        raise UserError(
            f"svd: {len(ranks)} ranks, but the box head has {len(layers)} fully connected layers; give one rank for "
            "each layer to compress, from the first on"
        )
    for (name, layer), rank in zip(layers.items(), ranks, strict=False):
        u, v = layer.weight.shape
        if not 1 <= rank <= min(u, v):
            raise UserError(f"svd: {rank}: {name} has {u} × {v} weights; give a rank of 1 … {min(u, v)}")
        factors = nn.Sequential(nn.Linear(v, rank, bias=False), nn.Linear(rank, u))
        box_head.set_submodule(name, factors.train(box_head.training))


@torch.no_grad()
def truncate(box_head: BoxHead, ranks: Sequence[int]) -> None:
    """Replace layers like `factorize` and set their weights to the truncated SVD W ≈ U Σ Vᵀ with t singular values.

    The first layer is Σ Vᵀ, the second U with the old bias (eq. 5). U holds the first eigenvectors of W Wᵀ, in double
    precision, and Σ Vᵀ = Uᵀ W, which is less work than a complete SVD.
    """
    original = _fully_connected(box_head)
    factorize(box_head, ranks)
    for (name, layer), rank in zip(original.items(), ranks, strict=False):
        weight = layer.weight.double()
        u = torch.linalg.eigh(weight @ weight.mT).eigenvectors[:, -rank:].flip(1)  # eigenvalues are ascending
        factors = {"0.weight": u.mT @ weight, "1.weight": u, "1.bias": layer.bias}
        box_head.get_submodule(name).load_state_dict(factors)


def _fully_connected(box_head: BoxHead) -> dict[str, nn.Linear]:
    """Return the fully connected layers of a box head by name."""
    return {name: layer for name, layer in box_head.named_modules() if isinstance(layer, nn.Linear)}
