"""Lightning's training loop with the callbacks, loggers and checkpoints of this package."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, WeightAveraging
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from torch import Tensor

from detect.checkpoint import load_checkpoint
from detect.config import TrainingOptions
from detect.data.classification import ClassificationData
from detect.data.datamodule import DetectionData
from detect.training.callbacks import ProgressBar, StopOnNaN
from detect.training.checkpoints import AtomicCheckpointIO
from detect.training.metrics import MetricsFile
from detect.training.module import DetectorModule, TrainingModule, allow_graphs
from detect.training.processes import LIGHTNING_PRECISION, cluster_plugins, trainer_devices
from detect.training.saving import Patience, SaveLast


class Extras(NamedTuple):
    """Lightning's callbacks and loggers of the user, beside those of this package."""

    callbacks: Sequence[Callback] = ()
    loggers: Sequence[Logger] = ()


NO_EXTRAS = Extras()


def run_loop(
    module: TrainingModule,
    data: DetectionData | ClassificationData,
    out: Path,
    resume: bool = False,
    extras: Extras = NO_EXTRAS,
) -> None:
    """Train in the folder `out`; with `resume` continue from its last checkpoint, if it has one."""
    training, validates = module.training_options, module.evaluator is not None
    if isinstance(data, DetectionData):
        data.closing_from = training.closing_from
        if training.compile:
            allow_graphs(data.options)
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision(training.matmul_precision)
    resume = resume and last_checkpoint(out).exists()
    saved = torch.load(last_checkpoint(out), weights_only=True, mmap=True) if resume else {}
    metrics = MetricsFile(out / "metrics.csv", saved.get("metrics_rows", 0), saved.get("global_step", 0))
    # Events that TensorBoard logged after the checkpoint are dropped as well.
    board = TensorBoardLogger(out, name="", version="tensorboard", purge_step=saved["global_step"] if resume else None)
    with warnings.catch_warnings():
        # Lightning warns about the number of workers and about its own use of deprecated torch functions.
        warnings.filterwarnings("ignore", module="lightning")
        trainer = Trainer(
            **trainer_devices(training, unused_parameters=module.trains_in_part),
            precision=LIGHTNING_PRECISION[training.precision],
            benchmark=not training.deterministic,  # cuDNN's fastest algorithm for each of the few canvases
            deterministic=training.deterministic,
            max_epochs=training.epochs,
            gradient_clip_val=training.clip_norm,
            check_val_every_n_epoch=training.validate_every,
            limit_val_batches=None if validates else 0,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            callbacks=[*_callbacks(training, out, module.monitor if validates else None, metrics), *extras.callbacks],
            logger=[metrics, board, *extras.loggers],
            plugins=[AtomicCheckpointIO(), *cluster_plugins(training)],
            default_root_dir=out,
            log_every_n_steps=10,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        try:
            checkpoint = last_checkpoint(out) if resume else None
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        except SystemExit:  # Lightning raises this on an interrupt
            raise KeyboardInterrupt from None


def run_step(module: DetectorModule, data: DetectionData, out: Path, resume: bool, extras: Extras = NO_EXTRAS) -> None:
    """Run the loop, then load the saved weights into the model; with an EMA these are the average."""
    run_loop(module, data, out, resume, extras)
    module.model.load_state_dict(load_checkpoint(last_checkpoint(out)).model.state_dict())


def silence_lightning() -> None:
    """Hide Lightning's informational messages."""
    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)


def last_checkpoint(out: Path) -> Path:
    """Return the path of the last checkpoint in a run's folder."""
    return out / "checkpoints" / "last.ckpt"


def best_checkpoint(out: Path) -> Path:
    """Return the path of the best checkpoint in a run's folder, or of the last one of a run without validation."""
    best = out / "checkpoints" / "best.ckpt"
    return best if best.exists() else last_checkpoint(out)


def _callbacks(training: TrainingOptions, out: Path, monitor: str | None, metrics: MetricsFile) -> list[Callback]:
    callbacks: list[Callback] = [
        ProgressBar(),
        StopOnNaN(),
        LearningRateMonitor(logging_interval="step"),
        SaveLast(last_checkpoint(out), training.save_minutes, metrics),
    ]
    if monitor is not None:
        best: dict[str, Any] = {"dirpath": out / "checkpoints", "filename": "best", "enable_version_counter": False}
        callbacks.append(SaveBest(monitor=monitor, mode="max", save_on_train_epoch_end=False, **best))
    if training.ema is not None:
        callbacks.append(MovingAverage(training.ema, training.ema_ramp))
    if training.patience is not None and monitor is not None:
        callbacks.append(Patience(monitor, mode="max", patience=training.patience))
    return callbacks


class MovingAverage(WeightAveraging):
    """Exponential moving average of the weights and buffers, which never waits for the GPU.

    Not Lightning's EMAWeightAveraging: its formula changes constants, such as anchors, by a rounding error in each
    step, and it reads the number of its updates from the device.

    Args:
        decay: decay of the average.
        ramp: steps t over which the decay rises, as decay · (1 − exp(−step / t)); 0 for a constant decay.
    """

    def __init__(self, decay: float, ramp: int = 0) -> None:
        super().__init__(use_buffers=True)
        self.decay, self.ramp = decay, ramp

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Return False: `on_train_batch_end` updates the average instead."""
        return False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the average after an optimizer step; the first one copies the weights."""
        if trainer.global_step == self._latest_update_step:  # gradients are accumulated
            return
        is_first, self._latest_update_step = self._latest_update_step == 0, trainer.global_step
        assert self._average_model is not None
        networks = self._average_model.module, pl_module
        pairs = list(zip(*([*network.parameters(), *network.buffers()] for network in networks), strict=True))
        floats = [] if is_first else [pair for pair in pairs if pair[0].is_floating_point()]
        with torch.no_grad():
            for average, current in pairs:
                if is_first or not average.is_floating_point():
                    average.copy_(current)
            if floats:
                averages, weights = map(list, zip(*floats, strict=True))
                torch._foreach_lerp_(averages, weights, 1 - self.decay_at(trainer.global_step))

    def decay_at(self, step: int) -> float:
        """Return the decay at a step, counted from 1."""
        return self.decay * (1 - math.exp(-step / self.ramp)) if self.ramp else self.decay


class SaveBest(ModelCheckpoint):
    """Keeps the checkpoint with the highest metric; of equal ones the last."""

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Return whether to save; equal metrics count as better."""
        equal = current is not None and current == self.best_model_score
        return bool(equal) or super().check_monitor_top_k(trainer, current)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best metric even if the run's folder was moved; Lightning would then overwrite the best file."""
        folder = Path(self.dirpath or ".")
        paths = ("best_model_path", "kth_best_model_path", "last_model_path")
        moved = {name: str(folder / Path(path).name) if (path := state_dict.get(name)) else "" for name in paths}
        best = {str(folder / Path(path).name): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **moved, "best_k_models": best, "dirpath": self.dirpath})
