"""Writing `last.ckpt`, and exact resume from it.

It is written after each epoch, within an epoch and before its validation if `minutes` have passed, and on SIGTERM,
SIGUSR1 (which clusters send before they reclaim a machine) and Ctrl-C. A killed and resumed run is bitwise
equal to an uninterrupted one: the checkpoint holds the weights and their average, optimiser, schedule, scaler, the
random state of every process, and the position in the epoch. The batches of an epoch depend only on the seed and the
epoch's number; those already trained on are skipped (`CanvasBatchSampler.begin`).
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, WeightAveraging
from lightning.pytorch.utilities.exceptions import SIGTERMException

from detect.training.metrics import MetricsFile

ENDS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]
"""Signals that end a run."""
SYNCHRONIZE_EVERY = 50
"""Number of batches after which several processes agree on whether to save, which waits for the device."""


class SaveLast(Checkpoint):
    """Writes `last.ckpt` and restores the position of a run from it.

    Args:
        path: path of the checkpoint.
        minutes: minutes between checkpoints within an epoch; None for none.
        metrics: the metrics file; a checkpoint records its number of rows.
    """

    def __init__(self, path: Path, minutes: float | None, metrics: MetricsFile) -> None:
        self.path, self.minutes, self.metrics = path, minutes, metrics
        self._saved: tuple[int, int] | None = None
        self._saved_at = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the signal handlers; Lightning restores the previous ones."""
        self._saved, self._saved_at = _position(trainer), time.monotonic()
        _install_handlers(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Save within an epoch; the previous batch is completed and logged."""
        agree = trainer.world_size == 1 or batch_idx % SYNCHRONIZE_EVERY == 0
        if batch_idx and agree and self._is_time(trainer):
            self._save(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save before the averaged weights are swapped in."""
        if self._is_time(trainer):
            self._save(trainer)

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Abort a validation on a signal. Several processes, with different numbers of batches, finish it first."""
        if trainer.received_sigterm and trainer.world_size == 1:
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, WeightAveraging):  # swaps the weights back
                    callback.on_validation_epoch_end(trainer, pl_module)
            raise SIGTERMException

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after the epoch's validation."""
        self._save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save after a signal: Lightning then raises an exception in every process between two steps."""
        if isinstance(exception, SIGTERMException):
            self._save(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Record the number of rows in metrics.csv."""
        checkpoint["metrics_rows"] = self.metrics.rows

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Set the state of Lightning's loops to the position where the run resumes."""
        set_position(checkpoint["loops"]["fit_loop"], checkpoint["global_step"])

    def _is_time(self, trainer: Trainer) -> bool:
        if self.minutes is None:
            return False
        is_time = time.monotonic() - self._saved_at >= 60 * self.minutes
        return is_time if trainer.world_size == 1 else trainer.strategy.broadcast(is_time)

    def _save(self, trainer: Trainer) -> None:
        """Save, unless this position was saved already."""
        if self._saved != _position(trainer):
            trainer.save_checkpoint(self.path)
            self._saved, self._saved_at = _position(trainer), time.monotonic()


class Patience(EarlyStopping):
    """Early stopping that also ends a resumed run that was stopped before; Lightning's own would continue it."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop a run that was stopped before."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True


def set_position(loop: dict[str, Any], step: int) -> None:
    """Change the saved state of Lightning's loops, in place, so that they resume exactly.

    There are three positions: at the start of an epoch, before one of its batches, and before its validation.
    """
    batches, epochs = loop["epoch_loop.batch_progress"], loop["epoch_progress"]
    done = epochs["current"]["processed"]
    within = epochs["current"]["ready"] > done  # an epoch has begun, and has not been validated
    batch = batches["current"]["completed"] if within else 0
    validates = within and batches["is_last_batch"] and batches["current"]["ready"] == batch
    begun = done + (1 if batch else 0)
    epochs["total"] = epochs["current"] = {"ready": begun, "started": begun, "processed": done, "completed": done}
    batches["total"] = _all(step)
    batches["current"] = _all(batch)
    batches["is_last_batch"] = validates
    validation = loop["epoch_loop.val_loop.batch_progress"]
    # With 1 started and 0 processed, Lightning runs it.
    validation["total"] = {"ready": 1, "started": 1, "processed": 0, "completed": 0} if validates else _all(0)
    validation["current"], validation["is_last_batch"] = _all(0), False
    # Metrics are logged with this number of steps; the last step counts only after the validation.
    loop["epoch_loop.state_dict"]["_batches_that_stepped"] = step - validates


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn the signals `ENDS` into `KeyboardInterrupt`, outside of Lightning's loop."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, interrupt) for number in ENDS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _install_handlers(trainer: Trainer) -> None:
    """End the run between two steps on a signal, and immediately on a second Ctrl-C."""

    def handle(number: int, *_: Any) -> None:
        if number == signal.SIGINT and trainer.received_sigterm:
            raise KeyboardInterrupt
        connector = trainer._signal_connector
        if number != signal.SIGINT and not connector.received_sigterm and trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(number)  # the processes that this one started
        connector.received_sigterm = True

    if threading.current_thread() is threading.main_thread():
        for number in (*ENDS, signal.SIGINT):
            signal.signal(number, handle)


def _position(trainer: Trainer) -> tuple[int, int]:
    """Return the number of steps and of finished epochs."""
    epochs: Any = trainer.fit_loop.epoch_progress.current
    return trainer.global_step, epochs.processed


def _all(count: int) -> dict[str, int]:
    return {"ready": count, "started": count, "processed": count, "completed": count}
