"""Time a step of our Faster or Mask R-CNN and of torchvision's, in training and inference, with the same weights.

    python tools/benchmarks/step.py --device cpu --repeats 11 --write

Both are ResNet-50-FPN with frozen norms, three trainable stages and 91 classes, background included. Each side runs in
a process of its own with the same threads and the same allocator. The sides alternate, A B A B, and the result is the
median of the ratios of neighbouring samples. A sample is taken only while a matrix product runs within 1.3 times of its
best time, so that other load delays the measurement but does not distort it; samples taken after that wait timed out
are counted.

Ours gets uint8 images and normalises them on the device; torchvision gets floats in 0 … 1 on the device. The precision
is the same on both sides: torchvision's bf16 is autocast, ours is autocast in training and bf16 weights in inference.
torchvision always runs in eager mode, as released.

Waits are operations of one eager step with a result shape, or a Python number, that depends on the data: a GPU has to
finish all its work for each of them. On a GPU our timed steps run under `torch.cuda.set_sync_debug_mode("error")`.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import get_args

import torch
from alternating import Gate, Remote, agreement, duration, machine, physical_cores
from rich.console import Console
from rich.table import Table
from step_sides import NAMES, SIDES, Case, cases

from detect.prediction.prepare import Precision

RESULTS = Path(__file__).with_name("RESULTS.md")


# ---- measuring -------------------------------------------------------------------------------------------------------


@dataclass
class Measured:
    """Results of a case, by side."""

    case: Case
    seconds: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in NAMES})
    memory: dict[str, float] = field(default_factory=dict)
    waits: dict[str, Counter[str]] = field(default_factory=dict)
    busy: int = 0
    """Samples taken while the machine was busy."""
    agreement: str = ""
    failure: str = ""

    def ratio(self) -> float:
        """Return the speedup of ours: the median over neighbouring samples."""
        return statistics.median(theirs / ours for ours, theirs in zip(*(self.seconds[n] for n in NAMES), strict=True))

    def row(self) -> list[str]:
        """Return the cells of the row."""
        if self.failure:
            return [str(self.case), self.failure, *[""] * 5]
        times = [
            f"{duration(statistics.median(s))} ({duration(min(s))})" for s in (self.seconds[name] for name in NAMES)
        ]
        memory = " / ".join(f"{self.memory[name]:.2f}" for name in NAMES)
        waits = " / ".join(str(self.waits[name].total()) for name in NAMES)
        return [str(self.case), *times, f"{self.ratio():.2f}", memory, waits, str(self.busy)]


HEADER = ["case", "ours", "torchvision", "ratio", "GiB", "waits", "busy"]
LEGEND = (
    "case: short side × batch. Times: median (minimum) of a step. ratio: speedup of ours. GiB: peak memory, and waits: "
    "data-dependent operations, ours / torchvision. busy: samples taken while the machine was busy."
)


def measure(case: Case, gate: Gate, options: argparse.Namespace) -> Measured:
    """Measure both sides of a case, alternating."""
    measured = Measured(case)
    sides = {name: Remote(name, options.threads, SIDES[name], case, options.images) for name in NAMES}
    try:
        for name, side in sides.items():
            side.ready()
            measured.waits[name] = side.ask("waits_counted")
        for side in sides.values():
            side.ask("warm")
        for _ in range(options.repeats):
            for name, side in sides.items():
                measured.busy += not gate.wait()
                measured.seconds[name].append(side.ask("seconds"))
        for name, side in sides.items():
            measured.memory[name] = side.ask("memory")
        if case.what == "infer":
            measured.agreement = agreement(*(side.ask("detections") for side in sides.values()))
    except RuntimeError as error:
        measured.failure = str(error)
    finally:
        for side in sides.values():
            side.close()
    return measured


# ---- output ----------------------------------------------------------------------------------------------------------


def print_results(results: Sequence[Measured], console: Console) -> None:
    """Print the results as a table."""
    table = Table(*HEADER, box=None, pad_edge=False, caption=LEGEND, caption_justify="left")
    for measured in results:
        table.add_row(*measured.row())
    console.print(table)
    for line in remarks(results):
        console.print(line)


def remarks(results: Sequence[Measured]) -> list[str]:
    """Return lines on the agreement of the detections, and the data-dependent operations by name."""
    lines = [f"{measured.case}: {measured.agreement}" for measured in results if measured.agreement]
    for measured in results:
        for name, counts in measured.waits.items():
            if counts and not measured.case.compile:
                listing = ", ".join(f"{count} {operation}" for operation, count in counts.most_common())
                lines.append(f"{measured.case}, {name}: {listing}")
    return lines


def markdown(results: Sequence[Measured], threads: int) -> str:
    """Return the results as Markdown, with the command, the machine and the versions."""
    lines = [f"\n## {date.today()}, a step\n"]
    lines.append(f"`python tools/benchmarks/step.py {shlex.join(sys.argv[1:])}` on {machine(threads)}\n")
    rows = [HEADER, ["---"] * len(HEADER), *(measured.row() for measured in results)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", LEGEND, "", *(f"- {line}" for line in remarks(results)), ""]
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, measure and print."""
    present = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", nargs="+", choices=["cpu", "cuda"], default=present, help="default: all available")
    parser.add_argument("--sizes", nargs="+", type=int, default=[800], help="short sides in pixels (default 800)")
    parser.add_argument("--repeats", type=int, default=11, help="samples of each side (default 11)")
    parser.add_argument("--what", choices=["train", "infer", "all"], default="all")
    every = list(get_args(Precision))
    parser.add_argument("--precision", nargs="+", choices=every, default=every, help="bf16 is very slow on some CPUs")
    parser.add_argument("--eager", action="store_true", help="without torch.compile, which takes minutes on a CPU")
    parser.add_argument("--masks", action="store_true", help="Mask R-CNN instead of Faster R-CNN")
    parser.add_argument("--threads", type=int, default=physical_cores(), help="default: one for each physical core")
    parser.add_argument("--images", type=Path, help="a folder of images to use instead of random ones")
    parser.add_argument("--write", action="store_true", help="append the results to RESULTS.md")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    console, results = Console(), []
    for device in options.device:
        gate = Gate(device)
        chosen = options.what, options.precision, not options.eager, options.masks
        for case in [case for size in options.sizes for case in cases(device, size, *chosen)]:
            console.print(f"measuring {case}")
            results.append(measure(case, gate, options))
    console.print(machine(options.threads))
    print_results(results, console)
    if options.write:
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(markdown(results, options.threads))


if __name__ == "__main__":
    main()
