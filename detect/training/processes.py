"""Processes, devices and precision of a training run."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any, Literal

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy

from detect.config import TrainingOptions
from detect.devices import choose_device, multiplies_bf16, warn_of_slow_bf16
from detect.errors import UserError

TIMEOUT = timedelta(minutes=10)
"""Time that a process waits for another one whose machine is lost; the end of a process is noticed immediately.
Processes are never this far apart, except while a large model is compiled."""
LIGHTNING_PRECISION: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


class DDP(DDPStrategy):
    """Validates without DDP's wrapper: its broadcasts would hang if processes have different numbers of batches."""

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module's own step."""
        assert self.lightning_module is not None
        with self.precision_plugin.val_step_context():
            return self.lightning_module.validation_step(*args, **kwargs)


def count_processes(training: TrainingOptions) -> int:
    """Return the number of processes of a training run: under torchrun those of all machines, else of this one."""
    if torch.distributed.is_torchelastic_launched():
        return int(os.environ["WORLD_SIZE"])
    return training.devices or max(1, 0 if training.accelerator == "cpu" else torch.accelerator.device_count())


def trainer_devices(training: TrainingOptions, unused_parameters: bool) -> dict[str, Any]:
    """Return the trainer's arguments for devices: under torchrun from the environment, else from the options.

    Args:
        training: options of training.
        unused_parameters: true if some trainable parameters have no gradient, as in alternating training.
    """
    # Buffers are broadcast before validations only (`TrainingModule.share_buffers`): nothing else reads them.
    parallel = DDP(
        find_unused_parameters=unused_parameters,
        static_graph=not unused_parameters,
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
        timeout=TIMEOUT,
    )
    if torch.distributed.is_torchelastic_launched():
        local, machines = (int(os.environ[name]) for name in ("LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"))
        return {"accelerator": training.accelerator, "devices": local, "num_nodes": machines, "strategy": parallel}
    several = count_processes(training) > 1
    devices = training.devices or "auto"
    return {"accelerator": training.accelerator, "devices": devices, "strategy": parallel if several else "auto"}


def cluster_plugins(training: TrainingOptions) -> list[Any]:
    """Return a plugin that prevents Lightning from requeueing SLURM jobs, if this is one.

    Lightning would save within a step and into the working directory, and later runs would resume from there.
    """
    if not SLURMEnvironment.detect() or torch.distributed.is_torchelastic_launched():
        return []
    return [SLURMEnvironment(auto_requeue=False) if count_processes(training) > 1 else LightningEnvironment()]


def resolve_precision(training: TrainingOptions) -> Literal["fp32", "bf16", "fp16"]:
    """Return the chosen precision, with `auto` resolved for this machine."""
    device = choose_device(training.accelerator)
    if training.precision == "auto":
        return "bf16" if multiplies_bf16(device) else "fp32"
    if training.precision == "bf16":
        warn_of_slow_bf16(device)
    return training.precision


def check_machine(training: TrainingOptions) -> None:
    """Raise `UserError` if this machine does not have the devices or support the precision of the options."""
    gpus, processes = torch.accelerator.device_count(), count_processes(training)
    if training.accelerator == "gpu" and not gpus:
        raise UserError("training.accelerator: torch sees no GPU; choose cpu or auto")
    if gpus and training.accelerator != "cpu" and processes > gpus * int(os.environ.get("GROUP_WORLD_SIZE", 1)):
        raise UserError(f"training.devices: {processes} processes, but this machine has {gpus} GPUs; choose fewer")
    if training.precision == "fp16" and not torch.cuda.is_available():
        raise UserError("training.precision: fp16 needs a CUDA device; choose auto, bf16 or fp32")
