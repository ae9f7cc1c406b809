"""Whether Triton's kernels can run: Triton comes with torch's CUDA builds for Linux."""

from __future__ import annotations

from importlib.util import find_spec

_INSTALLED = find_spec("triton") is not None  # looked up here, since Dynamo of torch 2.11 cannot trace `find_spec`


def has_triton() -> bool:
    """Return whether Triton is installed."""
    return _INSTALLED
