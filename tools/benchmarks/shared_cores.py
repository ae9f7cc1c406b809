"""Time a training step alone and beside one busy process per core, by how OpenMP's threads wait for each other.

    python tools/benchmarks/shared_cores.py --write

A step is one of `detect demo`: forward, backward and update on two images. Each way of waiting is a process of its own;
they take turns, alone and beside the busy processes, and the table has the medians.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shlex
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import torch
from alternating import Remote, duration, machine, physical_cores
from rich.console import Console
from rich.table import Table
from torch import Tensor

from detect.config.demo import demo_config
from detect.cores import SPINS
from detect.models import build_detector
from detect.structures import Batch, Images, Targets

RESULTS = Path(__file__).with_name("RESULTS.md")
NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
WAITING: dict[str, dict[str, str]] = {
    "spin long (torch's default)": {},
    "spin briefly (detect's)": {"GOMP_SPINCOUNT": SPINS},
    "sleep at once": {"OMP_WAIT_POLICY": "PASSIVE"},
}
HEADER = ["threads that wait", "alone", "beside busy processes", "factor"]
WARM_UP = 3


class Side:
    """The demo's detector and one batch."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        config = demo_config(Path("data"))
        self.model = build_detector(config.model, 6).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), config.training.learning_rate)
        pixels = torch.randint(256, (2, 3, 96, 132), dtype=torch.uint8)
        boxes = torch.tensor([[[8.0, 8, 40, 40], [50, 20, 120, 90]]]).repeat(2, 1, 1)
        valid = torch.ones(2, 2, dtype=torch.bool)
        targets = Targets(boxes, torch.tensor([[0, 3], [1, 5]]), valid, torch.zeros_like(valid))
        images = Images(pixels, torch.tensor([[96, 132]] * 2))
        self.batch = Batch(images, targets, torch.arange(2), torch.ones(2, 2))

    def step(self) -> float:
        """Train for one step; return its seconds."""
        start = time.perf_counter()
        self.optimizer.zero_grad()
        losses: list[Tensor] = list(self.model.loss(self.batch).values())
        torch.stack(losses).sum().backward()
        self.optimizer.step()
        return time.perf_counter() - start


def _spin() -> None:
    while True:
        pass


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Keep `count` processes busy."""
    processes = [multiprocessing.get_context("spawn").Process(target=_spin, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    time.sleep(2)  # until they spin
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def measure(rounds: int, steps: int, busy: int, threads: int) -> dict[str, tuple[float, float]]:
    """Return the median seconds of a step alone and beside `busy` processes, by the way of waiting."""
    sides, before = {}, dict(os.environ)
    for name, environment in WAITING.items():
        for variable in NAMES:
            os.environ.pop(variable, None)
        os.environ |= environment
        sides[name] = Remote(name, threads, Side)
        sides[name].ready()
    for variable in NAMES:
        os.environ.pop(variable, None)
    os.environ.update(before)
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in sides}

    def take_turns(place: int, steps: int) -> None:
        for name in sides:
            times[name][place].extend([sides[name].ask("step") for _ in range(steps)])

    take_turns(0, WARM_UP)
    times = {name: ([], []) for name in sides}
    for _ in range(rounds):
        take_turns(0, steps)
        with busy_processes(busy):
            take_turns(1, steps)
    for side in sides.values():
        side.close()
    return {name: (statistics.median(alone), statistics.median(beside)) for name, (alone, beside) in times.items()}


def main() -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="turns alone and beside (default %(default)s)")
    parser.add_argument("--steps", type=int, default=5, help="steps of each way of waiting in a turn (default 5)")
    parser.add_argument("--busy", type=int, default=len(os.sched_getaffinity(0)), help="default: one per core")
    parser.add_argument("--threads", type=int, default=physical_cores(), help="default: one for each physical core")
    parser.add_argument("--write", action="store_true", help="append the results to RESULTS.md")
    options = parser.parse_args()

    load = os.getloadavg()[0]
    results = measure(options.rounds, options.steps, options.busy, options.threads)
    rows = [
        [name, duration(alone), duration(beside), f"{beside / alone:.2f}"] for name, (alone, beside) in results.items()
    ]
    table = Table(*HEADER, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    about = f"{machine(options.threads)}; {options.busy} busy processes; load before: {load:.1f}"
    Console().print(table, about)
    if options.write:
        lines = [f"\n## {date.today()}, a step beside busy processes\n"]
        lines.append(f"`python tools/benchmarks/shared_cores.py {shlex.join(sys.argv[1:])}` on {about}\n")
        lines += ["| " + " | ".join(row) + " |" for row in (HEADER, ["---"] * len(HEADER), *rows)]
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
