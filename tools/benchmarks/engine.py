"""CPU seconds of `detect predict --engine ray` beside the plain run, of all processes together.

    python tools/benchmarks/engine.py --ckpt runs/bccd/checkpoints/best.ckpt --images data/voc2007/JPEGImages --write

Both run on a few images and on many; the difference, per image, has no start-up in it. Processes of Ray are found by
their parents in /proc.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

from alternating import machine, physical_cores

RESULTS = Path(__file__).with_name("RESULTS.md")
FEW = 20
ENGINES = {"plain": [], "ray": ["--engine", "ray"]}
FILES = ("predictions.json", "predictions.csv", "images.json")


def cpu_seconds(command: list[str]) -> tuple[float, float]:
    """Return the CPU seconds of a command with all its descendants, and its wall time."""
    ticks, start = os.sysconf("SC_CLK_TCK"), time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    used: dict[int, int] = {process.pid: 0}
    while process.poll() is None:
        status = _processes()
        while new := {pid for pid, (parent, _) in status.items() if parent in used and pid not in used}:
            used |= dict.fromkeys(new, 0)
        for pid in used.keys() & status.keys():
            used[pid] = max(used[pid], status[pid][1])
        time.sleep(0.1)
    if process.returncode:
        sys.exit(f"{shlex.join(command)}: exit code {process.returncode}")
    return sum(used.values()) / ticks, time.perf_counter() - start


def _processes() -> dict[int, tuple[int, int]]:
    """Return parent and ticks of CPU time of each process."""
    found = {}
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            try:
                fields = (path / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended
                continue
            found[int(path.name)] = int(fields[1]), int(fields[11]) + int(fields[12])
    return found


def main() -> None:
    """Measure and print, and append to RESULTS.md with --write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ckpt", type=Path, required=True, help="checkpoint")
    parser.add_argument("--images", type=Path, required=True, help="folder of JPEG files")
    parser.add_argument("--count", type=int, default=2000, help="number of images (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="append the results to RESULTS.md")
    options = parser.parse_args()
    paths = sorted(options.images.glob("*.jpg"))[: options.count]
    cpu, wall = {}, {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for count in (FEW, len(paths)):
            (folder / f"{count}").mkdir()
            for path in paths[:count]:
                (folder / f"{count}" / path.name).symlink_to(path.resolve())
            for engine, flags in ENGINES.items():
                out = folder / f"{engine}{count}"
                command = [sys.executable, "-m", "detect", "predict", str(folder / f"{count}"), *flags]
                command += ["--ckpt", str(options.ckpt), "--out", str(out), "--save", "coco", "csv"]
                cpu[engine, count], wall[engine, count] = cpu_seconds(command)
                print(engine, count, cpu[engine, count], wall[engine, count], flush=True)
        pairs = [[(folder / f"{engine}{len(paths)}" / file).read_bytes() for engine in ENGINES] for file in FILES]
    each = {engine: (cpu[engine, len(paths)] - cpu[engine, FEW]) / (len(paths) - FEW) for engine in ENGINES}
    rows = [
        f"| {engine} | {cpu[engine, len(paths)]:.1f} s | {wall[engine, len(paths)]:.1f} s "
        f"| {1000 * each[engine]:.1f} ms | {cpu[engine, FEW] - FEW * each[engine]:.1f} s |"
        for engine in ENGINES
    ]
    lines = [
        f"## {date.today()}, detect predict --engine ray",
        "",
        f"`python {shlex.join(sys.argv)}`, {machine(physical_cores())}, {len(paths):,} images:",
        "",
        "| | CPU of all processes | wall time | CPU of an image | start-up |",
        "| --- | --- | --- | --- | --- |",
        *rows,
        "",
        f"CPU of an image: {each['ray'] / each['plain']:.2f} times the plain run's (target 1.15). The merged files are "
        f"{'equal byte for byte' if all(one == other for one, other in pairs) else 'different'}.",
    ]
    print("\n".join(lines))
    if options.write:
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write("\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
