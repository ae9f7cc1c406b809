"""The training step and the validation step; the loop around them is Lightning's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, distributed

from detect.config import TrainingOptions
from detect.data.dataset import Dataset
from detect.evaluation.evaluator import Evaluator
from detect.models import Detector
from detect.models.detector import Losses, Part
from detect.structures import Batch
from detect.training.optimization import schedule, sgd


class DetectorModule(LightningModule):
    """Minimises the sum of a detector's losses.

    Args:
        model: the detector.
        training: how it is optimised.
        val: the truths of the validation batches.
        card: what a checkpoint says of the model beside its weights.
        parts: the losses to minimise.
        proposer: another detector that proposes the regions, in place of the model's own RPN.
    """

    def __init__(
        self,
        model: Detector,
        training: TrainingOptions,
        val: Dataset | None = None,
        card: dict[str, Any] | None = None,
        parts: Sequence[Part] = ("rpn", "boxes"),
        proposer: Detector | None = None,
    ) -> None:
        super().__init__()
        self.model = model.lay_out(_fastest_layout(training))
        self.training_options, self.card, self.parts = training, card or {}, tuple(parts)
        self.evaluator = None if val is None else Evaluator(val)
        # In a tuple, so that it is no submodule: neither trained nor saved.
        self.proposer = () if proposer is None else (proposer.eval(),)
        self.loss = torch.compile(model.loss, fullgraph=True) if training.compile else model.loss

    def training_step(self, batch: Batch, index: int) -> dict[str, Tensor]:
        """The sum of the losses, and each of them."""
        for proposer in self.proposer:
            batch = replace(batch, proposals=proposer.to(self.device).propose(batch.images))
        losses: Losses = self.loss(batch, self.parts)
        total = torch.stack(list(losses.values())).sum()
        logged = {"loss": total.detach(), **{name: loss.detach() for name, loss in losses.items()}}
        self.log_dict(logged, batch_size=len(batch))
        return {"loss": total}

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """SGD and the learning rate of each step."""
        optimizer = sgd(self.model, self.training_options)
        # Lightning's own estimate would start the workers, in a run that goes on before it knows its epoch.
        steps = len(self.trainer.datamodule.train_dataloader())  # type: ignore[attr-defined]
        scheduler = schedule(optimizer, self.training_options, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_validation_epoch_start(self) -> None:
        """Begins anew; every process evaluates the first one's running statistics."""
        assert self.evaluator is not None
        self.evaluator = Evaluator(self.evaluator.dataset)
        if _parallel():
            for buffer in self.model.buffers():
                distributed.broadcast(buffer, 0)

    def validation_step(self, batch: Batch, index: int) -> None:
        """Losses and detections from one forward pass."""
        assert self.evaluator is not None
        # The same samples at every validation, and none of the numbers that training would have drawn.
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(self.training_options.seed)
            losses, detections, proposals = self.model.validate(batch)
        self.evaluator.update(batch, detections, proposals, losses)

    def on_validation_epoch_end(self) -> None:
        """Logs the figures; `AP` chooses the best checkpoint."""
        assert self.evaluator is not None
        self.evaluator.gather()
        metrics = self.evaluator.compute()
        figures = {name: value for name, value in metrics.items() if isinstance(value, float)}
        losses = {f"val_{name}": value for name, value in metrics["losses"].items()}
        self.log_dict(figures | losses, rank_zero_only=False)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """From page-locked memory, while the device computes."""
        return batch.to(device, non_blocking=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Puts class names, preprocessing and versions beside the weights, and every process's random state."""
        checkpoint["detect"] = self.card
        states: list[Any] = [{"cpu": torch.get_rng_state()}]
        if self.device.type == "cuda":
            states[0]["cuda"] = torch.cuda.get_rng_state(self.device)
        if _parallel():
            states *= distributed.get_world_size()
            distributed.all_gather_object(states, states[0])
        checkpoint["random"] = states

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A run that goes on draws what it would have drawn."""
        states = checkpoint["random"]
        state = states[distributed.get_rank() % len(states) if _parallel() else 0]
        torch.set_rng_state(state["cpu"])
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"])


def _fastest_layout(training: TrainingOptions) -> torch.memory_format:
    """Channels last, but where gradients are computed with AVX2: there a step of a ResNet takes a third longer so."""
    on_cpu = training.accelerator == "cpu" or not torch.cuda.is_available()
    avx2 = on_cpu and torch.backends.cpu.get_cpu_capability() == "AVX2"
    return torch.contiguous_format if avx2 else torch.channels_last


def _parallel() -> bool:
    return distributed.is_available() and distributed.is_initialized()
