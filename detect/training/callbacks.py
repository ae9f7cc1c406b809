"""What happens around the steps: a progress bar, and the end of a run whose loss is no number."""

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
from detect.training.nonfinite import first_place
from detect.training.randomness import get_random_state, set_random_state


@dataclass(frozen=True, slots=True)
class _Step:
    """What is looked at once the device has computed it."""

    number: int
    figures: Tensor
    copied: torch.cuda.Event | None
    batch: Batch | ClassificationBatch
    random: dict[str, Tensor]


class StopOnNaN(Callback):
    """Ends training within a step of a loss or a gradient that is no number, and names the images and the layer.

    On CUDA the figures of a step are looked at after the next one has been queued, so that the GPU is not waited for.
    No checkpoint is written before they are. With fp16 the gradients may be anything: its scaler leaves such steps out.
    """

    def __init__(self) -> None:
        self._pending: _Step | None = None
        self._random: dict[str, Tensor] = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Remembers what the step will draw, should it have to be done again."""
        self._random = get_random_state(pl_module.device)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch | ClassificationBatch,
        batch_idx: int,
    ) -> None:
        """Looks at this step, or at the one before."""
        assert isinstance(pl_module, TrainingModule)
        norm = pl_module.gradient_norm.detach()
        if pl_module.training_options.precision == "fp16":
            norm = torch.zeros_like(norm)
        figures, copied = torch.stack([outputs["loss"].detach().to(norm), norm]), None
        if figures.device.type == "cuda":
            figures, copied = figures.to("cpu", non_blocking=True), torch.cuda.Event()
            copied.record()
            self._look_back(trainer, pl_module)
        self._pending = _Step(trainer.global_step, figures, copied, batch, self._random)
        if copied is None or trainer.is_last_batch:
            self._look_back(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Looks at the last step first."""
        self._look_back(trainer, pl_module)

    def _look_back(self, trainer: Trainer, module: LightningModule) -> None:
        step, self._pending = self._pending, None
        if step is None:
            return
        if step.copied is not None:
            step.copied.synchronize()  # until the copy is there, what it reads is whatever the memory held
        wrong = [
            f"{name} is {value.item()}"
            for name, value in zip(("loss", "gradient's norm"), step.figures, strict=True)
            if not value.isfinite()
        ]
        if wrong:
            assert isinstance(module, TrainingModule)
            set_random_state(module.device, step.random)
            with torch.enable_grad(), trainer.precision_plugin.train_step_context():
                place = first_place(module.model, lambda: module.losses(step.batch, module.model.loss))
            images = ", ".join(map(str, step.batch.ids.tolist()))
            raise UserError(
                f"step {step.number}: the {wrong[0]} on the images with ids {images}, first in {place}; look at them, "
                "lower --training.learning_rate, or set --training.clip_norm 10"
            )


class ProgressBar(Callback):
    """One bar over the whole run: epoch, steps, losses, the last AP, time gone and time to go.

    Where the output is no terminal, one line an epoch.
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
            TextColumn("{task.fields[figures]}"),
            console=self.console,
        )
        self._last_shown = 0.0
        self._started = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the bar, at the place where a resumed run goes on."""
        self._started = time.monotonic()
        self.bar.disable = not (self.console.is_terminal and trainer.is_global_zero)
        total = int(trainer.estimated_stepping_batches)
        self._task = self.bar.add_task("training", total=total, completed=trainer.global_step, figures="")
        self.bar.start()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch | ClassificationBatch,
        batch_idx: int,
    ) -> None:
        """Moves on; the losses are read once a second only, for reading them waits for the device."""
        description = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        self.bar.update(self._task, completed=trainer.global_step, description=description)
        if not self.bar.disable and time.monotonic() - self._last_shown > 1:
            self._last_shown = time.monotonic()
            self.bar.update(self._task, figures=self._figures(trainer))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shows the epoch's losses, and the figures of the last validation."""
        if not self.bar.disable:
            self.bar.update(self._task, figures=self._figures(trainer))
        elif trainer.is_global_zero:
            minutes = (time.monotonic() - self._started) / 60
            epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            print(f"{epoch}  {minutes:.1f} min  {self._figures(trainer)}", file=sys.stderr, flush=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Closes the bar."""
        self.bar.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Closes the bar, so that the error is legible."""
        self.bar.stop()

    def _figures(self, trainer: Trainer) -> str:
        """The sum of the losses and the AP, which fit into 80 columns; where there is room, each loss too."""
        parts = ("rpn_objectness", "rpn_boxes", "classification", "boxes")
        wide = not self.console.is_terminal or self.console.width >= 150
        shown = ("loss", *parts, "val_loss", "AP", "AP50") if wide else ("loss", "AP")
        metrics = trainer.callback_metrics
        return "  ".join(f"{name} {float(metrics[name]):.3f}" for name in shown if name in metrics)
