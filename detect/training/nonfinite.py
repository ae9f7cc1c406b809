"""Where numbers stop being numbers: a step that went wrong is done once more, with a look at every layer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from detect.models.detector import Losses


def first_place(model: nn.Module, losses: Callable[[], Losses]) -> str:
    """The first place, in the order of computation, that holds NaN or Inf.

    Weights, then the layers' outputs, then the losses, then, backwards, the gradients at these outputs and of weights.

    Args:
        model: its layers are watched.
        losses: computes them from the batch, with the model.
    """
    found: list[str] = [f"the weights {name}" for name, value in model.named_parameters() if _is_wrong(value)]
    layers = [(name, layer) for name, layer in model.named_modules() if not any(layer.children())]
    hooks = [layer.register_forward_hook(_watcher(name, found)) for name, layer in layers]
    try:
        computed = losses()
        found += [f"the loss {name}" for name, value in computed.items() if _is_wrong(value)]
        if not found:
            learned = {name: value for name, value in model.named_parameters() if value.requires_grad}
            # Not by backward(), which would make other processes wait for this one to share its gradients.
            total = torch.stack(list(computed.values())).sum()
            gradients = torch.autograd.grad(total, list(learned.values()), allow_unused=True)
            last_first = reversed(list(zip(learned, gradients, strict=True)))
            found += [f"the gradient of {name}" for name, value in last_first if value is not None and _is_wrong(value)]
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else "another process, or nowhere when the step is repeated"


def _watcher(name: str, found: list[str]) -> Callable[..., None]:
    def look_back(gradient: Tensor) -> None:
        if _is_wrong(gradient):
            found.append(f"the gradient at the output of {name}")

    def look(layer: nn.Module, inputs: object, output: object) -> None:
        for value in tree_leaves(output):
            if isinstance(value, Tensor) and value.is_floating_point():
                if _is_wrong(value):
                    found.append(f"the output of {name}")
                if value.requires_grad:
                    value.register_hook(look_back)

    return look


def _is_wrong(value: Tensor) -> bool:
    return not bool(value.isfinite().all())
