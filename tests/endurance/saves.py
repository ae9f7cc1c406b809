"""Save checkpoints under `kill -9` and on full disks: the newest or the previous one always loads.

    python tests/endurance/saves.py [--quick]           10 kills with --quick, else 50

1. A process saves one checkpoint after another to the same file, and is killed at a random moment of a save. The file
   then holds the checkpoint being written or the previous one completely, and the next run removes leftover drafts.
2. `detect train` runs on a disk that is full, from the start or from the second checkpoint on: exit code 2, one line
   with the file and the space it needs, the previous checkpoint intact, no partial file. The disk is a tmpfs if this
   process may mount one (as root), else a limit on the file size (RLIMIT_FSIZE), which only the checkpoint reaches.
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
    """Return how often the file held a complete checkpoint, the newest or the previous one."""
    file, draw, good, drafts = out / "checkpoints" / "last.ckpt", random.Random(0), 0, 0
    save = AtomicCheckpointIO().save_checkpoint
    started = time.monotonic()
    save(_content(0), file)
    seconds, number = time.monotonic() - started, 0
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
        number += len(os.read(reads, 1000))  # it may have started the next one
        os.close(reads)
        drafts += len(list(out.rglob("*.part")))
        content = torch.load(file, weights_only=True)
        complete = bool((content["weights"] == content["number"]).all()) and content["number"] in (number - 1, number)
        with owned(out):
            good += complete and not list(out.rglob("*.part"))
        number = content["number"]
    print(f"{kills} kills during saves of {4 * FLOATS / 1e6:.0f} MB, {drafts} of them left a draft")
    return good


def fill_disks(folder: Path) -> list[str]:
    """Return the failures of runs on full disks."""
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
        output = log.read_text().splitlines()
        print(f"a full disk ({'tmpfs' if mounted else 'RLIMIT_FSIZE'}): exit code {code}, {output[-1]}")
        last = run / "checkpoints" / "last.ckpt"
        if code != 2 or "Traceback" in log.read_text() or "last.ckpt" not in output[-1] or "needs" not in output[-1]:
            wrong.append("message about the checkpoint")
        if list(run.rglob("*.part")):
            wrong.append("a draft is left")
        if mounted and (last.read_bytes() != before["last"] or "state_dict" not in torch.load(last, weights_only=True)):
            wrong.append("previous checkpoint")
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
            output = log.read_text().splitlines()
            print(f"a disk without free space: exit code {code}, {output[-1]}")
            if code != 2 or "Traceback" in log.read_text():
                wrong.append("message about config.yaml")
    return wrong


@contextmanager
def disk(folder: Path, kilobytes: int):
    """Mount a small disk at `folder` if this process may; yield whether it did."""
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
    print(f"saves: {good} of {kills} load, full disks: {', '.join(wrong) or 'passed'}")
    sys.exit(good != kills or bool(wrong))
