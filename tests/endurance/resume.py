"""Kill training (`kill -9`) at random moments and resume it: bitwise equal to an undisturbed run.

    python tests/endurance/resume.py [--quick] [--kind faster_rcnn|alternating|rcnn]       3 kills with --quick, else 20

Faster R-CNN with batch norm, two scales, flips, validation, an average of the weights and clipped gradients, three
epochs of six steps, half of the kills with 0 and half with 2 workers; or the four steps of alternating training; or the
stages of R-CNN. A kill happens up to half a second after a random step of training or validation: in a step, a save, a
validation, or between epochs. All checkpoints (weights, their average, optimiser, schedule, random numbers, best
metric) and metrics.csv are compared.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from tiny_runs import EPOCHS, FAMILY, STEPS, VALIDATIONS, child, differences, killed_at, make_config


def run(kind: str, kills: int, folder: Path) -> int:
    """Kill and resume runs; return how many of them equal the undisturbed one."""
    config, draw, equal = make_config(folder, kind), random.Random(0), 0
    events = {"faster_rcnn": EPOCHS * (STEPS + VALIDATIONS), "alternating": 4 * STEPS + VALIDATIONS, "rcnn": STEPS}
    undisturbed = folder / "undisturbed"
    assert child(["train", "-c", str(config), "--out", str(undisturbed), "--data.test=null"], lambda _: None) == 0
    for number in range(kills):
        out, workers = folder / f"run{number}", 2 if number % 2 and kind == "faster_rcnn" else 0
        step, pause = draw.randint(1, events[kind]), draw.uniform(0, 0.5 if kind != "rcnn" or number % 2 else 8.0)
        words = ["train", "--out", str(out), f"--data.workers={workers}"]
        started = time.monotonic()
        ended = child([*words, "-c", str(config)], killed_at(step, pause))
        log = folder / f"run{number}.txt"
        resumed = child([*words, "-c", str(config), "--resume"], lambda _: None, log)
        different = differences(undisturbed, out) if resumed == 0 else [log.read_text()]
        equal += not different
        print(
            f"{number + 1}: {workers} workers, killed {pause:.2f} s after step {step} ({ended}), resumed ({resumed}), "
            f"{', '.join(different[:5]) or 'equal'}, {time.monotonic() - started:.0f} s",
            flush=True,
        )
        if ended not in (-signal.SIGKILL, 0):
            equal = 0
    return equal


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--kind", choices=FAMILY, default="faster_rcnn")
    options = parser.parse_args()
    kills = 3 if options.quick else 20
    with tempfile.TemporaryDirectory() as temporary:  # a checkpoint has 180 MB: faster with a TMPDIR in memory
        equal = run(options.kind, kills, Path(temporary))
    print(f"resume, {options.kind}: {equal} of {kills} equal")
    sys.exit(equal != kills)
