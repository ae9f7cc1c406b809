"""What the benchmarks share: sides that are processes of their own and take turns on a machine that is quiet."""

from __future__ import annotations

import math
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor
from torchvision.ops import box_iou

from detect.allocator import keep_pages


def _serve(connection: Connection, name: str, threads: int, make: Callable[..., Any], arguments: Sequence[Any]) -> None:
    """The life of a side's process: builds it, then answers what it is asked until it is asked for nothing."""
    keep_pages()
    torch.set_num_threads(threads)
    try:
        side = make(*arguments)
        connection.send(None)
        while (question := connection.recv()) is not None:
            connection.send(getattr(side, question)())
    except Exception as error:  # it goes to the table: the other cases are worth having
        reason = " ".join(str(error).split())[:200]
        connection.send(RuntimeError(f"{name}: {type(error).__name__}: {reason}"))


class Remote:
    """A side in a process of its own: what `make` makes, whose methods can be asked for by name."""

    def __init__(self, name: str, threads: int, make: Callable[..., Any], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        wanted = theirs, name, threads, make, arguments
        self._process = context.Process(target=_serve, args=wanted, daemon=True)
        self._process.start()
        theirs.close()

    def ready(self) -> None:
        """Returns once the side is built. Raises `RuntimeError` with what went wrong there."""
        self._answer()

    def ask(self, question: str) -> Any:
        """Calls a method of the side."""
        self._connection.send(question)
        return self._answer()

    def _answer(self) -> Any:
        try:
            answer = self._connection.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"the process ended with code {self._process.exitcode}") from None
        if isinstance(answer, RuntimeError):
            raise answer
        return answer

    def close(self) -> None:
        """Ends the process."""
        with suppress(OSError):
            self._connection.send(None)
        self._process.join(10)
        self._process.terminate()
        self._process.join()


class Gate:
    """Holds samples back while something else keeps the machine busy."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.factor = torch.rand(1024, 1024, device=device)
        self.out = torch.empty_like(self.factor)
        self.best = math.inf
        for _ in range(20):
            self._product()

    def wait(self) -> bool:
        """Returns once the machine is fast, or after half a minute of waiting; tells whether it is."""
        for _ in range(60):
            if self._product() <= 1.3 * self.best:
                return True
            time.sleep(0.5)
        return False

    def _product(self) -> float:
        start = time.perf_counter()
        torch.mm(self.factor, self.factor, out=self.out)
        if self.device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        self.best = min(self.best, seconds)
        return seconds


def agreement(ours: Sequence[dict[str, Tensor]], theirs: Sequence[dict[str, Tensor]]) -> str:
    """How far the detections are the same sets: pairs of one label with IoU of at least 0.9, and what parts them."""
    pairs, distance, difference = 0, 0.0, 0.0
    for a, b in zip(ours, theirs, strict=True):
        overlaps = box_iou(b["boxes"], a["boxes"]) * (b["labels"][:, None] == a["labels"])
        for row in range(len(overlaps)):
            if overlaps.numel() == 0 or overlaps[row].max() < 0.9:
                continue
            column = int(overlaps[row].argmax())
            overlaps[:, column] = 0  # each of ours has one partner
            pairs += 1
            distance = max(distance, (a["boxes"][column] - b["boxes"][row]).abs().max().item())
            difference = max(difference, (a["scores"][column] - b["scores"][row]).abs().item())
    counts = [sum(len(one["boxes"]) for one in side) for side in (ours, theirs)]
    return (
        f"{pairs} of {counts[0]} and {counts[1]} detections are the same; "
        f"they differ by {distance:.2g} pixels and {difference:.2g} in score at most"
    )


def duration(seconds: float) -> str:
    """Seconds, to be read."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"


def machine(threads: int) -> str:
    """Processor, threads, GPU and versions."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    parts = [f"{names[0] if names else platform.processor()}, {threads} threads of {os.cpu_count()}"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    parts.append(
        f"Python {platform.python_version()}, torch {torch.__version__}, torchvision {torchvision.__version__}"
    )
    return "; ".join(parts)


def physical_cores() -> int:
    """The cores that this process may use, without hyper-threads."""
    cores = set()
    for cpu in os.sched_getaffinity(0):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings.read_text() if siblings.is_file() else cpu)
    return len(cores)


def process_status(key: str) -> int:
    """A figure of this process in KiB as Linux tells it. (`ru_maxrss` would begin with the parent's.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])
