"""Rank of this process in a distributed run, from the environment; without torch, which takes seconds to import."""

from __future__ import annotations

import os


def is_first_process() -> bool:
    """Return False in all processes of torchrun (RANK) or Lightning (LOCAL_RANK) but the first, else True."""
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"
