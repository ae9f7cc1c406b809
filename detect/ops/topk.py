"""Top-k that accepts rows with fewer than k scores."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def topk(scores: Float[Tensor, "b n"], max_k: int) -> tuple[Float[Tensor, "b k"], Int64[Tensor, "b k"]]:
    """Return the k = min(max_k, n) highest scores of each row, in descending order, and their columns."""
    columns = scores.shape[1]
    # `min` would make n a constant in exported graphs; torch.compile of torch 2.11 has no sym_min of ints.
    k = torch.sym_min(max_k, columns) if isinstance(columns, torch.SymInt) else min(max_k, columns)
    return scores.topk(k)
