"""The training step and the validation step; the loop around them is Lightning's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, distributed
from torch.nn.utils import clip_grad_norm_, get_total_norm
from torch.optim import Optimizer

from detect.config import TrainingOptions
from detect.data.dataset import Dataset
from detect.data.formats.imagefolder import ImageClasses
from detect.evaluation.classification import ClassificationEvaluator
from detect.evaluation.evaluator import Evaluator
from detect.models import Classifier, Detector
from detect.models.detector import Losses, Part
from detect.ops.winograd import learn_by_winograd
from detect.structures import Batch, ClassificationBatch
from detect.training.optimization import make_optimizer, schedule
from detect.training.randomness import get_random_state, set_random_state


class TrainingModule(LightningModule):
    """What the training of a detector and that of a classifier have in common.

    Args:
        model: the detector or classifier.
        training: how it is optimised.
        card: what a checkpoint says of the model beside its weights.
    """

    monitor: ClassVar[str]
    """The figure that chooses the best checkpoint; the higher, the better."""
    evaluator: Evaluator | ClassificationEvaluator | None

    def __init__(self, model: Detector | Classifier, training: TrainingOptions, card: dict[str, Any] | None) -> None:
        super().__init__()
        on_cpu = training.accelerator == "cpu" or not torch.cuda.is_available()
        self.model = model.lay_out(fastest_layout(on_cpu))
        if on_cpu:
            learn_by_winograd(self.model)
        self.training_options, self.card = training, card or {}
        loss: Callable[..., Losses] = model.loss
        self.loss = torch.compile(loss, fullgraph=True) if training.compile else loss
        self.gradient_norm = torch.zeros(())

    def setup(self, stage: str) -> None:
        """Lets each process draw samples and dropout of its own; Lightning has seeded all of them alike."""
        if _parallel():
            torch.manual_seed(self.training_options.seed + distributed.get_rank())

    def losses(self, batch: Any, loss: Callable[..., Losses]) -> Losses:
        """What `loss`, the model's own or the compiled one, says to the batch."""
        raise NotImplementedError

    def training_step(self, batch: Any, index: int) -> dict[str, Tensor]:
        """The sum of the losses, and each of them."""
        return self.sum_up(self.losses(batch, self.loss), batch)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips the gradients; a step whose gradients are no numbers changes nothing.

        `gradient_norm` says so afterwards; the device is not waited for.
        """
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if gradient_clip_val is not None:
            self.gradient_norm = clip_grad_norm_(parameters, gradient_clip_val)
        else:
            self.gradient_norm = get_total_norm(one.grad for one in parameters if one.grad is not None)
        if optimizer.defaults.get("fused"):  # as a scaler tells it
            optimizer.found_inf = (~self.gradient_norm.isfinite()).float()  # type: ignore[attr-defined]
        elif self.training_options.precision != "fp16" and not self.gradient_norm.isfinite():  # RMSprop alone waits
            optimizer.zero_grad()

    def sum_up(self, losses: Losses, batch: Batch | ClassificationBatch) -> dict[str, Tensor]:
        """The sum of the losses, which is minimised; it and each of them is logged."""
        total = torch.stack(list(losses.values())).sum()
        logged = {"loss": total.detach(), **{name: loss.detach() for name, loss in losses.items()}}
        self.log_dict(logged, batch_size=len(batch))
        return {"loss": total}

    def share_buffers(self) -> None:
        """Every process evaluates the first one's running statistics."""
        if _parallel():
            for buffer in self.model.buffers():
                distributed.broadcast(buffer, 0)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The optimizer and the learning rate of each step."""
        optimizer = make_optimizer(self.model, self.training_options)
        # Lightning's own estimate would start the workers, in a run that goes on before it knows its epoch.
        steps = len(self.trainer.datamodule.train_dataloader())  # type: ignore[attr-defined]
        scheduler = schedule(optimizer, self.training_options, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """From page-locked memory, while the device computes."""
        return batch.to(device, non_blocking=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Puts class names, preprocessing and versions beside the weights, and every process's random state."""
        checkpoint["detect"] = self.card
        states: list[Any] = [get_random_state(self.device)]
        if _parallel():
            states *= distributed.get_world_size()
            distributed.all_gather_object(states, states[0])
        checkpoint["random"] = states

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A run that goes on draws what it would have drawn; processes that it did not have draw what they will."""
        states, rank = checkpoint["random"], distributed.get_rank() if _parallel() else 0
        if rank < len(states):
            set_random_state(self.device, states[rank])


class DetectorModule(TrainingModule):
    """Minimises the sum of a detector's losses.

    Args:
        model: the detector.
        training: how it is optimised.
        val: the truths of the validation batches.
        card: what a checkpoint says of the model beside its weights.
        parts: the losses to minimise.
        proposer: another detector that proposes the regions, in place of the model's own RPN.
    """

    monitor = "AP"

    def __init__(
        self,
        model: Detector,
        training: TrainingOptions,
        val: Dataset | None = None,
        card: dict[str, Any] | None = None,
        parts: Sequence[Part] = ("rpn", "boxes"),
        proposer: Detector | None = None,
    ) -> None:
        super().__init__(model, training, card)
        self.model: Detector
        self.parts = tuple(parts)
        self.evaluator: Evaluator | None = None if val is None else Evaluator(val)
        # In a tuple, so that it is no submodule: neither trained nor saved.
        self.proposer = () if proposer is None else (proposer.eval(),)

    def losses(self, batch: Batch, loss: Callable[..., Losses]) -> Losses:
        """Those of the parts."""
        for proposer in self.proposer:
            batch = replace(batch, proposals=proposer.to(self.device).propose(batch.images))
        return loss(batch, self.parts)

    def on_validation_epoch_start(self) -> None:
        """Begins anew."""
        assert self.evaluator is not None
        self.evaluator = Evaluator(self.evaluator.dataset)
        self.share_buffers()

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


class ClassifierModule(TrainingModule):
    """Minimises a classifier's cross entropy.

    Args:
        model: the classifier.
        training: how it is optimised.
        val: the images of the validation batches.
        card: what a checkpoint says of the model beside its weights.
    """

    monitor = "top1"

    def __init__(
        self,
        model: Classifier,
        training: TrainingOptions,
        val: ImageClasses | None = None,
        card: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(model, training, card)
        self.model: Classifier
        self.evaluator: ClassificationEvaluator | None = None if val is None else ClassificationEvaluator(val)

    def losses(self, batch: ClassificationBatch, loss: Callable[..., Losses]) -> Losses:
        """The cross entropies."""
        return loss(batch)

    def on_validation_epoch_start(self) -> None:
        """Begins anew."""
        assert self.evaluator is not None
        self.evaluator = ClassificationEvaluator(self.evaluator.dataset)
        self.share_buffers()

    def validation_step(self, batch: ClassificationBatch, index: int) -> None:
        """The logits of a batch."""
        assert self.evaluator is not None
        self.evaluator.update(batch, self.model(batch.images))

    def on_validation_epoch_end(self) -> None:
        """Logs the figures; `top1` chooses the best checkpoint."""
        assert self.evaluator is not None
        self.evaluator.gather()
        metrics = self.evaluator.compute()
        self.log_dict({name: metrics[name] for name in ("top1", "top5")}, rank_zero_only=False)


def fastest_layout(on_cpu: bool) -> torch.memory_format:
    """Channels last, but where gradients are computed with AVX2: there a step of a ResNet takes a third longer so."""
    avx2 = on_cpu and torch.backends.cpu.get_cpu_capability() == "AVX2"
    return torch.contiguous_format if avx2 else torch.channels_last


def _parallel() -> bool:
    return distributed.is_available() and distributed.is_initialized()
