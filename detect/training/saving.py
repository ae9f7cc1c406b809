"""`last.ckpt`: when it is written, and how a run goes on with it at the very next batch.

A checkpoint is written after each epoch, every `minutes` within one and before its validation, and when the run is told
to end by SIGTERM, SIGUSR1 (clusters send these before they take the machine away) or Ctrl-C. What it holds follows from
the seed and the steps done, so that a run that was killed ends with the bits of one that was not: the weights and their
average, optimiser, schedule, scaler, every process's random numbers, and how far the epoch is. The batches of an epoch
follow from the seed and its number alone; those done are skipped (`CanvasBatchSampler.begin`).
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
"""Signals that ask a run to end soon."""
ASKED_EVERY = 50
"""Batches after which several processes agree on whether it is time to save: to ask waits for the device."""


class SaveLast(Checkpoint):
    """See the top of this file.

    Args:
        path: where.
        minutes: between two checkpoints within an epoch; None for none.
        metrics: the rows that a checkpoint has seen stay when a run goes on with it.
    """

    def __init__(self, path: Path, minutes: float | None, metrics: MetricsFile) -> None:
        self.path, self.minutes, self.metrics = path, minutes, metrics
        self._saved: tuple[int, int] | None = None
        self._saved_at = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listens to signals from now on; Lightning puts back what listened before."""
        self._saved, self._saved_at = _place(trainer), time.monotonic()
        _listen(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Within an epoch: all that the batch before has changed and logged is done."""
        asked = trainer.world_size == 1 or batch_idx % ASKED_EVERY == 0
        if batch_idx and asked and self._is_time(trainer):
            self._save(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the average of the weights takes their place."""
        if self._is_time(trainer):
            self._save(trainer)

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Ends a validation. Several processes, which have unequal shares of it, end it first."""
        if trainer.received_sigterm and trainer.world_size == 1:
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, WeightAveraging):  # the weights come back
                    callback.on_validation_epoch_end(trainer, pl_module)
            raise SIGTERMException

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After its validation."""
        self._save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """What Lightning raises between two steps, in every process alike, after a signal."""
        if isinstance(exception, SIGTERMException):
            self._save(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Which rows of metrics.csv are older."""
        checkpoint["metrics_rows"] = self.metrics.rows

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Sets the loops to the place where the run goes on."""
        set_place(checkpoint["loops"]["fit_loop"], checkpoint["global_step"])

    def _is_time(self, trainer: Trainer) -> bool:
        if self.minutes is None:
            return False
        is_time = time.monotonic() - self._saved_at >= 60 * self.minutes
        return is_time if trainer.world_size == 1 else trainer.strategy.broadcast(is_time)

    def _save(self, trainer: Trainer) -> None:
        """Unless the checkpoint of this very place is there."""
        if self._saved != _place(trainer):
            trainer.save_checkpoint(self.path)
            self._saved, self._saved_at = _place(trainer), time.monotonic()


class Patience(EarlyStopping):
    """Lightning's, which would train on where a run had ended by it."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends at once what was at its end."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True


def set_place(loop: dict[str, Any], step: int) -> None:
    """Turns the state of Lightning's loops, as it was when they were saved, into one from which they go on exactly.

    There are three: at the start of an epoch, before one of its batches, and before its validation.
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
    # Begun and nothing done, which makes Lightning run it.
    validation["total"] = {"ready": 1, "started": 1, "processed": 0, "completed": 0} if validates else _all(0)
    validation["current"], validation["is_last_batch"] = _all(0), False
    # What is logged carries the number of the step; the last one counts when its validation is over.
    loop["epoch_loop.state_dict"]["_batches_that_stepped"] = step - validates


@contextmanager
def interruptible() -> Iterator[None]:
    """Outside of Lightning's loop, a signal to end is an interrupt."""

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


def _listen(trainer: Trainer) -> None:
    """A signal ends the run between two steps, a second Ctrl-C at once."""

    def note(number: int, *_: Any) -> None:
        if number == signal.SIGINT and trainer.received_sigterm:
            raise KeyboardInterrupt
        connector = trainer._signal_connector
        if number != signal.SIGINT and not connector.received_sigterm and trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(number)  # the processes that this one has started
        connector.received_sigterm = True

    if threading.current_thread() is threading.main_thread():
        for number in (*ENDS, signal.SIGINT):
            signal.signal(number, note)


def _place(trainer: Trainer) -> tuple[int, int]:
    """Steps, and epochs that are over."""
    epochs: Any = trainer.fit_loop.epoch_progress.current
    return trainer.global_step, epochs.processed


def _all(count: int) -> dict[str, int]:
    return {"ready": count, "started": count, "processed": count, "completed": count}
