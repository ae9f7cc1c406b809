"""Number of cores that this process may use, and settings of OpenMP's threads, which torch reads when it is imported.

On Linux torch comes with GNU's OpenMP, `libgomp`. Its threads spin while they wait for each other. If other processes
run on the same cores, a spinning thread uses the time that the thread it waits for needs. A training step then takes
many times longer than its share of the cores explains.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
SPINS = "10000"
"""Rounds that a thread waits before it sleeps, a fraction of a millisecond.

On a quiet machine, threads that sleep at once make a small step nearly twice as long. On a busy one, libgomp's own
300,000 rounds make it six times as long.
"""
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def available_cores() -> int:
    """Return the number of cores that this process may use: its affinity, or the quota of its cgroup if that is less.

    A fraction of a core counts as a whole one.
    """
    return min([_affinity(), *(max(1, math.ceil(quota)) for quota in _quotas(Path("/")))])


def share_cores() -> None:
    """Make OpenMP's threads sleep after a short wait, and limit their number to the cgroup's quota.

    This sets environment variables, which OpenMP reads when torch is imported, and which child processes inherit.
    Values that the user has set stay. Once torch is imported, this does nothing.
    """
    if "torch" in sys.modules:
        return
    if not any(name in os.environ for name in _WAITING):
        os.environ["GOMP_SPINCOUNT"] = SPINS
    # Without a quota torch's own choice is right: one thread for each physical core of the affinity.
    if available_cores() < _affinity() and not any(name in os.environ for name in _THREADS):
        os.environ["OMP_NUM_THREADS"] = str(available_cores())


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quotas(root: Path) -> Iterator[float]:
    """Yield the limits in cores of this process's cgroup and of those around it, of version 1 or 2."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounted = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        innermost = mounted / group.lstrip("/")
        # In a container the group may be mounted at the top, not under the name in the line.
        for folder in (innermost, *innermost.parents):
            if folder.is_relative_to(mounted) and (quota := _quota(folder)) is not None:
                yield quota


def _quota(folder: Path) -> float | None:
    """Return the limit of one cgroup in cores; None for no limit."""
    try:
        if (both := folder / "cpu.max").exists():
            quota, period = both.read_text(encoding="utf-8").split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text(encoding="utf-8")
            period = (folder / "cpu.cfs_period_us").read_text(encoding="utf-8")
        return float(quota) / float(period) if quota != "max" and float(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
