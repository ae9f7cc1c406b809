"""Callbacks: a progress bar, and a check for non-finite losses and gradients."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from detect.errors import UserError
from detect.structures import Batch, ClassificationBatch
from detect.training.module import TrainingModule
from detect.training.nonfinite import first_nonfinite
from detect.training.randomness import get_random_state, set_random_state


@dataclass(frozen=True, slots=True)
class _Step:
    """Values of a step, checked once the device has computed them."""

    number: int
    values: Tensor
    copied: torch.cuda.Event | None
    batch: Batch | ClassificationBatch
    random: dict[str, Tensor]


class StopOnNaN(Callback):
    """Ends training at a non-finite loss or gradient, at most one step later, and reports the images and the layer.

    On CUDA the values of a step are checked after the next one has been queued, so that the host never waits. No
    checkpoint is written before the check. With fp16, gradients may overflow; the scaler skips such steps.
    """

    def __init__(self) -> None:
        self._pending: _Step | None = None
        self._random: dict[str, Tensor] = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Save the random state, in case the step has to be repeated."""
        self._random = get_random_state(pl_module.device)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch | ClassificationBatch,
        batch_idx: int,
    ) -> None:
        """Check this step, or on CUDA the previous one."""
        assert isinstance(pl_module, TrainingModule)
        norm = pl_module.gradient_norm.detach()
        if pl_module.training_options.precision == "fp16":
            norm = torch.zeros_like(norm)
        values, copied = torch.stack([outputs["loss"].detach().to(norm), norm]), None
        if values.device.type == "cuda":
            values, copied = values.to("cpu", non_blocking=True), torch.cuda.Event()
            copied.record()
            self._check(trainer, pl_module)
        self._pending = _Step(trainer.global_step, values, copied, batch, self._random)
        if copied is None or trainer.is_last_batch:
            self._check(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Check the last step first."""
        self._check(trainer, pl_module)

    def _check(self, trainer: Trainer, module: LightningModule) -> None:
        step, self._pending = self._pending, None
        if step is None:
            return
        if step.copied is not None:
            step.copied.synchronize()  # the copy is complete only after this
        nonfinite = [
            f"{name} is {value.item()}"
            for name, value in zip(("loss", "gradient norm"), step.values, strict=True)
            if not value.isfinite()
        ]
        if nonfinite:
            assert isinstance(module, TrainingModule)
            set_random_state(module.device, step.random)
            with torch.enable_grad(), trainer.precision_plugin.train_step_context():
                location = first_nonfinite(module.model, lambda: module.losses(step.batch, module.model.loss))
            images = ", ".join(map(str, step.batch.ids.tolist()))
            raise UserError(
                f"step {step.number}: the {nonfinite[0]} on the images with ids {images}, first in {location}; "
                "check them, lower --training.learning_rate, or set --training.clip_norm 10"
            )


class ProgressBar(Callback):
    """One bar for the whole run: epoch, steps, losses, last AP, elapsed and remaining time.

    Without a terminal it prints one line per epoch.
    """

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            TextColumn("{task.fields[metrics]}"),
            console=self.console,
        )
        self._last_shown = 0.0
        self._started = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar, at the step where a resumed run continues."""
        self._started = time.monotonic()
        self.bar.disable = not (self.console.is_terminal and trainer.is_global_zero)
        total = int(trainer.estimated_stepping_batches)
        self._task = self.bar.add_task("training", total=total, completed=trainer.global_step, metrics="")
        self.bar.start()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch | ClassificationBatch,
        batch_idx: int,
    ) -> None:
        """Advance. Losses are read only once per second, since reading them waits for the device."""
        description = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        self.bar.update(self._task, completed=trainer.global_step, description=description)
        if not self.bar.disable and time.monotonic() - self._last_shown > 1:
            self._last_shown = time.monotonic()
            self.bar.update(self._task, metrics=self._metrics(trainer, pl_module))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the epoch's losses, and its metrics if it was validated."""
        if not self.bar.disable:
            self.bar.update(self._task, metrics=self._metrics(trainer, pl_module))
        elif trainer.is_global_zero:
            minutes = (time.monotonic() - self._started) / 60
            epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            is_validated = (trainer.current_epoch + 1) % (trainer.check_val_every_n_epoch or 1) == 0
            metrics = self._metrics(trainer, pl_module, is_validated)
            print(f"{epoch}  {minutes:.1f} min  {metrics}", file=sys.stderr, flush=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self.bar.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the bar, so that the error is readable."""
        self.bar.stop()

    def _metrics(self, trainer: Trainer, module: LightningModule, is_validated: bool = True) -> str:
        """Return the epoch's mean loss and AP, which fit into 80 columns, or in wider terminals each loss as well."""
        wide = not self.console.is_terminal or self.console.width >= 150
        losses = module.losses_of_epoch() if isinstance(module, TrainingModule) else {}
        of_validation = ("val_loss", "AP", "AP50") if wide else ("AP",)
        known = trainer.callback_metrics
        metrics = {name: float(known[name]) for name in of_validation if name in known}
        shown = {"loss": sum(losses.values())} | (losses if wide else {}) | (metrics if is_validated else {})
        return "  ".join(f"{name} {value:.3f}" for name, value in shown.items())
