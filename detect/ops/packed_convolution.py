"""Convolutions by oneDNN with packed weights, together with an activation, for inference on the CPU in float32.

torch's own layer packs the weights at every call, and writes the map before the activation reads it; and with one
thread and one image, it computes 1×1 convolutions without oneDNN, at half the speed. `torch.compile` uses the same
operation.
"""

from __future__ import annotations

from typing import Any, Literal, TypeGuard

import torch
from jaxtyping import Float
from torch import Tensor, nn


class PackedConvolution(nn.Module):
    """`nn.Conv2d`, and an activation.

    Args:
        convolution: a convolution for which `is_packable` returns True.
        activation: `swish` is SiLU.
    """

    def __init__(self, convolution: nn.Conv2d, activation: Literal["none", "swish"] = "none") -> None:
        super().__init__()
        self.weight = convolution.weight.detach()
        """Packed by the first call, as the layout that oneDNN takes depends on the size of the map."""
        self.bias, self.activation = convolution.bias, activation
        padding, stride, dilation = convolution.padding, convolution.stride, convolution.dilation
        self.shape: tuple[Any, ...] = (*map(list, (padding, stride, dilation)), convolution.groups)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B O h w"]:
        """Return the activation of the convolution of x."""
        weight = self.weight
        if not weight.is_mkldnn:
            pack: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
            weight = self.weight = pack(weight.contiguous().to_mkldnn(), *self.shape, list(x.shape))
        return torch.ops.mkldnn._convolution_pointwise(x, weight, self.bias, *self.shape, self.activation, [], "")

    def __getstate__(self) -> dict[str, Any]:
        """Return what `copy.deepcopy` copies: packed weights cannot be copied."""
        weight = self.weight
        return {**self.__dict__, "weight": weight.to_dense() if weight.is_mkldnn else weight}

    def extra_repr(self) -> str:
        """Return the activation, for `print`."""
        return self.activation


def is_packable(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Return whether `PackedConvolution` supports a layer, on this machine."""
    return (
        type(layer) is nn.Conv2d
        and layer.padding_mode == "zeros"
        and isinstance(layer.padding, tuple)
        and layer.weight.device.type == "cpu"
        and layer.weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
    )
