"""Runs on Ray in which actors and drivers are killed. Each starts Ray and loads torch in several processes."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

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

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'rcnn-family[ray]'"),
]
FILES = ["images.json", "predictions.csv", "predictions.json"]
IMAGES, PARTS, SECONDS = 320, 64, 300
"""Number of images, number of parts, and limit of each run."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder, random = tmp_path_factory.mktemp("data") / "photos", np.random.default_rng(0)
    folder.mkdir()
    for i in range(IMAGES):
        pixels = random.integers(0, 256, (6, 8, 3), np.uint8)
        Image.fromarray(pixels).resize((640, 480)).save(folder / f"{i:03}.jpg")
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """Save an untrained detector that returns five boxes for every image."""
    torch.manual_seed(0)
    counts = ProposalCounts(40, 20)
    options = FasterRCNNOptions(
        backbone=LeNetOptions(),
        neck=None,
        rpn=RPNOptions(anchor_sizes=(12,), anchor_ratios=(1.0,), training=counts, testing=counts),
        region_head=RegionHeadOptions(batch_size_per_image=16),
        postprocess=PostprocessOptions(score_threshold=0.0, max_detections=5),
    )
    size = {"short_side": (32,), "long_side": 48, "canvases": 1}
    config = Config(options, DataOptions(root=Path("data"), train="val", workers=0, **size))
    path = tmp_path_factory.mktemp("runs") / "best.ckpt"
    save_checkpoint(Checkpoint(build_detector(options, 1), config, ("cell",), (1,)), path)
    return path


@pytest.fixture(scope="module")
def plain(photos, checkpoint, tmp_path_factory) -> dict[str, bytes]:
    """Return the result files of a run without Ray."""
    out = tmp_path_factory.mktemp("plain") / "out"
    with Run(checkpoint, photos, out, engine=()) as run:
        assert run.wait() == 0
    return contents(out)


class Run:
    """`detect predict` in a process group of its own, with two actors by default. At the end no process may be left."""

    def __init__(self, checkpoint, photos, out, engine=("--engine", "ray", "--actors", "2"), path=None):
        self.out = out
        command = [sys.executable, "-m", "detect", "predict", photos, "--ckpt", checkpoint, "--out", out, *engine]
        paths = [str(path), *sys.path] if path else sys.path
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        self.process = subprocess.Popen(
            [*map(str, command), "--save", "coco", "csv"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.seen = {process for process in processes() if process[0] == self.process.pid}
        self.deadline = time.monotonic() + SECONDS

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self.until(lambda: not self.alive())
        finally:
            for number in self.alive():
                os.kill(number, signal.SIGKILL)
            self.process.communicate()

    def alive(self) -> list[int]:
        """Return the process and its descendants, also those whose parent has ended since the last call."""
        running = processes()
        self.seen &= running.keys()
        while new := {key for key, above in running.items() if above in {pid for pid, _ in self.seen}} - self.seen:
            self.seen |= new
        return [pid for pid, _ in self.seen]

    def actors(self) -> list[int]:
        """Return the actors that are predicting."""
        return [number for number in self.alive() if b"ray::Worker.predict" in command_line(number)]

    def parts(self) -> dict[Path, int]:
        """Return the complete parts with the times at which they were written."""
        return {path: path.stat().st_mtime_ns for path in (self.out / "parts").glob("*.jsonl") if path.exists()}

    def until(self, condition) -> None:
        while not condition():
            assert time.monotonic() < self.deadline, "this takes too long"
            time.sleep(0.01)

    def reaches(self, parts) -> None:
        """Wait until a number of parts is complete, and note all processes on the way."""
        self.until(lambda: self.alive() and len(self.parts()) >= parts)

    def wait(self) -> int:
        """Wait for the end, note all processes on the way, and return the exit code."""
        self.until(lambda: (self.alive(), self.process.poll())[1] is not None)
        self.stdout, self.stderr = self.process.communicate()
        print(self.stdout, self.stderr)
        return self.process.returncode


def processes() -> dict[tuple[int, int], int]:
    """Return the parent of each process that has not ended, by its number, which may be used again, and its start."""
    running = {}
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            with suppress(OSError):
                words = (path / "stat").read_text().rpartition(")")[2].split()
                if words[0] != "Z":
                    running[int(path.name), int(words[19])] = int(words[1])
    return running


def command_line(number) -> bytes:
    try:
        return Path(f"/proc/{number}/cmdline").read_bytes()
    except OSError:
        return b""


def is_working(number) -> bool:
    """Return whether a process is other than Ray's two helpers, which end a minute after a driver that is killed."""
    return not command_line(number).startswith((b"ray::DashboardAgent", b"ray::RuntimeEnvAgent"))


def listening(pids) -> set[str]:
    """Return the addresses at which processes listen, as Linux writes them; 127.0.0.1 is 0100007F."""
    open_files = set()
    for pid in pids:
        with suppress(OSError):
            open_files |= {str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()}
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    return {line[1].partition(":")[0] for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in open_files}


def contents(out) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in FILES}


def test_actors_are_killed(checkpoint, photos, tmp_path, plain):
    with Run(checkpoint, photos, tmp_path / "out") as run:
        for parts in range(5, 50, 10):
            run.until(lambda parts=parts: len(run.parts()) >= parts and run.actors())
            os.kill(run.actors()[0], signal.SIGKILL)
        assert listening(run.alive()) == {"0100007F", "0000000000000000FFFF00000100007F"}
        assert run.wait() == 0
    assert run.stdout == f"{tmp_path / 'out'}: {IMAGES} images, {5 * IMAGES} detections\n"
    assert run.stderr.count("a worker died while it predicted on ") == 5 == len(run.stderr.splitlines())
    assert contents(tmp_path / "out") == plain
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([*FILES, "manifest.json"])


def test_the_driver_is_killed(checkpoint, photos, tmp_path, plain):
    before: dict[Path, int] = {}
    with ExitStack() as runs:
        for share in (0.3, 0.7):
            run = runs.enter_context(Run(checkpoint, photos, tmp_path / "out"))
            run.reaches(share * PARTS)
            run.process.kill()
            assert run.process.wait() == -signal.SIGKILL
            run.until(lambda run=run: not any(map(is_working, run.alive())))
            after = run.parts()
            assert before.items() <= after.items() and len(after) < PARTS
            before = after
        run = runs.enter_context(Run(checkpoint, photos, tmp_path / "out"))
        run.until(lambda: run.alive() and run.parts().keys() > before.keys())
        assert before.items() <= run.parts().items()
        assert run.wait() == 0
    assert contents(tmp_path / "out") == plain
    names = [image["file_name"] for image in json.loads((tmp_path / "out" / "images.json").read_text())["images"]]
    assert names == [str(path) for path in sorted(photos.iterdir())]


def test_the_command_is_interrupted(checkpoint, photos, tmp_path, plain):
    with Run(checkpoint, photos, tmp_path / "out") as run:
        run.reaches(10)
        os.killpg(run.process.pid, signal.SIGINT)  # as a terminal does
        assert run.wait() == 130
    assert run.stderr == f"detect: interrupted; to continue, repeat the command with --out {tmp_path / 'out'}\n"
    with Run(checkpoint, photos, tmp_path / "out", engine=()) as run:
        assert run.wait() == 0
    assert contents(tmp_path / "out") == plain


KILL_ON = """
import os, signal, sys
def kill(event, arguments):
    if event == "open" and str(arguments[0]).endswith("{name}"):
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(kill)
"""


def test_an_image_that_kills_is_left_out(checkpoint, photos, tmp_path):
    """Whoever opens it is killed; the rest equals a plain run in which it cannot be read."""
    (tmp_path / "photos").mkdir()
    for path in itertools.islice(sorted(photos.iterdir()), 130):
        (tmp_path / "photos" / path.name).hardlink_to(path)
    (tmp_path / "sitecustomize.py").write_text(KILL_ON.format(name="077.jpg"))
    with Run(checkpoint, tmp_path / "photos", tmp_path / "out", path=tmp_path) as run:
        assert run.wait() == 3
    killer = tmp_path / "photos" / "077.jpg"
    assert f"detect: skipped: {killer}: 3 workers died on it, perhaps for lack of memory\n" in run.stderr
    killer.unlink()
    killer.write_bytes(b"none")
    with Run(checkpoint, tmp_path / "photos", tmp_path / "plain", engine=()) as run:
        assert run.wait() == 3
    assert contents(tmp_path / "out") == contents(tmp_path / "plain")
