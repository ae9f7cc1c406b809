"""Count the kernel launches and peak memory of a step on CUDA, without a GPU: Faster R-CNN, ResNet-50-FPN.

    python tools/benchmarks/launches.py [--by-source] [--write]

The script builds the CUDA runtime of `tests/cuda_stub`, whose kernels do nothing, and runs itself with it. Launches of
convolutions are those of cuDNN's older interface, one each. torchvision is not counted: its steps read results
of kernels, and launch fewer if these are garbage.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import get_total_norm
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).parents[2]
STUB = ROOT / "tests" / "cuda_stub"
CASES = {
    "training, batch 2, fp32": ("train", 2, "fp32"),
    "training, batch 2, fp16": ("train", 2, "fp16"),
    "training, batch 16, fp16": ("train", 16, "fp16"),
    "inference, batch 1, fp32": ("infer", 1, "fp32"),
}


FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\S+)')
"""A line of a traceback."""


class BySource(TorchDispatchMode):
    """Counts the launches of each line of the package; those of the backward pass by the line of its forward."""

    def __init__(self, launches: Callable[[], int]) -> None:
        super().__init__()
        self.launches = launches
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self.launches()
        result = function(*args, **(kwargs or {}))
        if launched := self.launches() - before:
            self.counts[source()] += launched
        return result


def source() -> str:
    """Return the innermost line of the package or of torchvision that runs, or whose gradient is computed."""
    node: Any = torch._C._current_autograd_node()
    if node is None:
        places = [(line.filename, line.lineno, line.name) for line in traceback.extract_stack()]
    else:
        places = FRAME.findall("".join(node.metadata.get("traceback_", ())))
    places = [place for place in places if {"detect", "torchvision"} & set(Path(place[0]).parts)]
    if not places:
        return "optimizer" if node is None else node.name()
    path, line, name = places[-1]
    return f"{'' if node is None else 'backward of '}{Path(path).name}:{line} {name}"


def step(what: str, count: int, precision: str) -> Callable[[], None]:
    """Return a training step like that of `TrainingModule`, or a detection of the prepared model."""
    from step_sides import CLASSES, Case, Ours, ground_truths

    from detect.models import FasterRCNNOptions, build_detector
    from detect.prediction.prepare import prepare

    model = build_detector(FasterRCNNOptions(), CLASSES).to("cuda").train().to_memory_format(torch.channels_last)
    case = Case("train", "cpu", 800, count, "fp32", compile=False)
    batch = Ours.batch_of(case, torch.zeros(count, 3, 800, 1066, dtype=torch.uint8), *ground_truths(case)).to("cuda")
    if what == "infer":
        prepared = prepare(model.eval())

        def detect() -> None:
            with torch.no_grad():
                prepared.detect(batch.images)

        return detect
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, 1e-8, momentum=0.9, fused=True)

    def train() -> None:
        with torch.autocast("cuda", torch.float16, enabled=precision == "fp16"):
            losses = model.loss(batch)
        torch.stack(list(losses.values())).sum().backward()
        get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        optimizer.step()
        optimizer.zero_grad()

    return train


def count(name: str, by_source: bool) -> dict[str, Any]:
    """Return launches and GiB of the third step, in which every wait for the GPU raises."""
    library = ctypes.CDLL(None)
    library.cuda_stub_launches.restype = ctypes.c_ulonglong
    launches: Callable[[], int] = library.cuda_stub_launches
    run = step(*CASES[name])
    run()
    run()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.set_sync_debug_mode("error")
    before = launches()
    run()
    found = {"launches": launches() - before, "GiB": round(torch.cuda.max_memory_allocated() / 2**30, 2)}
    if by_source:
        with torch.autograd.set_detect_anomaly(True, check_nan=False), BySource(launches) as mode:
            run()
        found["sources"] = mode.counts.most_common(60)
    return found


def main() -> None:
    """Count each case in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--by-source", action="store_true", help="also the launches of each line")
    parser.add_argument("--write", action="store_true", help="append the results to RESULTS.md")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(count(options.case, options.by_source)), flush=True)
        os._exit(0)  # torch's thread of the backward pass can abort an interpreter that shuts down
    sys.path.insert(0, str(STUB))
    import stub_library  # type: ignore[import-not-found]

    if reason := stub_library.why_not():
        sys.exit(f"cannot count: {reason}")
    lines = [
        f"## {date.today()}, launches on CUDA, counted without a GPU",
        "",
        "`python tools/benchmarks/launches.py`, torch",
    ]
    lines[-1] += f" {torch.__version__}, Faster R-CNN, ResNet-50-FPN, 800 × 1088"
    table = ["| | launches | peak memory |", "| --- | --- | --- |"]
    with tempfile.TemporaryDirectory() as folder:
        environment = stub_library.build(Path(folder)) | {
            "PYTHONPATH": os.pathsep.join(map(str, (ROOT, *sys.path[1:])))
        }
        for name in CASES:
            command = [sys.executable, __file__, "--case", name, *(["--by-source"] if options.by_source else [])]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            table.append(f"| {name} | {found['launches']:,} | {found['GiB']} GiB |")
            print(table[-1], flush=True)
            for source, launches in found.get("sources", ()):
                print(f"{launches:6d}  {source}")
    if options.write:
        with (ROOT / "tools" / "benchmarks" / "RESULTS.md").open("a", encoding="utf-8") as file:
            file.write("\n" + "\n".join([*lines, "", *table]) + "\n")


if __name__ == "__main__":
    main()
