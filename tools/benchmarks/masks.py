"""Compare the AP of our Mask R-CNN and of torchvision's heads: same backbone, weights, data, steps and evaluation.

    pip install 'rcnn-family[weights]'
    taskset -c 1 python tools/benchmarks/masks.py --coco data/coco_mini --out runs/masks --write

Six trainings, one after another, with one thread each, of `mask_rcnn` and of torchvision's RPN, box head and mask head:

- `small/mask_rcnn`, from ImageNet weights, on photographs of COCO: the class person;
- the same with all classes taken as one;
- `detect demo --masks`, ResNet-18 + FPN from scratch, on drawn shapes.

Loader, augmentation, optimizer, schedule, averaged weights, pasting of masks and metrics are ours on both sides. A run
that is complete in `--out` is not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

import yaml
from alternating import machine
from step import RESULTS
from torchvision_masks import TorchvisionMaskRCNN

from detect import models
from detect.cli import main as detect
from detect.config import config_to_yaml
from detect.config.demo import demo_config
from detect.curation.shapes import make_shapes

SIDES = ("mask_rcnn", "torchvision_mask_rcnn")
PHOTOGRAPHS = ["--data.short_side=[240]", "--data.long_side=400", "--training.epochs=24", "--training.warmup_steps=50"]
METRICS = ("AP", "AP50", "AP75", "mask_AP", "mask_AP50", "mask_AP75")


def train(out: Path, config: str, root: Path, side: str, options: Sequence[str]) -> dict[str, float]:
    """Train in a process with one thread, unless the run is complete; return its metrics."""
    if not (out / "eval" / "metrics.json").exists():
        command = [sys.executable, __file__, "--train", "-c", config, "--data.workers", "0", f"--model.name={side}"]
        command += ["--data.root", str(root), "--out", str(out), *options]
        print(shlex.join(command), flush=True)
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return json.loads((out / "eval" / "metrics.json").read_text())


def one_class(coco: Path, out: Path) -> Path:
    """Write the annotations of COCO with a single category `object`; the images are links. Return the folder."""
    for path in sorted((coco / "annotations").glob("*.json")):
        content = json.loads(path.read_text())
        content["categories"] = [{"id": 1, "name": "object"}]
        for annotation in content["annotations"]:
            annotation["category_id"] = 1
        (out / "annotations").mkdir(parents=True, exist_ok=True)
        (out / "annotations" / path.name).write_text(json.dumps(content))
    for folder in coco.iterdir():
        if folder.is_dir() and folder.name != "annotations" and not (out / folder.name).exists():
            (out / folder.name).symlink_to(folder.resolve())
    return out


def shapes(out: Path) -> tuple[Path, Path]:
    """Draw the shapes of the demo, once; return the folder and the demo's config with masks."""
    root, config = out / "shapes", out / "shapes.yaml"
    if not root.exists():
        make_shapes(root, images={"train": 590, "val": 60})  # as many as the demo
    demo = demo_config(root, masks=True)
    values = yaml.safe_load(config_to_yaml(replace(demo, data=replace(demo.data, root=Path("data")))))
    config.write_text(yaml.safe_dump(values))
    return root, config


def main() -> None:
    """Parse the command line, train, and print the table."""
    if sys.argv[1:2] == ["--train"]:
        models.MODELS.append(TorchvisionMaskRCNN)
        sys.exit(detect(["train", *sys.argv[2:]]))
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog=__doc__.split("\n", 1)[1],
        formatter_class=argparse.RawTextHelpFormatter,
    )
    data = Path(os.environ.get("DETECT_DATA", "data"))
    parser.add_argument("--coco", type=Path, default=data / "coco_mini", help="COCO with the splits train and val")
    parser.add_argument("--out", type=Path, default=Path("runs/masks"), help="folder of the runs")
    parser.add_argument("--write", action="store_true", help="append the results to RESULTS.md")
    options = parser.parse_args()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    drawn, demo = shapes(out)
    photographs, links = "small/mask_rcnn", ["--data.follow_links=true"]
    cases = {
        "drawn shapes": (str(demo), drawn, []),
        "person": (photographs, options.coco, [*PHOTOGRAPHS, "--data.classes=[person]"]),
        "all as one": (photographs, one_class(options.coco, out / "one_class"), [*PHOTOGRAPHS, *links]),
    }
    lines = [f"## {date.today()}, masks", "", f"`{shlex.join(['python', *sys.argv])}` on {machine(1)}", ""]
    lines += ["| data | model | " + " | ".join(METRICS) + " |", "| --- | --- |" + " --- |" * len(METRICS)]
    for name, (config, root, given) in cases.items():
        for side in SIDES:
            metrics = train(out / f"{name.replace(' ', '_')}_{side}", config, root, side, given)
            values = " | ".join(f"{metrics[metric]:.3f}" for metric in METRICS)
            lines.append(f"| {name} | {side} | {values} |")
            print(lines[-1], flush=True)
    print("\n".join(lines))
    if options.write:
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write("\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
