"""The highest of some scores, where there may be fewer than were asked for."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def topk(scores: Float[Tensor, "b n"], most: int) -> tuple[Float[Tensor, "b k"], Int64[Tensor, "b k"]]:
    """The k = min(most, n) highest scores of each row, descending, and their columns."""
    columns = scores.shape[1]
    # An exported graph takes any n, which min would fix; torch.compile of torch 2.11 knows no sym_min of ints.
    k = torch.sym_min(most, columns) if isinstance(columns, torch.SymInt) else min(most, columns)
    return scores.topk(k)
