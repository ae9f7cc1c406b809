"""Whether Triton's kernels can run: Triton comes with torch's CUDA builds for Linux."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec


@cache
def has_triton() -> bool:
    """Return whether Triton is installed."""
    return find_spec("triton") is not None
