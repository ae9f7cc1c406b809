"""Norm layers by name, frozen batch norm, and local response normalisation."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

Norm = Literal["frozen", "batch", "sync", "group", "layer", "instance", "none"]


class Affine(NamedTuple):
    """Scale and shift of a frozen norm, and what they were computed from."""

    buffers: tuple[Tensor, ...]
    versions: list[int]
    eps: float
    scale: Tensor
    shift: Tensor

    def is_of(self, buffers: Sequence[Tensor], dtype: torch.dtype, eps: float) -> bool:
        """Return whether they belong to these buffers, which have not been written to since."""
        same = all(one is other for one, other in zip(self.buffers, buffers, strict=True))
        written = [buffer._version for buffer in buffers] != self.versions
        return same and not written and (self.scale.dtype, self.eps) == (dtype, eps)


class FrozenBatchNorm2d(nn.Module):
    """Batch norm with constant statistics and affine map: y = (x - mean) / √(var + eps) · weight + bias.

    Detectors train on too few images per GPU for batch statistics, so they keep ImageNet's. The buffers have the names
    of `nn.BatchNorm2d`, so that each loads the other's state dict. The result has the dtype of x, even if the buffers
    are wider. Imported networks may need another `eps`.
    """

    weight: Float[Tensor, " c"]
    bias: Float[Tensor, " c"]
    running_mean: Float[Tensor, " c"]
    running_var: Float[Tensor, " c"]

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self._affine: Affine | None = None
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    @classmethod
    def of(cls, norm: nn.BatchNorm2d | nn.SyncBatchNorm) -> FrozenBatchNorm2d:
        """Return the frozen form of `norm`, which computes the same in eval mode."""
        frozen = cls(norm.num_features, norm.eps).to(norm.weight.device, norm.weight.dtype)
        frozen.load_state_dict(norm.state_dict())
        return frozen

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Normalise x."""
        if not x.requires_grad and self.eps > 0:  # torch 2.11 refuses 0
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        # Under autograd, batch_norm would keep x in memory for the gradients of weight and bias. addcmul keeps nothing,
        # and also takes one pass over x.
        scale, shift = self.affine(x.dtype)
        return torch.addcmul(shift, x, scale)

    def affine(self, dtype: torch.dtype) -> tuple[Float[Tensor, "c 1 1"], Float[Tensor, "c 1 1"]]:
        """Return scale and shift in a dtype. They are kept until a buffer changes: on a GPU they take six kernels."""
        buffers = self.weight, self.bias, self.running_mean, self.running_var
        keeps = may_keep(buffers[0])
        if keeps and self._affine is not None and self._affine.is_of(buffers, dtype, self.eps):
            return self._affine.scale, self._affine.shift
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        scale, shift = scale.to(dtype)[:, None, None], shift.to(dtype)[:, None, None]
        if keeps:
            self._affine = Affine(buffers, [buffer._version for buffer in buffers], self.eps, scale, shift)
        return scale, shift

    def extra_repr(self) -> str:
        """Return the arguments, for `print`."""
        return f"{len(self.weight)}, eps={self.eps}"

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        state_dict.pop(f"{prefix}num_batches_tracked", None)  # only batch norm counts its batches
        super()._load_from_state_dict(state_dict, prefix, *args)


class FrozenBatchNormAct2d(FrozenBatchNorm2d):
    """Frozen form of timm's batch norms that include an activation, and perhaps a dropout before it."""

    drop: nn.Module
    act: nn.Module

    @classmethod
    def of(cls, norm: nn.BatchNorm2d | nn.SyncBatchNorm) -> FrozenBatchNormAct2d:
        """Return the frozen form of `norm`; dropout and activation are shared with it."""
        frozen = super().of(norm)
        assert isinstance(frozen, cls)
        frozen.drop, frozen.act = norm.get_submodule("drop"), norm.get_submodule("act")
        return frozen

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Normalise x and activate it."""
        return self.act(self.drop(super().forward(x)))


class LocalResponseNorm(nn.Module):
    """Divide each value by (2 + 1e-4 · the sum of squares over five neighbouring channels)^0.75.

    The same as Caffe's, whose alpha, 5e-4, is for the mean of the squares (Krizhevsky et al. 2012, §3.3, with
    Chatfield's constants). torch's module gives the same result, but takes twice as long on the CPU in channels-last,
    and in half precision its squares overflow from 256 on: here they are float32.
    """

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Normalise x, in its dtype."""
        channels = x.shape[1]
        squares = F.pad(x.float().square(), (0, 0, 0, 0, 2, 2))
        total = squares[:, :channels]
        for shift in range(1, 5):
            total = total + squares[:, shift : shift + channels]
        return (x * (2 + 1e-4 * total).pow(-0.75)).to(x.dtype)


def may_keep(tensor: Tensor) -> bool:
    """Return whether what is computed from a tensor now is of use later: not while a compiler traces, for example."""
    return not torch.compiler.is_compiling() and not torch.is_inference_mode_enabled() and type(tensor) is Tensor


def norm_layer(norm: Norm) -> Callable[[int], nn.Module]:
    """Return a function from a number of channels to a norm layer with a scale and a shift for each channel.

    Group norm has 32 groups (Wu and He 2018, §4), or the greatest common divisor of 32 and the channels. Layer norm is
    group norm with one group: over channels and cells, as Ba et al. 2016 and Wu and He define it for convolutions.
    """
    layers: dict[Norm, Callable[[int], nn.Module]] = {
        "frozen": FrozenBatchNorm2d,
        "batch": nn.BatchNorm2d,
        "sync": nn.SyncBatchNorm,
        "group": lambda channels: nn.GroupNorm(math.gcd(32, channels), channels),
        "layer": lambda channels: nn.GroupNorm(1, channels),
        "instance": lambda channels: nn.InstanceNorm2d(channels, affine=True),
        "none": nn.Identity,
    }
    return layers[norm]


def replace_norms(network: nn.Module, norm: Norm, among: Container[nn.Module] | None = None) -> None:
    """Replace, in place, the batch norms of a network by another norm.

    Frozen and synchronised norms keep the learned values and `eps`. With `among`, only the batch norms in it are
    replaced. A batch norm that includes an activation, like timm's, keeps it when it is frozen, and is not replaced by
    any other norm.
    """
    if norm == "batch":
        return
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if not isinstance(child, nn.BatchNorm2d | nn.SyncBatchNorm) or (among is not None and child not in among):
                continue
            has_activation = hasattr(child, "act")
            match norm:
                case "frozen" if has_activation:
                    replacement: nn.Module = FrozenBatchNormAct2d.of(child)
                case _ if has_activation:
                    continue
                case "frozen":
                    replacement = FrozenBatchNorm2d.of(child)
                case "sync":
                    replacement = nn.SyncBatchNorm.convert_sync_batchnorm(child)
                case _:
                    replacement = norm_layer(norm)(child.num_features)
            setattr(parent, name, replacement)


def freeze(module: nn.Module) -> None:
    """Make a module constant, in place: no gradients, and statistics that `module.train()` does not unfreeze."""
    replace_norms(module, "frozen")
    module.requires_grad_(False)
