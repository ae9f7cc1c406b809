"""One step of our Faster R-CNN beside torchvision's: training and inference, on the same weights, images and targets.

    python tools/benchmarks/step.py --device cpu --repeats 11 --write

Both are ResNet-50-FPN with frozen norms, three trainable stages and 91 classes, background included. Each side is a
process of its own with the same threads and the same allocator; they take turns, A B A B, and of the ratios of
neighbours the median is told. A sample is taken only while a matrix product runs within 1.3 times of its best, so that
a busy machine delays the figures instead of spoiling them; samples that had to do without are counted.

Ours gets uint8 and normalises on the device, torchvision gets floats in 0 … 1 that lie on the device already. Precision
is the same on both sides: torchvision's bf16 is autocast, ours is autocast in training and bf16 weights in inference.
torchvision runs eagerly throughout, as it ships.

Waits are the operations of one eager step whose result's shape, or a Python number, follows from the data: a GPU has to
finish all its work for each of them. There our timed steps run under `torch.cuda.set_sync_debug_mode("error")`.
"""

from __future__ import annotations

import argparse
import ctypes
import shlex
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, get_args

import cv2
import torch
from alternating import Gate, Remote, agreement, duration, machine, physical_cores, process_status
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.detection import FasterRCNN as TorchvisionFasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from detect.data.decode import decode
from detect.foreign_weights.torchvision import faster_rcnn_from_torchvision
from detect.models import Detector
from detect.ops.winograd import train_with_winograd
from detect.prediction.prepare import Precision, prepare
from detect.structures import Batch, Images, Targets
from detect.training.module import fastest_layout

RESULTS = Path(__file__).with_name("RESULTS.md")
CLASSES = 91
OBJECTS = 8
NAMES = ("ours", "torchvision")


@dataclass(frozen=True)
class Case:
    """What is measured: one row of the table. Written as, say, "train cuda 800 × 2 bf16": short side × batch."""

    what: str
    """`train` or `infer`."""
    device: str
    size: int
    """Pixels of the short side; the long one has a third more."""
    batch: int
    precision: Precision
    compile: bool

    def __str__(self) -> str:
        compiled = " compiled" if self.compile else ""
        return f"{self.what} {self.device} {self.size} × {self.batch} {self.precision}{compiled}"


def cases(device: str, size: int, what: str, precisions: Sequence[Precision], compiled: bool) -> list[Case]:
    """The rows for a device."""
    training = [("train", 2)]
    inference = [("infer", batch) for batch in ((1,) if device == "cpu" else (1, 8, 16))]
    return [
        Case(kind, device, size, batch, precision, compile)
        for kind, batch in training + inference
        if what in ("all", kind)
        for precision in precisions
        for compile in ((False, True) if compiled else (False,))
    ]


# ---- the input -------------------------------------------------------------------------------------------------------


def pictures(case: Case, folder: Path | None) -> Tensor:
    """uint8 images [B, 3, H, W]: those of a folder, stretched to the case's size, or clouds of colour with grain."""
    height, width = case.size, case.size * 4 // 3
    if folder is not None:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
        if not paths:
            sys.exit(f"{folder}: no .jpg or .png in it; give a folder of images")
        chosen = [paths[place % len(paths)] for place in range(case.batch)]
        images = [cv2.resize(decode(path), (width, height), interpolation=cv2.INTER_AREA) for path in chosen]
        return torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image in images])
    generator = torch.Generator().manual_seed(0)
    clouds = [
        F.interpolate(torch.rand(case.batch, 3, 3 * n, 4 * n, generator=generator), (height, width), mode="bicubic")
        for n in (2, 6, 18)
    ]
    grain = torch.rand(case.batch, 3, height, width, generator=generator)
    return ((0.5 * clouds[0] + 0.3 * clouds[1] + 0.15 * clouds[2] + 0.05 * grain) * 255).clamp(0, 255).to(torch.uint8)


def truths(case: Case) -> tuple[Tensor, Tensor]:
    """Boxes [B, 8, 4] from a tenth to half of the image's sides, and labels [B, 8] without background."""
    generator = torch.Generator().manual_seed(1)
    extent = torch.tensor([case.size * 4 // 3, case.size], dtype=torch.float32)
    sides = (0.1 + 0.4 * torch.rand(case.batch, OBJECTS, 2, generator=generator)) * extent
    corners = torch.rand(case.batch, OBJECTS, 2, generator=generator) * (extent - sides)
    labels = torch.randint(CLASSES - 1, (case.batch, OBJECTS), generator=generator)
    return torch.cat([corners, corners + sides], dim=-1), labels


def torchvision_model(size: int) -> TorchvisionFasterRCNN:
    """torchvision's network with weights from a seed that behave: activations that stay small, some sure detections."""
    torch.manual_seed(2)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3
    )
    model = TorchvisionFasterRCNN(backbone, CLASSES, min_size=size)
    with torch.no_grad():
        for name, value in model.named_buffers():
            if name.endswith("bn3.weight"):  # else each of 16 residual blocks would add its input's variance once more
                value.fill_(0.2)
        nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.5)
    return model


# ---- the two sides, each in a process of its own ---------------------------------------------------------------------


class Side:
    """A model and its input on a device; the methods without arguments are what the parent may ask for."""

    def __init__(self, case: Case, folder: Path | None) -> None:
        self.case, self.device = case, torch.device(case.device)
        self.resident = process_status("VmRSS") if case.device == "cpu" else 0
        self.pixels, (self.boxes, self.labels) = pictures(case, folder), truths(case)
        self.waits: Counter[str] = Counter()

    def run(self) -> Any:
        """One step; in inference its detections."""
        raise NotImplementedError

    def guard(self) -> AbstractContextManager[None]:
        """What a timed step runs under."""
        return nullcontext()

    def detections(self) -> list[dict[str, Tensor]]:
        """Boxes, scores and labels 0 … 89 of each image."""
        raise NotImplementedError

    def waits_counted(self) -> Counter[str]:
        """The data-dependent operations of a step, counted once, eagerly."""
        return self.waits

    def warm(self) -> None:
        """Compiles, and settles what is chosen at the first steps; memory counts from then on."""
        self.run()
        self._forget_peak()
        for _ in range(1 if self.device.type == "cpu" else 9):
            self.run()

    def seconds(self) -> float:
        """How long one step takes."""
        self._wait()
        start = time.perf_counter()
        with self.guard():
            self.run()
        self._wait()
        return time.perf_counter() - start

    def count(self) -> Counter[str]:
        """The data-dependent operations of one step, by name."""
        with DataDependent() as mode:
            self.run()
        return mode.counts

    def memory(self) -> float:
        """Peak memory of the model and its steps in GiB; on the CPU that of the process, less its libraries."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 2**30
        return (process_status("VmHWM") - self.resident) / 2**20

    def learn(self, model: nn.Module) -> None:
        """Sets up what a training step needs; the rate is so small that the weights stay where they are."""
        self.optimizer = torch.optim.SGD(
            [parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-8, momentum=0.9
        )

    def descend(self, losses: dict[str, Tensor]) -> None:
        """Backward pass and SGD step."""
        self.optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        self.optimizer.step()

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision where the case has bf16."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.case.precision == "bf16")

    def _forget_peak(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:  # what building the model took goes back to the system, and Linux begins its high-water mark anew
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


class Ours(Side):
    """`detect`'s Faster R-CNN."""

    def __init__(self, case: Case, folder: Path | None) -> None:
        super().__init__(case, folder)
        model = faster_rcnn_from_torchvision(torchvision_model(case.size).state_dict(), frozen_eps=1e-5).to(self.device)
        self.batch = self._batch().to(self.device)
        self.model: Detector = model
        if case.what == "train":
            on_cpu = self.device.type == "cpu"
            model.train().lay_out(fastest_layout(on_cpu))  # both as `detect train` does
            if on_cpu:
                train_with_winograd(model)
            self.learn(model)
        else:
            self.model = prepare(model, case.precision)
        self.loss = self.model.loss
        self.waits = self.count()
        if case.compile and case.what == "train":
            self.loss = torch.compile(model.loss, fullgraph=True)
        elif case.compile:
            self.model = prepare(model, case.precision, compile=True)

    def run(self) -> Any:
        """A training step, or the detections in padded tensors."""
        if self.case.what == "infer":
            return self.model.detect(self.batch.images)
        with self.autocast():
            losses = self.loss(self.batch)
        return self.descend(losses)

    def guard(self) -> AbstractContextManager[None]:
        """On a GPU, every wait raises."""
        return NoWaiting() if self.device.type == "cuda" else nullcontext()

    def detections(self) -> list[dict[str, Tensor]]:
        """Without the padding."""
        found = self.run().to("cpu")
        return [
            {"boxes": found.boxes[i, valid], "scores": found.scores[i, valid], "labels": found.labels[i, valid]}
            for i, valid in enumerate(found.valid)
        ]

    def _batch(self) -> Batch:
        """The images in the corner of a canvas whose sides are multiples of 32, as torchvision pads them too."""
        count, _, height, width = self.pixels.shape
        canvas = F.pad(self.pixels, (0, -width % 32, 0, -height % 32)).to(memory_format=torch.channels_last)
        full = torch.ones(count, OBJECTS, dtype=torch.bool)
        return Batch(
            images=Images(canvas, torch.tensor([[height, width]] * count)),
            targets=Targets(self.boxes, self.labels, valid=full, crowd=~full),
            ids=torch.arange(count),
            scales=torch.ones(count, 2),
        )


class Torchvision(Side):
    """torchvision's Faster R-CNN."""

    def __init__(self, case: Case, folder: Path | None) -> None:
        super().__init__(case, folder)
        self.model = torchvision_model(case.size).to(self.device)
        self.images = [image.to(self.device).float() / 255 for image in self.pixels]
        self.targets = [
            {"boxes": boxes.to(self.device), "labels": labels.to(self.device) + 1}
            for boxes, labels in zip(self.boxes, self.labels, strict=True)
        ]
        if case.what == "train":
            self.model.train()
            self.learn(self.model)
        else:
            self.model.eval()
        self.waits = self.count()

    def run(self) -> Any:
        """A training step, or a dictionary of detections for each image."""
        if self.case.what == "infer":
            with torch.no_grad(), self.autocast():
                return self.model(self.images)
        with self.autocast():
            losses = self.model(self.images, self.targets)
        return self.descend(losses)

    def detections(self) -> list[dict[str, Tensor]]:
        """With labels that begin at 0."""
        found = [{name: value.float().cpu() for name, value in one.items()} for one in self.run()]
        return [{**one, "labels": one["labels"].long() - 1} for one in found]


SIDES = {"ours": Ours, "torchvision": Torchvision}


class DataDependent(TorchDispatchMode):
    """Counts the operations that a GPU would have to wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._waits(function, args):
            self.counts[str(function.overloadpacket)] += 1
        return function(*args, **(kwargs or {}))

    def _waits(self, function: Any, args: Any) -> bool:
        name = str(function.overloadpacket)
        if name in ("aten.index", "aten.index_put", "aten.index_put_"):  # a mask becomes indices by `nonzero`
            return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        tags = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
        return name == "torchvision.nms" or bool(tags & set(function.tags))


class NoWaiting:
    """A context in which PyTorch raises where the GPU would be waited for."""

    def __enter__(self) -> None:
        torch.cuda.set_sync_debug_mode("error")

    def __exit__(self, *_: object) -> None:
        torch.cuda.set_sync_debug_mode("default")


# ---- measuring -------------------------------------------------------------------------------------------------------


@dataclass
class Measured:
    """What came out of a case, by side."""

    case: Case
    seconds: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in NAMES})
    memory: dict[str, float] = field(default_factory=dict)
    waits: dict[str, Counter[str]] = field(default_factory=dict)
    busy: int = 0
    """Samples that were taken though the machine was busy."""
    agreement: str = ""
    failure: str = ""

    def ratio(self) -> float:
        """How many times as fast ours is: the median over neighbouring samples."""
        return statistics.median(theirs / ours for ours, theirs in zip(*(self.seconds[n] for n in NAMES), strict=True))

    def row(self) -> list[str]:
        """The cells of the table."""
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
    "case: short side × batch. Times: median (least) of a step. ratio: how many times as fast ours is. GiB: peak "
    "memory, and waits: data-dependent operations, ours / torchvision. busy: samples taken though the machine was busy."
)


def measure(case: Case, gate: Gate, options: argparse.Namespace) -> Measured:
    """Both sides of one case in turns."""
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


# ---- telling ---------------------------------------------------------------------------------------------------------


def tell(results: Sequence[Measured], console: Console) -> None:
    """The results as tables."""
    table = Table(*HEADER, box=None, pad_edge=False, caption=LEGEND, caption_justify="left")
    for measured in results:
        table.add_row(*measured.row())
    console.print(table)
    for line in remarks(results):
        console.print(line)


def remarks(results: Sequence[Measured]) -> list[str]:
    """What the table has no room for: agreement, and the data-dependent operations by name."""
    lines = [f"{measured.case}: {measured.agreement}" for measured in results if measured.agreement]
    for measured in results:
        for name, counts in measured.waits.items():
            if counts and not measured.case.compile:
                listing = ", ".join(f"{count} {operation}" for operation, count in counts.most_common())
                lines.append(f"{measured.case}, {name}: {listing}")
    return lines


def block(results: Sequence[Measured], threads: int) -> str:
    """The results as Markdown, with all that is needed to repeat them."""
    lines = [f"\n## {date.today()}, a step\n"]
    lines.append(f"`python tools/benchmarks/step.py {shlex.join(sys.argv[1:])}` on {machine(threads)}\n")
    rows = [HEADER, ["---"] * len(HEADER), *(measured.row() for measured in results)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", LEGEND, "", *(f"- {line}" for line in remarks(results)), ""]
    return "\n".join(lines)


def main() -> None:
    """Reads the command line, measures and tells."""
    present = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", nargs="+", choices=["cpu", "cuda"], default=present, help="default: all there are")
    parser.add_argument("--sizes", nargs="+", type=int, default=[800], help="short sides in pixels (default 800)")
    parser.add_argument("--repeats", type=int, default=11, help="samples of each side (default 11)")
    parser.add_argument("--what", choices=["train", "infer", "all"], default="all")
    every = list(get_args(Precision))
    parser.add_argument("--precision", nargs="+", choices=every, default=every, help="some CPUs crawl in bf16")
    parser.add_argument("--eager", action="store_true", help="without torch.compile, which takes minutes on a CPU")
    parser.add_argument("--threads", type=int, default=physical_cores(), help="default: one for each physical core")
    parser.add_argument("--images", type=Path, help="a folder of photographs instead of made images")
    parser.add_argument("--write", action="store_true", help="append the results to RESULTS.md")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    console, results = Console(), []
    for device in options.device:
        gate = Gate(device)
        chosen = options.what, options.precision, not options.eager
        for case in [case for size in options.sizes for case in cases(device, size, *chosen)]:
            console.print(f"measuring {case}")
            results.append(measure(case, gate, options))
    console.print(machine(options.threads))
    tell(results, console)
    if options.write:
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(block(results, options.threads))


if __name__ == "__main__":
    main()
