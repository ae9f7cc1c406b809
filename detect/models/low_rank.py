"""Fully connected layers as two smaller ones, by truncated singular value decomposition (Girshick 2015, §3.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from detect.backbones import Trunk
from detect.errors import UserError


def factorize(trunk: Trunk, ranks: Sequence[int]) -> None:
    """Replaces, in place, the first fully connected layers of a trunk by two each, untrained: a shape for weights.

    A layer of u × v weights becomes one of t × v without biases and one of u × t, with nothing between them: t(u + v)
    numbers instead of uv.

    Args:
        trunk: what is left of the network behind region pooling.
        ranks: t of fc6, of fc7, and so on; further layers stay as they are.

    Raises `UserError` where there are fewer layers than ranks, and where a rank is not in 1 … the layer's full one.
    """
    layers = _fully_connected(trunk)
    if len(ranks) > len(layers):
        raise UserError(
            f"model.svd: {len(ranks)} ranks, but the trunk has {len(layers)} fully connected layers; give one for each "
            "that is to be compressed, from the first"
        )
    for (name, layer), rank in zip(layers.items(), ranks, strict=False):
        u, v = layer.weight.shape
        if not 1 <= rank <= min(u, v):
            raise UserError(f"model.svd: {rank}: {name} has {u} × {v} weights; give a rank of 1 … {min(u, v)}")
        factors = nn.Sequential(nn.Linear(v, rank, bias=False), nn.Linear(rank, u))
        trunk.set_submodule(name, factors.train(trunk.training))


@torch.no_grad()
def truncate(trunk: Trunk, ranks: Sequence[int]) -> None:
    """`factorize`, and fills the new layers with what is nearest to the old: W ≈ U Σ Vᵀ, with the t largest of Σ.

    The first layer has Σ Vᵀ, the second U and the old biases (eq. 5). U are the first eigenvectors of W Wᵀ, in double
    precision, and Σ Vᵀ is Uᵀ W: less work than the whole decomposition, of which most would be thrown away.
    """
    whole = _fully_connected(trunk)
    factorize(trunk, ranks)
    for (name, layer), rank in zip(whole.items(), ranks, strict=False):
        weight = layer.weight.double()
        u = torch.linalg.eigh(weight @ weight.mT).eigenvectors[:, -rank:].flip(1)  # they come by rising eigenvalues
        factors = {"0.weight": u.mT @ weight, "1.weight": u, "1.bias": layer.bias}
        trunk.get_submodule(name).load_state_dict(factors)


def _fully_connected(trunk: Trunk) -> dict[str, nn.Linear]:
    """fc6 and fc7 of the older networks, the layers of a pyramid's head, none of a ResNet's res5; by their names."""
    return {name: layer for name, layer in trunk.named_modules() if isinstance(layer, nn.Linear)}
