"""Train on drawn shapes on the device `cuda` with an EMA, clipping and validation; print the waits by line.

Usage: training.py FOLDER PRECISION. Steps are watched from the fifth on; earlier ones create constants.
"""

import sys
import traceback
import warnings
from collections import Counter
from pathlib import Path

import torch

from detect.backbones import ResNetOptions
from detect.config import Config, TrainingOptions
from detect.curation.shapes import make_shapes
from detect.data.datamodule import DetectionData
from detect.data.options import DataOptions
from detect.evaluation.evaluator import Evaluator
from detect.models import BoxHeadOptions, FasterRCNNOptions, ProposalCounts, RPNOptions
from detect.training import loop
from detect.training.callbacks import StopOnNaN
from detect.training.fit import fit

WATCHED_FROM, SOURCES = 5, {"detect", "lightning", "optim"}
waits: Counter[str] = Counter()
steps = 0


def note(message, *args, **options) -> None:
    """Count torch's warnings that the host waits."""
    if "synchroniz" in str(message) and "prototype" not in str(message):
        lines = [
            line
            for line in traceback.extract_stack()
            if {"detect", "lightning", "optim"} & set(Path(line.filename).parts)
        ]
        waits[" < ".join(f"{Path(line.filename).name}:{line.lineno} {line.name}" for line in lines[:-4:-1])] += 1


def keep_losses(evaluator: Evaluator, names, copies, wait) -> None:
    """Replace `Evaluator._add`, as the detections are garbage."""
    wait()
    evaluator.losses.update(dict.fromkeys(names, 0.0))


class Watch(StopOnNaN):
    """Counts the waits of training steps, not those of validation."""

    def on_train_batch_start(self, trainer, module, *args) -> None:
        """Begin to count."""
        global steps
        steps += 1
        torch.cuda.set_sync_debug_mode("warn" if steps >= WATCHED_FROM else "default")
        super().on_train_batch_start(trainer, module, *args)

    def on_validation_start(self, trainer, module) -> None:
        """Stop counting: the metrics are read on the host."""
        torch.cuda.set_sync_debug_mode("default")


if __name__ == "__main__":
    folder, precision = Path(sys.argv[1]), sys.argv[2]
    warnings.simplefilter("always")
    warnings.showwarning = note
    make_shapes(folder / "shapes", images={"train": 24, "val": 4}, size=(64, 96), progress=False)
    counts = ProposalCounts(100, 20)
    model = FasterRCNNOptions(
        backbone=ResNetOptions(18, norm="batch"),
        rpn=RPNOptions(anchor_sizes=(8, 16, 32, 48, 64), training=counts, testing=counts),
        box_head=BoxHeadOptions(layers=1, channels=32),
    )
    data = DataOptions(root=folder / "shapes", short_side=(64, 48), long_side=96, canvases=1, workers=1, batch_size=2)
    training = TrainingOptions(
        epochs=2, warmup_steps=4, ema=0.9, clip_norm=5.0, accelerator="gpu", devices=1, precision=precision
    )
    loop.StopOnNaN = Watch
    Evaluator._add = keep_losses
    config = Config(model, data, training)
    fit(config, DetectionData(config.data), folder / "run")
    found = dict(waits)
    torch.cuda.set_sync_debug_mode("warn")
    torch.zeros((), device="cuda").item()
    torch.cuda.set_sync_debug_mode("default")
    assert sum(waits.values()) == sum(found.values()) + 1  # this wait was counted
    print(f"{steps} steps; waits: {found}")
