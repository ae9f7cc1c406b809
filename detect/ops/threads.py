"""Multithreading of compiled kernels, with torch's number of threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch


def in_threads(count: int, work: Callable[[int, int], None]) -> None:
    """Run `work(start, stop)` on parts of `range(count)` in threads; `work` should release the GIL."""
    threads = max(1, min(torch.get_num_threads(), count))
    bounds = [count * part // threads for part in range(threads + 1)]
    if threads == 1:
        work(0, count)
    else:
        list(_pool(threads).map(work, bounds[:-1], bounds[1:]))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="detect")
