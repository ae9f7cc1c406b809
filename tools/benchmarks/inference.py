"""Time from image files to boxes: our Faster R-CNN, torchvision's, and our exported model in ONNX Runtime.

    python tools/benchmarks/inference.py --batch 1 8 --repeats 11 --write
    python tools/benchmarks/inference.py --stream 10000

All three are ResNet-50-FPN with the same weights and 91 classes, background included, made by torchvision from a seed.
Each runs in a separate process with the same number of threads and the same allocator. They take turns, and a sample is
taken only while a matrix product is at most 1.3 times as slow as its best time. A sample is the time of a batch: files
are read, decoded and resized to a short side of 800 pixels, until the boxes are on the host in pixels of the files.

The files are made unless `--images` gives a folder: clouds of colour with grain, 800 × 1066, so that nothing is resized
and all models see the same pixels. torchvision's bf16 is autocast, ours is bf16 weights.

`--stream N` measures memory instead: a small detector of ours predicts on N files, and the memory of the process is
printed meanwhile.
"""

from __future__ import annotations

import argparse
import random
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from itertools import cycle, islice
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
import torch
from alternating import Gate, Remote, agreement, duration, machine, physical_cores, process_status
from rich.console import Console
from rich.table import Table
from step import RESULTS
from step_sides import Case as Step
from step_sides import pictures as made_pictures
from step_sides import torchvision_model
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image, read_file

from detect.backbones import FPNOptions, ResNetOptions
from detect.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from detect.config import Config
from detect.data.decode import decode
from detect.data.options import DataOptions
from detect.export.export_checkpoint import export_checkpoint
from detect.foreign_weights.torchvision import detector_from_torchvision, torchvision_options
from detect.models import FasterRCNNOptions, ProposalCounts, RPNOptions, build_detector
from detect.prediction.load import load
from detect.prediction.onnx_detector import OnnxDetector
from detect.prediction.predictor import Predictor
from detect.prediction.prepare import Precision
from detect.prediction.result import Result


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    device: str
    batch: int
    precision: Precision
    compile: bool = False

    def __str__(self) -> str:
        return f"{self.device} × {self.batch} {self.precision}{' compiled' if self.compile else ''}"


@dataclass(frozen=True)
class Files:
    """Files that the models read: images, and the weights in each format."""

    images: tuple[Path, ...]
    weights: Path
    checkpoint: Path
    onnx: Path


# ---- the models, each in a separate process --------------------------------------------------------------------------


class Side:
    """A detector; the parent process can call the methods without arguments."""

    def __init__(self, case: Case, files: Files) -> None:
        self.case = case
        self.paths = list(islice(cycle(files.images), case.batch))

    def run(self) -> list[dict[str, Tensor]]:
        """Return boxes, scores and labels 0 … 89 of each image of the batch."""
        raise NotImplementedError

    def seconds(self) -> float:
        """Return the seconds of one batch."""
        start = time.perf_counter()
        self.run()
        return time.perf_counter() - start


class Ours(Side):
    """`detect.load(CKPT).predict(FILES)`."""

    def __init__(self, case: Case, files: Files) -> None:
        super().__init__(case, files)
        model = load(files.checkpoint)
        assert isinstance(model, Predictor)
        self.model = model

    def run(self) -> list[dict[str, Tensor]]:
        """Predict with one thread that decodes ahead, the default."""
        results = self.model.predict(
            self.paths,
            batch_size=self.case.batch,
            device=self.case.device,
            precision=self.case.precision,
            compile=self.case.compile,
        )
        return [tensors(result) for result in results]


class Exported(Side):
    """The exported checkpoint in ONNX Runtime."""

    def __init__(self, case: Case, files: Files) -> None:
        super().__init__(case, files)
        self.model = OnnxDetector(files.onnx)

    def run(self) -> list[dict[str, Tensor]]:
        """Predict; everything except decoding is in the graph."""
        return [tensors(result) for result in self.model.predict(self.paths, batch_size=self.case.batch)]


class Torchvision(Side):
    """torchvision's model, with files decoded by torchvision."""

    def __init__(self, case: Case, files: Files) -> None:
        super().__init__(case, files)
        self.model = torchvision_model(800).eval().to(case.device)
        self.model.load_state_dict(torch.load(files.weights, weights_only=True))

    @torch.no_grad()
    def run(self) -> list[dict[str, Tensor]]:
        """Predict as in torchvision's documentation."""
        images = [decode_image(read_file(str(path)), ImageReadMode.RGB) for path in self.paths]
        device = self.case.device
        with torch.autocast(device, torch.bfloat16, enabled=self.case.precision == "bf16"):
            outputs = self.model([image.to(device).float() / 255 for image in images])
        outputs = [{name: value.float().cpu() for name, value in one.items()} for one in outputs]
        return [{**one, "labels": one["labels"].long() - 1} for one in outputs]


SIDES: dict[str, type[Side]] = {"ours": Ours, "torchvision": Torchvision, "ONNX Runtime": Exported}


def tensors(result: Result) -> dict[str, Tensor]:
    """Return a result in torchvision's format."""
    return {name: torch.tensor(getattr(result, name)) for name in ("boxes", "scores", "labels")}


# ---- the input -------------------------------------------------------------------------------------------------------


def make_files(folder: Path, images: Path | None) -> Files:
    """Make images and weights in a folder, once for all models."""
    state = torchvision_model(800).state_dict()
    weights, checkpoint, onnx = folder / "torchvision.pth", folder / "ours.ckpt", folder / "ours.onnx"
    torch.save(state, weights)
    model = detector_from_torchvision(state, frozen_eps=1e-5)
    names, numbers = zip(*((f"class {label}", label + 1) for label in range(model.num_classes)), strict=True)
    config = Config(torchvision_options(state), DataOptions(short_side=(800,), long_side=1333))
    save_checkpoint(Checkpoint(model, config, names, numbers), checkpoint)
    paths = sorted(images.glob("*.jpg")) if images else []
    if images and not paths:
        sys.exit(f"{images}: no .jpg files; give a folder of photographs")
    if not paths:
        for place, picture in enumerate(made_pictures(Step("infer", "cpu", 800, 8, "fp32", False), None)):
            paths.append(folder / f"{place}.png")
            cv2.imwrite(str(paths[-1]), picture.permute(1, 2, 0).numpy()[..., ::-1])
    export_checkpoint(load_checkpoint(checkpoint), onnx, "onnx", [decode(path) for path in paths[:2]])
    return Files(tuple(paths), weights, checkpoint, onnx)


# ---- measuring -------------------------------------------------------------------------------------------------------


@dataclass
class Measured:
    """Results of a case, by model."""

    case: Case
    seconds: dict[str, list[float]] = field(default_factory=dict)
    busy: int = 0
    agreement: dict[str, str] = field(default_factory=dict)
    failure: str = ""

    def row(self) -> list[str]:
        """Return the cells of the table."""
        if self.failure:
            return [str(self.case), self.failure, *[""] * 5]
        return [
            str(self.case),
            *(self._times(name) for name in SIDES),
            *map(self._ratio, list(SIDES)[1:]),
            f"{self.busy}",
        ]

    def _times(self, name: str) -> str:
        """Return the median and the minimum time per image."""
        if name not in self.seconds:
            return "–"
        each = [seconds / self.case.batch for seconds in self.seconds[name]]
        return f"{duration(statistics.median(each))} ({duration(min(each))})"

    def _ratio(self, name: str) -> str:
        """Return our time as a fraction of theirs, the median over neighbouring samples."""
        if name not in self.seconds:
            return "–"
        pairs = zip(self.seconds["ours"], self.seconds[name], strict=True)
        return f"{statistics.median(ours / theirs for ours, theirs in pairs):.2f}"


HEADER = ["case", *SIDES, "of torchvision", "of ONNX Runtime", "busy"]
LEGEND = (
    "case: device × batch. Times are per image, from file to boxes: median (minimum). of …: our time as a fraction of "
    "theirs, the median over neighbouring samples. busy: samples taken although the machine was busy."
)


def measure(case: Case, files: Files, gate: Gate, repeats: int, threads: int) -> Measured:
    """Measure all models of a case in turns."""
    measured = Measured(case)
    # The exported model computes in fp32 and runs on the CPU.
    names = [name for name in SIDES if name != "ONNX Runtime" or (case.device, case.precision) == ("cpu", "fp32")]
    sides = {name: Remote(name, threads, SIDES[name], case, files) for name in names}
    try:
        for side in sides.values():
            side.ready()
            side.ask("seconds")
            side.ask("seconds")
        measured.seconds = {name: [] for name in names}
        for _ in range(repeats):
            for name, side in sides.items():
                measured.busy += not gate.wait()
                measured.seconds[name].append(side.ask("seconds"))
        outputs = {name: side.ask("run") for name, side in sides.items()}
        measured.agreement = {name: agreement(outputs["ours"], outputs[name]) for name in names[1:]}
    except RuntimeError as error:
        measured.failure = str(error)
    finally:
        for side in sides.values():
            side.close()
    return measured


def stream(count: int, console: Console) -> list[str]:
    """Predict with a small detector on `count` files, and return lines with the memory of the process meanwhile."""
    options = FasterRCNNOptions(
        backbone=ResNetOptions(18, norm="batch"),
        neck=FPNOptions(channels=64),
        rpn=RPNOptions(testing=ProposalCounts(200, 50)),
    )
    config = Config(options, DataOptions(short_side=(96,), long_side=160))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = Checkpoint(build_detector(options, 3), config, ("a", "b", "c"), (1, 2, 3))
        save_checkpoint(small, folder / "small.ckpt")
        draw = random.Random(0)
        for place in range(200):  # of many sizes, read repeatedly
            size = draw.randint(120, 800), draw.randint(120, 800)
            pixels = np.random.default_rng(place).integers(0, 256, (8, 8, 3), np.uint8)
            cv2.imwrite(str(folder / f"{place}.jpg"), cv2.resize(pixels, size, interpolation=cv2.INTER_CUBIC))
        paths = islice(cycle(sorted(folder.glob("*.jpg"))), count)
        model, lines = load(folder / "small.ckpt"), []
        start = time.perf_counter()
        for done, _ in enumerate(model.predict(paths, batch_size=4), start=1):
            if done in (100, 1000) or done % 2500 == 0:
                memory = process_status("VmRSS") / 2**10
                lines.append(f"{done:,} images: {memory:,.0f} MiB, {done / (time.perf_counter() - start):.1f} images/s")
                console.print(lines[-1])
    return lines


# ---- output ----------------------------------------------------------------------------------------------------------


def block(results: Sequence[Measured], lines: Sequence[str], threads: int) -> str:
    """Return the results as Markdown, with everything that is needed to repeat them."""
    text = [f"\n## {date.today()}, from file to boxes\n"]
    text.append(f"`python tools/benchmarks/inference.py {shlex.join(sys.argv[1:])}` on {machine(threads)}\n")
    if results:
        rows = [HEADER, ["---"] * len(HEADER), *(measured.row() for measured in results)]
        text += ["| " + " | ".join(row) + " |" for row in rows] + ["", LEGEND, ""]
    return "\n".join([*text, *(f"- {line}" for line in lines), ""])


def main() -> None:
    """Read the command line, measure and print."""
    present = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", nargs="+", choices=["cpu", "cuda"], default=present, help="default: all available")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8], help="images at a time (default 1 8)")
    every = list(get_args(Precision))
    parser.add_argument("--precision", nargs="+", choices=every, default=every, help="bf16 is very slow on some CPUs")
    parser.add_argument("--compile", action="store_true", help="run our model through torch.compile")
    parser.add_argument("--repeats", type=int, default=11, help="samples of each model (default 11)")
    parser.add_argument("--threads", type=int, default=physical_cores(), help="default: one per physical core")
    parser.add_argument("--images", type=Path, help="folder of photographs, instead of made images")
    parser.add_argument("--stream", type=int, metavar="N", help="measure the memory of predicting on N files instead")
    parser.add_argument("--write", action="store_true", help="append the results to RESULTS.md")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    console, results, lines = Console(), [], []
    if options.stream:
        lines = stream(options.stream, console)
    else:
        results = compare(options, console)
        lines = [f"{one.case}, {name}: {text}" for one in results for name, text in one.agreement.items()]
    if options.write:
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(block(results, lines, options.threads))


def compare(options: argparse.Namespace, console: Console) -> list[Measured]:
    """Measure every case and print the table."""
    table: Any = Table(*HEADER, box=None, pad_edge=False, caption=LEGEND, caption_justify="left")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        files = make_files(Path(folder), options.images)
        for device in options.device:
            gate = Gate(device)
            for batch in options.batch:
                for precision in options.precision:
                    case = Case(device, batch, precision, options.compile)
                    console.print(f"measuring {case}")
                    results.append(measure(case, files, gate, options.repeats, options.threads))
                    table.add_row(*results[-1].row())
    console.print(machine(options.threads))
    console.print(table)
    for one in results:
        for name, text in one.agreement.items():
            console.print(f"{one.case}, {name}: {text}")
    return results


if __name__ == "__main__":
    main()
