"""Checkpoints under `kill -9` and on full disks: the newest or the one before always loads.

    python tests/endurance/saves.py [--quick]           10 kills with --quick, else 50

1. A process writes one checkpoint after the other over the same file, and is killed at a random moment of a save. The
   file then holds the checkpoint that was being written or the one before, whole, and the next run clears the rest
   away.
2. `detect train` on a disk that is full, from the start and at the second checkpoint: exit code 2, one line with the
   file and the space it needs, the checkpoint before as it was, nothing half-written. The disk is a tmpfs where this
   process may mount one (as root), else a limit on the size of files (RLIMIT_FSIZE), which the checkpoint alone meets.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from tiny_runs import child, make_config

from detect.training.checkpoints import AtomicCheckpointIO
from detect.training.run_folder import owned

FLOATS = 5_000_000


def kill_saves(kills: int, out: Path) -> int:
    """How many of the files held a whole checkpoint, the newest or the one before."""
    file, draw, good, drafts = out / "checkpoints" / "last.ckpt", random.Random(0), 0, 0
    save = AtomicCheckpointIO().save_checkpoint
    begun = time.monotonic()
    save(_content(0), file)
    seconds, number = time.monotonic() - begun, 0
    for _ in range(kills):
        reads, writes = os.pipe()
        process = os.fork()
        if process == 0:
            while True:
                number += 1
                os.write(writes, b".")
                save(_content(number), file)
        os.close(writes)
        for _ in range(draw.randint(1, 3)):
            os.read(reads, 1)
            number += 1
        time.sleep(draw.uniform(0, 1.2 * seconds))
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        number += len(os.read(reads, 1000))  # it may have gone on to the next one
        os.close(reads)
        drafts += len(list(out.rglob("*.part")))
        content = torch.load(file, weights_only=True)
        whole = bool((content["weights"] == content["number"]).all()) and content["number"] in (number - 1, number)
        with owned(out):
            good += whole and not list(out.rglob("*.part"))
        number = content["number"]
    print(f"{kills} kills during saves of {4 * FLOATS / 1e6:.0f} MB, of which {drafts} left a part of a file")
    return good


def fill_disks(folder: Path) -> list[str]:
    """What was wrong with the runs on full disks."""
    config, wrong = make_config(folder), []
    once = ["train", "-c", str(config), "--training.epochs=1", "--data.val=null"]
    assert child([*once, "--out", str(folder / "once")], lambda _: None) == 0
    size = (folder / "once" / "checkpoints" / "last.ckpt").stat().st_size
    log, run = folder / "log.txt", folder / "disk" / "run"
    with disk(folder / "disk", kilobytes=17 * size // 10_000) as mounted:
        words = ["train", "-c", str(config), "--out", str(run), "--training.save_minutes=null", "--data.val=null"]
        limit = (size // 2, size // 2)
        before = {}

        def watch(process: int) -> None:  # from the first step on
            last = run / "checkpoints" / "last.ckpt"
            if last.exists() and not before:
                before["last"] = last.read_bytes()
            if not mounted:
                resource.prlimit(process, resource.RLIMIT_FSIZE, limit)

        code = child(words, watch, log)
        said = log.read_text().splitlines()
        print(f"a full disk ({'tmpfs' if mounted else 'RLIMIT_FSIZE'}): exit code {code}, {said[-1]}")
        last = run / "checkpoints" / "last.ckpt"
        if code != 2 or "Traceback" in log.read_text() or "last.ckpt" not in said[-1] or "needs" not in said[-1]:
            wrong.append("the line on the checkpoint")
        if list(run.rglob("*.part")):
            wrong.append("a part of a file is left")
        if mounted and (last.read_bytes() != before["last"] or "state_dict" not in torch.load(last, weights_only=True)):
            wrong.append("the checkpoint before")
        if mounted:
            filler = folder / "disk" / "filler"
            with filler.open("wb", buffering=0) as stream:
                try:
                    while stream.write(bytes(1 << 16)):
                        pass
                except OSError:
                    pass
            words = ["train", "-c", str(config), "--out", str(folder / "disk" / "other")]
            code = child(words, lambda _: None, log)
            said = log.read_text().splitlines()
            print(f"a disk without a byte: exit code {code}, {said[-1]}")
            if code != 2 or "Traceback" in log.read_text():
                wrong.append("the line on config.yaml")
    return wrong


@contextmanager
def disk(folder: Path, kilobytes: int):
    """A small disk there, where this process may mount one; tells whether."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def _content(number: int) -> dict[str, object]:
    return {"number": number, "weights": torch.full((FLOATS,), float(number))}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    kills = 10 if parser.parse_args().quick else 50
    with tempfile.TemporaryDirectory() as temporary:
        good = kill_saves(kills, Path(temporary))
        wrong = fill_disks(Path(temporary))
    print(f"saves: {good} of {kills} load, full disks: {', '.join(wrong) or 'as they should'}")
    sys.exit(good != kills or bool(wrong))
