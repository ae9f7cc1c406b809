"""Convolution and SiLU as one operation of oneDNN, for inference on the CPU in float32.

Otherwise the convolution writes the map, and the activation reads and writes it again; and with one thread and one
image, torch computes 1×1 convolutions without oneDNN. `torch.compile` uses the same operation.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from jaxtyping import Float
from torch import Tensor, nn


class FusedConvolution(nn.Module):
    """`nn.Conv2d` and `nn.SiLU`.

    Args:
        convolution: a convolution for which `is_fusible` returns True.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias
        padding, stride, dilation = convolution.padding, convolution.stride, convolution.dilation
        self.shape: tuple[Any, ...] = (*map(list, (padding, stride, dilation)), convolution.groups)
        self._packed: Tensor | None = None

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B O h w"]:
        """Return SiLU of the convolution of x."""
        if self._packed is None:  # the layout of the weights that oneDNN takes depends on the size of the map
            pack: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
            self._packed = pack(self.weight.detach().contiguous().to_mkldnn(), *self.shape, list(x.shape))
        return torch.ops.mkldnn._convolution_pointwise(x, self._packed, self.bias, *self.shape, "swish", [], "")

    def __getstate__(self) -> dict[str, Any]:
        """Return what `copy.deepcopy` copies: packed weights cannot be copied."""
        return {**self.__dict__, "_packed": None}


def is_fusible(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Return whether `FusedConvolution` supports a layer, on this machine."""
    return (
        type(layer) is nn.Conv2d
        and layer.padding_mode == "zeros"
        and isinstance(layer.padding, tuple)
        and layer.weight.device.type == "cpu"
        and layer.weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
    )
