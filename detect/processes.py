"""Rank of this process in a distributed run, from the environment; without torch, which takes seconds to import."""

from __future__ import annotations

import os


def is_first_process() -> bool:
    """Return whether this is the first process of torchrun (RANK) or Lightning (LOCAL_RANK), or the only one."""
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"


def print_once(text: str) -> None:
    """Print in the first process only."""
    if is_first_process():
        print(text, flush=True)
