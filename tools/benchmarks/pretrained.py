"""Measure the effect of initial weights: VOC 2007 and 50 images of BCCD, from ImageNet, from scratch and from VOC.

    pip install 'rcnn-family[weights]'
    taskset -c 1 python tools/benchmarks/pretrained.py --voc data/voc2007 --bccd data/bccd --out runs/pretrained --write

Five trainings of `small/faster_rcnn`, one after another, with one thread each:

- VOC 2007, from ImageNet weights and from scratch;
- 50 random images of BCCD's `train`, from ImageNet weights, from scratch, and from the first detector (`--weights`).

From scratch, all stages are trained and have batch norm instead of frozen norms; all else, the steps included, is the
same. The images are smaller than the config's to save time. A run that is complete in `--out` is not repeated.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from alternating import machine
from step import RESULTS

CONFIG = "small/faster_rcnn"
VOC = shlex.split("--data.short_side [192] --data.long_side 320 --training.epochs 3")
BCCD = shlex.split(
    "--data.train train50 --data.short_side [240] --data.long_side 320 "
    "--training.epochs 20 --training.validate_every 5 --training.warmup_steps 50"
)
SCRATCH = shlex.split("--model.backbone.weights null --model.backbone.norm batch --model.backbone.train_stages null")
IMAGES = 50


def train(out: Path, root: Path, options: Sequence[str]) -> Path:
    """Train in a process with one thread, unless the run is complete; return the run's folder."""
    if not (out / "eval" / "metrics.json").exists():
        command = [sys.executable, "-m", "detect", "train", "-c", CONFIG, "--data.workers", "0"]
        command += ["--data.root", str(root), "--out", str(out), *options]
        print(shlex.join(command), flush=True)
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return out


def few(bccd: Path, out: Path) -> Path:
    """Copy BCCD and add the split `train50`, which depends on the names of the images only; return the copy."""
    if not out.exists():
        staged = Path(tempfile.mkdtemp(dir=out.parent))
        shutil.copytree(bccd, staged, dirs_exist_ok=True)
        splits = staged / "ImageSets" / "Main"
        splits.chmod(0o755)  # the source may be read-only
        names = sorted((splits / "train.txt").read_text().split())
        chosen = sorted(random.Random(0).sample(names, IMAGES))
        (splits / f"train{IMAGES}.txt").write_text("\n".join(chosen) + "\n")
        staged.rename(out)
    return out


def curve(run: Path) -> dict[int, tuple[float, float]]:
    """Return AP and AP50 of each validation by the number of steps."""
    with (run / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["AP50"]]
    return {int(row["step"]) + 1: (float(row["AP"]), float(row["AP50"])) for row in rows}


def table(runs: dict[str, Path]) -> list[str]:
    """Return a table of AP50 and AP, one column for each validation."""
    curves = {name: curve(run) for name, run in runs.items()}
    steps = sorted({step for points in curves.values() for step in points})
    lines = ["| steps | " + " | ".join(f"{step:,}" for step in steps) + " |", "| --- |" + " --- |" * len(steps)]
    for place, metric in ((1, "AP50"), (0, "AP")):
        for name, points in curves.items():
            values = (f"{points[step][place]:.3f}" if step in points else "–" for step in steps)
            lines.append(f"| {name}, {metric} | " + " | ".join(values) + " |")
    return [*lines, ""]


def main() -> None:
    """Parse the command line, train, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog=__doc__.split("\n", 1)[1],
        formatter_class=argparse.RawTextHelpFormatter,
    )
    data = Path(os.environ.get("DETECT_DATA", "data"))
    parser.add_argument("--voc", type=Path, default=data / "voc2007", help="VOC 2007 with the splits train and val")
    parser.add_argument("--bccd", type=Path, default=data / "bccd", help="BCCD with the splits train and val")
    parser.add_argument("--out", type=Path, default=Path("runs/pretrained"), help="folder of the runs")
    parser.add_argument("--write", action="store_true", help="append the results to RESULTS.md")
    options = parser.parse_args()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    small = few(options.bccd, out / "bccd")
    voc = {
        "from ImageNet": train(out / "voc_imagenet", options.voc, VOC),
        "from scratch": train(out / "voc_scratch", options.voc, [*VOC, *SCRATCH]),
    }
    detector = voc["from ImageNet"] / "checkpoints" / "best.ckpt"
    bccd = {
        "from ImageNet": train(out / "bccd_imagenet", small, BCCD),
        "from scratch": train(out / "bccd_scratch", small, [*BCCD, *SCRATCH]),
        "from VOC": train(out / "bccd_voc", small, [*BCCD, "--weights", str(detector)]),
    }
    lines = [f"## {date.today()}, initial weights", "", f"`{shlex.join(['python', *sys.argv])}` on {machine(1)}"]
    lines += ["", "VOC 2007, 500 images of `val`:", "", *table(voc)]
    lines += [f"{IMAGES} images of BCCD, 87 images of `val`:", "", *table(bccd)]
    print("\n".join(lines))
    if options.write:
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write("\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
