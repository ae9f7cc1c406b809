"""Measure on a GPU equality with the CPU, waits, speed and memory, in sections of a minute or two each.

    python tools/benchmarks/gpu.py --out gpu.jsonl [--bccd FOLDER] [--sections ABC]
    python tools/benchmarks/gpu.py --out tiny.jsonl --device cpu --tiny      tries the script itself

Each section runs in a process of its own, with a time limit, and appends a line of JSON to the file; if one fails, the
others still run. Times are of CUDA events and assume that no other work uses the GPU.

A  a step of each model equal to the CPU's in float32 with the same draws; NMS and RoIAlign equal to torchvision's
B  no wait for the GPU in a step, in detection and in validation; waits of Lightning's loop with an EMA, by line
C  training of Faster R-CNN R50-FPN: images a second and memory, ours and torchvision's
D  profile of a training step: the longest kernels, and the share of time in which the GPU is busy
E  inference from tensors and from files, ours and torchvision's
F  images a second of the whole training loop with 2, 8 and 14 workers
G  torch.compile and CUDA graphs: seconds to compile, and of a step
H  BCCD from its config: epochs that fit into the time, AP
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import cv2
import torch
from step_sides import CLASSES, Case, Ours, Side, Torchvision, ground_truths, pictures
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torchvision.ops import nms as torchvision_nms
from torchvision.ops import roi_align as torchvision_roi_align

from detect.backbones import CSPDarknetOptions, PAFPNOptions, ResNetOptions, VGGOptions
from detect.checkpoint import Checkpoint
from detect.config import Config, TrainingOptions, load_config
from detect.config.included import find_config
from detect.curation.shapes import make_shapes
from detect.data.datamodule import DetectionData
from detect.data.options import DataOptions
from detect.models import (
    CascadeRCNNOptions,
    FasterRCNNOptions,
    MaskRCNNOptions,
    PoolingOptions,
    YOLOXOptions,
    build_detector,
)
from detect.ops.nms import nms
from detect.ops.roi_align import multilevel_roi_align
from detect.prediction.predictor import Predictor
from detect.structures import Batch
from detect.training.fit import fit
from detect.training.loop import silence_lightning
from detect.training.module import compiled

LIMITS = {"A": 120, "B": 90, "C": 160, "D": 70, "E": 90, "F": 120, "G": 240, "H": 600}
"""Seconds after which each section is ended."""
BODY = ResNetOptions(depth=18, norm="frozen")
MODELS = {
    "faster_rcnn": FasterRCNNOptions(backbone=BODY),
    "faster_rcnn_c4": FasterRCNNOptions(
        backbone=replace(BODY, depth=50), neck=None, pooling=PoolingOptions(aligned=True)
    ),
    "faster_rcnn_vgg": FasterRCNNOptions(backbone=VGGOptions(depth=11), neck=None),
    "cascade_rcnn": CascadeRCNNOptions(backbone=BODY),
    "mask_rcnn": MaskRCNNOptions(backbone=BODY),
    "yolox_nano": YOLOXOptions(
        backbone=CSPDarknetOptions(width=0.25, depthwise=True),
        neck=PAFPNOptions(width=0.25, depthwise=True),
        depthwise=True,
    ),
}


@dataclass(frozen=True)
class Setting:
    """What the sections are run on."""

    device: torch.device
    tiny: bool
    bccd: Path | None

    @property
    def side(self) -> int:
        """Short side of the images in pixels."""
        return 96 if self.tiny else 800

    @property
    def accelerator(self) -> Literal["cpu", "gpu"]:
        """The device as an option of training."""
        return "gpu" if self.device.type == "cuda" else "cpu"

    @property
    def steps(self) -> int:
        """Steps that are timed."""
        return 2 if self.tiny else 20

    @property
    def batches(self) -> tuple[int, ...]:
        """Batch sizes of training."""
        return (2,) if self.tiny else (2, 8, 16)

    def case(self, what: str, batch: int, precision: Any, masks: bool = False) -> Case:
        """Return a case of the sides."""
        return Case(what, self.device.type, self.side, batch, precision, compile=False, masks=masks)


# ---- A: equality -----------------------------------------------------------------------------------------------------


def equality(setting: Setting) -> dict[str, Any]:
    """Compare with the CPU and with torchvision."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    found: dict[str, Any] = {name: _step_difference(options, setting) for name, options in MODELS.items()}
    found["nms"] = _nms_differences(setting.device, 5 if setting.tiny else 200)
    found["roi_align"] = _roi_align_difference(setting.device)
    losses = max(found[name]["loss"] for name in MODELS)
    gradients = max(found[name]["gradient"] for name in MODELS)
    passed = losses <= 1e-4 and gradients <= 1e-3 and not found["nms"] and found["roi_align"] <= 1e-4
    return {"passed": passed, "largest_loss": losses, "largest_gradient": gradients, **found}


def _step_difference(options: Any, setting: Setting) -> dict[str, float]:
    """Return the largest relative differences of a loss, and of a parameter's gradient."""
    torch.manual_seed(0)
    model = build_detector(options, CLASSES).train()
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0  # each device would draw its own mask
    batch = batch_of(replace(setting, device=torch.device("cpu")), 2, min(setting.side, 256), options.predicts_masks)
    results = []
    for device in (torch.device("cpu"), setting.device):
        model.to(device).zero_grad()
        with same_draws():
            losses = model.loss(batch.to(device))
        sum(losses.values(), start=torch.zeros((), device=device)).backward()
        gradients = {
            name: value.grad.cpu().clone() for name, value in model.named_parameters() if value.grad is not None
        }
        results.append(({name: float(loss.detach()) for name, loss in losses.items()}, gradients))
    (ours, ours_of), (theirs, theirs_of) = results
    loss = max(abs(ours[name] - theirs[name]) / max(abs(ours[name]), 1e-6) for name in ours)
    total = get_total_norm(ours_of.values())
    differences = {name: (ours_of[name] - theirs_of[name]).norm() for name in ours_of}
    relative = [float(differences[name] / ours_of[name].norm().clamp(min=1e-6 * total)) for name in ours_of]
    return {"loss": loss, "gradient": max(relative)}


@contextmanager
def same_draws() -> Iterator[None]:
    """Make `torch.rand` draw the same numbers on every device."""
    generator, rand = torch.Generator().manual_seed(0), torch.rand

    def draw(*shape: Any, device: Any = None, **options: Any) -> Tensor:
        return rand(*shape, generator=generator, **options).to(device)

    with mock.patch.object(torch, "rand", draw):
        yield


def _nms_differences(device: torch.device, lists: int) -> int:
    """Return the number of random lists on which NMS differs from torchvision's; the first is a chain."""
    torch.manual_seed(0)
    left = torch.arange(100.0) * 4
    chain = torch.stack([left, torch.zeros(100), left + 10, torch.ones(100)], dim=1)
    wrong = 0
    for place in range(lists):
        centres, sides = torch.rand(2000, 2) * 300, torch.rand(2000, 2) * 60 + 10
        boxes = torch.cat([centres - sides / 2, centres + sides / 2], dim=1) if place else chain
        threshold = (0.4, 0.5, 0.7)[place % 3]
        keep = nms(boxes.to(device)[None], torch.ones(1, len(boxes), dtype=torch.bool, device=device), threshold)
        expected = torchvision_nms(boxes, torch.arange(len(boxes), 0, -1.0), threshold)
        wrong += keep[0].nonzero().flatten().tolist() != sorted(expected.tolist())
    return wrong


def _roi_align_difference(device: torch.device) -> float:
    """Return the largest relative difference from torchvision's RoIAlign on each level, of outputs and gradients."""
    torch.manual_seed(0)
    strides = [4, 8, 16, 32]
    maps = [torch.randn(2, 256, 256 // stride, 320 // stride) for stride in strides]
    corners = torch.rand(2, 64, 2) * torch.tensor([250.0, 200.0])
    boxes = torch.cat([corners, corners + torch.rand(2, 64, 2) * 60 + 2], dim=-1)
    levels = torch.randint(0, 4, (2, 64))
    features = [level.to(device, memory_format=torch.channels_last).requires_grad_() for level in maps]
    pooled = multilevel_roi_align(features, strides, boxes.to(device), levels.to(device), 7)
    upstream = torch.randn(pooled.shape)
    pooled.backward(upstream.to(device))
    worst = 0.0
    for level, (stride, plain) in enumerate(zip(strides, maps, strict=True)):
        plain = plain.requires_grad_()
        chosen = levels == level
        image = torch.arange(2)[:, None].expand(levels.shape)[chosen]
        rois = torch.cat([image[:, None].float(), boxes[chosen]], dim=1)
        expected = torchvision_roi_align(plain, rois, 7, 1 / stride, 2, False)
        expected.backward(upstream[chosen.flatten()])
        gradient = features[level].grad
        assert gradient is not None and plain.grad is not None
        pairs = (expected.detach(), pooled.detach().cpu()[chosen.flatten()]), (plain.grad, gradient.cpu())
        worst = max(worst, *(float((one - other).abs().max() / one.abs().max()) for one, other in pairs))
    return worst


def batch_of(setting: Setting, count: int, side: int, masks: bool = False) -> Batch:
    """Return a batch on the setting's device."""
    case = Case("train", "cpu", side, count, "fp32", compile=False, masks=masks)
    return Ours.batch_of(case, pictures(case, None), *ground_truths(case)).to(setting.device)


# ---- B: waits --------------------------------------------------------------------------------------------------------


def waits(setting: Setting) -> dict[str, Any]:
    """Run steps in which PyTorch raises on every wait, and Lightning's loop, whose waits are counted."""
    clean = []
    for name, options in MODELS.items():
        model = build_detector(options, CLASSES).to(setting.device).train()
        batch = batch_of(
            replace(setting, device=torch.device("cpu")), 2, min(setting.side, 256), options.predicts_masks
        )
        batch = batch.pin_memory() if setting.device.type == "cuda" else batch
        optimizer = torch.optim.SGD(model.parameters(), 1e-8, fused=True)
        for place in range(2):
            if place and setting.device.type == "cuda":
                torch.cuda.set_sync_debug_mode("error")  # the first step selects algorithms and compiles
            there = batch.to(setting.device, non_blocking=True)
            torch.stack(list(model.loss(there).values())).sum().backward()
            optimizer.step()
            with torch.no_grad():
                model.eval().validate(there)
            model.train()
        if setting.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
        clean.append(name)
    return {"passed": len(clean) == len(MODELS), "models": clean, "loop": _waits_of_loop(setting)}


def _waits_of_loop(setting: Setting) -> dict[str, int]:
    """Return the waits of steps of the whole loop with an EMA, by line."""
    found: Counter[str] = Counter()

    def note(message: Any, *_: Any, **__: Any) -> None:
        if "synchroniz" in str(message):
            lines = [(Path(one.filename), one.lineno) for one in traceback.extract_stack()]
            ours = [(path, line) for path, line in lines if {"detect", "lightning"} & set(path.parts)]
            found[f"{ours[-1][0].name}:{ours[-1][1]}" if ours else "?"] += 1

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        if setting.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        train_shapes(setting, Path(folder), images=24, workers=1, ema=0.99)
        if setting.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    return dict(found)


def train_shapes(setting: Setting, folder: Path, images: int, workers: int, side: int = 96, **training: Any) -> float:
    """Train a small detector on drawn shapes; return the seconds."""
    root = folder / "shapes"
    if not root.exists():
        make_shapes(root, images={"train": images, "val": 4}, size=(side, side * 4 // 3), progress=False)
    batch = 2 if side < 200 else 8
    data = DataOptions(
        root=root, short_side=(side,), long_side=side * 4 // 3, batch_size=batch, workers=workers, val=None
    )
    options = TrainingOptions(epochs=1, accelerator=setting.accelerator, devices=1, precision="auto", **training)
    config = Config(FasterRCNNOptions(backbone=BODY), data, options)
    silence_lightning()
    start = time.perf_counter()
    fit(config, DetectionData(config.data), folder / f"run{workers}")
    return time.perf_counter() - start


# ---- C, D, E: speed --------------------------------------------------------------------------------------------------


def training(setting: Setting) -> dict[str, Any]:
    """Return seconds, images a second and peak memory of a training step."""
    found: dict[str, Any] = {}
    for batch in setting.batches:
        for precision in ("fp32", "bf16"):
            case = setting.case("train", batch, precision)
            for name, side in (("ours", Ours), ("torchvision", Torchvision)):
                found[f"{name} {batch} {precision}"] = measured(side, case, setting)
    found |= ratios(found, [f"{batch} {precision}" for batch in setting.batches for precision in ("fp32", "bf16")])
    return found


def measured(make: type[Side], case: Case, setting: Setting) -> dict[str, float] | str:
    """Return seconds of a step, images a second and GiB; or the error, such as too little memory."""
    try:
        side: Side | None = make(case, None)
        assert side is not None
        for _ in range(5 if not setting.tiny else 1):
            side.run()
        if setting.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        gc.disable()
        seconds = median_seconds(side.run, setting)
        peak = torch.cuda.max_memory_allocated() / 2**30 if setting.device.type == "cuda" else 0.0
        return {"seconds": seconds, "images_a_second": side.case.batch / seconds, "GiB": peak}
    except RuntimeError as error:
        return " ".join(str(error).split())[:200]
    finally:
        side = None
        gc.enable()
        gc.collect()
        if setting.device.type == "cuda":
            torch.cuda.empty_cache()


def median_seconds(step: Callable[[], Any], setting: Setting) -> float:
    """Return the median time between the ends of steps, which are started without waits between them."""
    if setting.device.type != "cuda":
        times = []
        for _ in range(setting.steps):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        return statistics.median(times)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(setting.steps + 1)]
    events[0].record()
    for event in events[1:]:
        step()
        event.record()
    torch.cuda.synchronize()
    return statistics.median(first.elapsed_time(last) for first, last in pairwise(events)) / 1e3


def ratios(found: dict[str, Any], cases: list[str]) -> dict[str, float]:
    """Return our speedup over torchvision in each case that both ran."""
    pairs = {case: (found[f"ours {case}"], found[f"torchvision {case}"]) for case in cases}
    return {
        f"times as fast {case}": theirs["seconds"] / ours["seconds"]
        for case, (ours, theirs) in pairs.items()
        if isinstance(ours, dict) and isinstance(theirs, dict)
    }


def profile(setting: Setting) -> dict[str, Any]:
    """Return the longest kernels of a training step, and the share of the time in which a kernel runs."""
    side = Ours(setting.case("train", setting.batches[-1], "bf16"), None)
    for _ in range(3):
        side.run()
    activities = [torch.profiler.ProfilerActivity.CPU]
    if setting.device.type == "cuda" and not setting.tiny:  # its library needs a real driver
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    start = time.perf_counter()
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(3):
            side.run()
        if setting.device.type == "cuda":
            torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    events = [event for event in profiler.key_averages() if event.self_device_time_total > 0]
    busy = sum(event.self_device_time_total for event in events) / 1e6
    longest = sorted(events, key=lambda event: -event.self_device_time_total)[:40]
    kernels = {event.key[:100]: [event.self_device_time_total / 3e3, event.count / 3] for event in longest}
    return {"seconds": seconds / 3, "busy": busy / seconds, "milliseconds and calls a step": kernels}


def inference(setting: Setting) -> dict[str, Any]:
    """Return times of detection from tensors, and from files of ours."""
    found: dict[str, Any] = {}
    sizes = (1,) if setting.tiny else (1, 8)
    for batch in sizes:
        for precision in ("fp32", "bf16"):
            case = setting.case("infer", batch, precision)
            for name, side in (("ours", Ours), ("torchvision", Torchvision)):
                found[f"{name} {batch} {precision}"] = measured(side, case, setting)
    found |= ratios(found, [f"{batch} {precision}" for batch in sizes for precision in ("fp32", "bf16")])
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for place, picture in enumerate(pictures(setting.case("infer", 4, "fp32"), None)):
            paths.append(Path(folder) / f"{place}.jpg")
            cv2.imwrite(str(paths[-1]), picture.permute(1, 2, 0).numpy()[..., ::-1])
        config = Config(FasterRCNNOptions(), DataOptions(short_side=(setting.side,), long_side=setting.side * 5 // 3))
        names = tuple(f"class {label}" for label in range(CLASSES))
        predictor = Predictor(Checkpoint(build_detector(config.model, CLASSES), config, names, tuple(range(CLASSES))))
        count = 4 if setting.tiny else 128
        files = (paths * count)[:count]
        for batch in sizes:
            options: Any = {"device": setting.device, "precision": "auto", "batch_size": batch, "workers": 8}
            list(predictor.predict(files[:8], **options))
            start = time.perf_counter()
            list(predictor.predict(files, **options))
            found[f"files a second, batch {batch}"] = count / (time.perf_counter() - start)
    return found


# ---- F, G, H: the loop, compilation, BCCD ----------------------------------------------------------------------------


def loading(setting: Setting) -> dict[str, Any]:
    """Return images a second of the whole training loop, start included, by number of workers."""
    images, found = (8 if setting.tiny else 1600), {}
    with tempfile.TemporaryDirectory() as folder:
        for workers in (0, 1) if setting.tiny else (2, 8, 14):
            side = 96 if setting.tiny else 640
            seconds = train_shapes(setting, Path(folder), images, workers, side)
            found[f"{workers} workers"] = images / seconds
    return found


def compilation(setting: Setting) -> dict[str, Any]:
    """Return the seconds of the first and of later steps of a compiled loss, without and with CUDA graphs."""
    found: dict[str, Any] = {}
    for batch in setting.batches[:1]:
        for graphs in (False, True):
            side = Ours(setting.case("train", batch, "bf16"), None)
            options = TrainingOptions(compile=True, cuda_graphs=graphs, accelerator=setting.accelerator)
            if setting.tiny:  # Inductor takes minutes on the CPU
                side.loss = torch.compile(side.model.loss, fullgraph=True, dynamic=False, backend="eager")
            else:
                side.loss = compiled(side.model.loss, options)
            start = time.perf_counter()
            side.run()
            first = time.perf_counter() - start
            for _ in range(3):
                side.run()
            name = f"batch {batch}, {'CUDA graphs' if graphs else 'compiled'}"
            found[name] = {"first_seconds": first, "seconds": median_seconds(side.run, setting)}
    return found


def bccd(setting: Setting) -> dict[str, Any]:
    """Train BCCD from its config; return the time and the metrics."""
    if setting.bccd is None:
        return {"skipped": "no folder; give --bccd"}
    config = load_config(find_config(Path("bccd/faster_rcnn")))
    training = replace(config.training, accelerator=setting.accelerator, devices=1, precision="auto")
    training = replace(training, epochs=1) if setting.tiny else training
    config = replace(config, data=replace(config.data, root=setting.bccd), training=training)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        fit(config, DetectionData(config.data), Path(folder))
        rows = (Path(folder) / "metrics.csv").read_text().splitlines()
    return {"seconds": time.perf_counter() - start, "columns": rows[0], "last": rows[-1]}


SECTIONS = {
    "A": equality,
    "B": waits,
    "C": training,
    "D": profile,
    "E": inference,
    "F": loading,
    "G": compilation,
    "H": bccd,
}


def run_section(letter: str, setting: Setting) -> None:
    """Run a section in this process and print its result as JSON."""
    print(json.dumps(SECTIONS[letter](setting)), flush=True)


def main() -> None:
    """Run the sections, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpu.jsonl"), help="file that lines are appended to")
    parser.add_argument("--sections", default="".join(SECTIONS), help="letters of the sections (default all)")
    parser.add_argument("--device", default="cuda", help="cuda or cpu (default cuda)")
    parser.add_argument("--tiny", action="store_true", help="tiny images and few steps, to try the script")
    parser.add_argument("--bccd", type=Path, help="folder of the BCCD data set, for section H")
    parser.add_argument("--run", choices=SECTIONS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run_section(options.run, Setting(torch.device(options.device), options.tiny, options.bccd))
        sys.stdout.flush()
        os._exit(0)  # torch's thread of the backward pass can abort an interpreter that shuts down
    versions = {"python": sys.version.split()[0], "torch": torch.__version__, "time": time.strftime("%F %T")}
    if options.device == "cuda":
        versions["device"] = torch.cuda.get_device_name()
    for letter in options.sections:
        command = [sys.executable, __file__, *sys.argv[1:], "--run", letter]
        start, limit = time.perf_counter(), LIMITS[letter] * (3 if options.tiny else 1)
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=limit)
            result = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {"code": done.returncode}
        except subprocess.TimeoutExpired:
            result = {"timeout": limit}
        line = {"section": letter, "wall": round(time.perf_counter() - start, 1), **versions, **result}
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
