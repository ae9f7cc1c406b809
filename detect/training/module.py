"""Lightning modules: training and validation steps of detectors and classifiers."""

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
from detect.data.collate import padded_lengths
from detect.data.dataset import Dataset
from detect.data.formats.imagefolder import ImageClasses
from detect.data.options import DataOptions
from detect.devices import choose_device, is_distributed
from detect.evaluation.classification import ClassificationEvaluator
from detect.evaluation.evaluator import Evaluator
from detect.models import Classifier, Detector, Losses, TwoStage
from detect.models.two_stage import Part
from detect.ops.winograd import train_with_winograd
from detect.structures import Batch, ClassificationBatch
from detect.training.optimization import make_optimizer, schedule
from detect.training.randomness import get_random_state, set_random_state

HYPERPARAMETERS = ("lr", "weight_decay", "momentum", "nesterov")
"""Options of an optimizer that may change when a run resumes."""


class TrainingModule(LightningModule):
    """Base class of the modules of detectors and classifiers.

    Args:
        model: the detector or classifier.
        training: options of the optimisation.
        card: model card for the checkpoints (see `detect.checkpoint.model_card`).
    """

    monitor: ClassVar[str]
    """Metric that selects the best checkpoint; higher is better."""
    trains_in_part: bool = False
    """True if some trainable parameters get no gradient."""
    evaluator: Evaluator | ClassificationEvaluator | None

    def __init__(self, model: Detector | Classifier, training: TrainingOptions, card: dict[str, Any] | None) -> None:
        super().__init__()
        on_cpu = choose_device(training.accelerator).type == "cpu"
        self.model = model.to_memory_format(fastest_memory_format(on_cpu))
        if on_cpu:
            train_with_winograd(self.model)
        self.training_options, self.card = training, card or {}
        loss: Callable[..., Losses] = model.loss
        self.loss = compiled(loss, training) if training.compile else loss
        self.gradient_norm = torch.zeros(())
        self.loss_names: tuple[str, ...] = ()
        self.mean_losses: Tensor | None = None
        """Mean of each loss over the batches of the epoch so far, in the order of `loss_names`."""
        self.batches_of_epoch = 0
        self.hyperparameters: list[dict[str, Any]] = []

    def setup(self, stage: str) -> None:
        """Seed each process differently for sampling and dropout; Lightning has seeded all of them equally."""
        if is_distributed():
            torch.manual_seed(self.training_options.seed + distributed.get_rank())

    def on_train_epoch_start(self) -> None:
        """Reset the mean losses."""
        self.mean_losses, self.batches_of_epoch = None, 0

    def losses(self, batch: Any, loss: Callable[..., Losses]) -> Losses:
        """Return the losses of a batch, computed by `loss`: the model's method or its compiled form."""
        raise NotImplementedError

    def training_step(self, batch: Any, index: int) -> dict[str, Tensor]:
        """Return the sum of the losses."""
        return self.total(self.losses(batch, self.loss), batch)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients and skip the update if they are not finite.

        Sets `gradient_norm` and, except for RMSprop, does not wait for the device.
        """
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if gradient_clip_val is not None:
            self.gradient_norm = clip_grad_norm_(parameters, gradient_clip_val)
        else:
            self.gradient_norm = get_total_norm(p.grad for p in parameters if p.grad is not None)
        if optimizer.defaults.get("fused"):  # set like this by a gradient scaler
            optimizer.found_inf = (~self.gradient_norm.isfinite()).float()  # type: ignore[attr-defined]
        elif self.training_options.precision != "fp16" and not self.gradient_norm.isfinite():  # only RMSprop waits
            optimizer.zero_grad()

    def total(self, losses: Losses, batch: Batch | ClassificationBatch) -> dict[str, Tensor]:
        """Return the sum of the losses, to be minimised, and log the sum and each loss."""
        self.loss_names = tuple(losses)
        values = torch.stack(list(losses.values()))
        total, mean = values.sum(), self.mean_losses
        self.batches_of_epoch += 1
        self.mean_losses = values.detach() if mean is None else mean.lerp(values.detach(), 1 / self.batches_of_epoch)
        # Views of `values`: a CUDA graph overwrites its own outputs at the next step.
        logged = {"loss": total.detach(), **dict(zip(losses, values.detach(), strict=True))}
        self.log_dict(logged, batch_size=len(batch))
        return {"loss": total}

    def losses_of_epoch(self) -> dict[str, float]:
        """Return the mean of each loss over the batches of the epoch so far; waits for the device."""
        return {} if self.mean_losses is None else dict(zip(self.loss_names, self.mean_losses.tolist(), strict=True))

    def share_buffers(self) -> None:
        """Copy the running statistics of the first process to all others, for validation."""
        if is_distributed():
            for buffer in self.model.buffers():
                distributed.broadcast(buffer, 0)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return the optimizer and the learning rate schedule, by step."""
        optimizer = make_optimizer(self.model, self.training_options)
        self.hyperparameters = [
            {name: group[name] for name in HYPERPARAMETERS if name in group} for group in optimizer.param_groups
        ]
        # Lightning's own estimate would start the workers before a resumed run knows its epoch.
        steps = len(self.trainer.datamodule.train_dataloader())  # type: ignore[attr-defined]
        scheduler = schedule(optimizer, self.training_options, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        """Apply the options to an optimizer that was restored from a checkpoint, which may have had other ones."""
        scheduler: Any = self.trainer.lr_scheduler_configs[0].scheduler
        scheduler.base_lrs = [given["lr"] for given in self.hyperparameters]
        groups = zip(scheduler.optimizer.param_groups, self.hyperparameters, scheduler.lr_lambdas, strict=True)
        for group, given, factor in groups:
            group.update(given, initial_lr=given["lr"], lr=given["lr"] * factor(scheduler.last_epoch))

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Copy a batch from page-locked memory while the device computes."""
        return batch.to(device, non_blocking=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the model card and the random state of every process."""
        checkpoint["detect"] = self.card
        states: list[Any] = [get_random_state(self.device)]
        if is_distributed():
            states *= distributed.get_world_size()
            distributed.all_gather_object(states, states[0])
        checkpoint["random"] = states

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the random state of each process."""
        states, rank = checkpoint["random"], distributed.get_rank() if is_distributed() else 0
        if rank < len(states):
            set_random_state(self.device, states[rank])


class DetectorModule(TrainingModule):
    """Minimises the sum of a detector's losses.

    Args:
        model: the detector.
        training: options of the optimisation.
        val: ground truths of the validation batches.
        card: model card for the checkpoints.
        parts: parts of a two-stage detector whose losses are minimised; None for all.
        proposer: another detector that proposes the regions, instead of the model's own RPN.
    """

    monitor = "AP"

    def __init__(
        self,
        model: Detector,
        training: TrainingOptions,
        val: Dataset | None = None,
        card: dict[str, Any] | None = None,
        parts: Sequence[Part] | None = None,
        proposer: TwoStage | None = None,
    ) -> None:
        super().__init__(model, training, card)
        self.model: Detector
        self.parts, self.trains_in_part = parts, parts is not None
        self.evaluator: Evaluator | None = None if val is None else Evaluator(val)
        # In a tuple, so that it is not a submodule, which would be trained and saved.
        self.proposer = () if proposer is None else (proposer.eval(),)

    def losses(self, batch: Batch, loss: Callable[..., Losses]) -> Losses:
        """Return the losses of `parts`, on the regions of the proposer, if any."""
        for proposer in self.proposer:
            batch = replace(batch, proposals=proposer.to(self.device).propose(batch.images))
        return loss(batch) if self.parts is None else loss(batch, self.parts)

    def on_validation_epoch_start(self) -> None:
        """Reset the evaluator."""
        assert self.evaluator is not None
        self.evaluator = Evaluator(self.evaluator.dataset)
        self.share_buffers()

    def validation_step(self, batch: Batch, index: int) -> None:
        """Evaluate losses and detections of a batch."""
        assert self.evaluator is not None
        # Draw the same samples in every validation, without changing the random numbers of training.
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(self.training_options.seed)
            losses, detections = self.model.validate(batch)
        self.evaluator.update(batch, detections, losses)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics; `AP` selects the best checkpoint."""
        assert self.evaluator is not None
        self.evaluator.gather()
        metrics = self.evaluator.compute()
        scalars = {name: value for name, value in metrics.items() if isinstance(value, float)}
        losses = {f"val_{name}": value for name, value in metrics["losses"].items()}
        self.log_dict(scalars | losses, rank_zero_only=False)


class ClassifierModule(TrainingModule):
    """Minimises a classifier's cross entropy.

    Args:
        model: the classifier.
        training: options of the optimisation.
        val: images of the validation batches.
        card: model card for the checkpoints.
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
        """Return the cross entropies."""
        return loss(batch)

    def on_validation_epoch_start(self) -> None:
        """Reset the evaluator."""
        assert self.evaluator is not None
        self.evaluator = ClassificationEvaluator(self.evaluator.dataset)
        self.share_buffers()

    def validation_step(self, batch: ClassificationBatch, index: int) -> None:
        """Evaluate the logits of a batch."""
        assert self.evaluator is not None
        self.evaluator.update(batch, self.model(batch.images))

    def on_validation_epoch_end(self) -> None:
        """Log the metrics; `top1` selects the best checkpoint."""
        assert self.evaluator is not None
        self.evaluator.gather()
        metrics = self.evaluator.compute()
        self.log_dict({name: metrics[name] for name in ("top1", "top5")}, rank_zero_only=False)


def compiled(loss: Callable[..., Losses], training: TrainingOptions) -> Callable[..., Losses]:
    """Return a loss compiled for each shape of a batch by itself, perhaps run as a CUDA graph."""
    on_cuda = choose_device(training.accelerator).type == "cuda"
    mode = "reduce-overhead" if training.cuda_graphs and on_cuda else None
    return torch.compile(loss, fullgraph=True, dynamic=False, mode=mode)


def allow_graphs(data: DataOptions) -> None:
    """Let torch.compile make a graph for each canvas and number of ground truths; its default limit is eight."""
    graphs = len(data.short_side) * data.canvases * len(padded_lengths(data.max_objects))
    from torch._dynamo import config  # takes seconds

    limits: Any = config
    for name in ("recompile_limit", "accumulated_recompile_limit"):
        setattr(limits, name, max(getattr(limits, name), graphs))


def fastest_memory_format(on_cpu: bool) -> torch.memory_format:
    """Return channels-last, except for training with AVX2, where it makes a step of a ResNet a third slower."""
    avx2 = on_cpu and torch.backends.cpu.get_cpu_capability() == "AVX2"
    return torch.contiguous_format if avx2 else torch.channels_last
