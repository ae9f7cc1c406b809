"""Tiny runs of `detect train` in child processes, for the scripts that kill them."""

from __future__ import annotations

import csv
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
import yaml

from detect.cli import main, train
from detect.curation.shapes import make_shapes
from detect.prediction import evaluate_checkpoint
from detect.training.module import DetectorModule

EPOCHS, STEPS, VALIDATIONS = 3, 6, 3
"""Epochs, steps per epoch, batches of a validation."""
FAMILY = ("faster_rcnn", "alternating", "rcnn")

# A child that is forked after its parent has started OpenMP threads would hang at its first parallel operation.
torch.set_num_threads(1)


def make_config(folder: Path, kind: str = "faster_rcnn") -> Path:
    """Write data and a config: batch norm, two scales, flips, an average of the weights, clipped gradients."""
    data = folder / "data"
    if not data.exists():
        make_shapes(data, images={"train": 2 * STEPS, "val": 2 * VALIDATIONS}, size=(64, 96), progress=False)
    counts = {"pre_nms_top_k": 100, "post_nms_top_k": 20}
    rpn = {"anchor_sizes": [8, 16, 32, 48, 64], "training": counts, "testing": counts}
    model = {"region_head": {"batch_size_per_image": 16}}
    if kind == "rcnn":
        model |= {"name": "rcnn", "crop": {"size": 64}, "backbone": {"name": "resnet", "depth": 18, "norm": "batch"}}
    else:  # a ResNet with half a million weights, as otherwise saving would take most of a step
        backbone = {"name": "timm", "model": "test_resnet"}
        model |= {"backbone": backbone, "neck": None, "rpn": rpn, "box_head": {"layers": 1, "channels": 32}}
    config = {
        "model": model,
        "data": {
            **{"root": str(data), "short_side": [64, 48], "long_side": 96, "canvases": 1, "workers": 0},
            **{"batch_size": 2, "eval_batch_size": 2, "augment": [{"HorizontalFlip": {"p": 0.5}}]},
            **({"proposals": str(folder / "proposals.db")} if kind == "rcnn" else {}),
        },
        "training": {
            **{"epochs": 1 if kind != "faster_rcnn" else EPOCHS, "warmup_steps": 4, "learning_rate": 0.01},
            **{"schedule": "cosine", "ema": 0.9, "clip_norm": 5.0, "accelerator": "cpu", "devices": 1},
            "save_minutes": 0.005,
            **({"recipe": {"name": "alternating"}} if kind == "alternating" else {}),
        },
    }
    if kind == "rcnn" and not (folder / "proposals.db").exists():
        child(["propose", str(data), "--out", str(folder / "proposals.db"), "--processes", "1"], lambda _: None)
    path = folder / f"{kind}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def child(words: list[str], watch: Callable[[int], None], log: Path | None = None) -> int:
    """Run a command in a child process; return its exit code, negative for a signal.

    Args:
        words: the command.
        watch: called with the process id at each step of training and validation.
        log: file for the output.
    """
    reads, writes = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process == 0:
        os.close(reads)
        with (log or Path(os.devnull)).open("wb", buffering=0) as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        for name in ("training_step", "validation_step"):
            _signal_steps(name, writes)
        # The evaluation after training is skipped.
        evaluate_checkpoint.evaluate_checkpoint = lambda *_, **__: SimpleNamespace(metrics={})
        train.print_evaluation = lambda _: None
        code = 70
        try:
            code = main(words)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    os.close(writes)
    with os.fdopen(reads, "rb", buffering=0) as steps:
        while steps.read(1):
            watch(process)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def killed_at(step: int, pause: float = 0.0, number: int = signal.SIGKILL) -> Callable[[int], None]:
    """Return a `watch` function that sends a signal `pause` seconds after a step, counted from 1."""
    seen = 0

    def watch(process: int) -> None:
        nonlocal seen
        seen += 1
        if seen == step:
            time.sleep(pause)
            os.kill(process, number)

    return watch


def differences(one: Path, other: Path) -> list[str]:
    """Return the bitwise differences between two runs, in their checkpoints and the rows of metrics."""
    files = [sorted(path.relative_to(run) for path in run.rglob("*.ckpt")) for run in (one, other)]
    if files[0] != files[1]:
        return [f"{files[0]} and {files[1]}"]
    different = [
        f"{file}{place}" for file in files[0] for place in _differences(_content(one / file), _content(other / file))
    ]
    for file in sorted(path.relative_to(one) for path in one.rglob("metrics.csv")):
        rows, others = _rows(one / file), _rows(other / file)
        if rows != others:
            place = next((i for i, (a, b) in enumerate(zip(rows, others, strict=False)) if a != b), len(rows))
            different.append(f"{file}: {len(rows)} and {len(others)} rows, {rows[place:][:1]} and {others[place:][:1]}")
    return different


def _signal_steps(name: str, pipe: int) -> None:
    function = getattr(DetectorModule, name)

    def signalling(self, *args):
        os.write(pipe, b".")
        return function(self, *args)

    setattr(DetectorModule, name, signalling)


def _content(file: Path) -> dict:
    content = torch.load(file, weights_only=True)
    content["detect"]["config"]["data"].pop("workers")
    return content


def _differences(one: object, other: object, place: str = "") -> list[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return [f"{place}: {sorted(map(str, one.keys() ^ other.keys()))}"]
        # Paths differ, and Lightning's counters follow from everything else.
        names = one.keys() - {"loops", "dirpath", "best_model_path", "best_k_models", "kth_best_model_path"}
        return [difference for name in names for difference in _differences(one[name], other[name], f"{place}/{name}")]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [difference for index, (a, b) in pairs for difference in _differences(a, b, f"{place}/{index}")]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if one.dtype == other.dtype and torch.equal(one, other) else [place]
    return [] if one == other else [place]


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))
