"""Time and memory of reading a COCO file as large as COCO's own, the first time and afterwards, and of its workers.

    python tools/benchmarks/annotations.py --write

The images are 118,287 links to a few files, the annotations random boxes with polygons. Each measurement is a process
of its own; the files are in the page cache. Memory of reading is the peak less that of the imports; of training, the
sum over all processes, in which what they share counts once (PSS).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shlex
import subprocess
import sys
import tempfile
import time
from datetime import date
from math import cos, pi, sin
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from alternating import machine, physical_cores
from PIL import Image

from detect.data.datamodule import DetectionData
from detect.data.options import DataOptions
from detect.data.read import read

RESULTS = Path(__file__).with_name("RESULTS.md")
IMAGES, SIZES = 118_287, [(640, 480), (480, 640), (640, 427), (500, 375), (640, 640)]
STEPS = 200


def write_data(root: Path, annotations: int) -> None:
    """Write a data set with this many annotations."""
    (root / "train").mkdir()
    (root / "annotations").mkdir()
    draw = random.Random(0)
    images = []
    sources = [[root / f"{width}x{height}.jpg", 0] for width, height in SIZES]
    for (source, _), (width, height) in zip(sources, SIZES, strict=True):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)).save(str(source))
    for number in range(1, IMAGES + 1):
        place = number % len(SIZES)
        name = f"{number:012d}.jpg"
        if sources[place][1] == 60_000:  # file systems limit the number of links
            copy = root / f"{number}.jpg"
            copy.write_bytes(Path(str(sources[place][0])).read_bytes())
            sources[place] = [copy, 0]
        os.link(str(sources[place][0]), root / "train" / name)
        sources[place][1] = int(str(sources[place][1])) + 1
        width, height = SIZES[place]
        url = f"http://images.cocodataset.org/train2017/{name}"
        images.append({"file_name": name, "coco_url": url, "height": height, "width": width, "id": number})
    with (root / "annotations" / "instances_train.json").open("w") as file:
        file.write(f'{{"images": {json.dumps(images)}, "annotations": [')
        for number in range(1, annotations + 1):
            file.write(", " * (number > 1) + json.dumps(_annotation(number, draw)))
        categories = [{"id": id, "name": f"class {id}"} for id in range(1, 81)]
        file.write(f'], "categories": {json.dumps(categories)}}}')


def _annotation(number: int, draw: random.Random) -> dict[str, Any]:
    image = draw.randint(1, IMAGES)
    width, height = SIZES[image % len(SIZES)]
    w, h = draw.uniform(8, width / 2), draw.uniform(8, height / 2)
    x, y, corners = draw.uniform(0, width - w), draw.uniform(0, height - h), draw.randint(8, 40)
    angles = [2 * pi * corner / corners for corner in range(corners)]
    outline = [round(v, 2) for a in angles for v in (x + w * (1 + cos(a)) / 2, y + h * (1 + sin(a)) / 2)]
    box = [round(value, 2) for value in (x, y, w, h)]
    ids = {"id": number, "image_id": image, "category_id": draw.randint(1, 80)}
    return {"segmentation": [outline], "area": round(0.78 * w * h, 4), "iscrowd": 0, "bbox": box, **ids}


def measure(what: str, root: Path) -> dict[str, Any]:
    """Return seconds and MiB of reading a split, or of training's workers."""
    start = time.perf_counter()
    if what == "read":
        before = _status("VmRSS")
        images = len(read(root, "train", progress=False))
        seconds = time.perf_counter() - start
        return {"images": images, "seconds": seconds, "MiB": _status("VmHWM") - before}
    options = DataOptions(root=root, val=None, batch_size=2, workers=int(what), short_side=(320,), long_side=500)
    data = DetectionData(options, masks=True)
    done = SimpleNamespace(current=SimpleNamespace(processed=0, completed=0))
    loops = SimpleNamespace(epoch_progress=done, epoch_loop=SimpleNamespace(batch_progress=done))
    data.trainer = SimpleNamespace(fit_loop=loops)  # type: ignore[assignment]
    batches = iter(data.train_dataloader())
    next(batches)
    seconds = time.perf_counter() - start
    for _ in range(STEPS):
        next(batches)
    own = str(os.getpid())
    children = subprocess.run(["pgrep", "-P", own], capture_output=True, text=True, check=True).stdout.split()
    return {"seconds": seconds, "MiB": sum(_shared(pid) for pid in (own, *children))}


def _status(name: str) -> float:
    """Return a number of MiB in the status of this process."""
    found = re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 2**10


def _shared(pid: str) -> float:
    """Return the proportional resident memory of a process in MiB, 0 if it has ended."""
    path = Path(f"/proc/{pid}/smaps_rollup")
    found = re.search(r"^Pss:\s+(\d+)", path.read_text(), re.MULTILINE) if path.exists() else None
    return int(found[1]) / 2**10 if found else 0.0


def main() -> None:
    """Measure and print, and append to RESULTS.md with --write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--annotations", type=int, default=860_000, metavar="N", help="default: %(default)s")
    parser.add_argument("--write", action="store_true", help="append the results to RESULTS.md")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure[0], Path(options.measure[1]))), flush=True)
        os._exit(0)  # without waiting for the workers
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        root.mkdir()
        write_data(root, options.annotations)
        size = (root / "annotations" / "instances_train.json").stat().st_size / 2**20
        environment = os.environ | {"XDG_CACHE_HOME": folder}
        found = []
        for what in ("read", "read", "1", "4"):
            command = [sys.executable, __file__, "--measure", what, str(root)]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
            print(what, found[-1], flush=True)
    first, again, one, four = found
    lines = [
        f"## {date.today()}, reading annotations",
        "",
        f"`python {shlex.join(sys.argv)}`, {machine(physical_cores())}",
        "",
        f"{IMAGES:,} images, {options.annotations:,} annotations with polygons, {size:,.0f} MiB of JSON:",
        "",
        "| | time | memory |",
        "| --- | --- | --- |",
        f"| read and checked, the first time | {first['seconds']:.1f} s | {first['MiB']:,.0f} MiB |",
        f"| afterwards, from the cache | {again['seconds']:.1f} s | {again['MiB']:,.0f} MiB |",
        f"| to the first batch, one worker; memory after {STEPS} | {one['seconds']:.1f} s | {one['MiB']:,.0f} MiB |",
        f"| to the first batch, four workers | {four['seconds']:.1f} s | {four['MiB']:,.0f} MiB |",
    ]
    print("\n".join(lines))
    if options.write:
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write("\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
