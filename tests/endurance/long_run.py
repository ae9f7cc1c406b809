"""Run `detect predict` and `detect eval` on 100,000 tiny images: memory stays bounded, the progress bar is accurate.

    python tests/endurance/long_run.py [--quick]        2,000 images with --quick

Each command runs in a pseudo-terminal. The memory of the process is read whenever the bar advances by a percent. From
10 % on, `predict` may grow by `PREDICTING` bytes per image, which is next to nothing. `eval` keeps its detections until
the metrics are computed: `EVALUATING` bytes per image with `DETECTIONS` detections. pycocotools then takes `METRICS`
bytes per detection. At half time, the remaining time that the bar shows is compared with the actual one.
"""

from __future__ import annotations

import argparse
import json
import os
import pty
import re
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch

from detect.backbones import LeNetOptions
from detect.checkpoint import Checkpoint, save_checkpoint
from detect.config import Config
from detect.data.options import DataOptions
from detect.models import (
    FasterRCNNOptions,
    PostprocessOptions,
    ProposalCounts,
    RegionHeadOptions,
    RPNOptions,
    build_detector,
)

SIZE, DIFFERENT, DETECTIONS = 32, 200, 5
PREDICTING, EVALUATING, METRICS = 50, 1500, 5000
"""Bytes; see above."""
SLACK = 10e6
"""Bytes by which memory may vary for any number of images."""
CLASSES = ("cell",)
COLOURS = r"\x1b\[[\d;?]*[A-Za-z]"
"""Colours and other control sequences of a terminal."""


def make_data(folder: Path, images: int) -> Path:
    """Write a COCO data set with hard links to a few images, which take no space."""
    rng, pictures = np.random.default_rng(0), folder / "images" / "val"
    for place in (pictures, folder / "annotations", folder / "kinds"):
        place.mkdir(parents=True)
    kinds = [folder / "kinds" / f"{kind}.png" for kind in range(DIFFERENT)]
    for kind in kinds:
        cv2.imwrite(str(kind), cv2.resize(rng.integers(0, 256, (4, 4, 3), np.uint8), (SIZE, SIZE)))
    for number in range(images):
        os.link(kinds[number % DIFFERENT], pictures / f"{number:06}.png")
    corners = rng.integers(0, SIZE // 2, (images, 2)).tolist()
    content = {
        "images": [
            {"id": n + 1, "file_name": f"{n:06}.png", "width": SIZE, "height": SIZE} for n in range(images)
        ],
        "annotations": [
            {"id": n + 1, "image_id": n + 1, "category_id": 1, "bbox": [x, y, 12, 12], "area": 144, "iscrowd": 0}
            for n, (x, y) in enumerate(corners)
        ],
        "categories": [{"id": 1, "name": CLASSES[0]}],
    }  # fmt: skip
    (folder / "annotations" / "instances_val.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def make_checkpoint(path: Path, data: Path) -> Path:
    """Save an untrained detector that returns `DETECTIONS` boxes for every image."""
    torch.manual_seed(0)
    counts = ProposalCounts(40, 20)
    options = FasterRCNNOptions(
        backbone=LeNetOptions(),
        neck=None,
        rpn=RPNOptions(anchor_sizes=(12,), anchor_ratios=(1.0,), training=counts, testing=counts),
        region_head=RegionHeadOptions(batch_size_per_image=16),
        postprocess=PostprocessOptions(score_threshold=0.0, max_detections=DETECTIONS),
    )
    size = {"short_side": (SIZE,), "long_side": SIZE, "canvases": 1}
    config = Config(options, DataOptions(root=data, train="val", eval_batch_size=16, workers=0, **size))
    save_checkpoint(Checkpoint(build_detector(options, 1), config, CLASSES, (1,)), path)
    return path


@dataclass
class Watched:
    """Output, memory and time of a command."""

    text: str = ""
    """The end of the output."""
    resident: dict[int, int] = field(default_factory=dict)
    """Bytes of resident memory at each percent of the bar."""
    left: dict[int, tuple[float, int]] = field(default_factory=dict)
    """Clock and remaining seconds on the bar, at each percent."""
    peak: int = 0
    seconds: float = 0.0
    status: int = 0


def watch(bar: str, *arguments: object) -> Watched:
    """Run the command in a pseudo-terminal; the regular expression `bar` matches progress and remaining time."""
    seen, started, pending = Watched(), time.monotonic(), ""
    process, terminal = pty.fork()
    if not process:
        os.environ |= {"COLUMNS": "120", "TERM": "xterm"}
        os.execv(sys.executable, [sys.executable, "-m", "detect", *map(str, arguments)])
    with suppress(OSError):  # raised by Linux once the other end is closed
        while part := os.read(terminal, 2**16).decode(errors="replace"):
            seen.text, pending = (seen.text + part)[-5000:], pending + part
            memory = memory_of(process)
            seen.peak = max(seen.peak, memory["VmHWM"])
            for match in re.finditer(bar, re.sub(COLOURS, "", pending).replace("\r", "\n")):
                groups = match.groupdict()
                done = groups["percent"] if "percent" in groups else 100 * int(groups["done"]) // int(groups["all"])
                percent = int(done)
                seen.resident.setdefault(percent, memory["VmRSS"])
                hours, minutes, seconds = map(int, match["left"].split(":"))
                seen.left.setdefault(percent, (time.monotonic(), 3600 * hours + 60 * minutes + seconds))
            pending = pending[pending.rfind("\r") :]
    seen.status, seen.seconds = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), time.monotonic() - started
    return seen


def memory_of(process: int) -> Counter[str]:
    """Return bytes of memory now and at the peak, by the kernel's names; 0 for a process that has ended."""
    status = Path(f"/proc/{process}/status").read_text()
    return Counter({name: 1024 * int(size) for name, size in re.findall(r"(VmRSS|VmHWM):\s+(\d+)", status)})


# ---- checks ----------------------------------------------------------------------------------------------------------


def check(name: str, seen: Watched, images: int, allowed: int) -> list[str]:
    """Print the measurements and return the failures."""
    if seen.status:
        return [f"{name} ended with {seen.status}: {seen.text[-500:]}"]
    marks = {at: seen.resident[min(percent for percent in seen.resident if percent >= at)] for at in (10, 50, 100)}
    growth = (marks[100] - marks[10]) / (0.9 * images)
    half = min(percent for percent in seen.left if percent >= 50)
    (when, shown), (end, _) = seen.left[half], seen.left[100]
    megabytes = ", ".join(f"{at} % {size / 1e6:.1f}" for at, size in marks.items())
    print(
        f"{name}: {images:,} images, {seen.seconds:.0f} s; resident MB {megabytes}: {growth:.0f} bytes per image; "
        f"at {half} % the bar showed {shown} s, and it took {end - when:.0f}; at most {seen.peak / 1e6:.1f} MB",
        flush=True,
    )
    wrong = []
    if marks[100] - marks[10] > allowed * images + SLACK:
        wrong.append(f"{name}: {growth:.0f} bytes per image instead of {allowed}")
    if list(seen.resident) != sorted(seen.resident):
        wrong.append(f"{name}: the bar went backwards")
    if not 0.5 * (end - when) - 2 <= shown <= 2 * (end - when) + 2:
        wrong.append(f"{name}: at half time the bar showed {shown} s, but it took {end - when:.0f}")
    return wrong


def main() -> int:
    """Return 0 if all checks pass."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="2,000 images")
    images = 2_000 if parser.parse_args().quick else 100_000
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(Path(folder) / "data", images)
        checkpoint = make_checkpoint(Path(folder) / "a.ckpt", data)
        out, bar = Path(folder) / "out", r"predicting .* (?P<done>\d+)/(?P<all>\d+) .*left (?P<left>\d+:\d+:\d+)"
        source = data / "images" / "val"
        options = ("--ckpt", checkpoint, "--batch-size", 16, "--save", "coco", "csv")
        predicted = watch(bar, "predict", source, "--out", out, *options)
        wrong = check("predict", predicted, images, PREDICTING)
        done = json.loads((out / "manifest.json").read_text())["done"]
        if (done["images"], done["detections"]) != (images, DETECTIONS * images):
            wrong.append(f"predict: {done}")
        bar = r"evaluating val .* (?P<percent>\d+)% (?P<left>\d+:\d+:\d+)"
        evaluated = watch(bar, "eval", "--ckpt", checkpoint, "--split", "val", "--out", Path(folder) / "eval")
        wrong += check("eval", evaluated, images, EVALUATING)
        cost = (evaluated.peak - evaluated.resident[100]) / (DETECTIONS * images)
        print(f"eval: metrics and report take {cost:.0f} bytes per detection")
        if cost * DETECTIONS * images > METRICS * DETECTIONS * images + SLACK:
            wrong.append(f"eval: {cost:.0f} bytes per detection for the metrics instead of {METRICS}")
        results = json.loads((Path(folder) / "eval" / "predictions.json").read_text())
        if len(results) != DETECTIONS * images or len({one["image_id"] for one in results}) != images:
            wrong.append(f"eval: {len(results)} detections")
    print("long run:", "; ".join(wrong) or f"passed with {images:,} images")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
