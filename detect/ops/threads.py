"""Compiled kernels on as many threads as torch uses."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch


def in_threads(count: int, work: Callable[[int, int], None]) -> None:
    """Runs `work(start, stop)` over parts of `range(count)`; `work` must let go of Python's lock to gain from it."""
    threads = max(1, min(torch.get_num_threads(), count))
    bounds = [count * part // threads for part in range(threads + 1)]
    if threads == 1:
        work(0, count)
    else:
        list(_pool(threads).map(work, bounds[:-1], bounds[1:]))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="detect")
