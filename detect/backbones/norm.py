"""The norms of a network, and batch norm that stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

Norm = Literal["frozen", "batch", "group"]


class FrozenBatchNorm2d(nn.Module):
    """Batch norm whose statistics and affine map are constants: y = (x - mean) / √(var + eps) · weight + bias.

    Detectors train on so few images a GPU that statistics of the batch are noise, so they keep ImageNet's. The
    buffers have the names of `nn.BatchNorm2d`, so that either loads the state dict of the other. The result has the
    dtype of x, also where the buffers are wider. Networks imported from elsewhere may need another `eps`.
    """

    weight: Float[Tensor, " c"]
    bias: Float[Tensor, " c"]
    running_mean: Float[Tensor, " c"]
    running_var: Float[Tensor, " c"]

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    @classmethod
    def of(cls, norm: nn.BatchNorm2d) -> FrozenBatchNorm2d:
        """What `norm` computes in eval mode, for good."""
        frozen = cls(norm.num_features, norm.eps).to(norm.weight.device, norm.weight.dtype)
        frozen.load_state_dict(norm.state_dict())
        return frozen

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """The normalised x."""
        if not x.requires_grad:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        # On the way to a gradient, batch_norm would keep x in memory to differentiate weight and bias. This keeps
        # nothing, and is one pass over x as well.
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return torch.addcmul(shift.to(x.dtype)[:, None, None], x, scale.to(x.dtype)[:, None, None])

    def extra_repr(self) -> str:
        """The arguments, for `print`."""
        return f"{len(self.weight)}, eps={self.eps}"

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        state_dict.pop(f"{prefix}num_batches_tracked", None)  # batch norm counts its batches, a constant does not
        super()._load_from_state_dict(state_dict, prefix, *args)


def norm_layer(norm: Norm) -> Callable[[int], nn.Module]:
    """What makes a norm of so many channels. Group norm has 32 groups (Wu and He 2018, §4)."""
    layers: dict[Norm, Callable[[int], nn.Module]] = {
        "frozen": FrozenBatchNorm2d,
        "batch": nn.BatchNorm2d,
        "group": partial(nn.GroupNorm, 32),
    }
    return layers[norm]


def freeze_batch_norms(module: nn.Module) -> None:
    """Replace, in place, every batch norm within the module by a frozen one."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, FrozenBatchNorm2d.of(child))


def freeze(module: nn.Module) -> None:
    """Make, in place, the module a constant: no gradients, and statistics that `module.train()` does not thaw."""
    freeze_batch_norms(module)
    module.requires_grad_(False)
