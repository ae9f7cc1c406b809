"""Optimizer, parameter groups, warm-up and schedule."""

from __future__ import annotations

import math
from typing import Any

from torch import nn, optim
from torch.optim.lr_scheduler import LambdaLR

from detect.config import TrainingOptions


def make_optimizer(model: nn.Module, training: TrainingOptions) -> optim.Optimizer:
    """Return the optimizer of the trainable parameters, in three groups: weights, biases, scales of norms."""
    weights: list[nn.Parameter] = []
    biases: list[nn.Parameter] = []
    scales: list[nn.Parameter] = []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                is_norm = parameter.ndim == 1
                (scales if is_norm and name == "weight" else biases if name == "bias" else weights).append(parameter)
    rate = training.learning_rate
    groups: list[dict[str, Any]] = [
        {"params": weights, "lr": rate, "weight_decay": training.weight_decay},
        {"params": biases, "lr": rate * training.bias_lr_factor, "weight_decay": 0.0},
        {"params": scales, "lr": rate, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    # Fused kernels take one pass over the memory. With fp16's scaler, Lightning cannot clip gradients before them.
    fused = training.precision != "fp16"
    match training.optimizer:
        case "sgd":
            return optim.SGD(groups, momentum=training.momentum, nesterov=training.nesterov, fused=fused)
        case "rmsprop":
            return optim.RMSprop(groups, momentum=training.momentum)
        case "adagrad":
            return optim.Adagrad(groups, fused=fused)
        case "adam":
            return optim.Adam(groups, fused=fused)
        case "adamw":
            return optim.AdamW(groups, fused=fused)


def schedule(optimizer: optim.Optimizer, training: TrainingOptions, steps_per_epoch: int) -> LambdaLR:
    """Return the learning rate schedule by step: warm-up times the chosen schedule."""
    total = max(1, training.closing_from * steps_per_epoch)
    drops = [milestone * steps_per_epoch for milestone in training.milestones]
    rise = training.warmup_steps if training.warmup_epochs is None else training.warmup_epochs * steps_per_epoch

    def factor(step: int) -> float:
        progress = min(1.0, (step + 1) / max(1, rise))
        if training.warmup_curve == "quadratic":
            progress **= 2
        warmup = training.warmup_start + (1 - training.warmup_start) * progress
        if training.schedule == "cosine":
            cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / total)))
            return warmup * (training.final_lr_factor + (1 - training.final_lr_factor) * cosine)
        if training.schedule == "steps":
            return warmup * 0.1 ** sum(step >= drop for drop in drops)
        return warmup

    return LambdaLR(optimizer, factor)
