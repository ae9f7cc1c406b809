"""Shared parts of the benchmarks: both sides run in processes of their own and alternate on a quiet machine."""

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
    """Build a side in its process, then call the requested methods until the request is None."""
    keep_pages()
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # ONNX Runtime's threads
    try:
        side = make(*arguments)
        connection.send(None)
        while (method := connection.recv()) is not None:
            connection.send(getattr(side, method)())
    except Exception as error:  # shown in the table, so that the other cases still run
        reason = " ".join(str(error).split())[:200]
        connection.send(RuntimeError(f"{name}: {type(error).__name__}: {reason}"))


class Remote:
    """A side in a process of its own: the object that `make` returns, with methods called by name."""

    def __init__(self, name: str, threads: int, make: Callable[..., Any], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        serve_arguments = theirs, name, threads, make, arguments
        self._process = context.Process(target=_serve, args=serve_arguments, daemon=True)
        self._process.start()
        theirs.close()

    def ready(self) -> None:
        """Wait until the side is built. Raise `RuntimeError` with the reason if that failed."""
        self._answer()

    def ask(self, method: str) -> Any:
        """Call a method of the side and return its result."""
        self._connection.send(method)
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
        """End the process."""
        with suppress(OSError):
            self._connection.send(None)
        self._process.join(10)
        self._process.terminate()
        self._process.join()


class Gate:
    """Delays samples while other work keeps the machine busy."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.factor = torch.rand(1024, 1024, device=device)
        self.out = torch.empty_like(self.factor)
        self.best = math.inf
        for _ in range(20):
            self._product()

    def wait(self) -> bool:
        """Wait until the machine is quiet, for at most half a minute; return whether it is."""
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
    """Describe how well two sets of detections agree: pairs of one label with an IoU of at least 0.9."""
    pairs, distance, difference = 0, 0.0, 0.0
    for a, b in zip(ours, theirs, strict=True):
        overlaps = box_iou(b["boxes"], a["boxes"]) * (b["labels"][:, None] == a["labels"])
        for row in range(len(overlaps)):
            if overlaps.numel() == 0 or overlaps[row].max() < 0.9:
                continue
            column = int(overlaps[row].argmax())
            overlaps[:, column] = 0  # each of ours is paired once
            pairs += 1
            distance = max(distance, (a["boxes"][column] - b["boxes"][row]).abs().max().item())
            difference = max(difference, (a["scores"][column] - b["scores"][row]).abs().item())
    counts = [sum(len(one["boxes"]) for one in side) for side in (ours, theirs)]
    return (
        f"{pairs} of {counts[0]} and {counts[1]} detections agree, "
        f"with differences of at most {distance:.2g} pixels and {difference:.2g} in score"
    )


def duration(seconds: float) -> str:
    """Format seconds."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"


def machine(threads: int) -> str:
    """Describe processor, threads, GPU and versions."""
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
    """Return the number of cores that this process may use, without hyper-threads."""
    cores = set()
    for cpu in os.sched_getaffinity(0):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings.read_text() if siblings.is_file() else cpu)
    return len(cores)


def process_status(key: str) -> int:
    """Return a value of /proc/self/status in KiB. (`ru_maxrss` would start with that of the parent.)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])
