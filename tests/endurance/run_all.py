"""Run every script of this folder and append the last line of each to RESULTS.md.

python tests/endurance/run_all.py [--quick]         or: make endurance
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
SCRIPTS = (
    *("resume.py", "resume.py --kind alternating", "resume.py --kind rcnn", "saves.py", "distributed.py"),
    *("truncated.py", "bombs.py", "long_run.py"),
)


def main() -> int:
    """Return 0 if all scripts pass."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions; RESULTS.md is not changed")
    quick = parser.parse_args().quick
    rows, failed = [], False
    for script in SCRIPTS:
        print(f"==> {script}", flush=True)
        started = time.monotonic()
        words = [str(HERE / script.split()[0]), *script.split()[1:], *(["--quick"] if quick else [])]
        done = subprocess.run([sys.executable, *words], stdout=subprocess.PIPE, text=True)
        last = (done.stdout.strip().splitlines() or ["no output"])[-1]
        failed |= done.returncode != 0
        outcome = "passed" if done.returncode == 0 else "FAILED"
        rows.append(f"| `{script}` | {outcome} | {last} | {time.monotonic() - started:.0f} s |")
        print(rows[-1], flush=True)
    if not quick:
        versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning"))
        about = f"{os.cpu_count()} cores, {platform.machine()}; Python {platform.python_version()}, {versions}"
        lines = [
            "",
            f"## {date.today()}",
            "",
            about,
            "",
            "| script | | last line | time |",
            "|---|---|---|---|",
            *rows,
        ]
        with (HERE / "RESULTS.md").open("a", encoding="utf-8") as results:
            results.write("\n".join(lines) + "\n")
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
