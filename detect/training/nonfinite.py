"""Locating NaN and infinity: a step that failed is repeated with a hook on every layer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from detect.models.detector import Losses


def first_nonfinite(model: nn.Module, losses: Callable[[], Losses]) -> str:
    """Return the first place, in the order of computation, that holds NaN or infinity.

    The order is: weights, outputs of layers, losses, then backwards the gradients of outputs and of weights.

    Args:
        model: the model whose layers are hooked.
        losses: computes the losses of the batch with the model.
    """
    found: list[str] = [f"the weights {name}" for name, value in model.named_parameters() if _is_nonfinite(value)]
    layers = [(name, layer) for name, layer in model.named_modules() if not any(layer.children())]
    hooks = [layer.register_forward_hook(_hook(name, found)) for name, layer in layers]
    try:
        computed = losses()
        found += [f"the loss {name}" for name, value in computed.items() if _is_nonfinite(value)]
        if not found:
            learned = {name: value for name, value in model.named_parameters() if value.requires_grad}
            # Not backward(), with which other processes would wait to exchange gradients with this one.
            total = torch.stack(list(computed.values())).sum()
            gradients = torch.autograd.grad(total, list(learned.values()), allow_unused=True)
            last_first = reversed(list(zip(learned, gradients, strict=True)))
            found += [
                f"the gradient of {name}" for name, value in last_first if value is not None and _is_nonfinite(value)
            ]
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else "another process, or nowhere when the step is repeated"


def _hook(name: str, found: list[str]) -> Callable[..., None]:
    def check_gradient(gradient: Tensor) -> None:
        if _is_nonfinite(gradient):
            found.append(f"the gradient at the output of {name}")

    def check_output(layer: nn.Module, inputs: object, output: object) -> None:
        for value in tree_leaves(output):
            if isinstance(value, Tensor) and value.is_floating_point():
                if _is_nonfinite(value):
                    found.append(f"the output of {name}")
                if value.requires_grad:
                    value.register_hook(check_gradient)

    return check_output


def _is_nonfinite(value: Tensor) -> bool:
    return not bool(value.isfinite().all())
