"""Compare our selective search with OpenCV's: number of windows, recall of the ground truth, and time.

    pip install --no-deps --target build/opencv-contrib opencv-contrib-python-headless
    python tools/benchmarks/selective_search.py --root data/voc2007 --opencv build/opencv-contrib

Only OpenCV's contrib build has it, which cannot be installed beside the headless build that we need. It is therefore
installed into a folder of its own and runs in a process of its own. The two alternate on each image, with the same
number of threads.

Times are medians over the images: wall time, and processor time, which depends less on other load. The ratio is the
median of the images' ratios of wall times. `--k` and `--min-size` replace the initial segmentation of the mode.
"""

from __future__ import annotations

import argparse
import os
import pickle
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import detect
from detect.curation.recall import add_image
from detect.data.decode import decode
from detect.data.read import read
from detect.data.records import Record
from detect.proposals.recall import ProposalRecall
from detect.proposals.selective_search import Mode

ALL = 10**6
TOP = 2000

OPENCV = """
import pickle, sys, time
import cv2
cv2.setNumThreads(int(sys.argv[1]))
search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation
while sys.stdin.buffer.peek(1):
    mode, image = pickle.load(sys.stdin.buffer)
    wall, processor = time.perf_counter(), time.process_time()
    side = search()
    side.setBaseImage(image)
    {"fast": side.switchToSelectiveSearchFast, "quality": side.switchToSelectiveSearchQuality}[mode]()
    boxes = side.process()
    seconds = time.perf_counter() - wall, time.process_time() - processor
    pickle.dump((boxes, *seconds), sys.stdout.buffer)
    sys.stdout.buffer.flush()
"""


@dataclass
class Side:
    """Results of one implementation on all images."""

    name: str
    windows: list[int] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    every: ProposalRecall = field(default_factory=lambda: ProposalRecall((ALL,)))
    top: ProposalRecall = field(default_factory=lambda: ProposalRecall((TOP,)))

    def add(self, record: Record, boxes: np.ndarray, wall: float, processor: float) -> None:
        """Add the boxes of one image, xyxy, best first."""
        self.windows.append(len(boxes))
        self.wall.append(wall)
        self.processor.append(processor)
        add_image(self.every, record, boxes)
        add_image(self.top, record, boxes)

    def row(self) -> list[str]:
        """Return a row of the table, without the ratio."""
        metrics = [metric for recall in (self.every, self.top) for metric in (recall.mabo(), recall.covered(0.5))]
        return [
            self.name,
            f"{statistics.mean(self.windows):,.0f}",
            *("–" if metric is None else f"{metric:.4f}" for metric in metrics),
            f"{statistics.median(self.wall):.3f} s",
            f"{statistics.median(self.processor):.3f} s",
        ]


class OpenCV:
    """OpenCV's selective search in a process that imports the contrib build."""

    def __init__(self, folder: Path, threads: int):
        environment = os.environ | {"PYTHONPATH": str(folder.resolve())}
        command = [sys.executable, "-c", OPENCV, str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)

    def __call__(self, image: np.ndarray, mode: str) -> tuple[np.ndarray, float, float]:
        """Return boxes, xyxy and best first, with wall and processor time in seconds."""
        assert self.process.stdin is not None and self.process.stdout is not None
        pickle.dump((mode, np.ascontiguousarray(image[..., ::-1])), self.process.stdin)
        self.process.stdin.flush()
        boxes, wall, processor = pickle.load(self.process.stdout)
        boxes = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return boxes, wall, processor


def ours(image: np.ndarray, mode: Mode, options: dict[str, Any]) -> tuple[np.ndarray, float, float]:
    """Return boxes and times of our implementation."""
    wall, processor = time.perf_counter(), time.process_time()
    boxes = detect.selective_search(image, mode, **options)
    return boxes, time.perf_counter() - wall, time.process_time() - processor


def main() -> None:
    """Measure and print."""
    arguments = _parse()
    torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(arguments.threads)
    options = {name: getattr(arguments, name) for name in ("threads", "k", "min_size", "min_side")}
    records = read(arguments.root, arguments.split).records
    chosen = np.linspace(0, len(records) - 1, arguments.images or len(records)).round().astype(int)
    theirs = None if arguments.opencv is None else OpenCV(arguments.opencv, arguments.threads)

    metrics = ("MABO", "recall@0.5", f"MABO@{TOP}", f"recall@0.5@{TOP}")
    table = Table("mode", "windows", *metrics, "wall", "processor", "ratio")
    for mode in arguments.modes:
        sides = [Side(f"{mode}, ours"), Side(f"{mode}, OpenCV")]
        warm = decode(records[0].path)
        ours(warm, mode, options)
        if theirs is not None:
            theirs(warm, mode)
        for place in track(chosen, mode, console=Console(stderr=True)):
            image = decode(records[place].path)
            sides[0].add(records[place], *ours(image, mode, options))
            if theirs is not None:
                sides[1].add(records[place], *theirs(image, mode))
        if theirs is None:
            table.add_row(*sides[0].row(), "")
        else:
            ratios = [b / a for a, b in zip(sides[0].wall, sides[1].wall, strict=True)]
            table.add_row(*sides[0].row(), f"{statistics.median(ratios):.1f}")
            table.add_row(*sides[1].row(), "1")
    Console(width=140).print(table)
    print(f"{len(chosen)} images of {arguments.root}, {arguments.threads} threads")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="a data set in any readable format")
    parser.add_argument("--split", default="val")
    parser.add_argument("--opencv", type=Path, help="the folder of the contrib build (default: measure only ours)")
    parser.add_argument("--modes", nargs="+", choices=("fast", "quality"), default=["fast", "quality"])
    parser.add_argument("--images", type=int, help="number of images, evenly spread over the split (default: all)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--k", type=float, nargs="+")
    parser.add_argument("--min-size", type=int)
    parser.add_argument("--min-side", type=float, default=20)
    return parser.parse_args()


if __name__ == "__main__":
    main()
