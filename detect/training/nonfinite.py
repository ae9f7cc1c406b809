"""Locates NaN and infinity: repeats a failed step with a hook on every layer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from detect.models.detector import Losses


def first_nonfinite(model: nn.Module, losses: Callable[[], Losses]) -> str:
    """Return the first weight, output, loss or gradient with NaN or infinity, in the order of computation.

    The order is: weights, outputs of layers, losses, then, backwards, the gradients of outputs and of weights.

    Args:
        model: the model whose layers are hooked.
        losses: computes the losses of the batch with the model.
    """
    nonfinite: list[str] = [f"the weights {name}" for name, value in model.named_parameters() if _is_nonfinite(value)]
    layers = [(name, layer) for name, layer in model.named_modules() if not any(layer.children())]
    hooks = [layer.register_forward_hook(_hook(name, nonfinite)) for name, layer in layers]
    try:
        loss_values = losses()
        nonfinite += [f"the loss {name}" for name, value in loss_values.items() if _is_nonfinite(value)]
        if not nonfinite:
            trainable = {name: value for name, value in model.named_parameters() if value.requires_grad}
            # Not backward(): it would exchange gradients with the other processes, which do not take part.
            total = torch.stack(list(loss_values.values())).sum()
            gradients = torch.autograd.grad(total, list(trainable.values()), allow_unused=True)
            last_first = reversed(list(zip(trainable, gradients, strict=True)))
            nonfinite += [
                f"the gradient of {name}" for name, value in last_first if value is not None and _is_nonfinite(value)
            ]
    finally:
        for hook in hooks:
            hook.remove()
    return nonfinite[0] if nonfinite else "another process, or not reproduced by repeating the step"


def _hook(name: str, nonfinite: list[str]) -> Callable[..., None]:
    def check_gradient(gradient: Tensor) -> None:
        if _is_nonfinite(gradient):
            nonfinite.append(f"the gradient at the output of {name}")

    def check_output(layer: nn.Module, inputs: object, output: object) -> None:
        for value in tree_leaves(output):
            if isinstance(value, Tensor) and value.is_floating_point():
                if _is_nonfinite(value):
                    nonfinite.append(f"the output of {name}")
                if value.requires_grad:
                    value.register_hook(check_gradient)

    return check_output


def _is_nonfinite(value: Tensor) -> bool:
    return not bool(value.isfinite().all())
