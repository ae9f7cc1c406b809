"""Time from image files to boxes: our YOLOX, YOLOX's own code, our export in ONNX Runtime, and our Faster R-CNN.

    git clone https://github.com/Megvii-BaseDetection/YOLOX
    python tools/benchmarks/one_stage.py --yolox YOLOX --size tiny --write

The three YOLOX have the same weights, made by YOLOX's code from a seed, and 80 classes. Faster R-CNN is ResNet-18-FPN
with the defaults of `faster_rcnn`. Images are squares of the network's size, so that nothing is resized or padded.
YOLOX's code has its convolutions and norms fused (`--fuse` of its demo), and decodes, pads and postprocesses as in its
demo. Each side runs in a process of its own with the same threads; they take turns on a quiet machine only (see
`alternating.py`).
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
import tempfile
import time
import types
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import cv2
import torch
from alternating import Gate, Remote, duration, machine, physical_cores
from step import RESULTS
from step_sides import Case as Step
from step_sides import pictures

from detect.backbones import ResNetOptions
from detect.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from detect.config import Config
from detect.data.decode import decode
from detect.data.options import DataOptions
from detect.export.export_checkpoint import export_checkpoint
from detect.foreign_weights.import_weights import import_weights
from detect.models import FasterRCNNOptions, build_detector
from detect.prediction.load import load

SIZES = {"nano": (0.33, 0.25, True, 416), "tiny": (0.33, 0.375, False, 416), "s": (0.33, 0.5, False, 640)}
"""Depth, width, depthwise and image size of the networks."""


@dataclass(frozen=True)
class Files:
    """Files that the sides read."""

    images: tuple[Path, ...]
    yolox: Path
    weights: Path
    checkpoint: Path
    onnx: Path
    faster_rcnn: Path


class Side:
    """A detector; the parent process calls `seconds`."""

    def __init__(self, files: Files) -> None:
        self.files = files

    def detect(self, path: Path) -> int:
        """Return the number of detections in a file."""
        raise NotImplementedError

    def seconds(self) -> float:
        """Return the mean seconds per file."""
        start = time.perf_counter()
        for path in self.files.images:
            self.detect(path)
        return (time.perf_counter() - start) / len(self.files.images)


class Ours(Side):
    """`detect.load(FILE).predict(PATH)`, also for an exported file."""

    def __init__(self, files: Files, file: Path) -> None:
        super().__init__(files)
        self.model = load(file)

    def detect(self, path: Path) -> int:
        """Predict one file."""
        (result,) = self.model.predict([path])
        return len(result.boxes)


class Theirs(Side):
    """YOLOX's own code, as in its `tools/demo.py`."""

    def __init__(self, files: Files, size: str) -> None:
        super().__init__(files)
        self.model, self.size = yolox_network(files.yolox, size), SIZES[size][3]
        self.model.load_state_dict(torch.load(files.weights, weights_only=True)["model"])
        from yolox.data.data_augment import ValTransform  # type: ignore[import-not-found]
        from yolox.utils import fuse_model, postprocess  # type: ignore[import-not-found]

        self.model = fuse_model(self.model.eval())
        self.transform, self.postprocess = ValTransform(legacy=False), postprocess

    @torch.no_grad()
    def detect(self, path: Path) -> int:
        """Read, transform and detect, with thresholds equal to ours."""
        pixels, _ = self.transform(cv2.imread(str(path)), None, (self.size, self.size))
        outputs = self.model(torch.from_numpy(pixels).unsqueeze(0).float())
        (found,) = self.postprocess(outputs, 80, 0.01, 0.65)
        return 0 if found is None else len(found)


def yolox_network(folder: Path, size: str) -> Any:
    """Return YOLOX's network from a checkout of its repository."""
    sys.path.insert(0, str(folder))
    for name in ("loguru", "tabulate", "psutil", "thop"):  # of its tools only
        try:
            __import__(name)
        except ImportError:
            module: Any = types.ModuleType(name)
            module.logger = module.profile = None
            module.tabulate = lambda *_, **__: ""
            sys.modules[name] = module
    from yolox.models import YOLOPAFPN, YOLOX, YOLOXHead  # type: ignore[import-not-found]

    depth, width, depthwise, _ = SIZES[size]
    model = YOLOX(YOLOPAFPN(depth, width, depthwise=depthwise), YOLOXHead(80, width, depthwise=depthwise))
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.eps, layer.momentum = 1e-3, 0.03
    model.head.initialize_biases(1e-2)
    return model


def make_files(folder: Path, yolox: Path, size: str) -> Files:
    """Make images and weights in a folder."""
    torch.manual_seed(0)
    side = SIZES[size][3]
    torch.save({"model": yolox_network(yolox, size).state_dict()}, folder / "yolox.pth")
    import_weights("yolox", folder / "yolox.pth", folder / "yolox.ckpt")
    options = FasterRCNNOptions(backbone=ResNetOptions(18, norm="batch"))
    names = tuple(f"class {label}" for label in range(80))
    config = Config(options, DataOptions(short_side=(side,), long_side=side))
    model = build_detector(options, 80)
    save_checkpoint(Checkpoint(model, config, names, tuple(range(1, 81))), folder / "faster_rcnn.ckpt")
    images = []
    for place, picture in enumerate(pictures(Step("infer", "cpu", side, 4, "fp32", False), None)):
        images.append(folder / f"{place}.jpg")
        cv2.imwrite(str(images[-1]), picture.permute(1, 2, 0).numpy()[:side, :side, ::-1])
    onnx = folder / "yolox.onnx"
    export_checkpoint(load_checkpoint(folder / "yolox.ckpt"), onnx, "onnx", [decode(path) for path in images[:2]])
    return Files(tuple(images), yolox, folder / "yolox.pth", folder / "yolox.ckpt", onnx, folder / "faster_rcnn.ckpt")


def measure(files: Files, size: str, repeats: int, threads: int) -> tuple[dict[str, list[float]], int]:
    """Measure the sides in turns; return their seconds, and the number of samples of a busy machine."""
    gate = Gate("cpu")
    sides = {
        "ours": Remote("ours", threads, Ours, files, files.checkpoint),
        "YOLOX": Remote("YOLOX", threads, Theirs, files, size),
        "ONNX Runtime": Remote("ONNX Runtime", threads, Ours, files, files.onnx),
        "our Faster R-CNN": Remote("our Faster R-CNN", threads, Ours, files, files.faster_rcnn),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    busy = 0
    try:
        for side in sides.values():
            side.ready()
            side.ask("seconds")
        for _ in range(repeats):
            for name, side in sides.items():
                busy += not gate.wait()
                seconds[name].append(side.ask("seconds"))
    finally:
        for side in sides.values():
            side.close()
    return seconds, busy


def main() -> None:
    """Read the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--yolox", type=Path, required=True, help="a checkout of YOLOX's repository")
    parser.add_argument("--size", choices=SIZES, default="tiny", help="the network (default tiny)")
    parser.add_argument("--repeats", type=int, default=11, help="samples of each side (default 11)")
    parser.add_argument("--threads", type=int, default=physical_cores(), help="default: one per physical core")
    parser.add_argument("--write", action="store_true", help="append the results to RESULTS.md")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        files = make_files(Path(folder), options.yolox.resolve(), options.size)
        seconds, busy = measure(files, options.size, options.repeats, options.threads)
    lines = [f"## {date.today()}, YOLOX-{options.size} from file to boxes", ""]
    lines += [f"`python tools/benchmarks/one_stage.py {shlex.join(sys.argv[1:])}` on {machine(options.threads)}", ""]
    lines += [f"{busy} samples of a busy machine. Times per image: median (minimum).", ""]
    lines += ["| side | seconds | ours as a fraction |", "| --- | --- | --- |"]
    for name, values in seconds.items():
        ratio = statistics.median(ours / theirs for ours, theirs in zip(seconds["ours"], values, strict=True))
        lines.append(f"| {name} | {duration(statistics.median(values))} ({duration(min(values))}) | {ratio:.2f} |")
    print("\n".join(lines))
    if options.write:
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write("\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
