"""The feature pyramid (Lin et al. 2017, "Feature Pyramid Networks for Object Detection", §3)."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from detect.backbones.norm import Norm, norm_layer


class FPN(nn.Module):
    """Makes maps of equal width, all of which know what the coarsest one saw.

    A 1×1 convolution brings each map to `channels`; the coarser sum, doubled by its nearest neighbours, is added; a
    3×3 convolution smooths the sum. One more level, every second cell of the coarsest map, serves the largest anchors
    of an RPN (§4.1). The paper has no norm here; with one, the convolutions have no bias.
    """

    def __init__(self, channels_in: Sequence[int], channels: int = 256, norm: Norm | None = None) -> None:
        super().__init__()
        self.channels = channels
        self.lateral = nn.ModuleList(_convolution(width, channels, 1, norm) for width in channels_in)
        self.output = nn.ModuleList(_convolution(channels, channels, 3, norm) for _ in channels_in)

    def forward(self, maps: list[Float[Tensor, "B _c _h _w"]]) -> list[Float[Tensor, "B _c _h _w"]]:
        """The pyramid of `maps`, finest first, each with twice the stride of the one before; one level is added."""
        sums = [lateral(features) for lateral, features in zip(self.lateral, maps, strict=True)]
        for level in reversed(range(len(sums) - 1)):
            coarser = F.interpolate(sums[level + 1], size=sums[level].shape[-2:], mode="nearest")
            sums[level] = sums[level] + coarser
        pyramid = [output(features) for output, features in zip(self.output, sums, strict=True)]
        return [*pyramid, pyramid[-1][..., ::2, ::2]]


def _convolution(channels_in: int, channels: int, size: int, norm: Norm | None) -> nn.Sequential:
    convolution = nn.Conv2d(channels_in, channels, size, padding=size // 2, bias=norm is None)
    nn.init.kaiming_uniform_(convolution.weight, a=1)
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    return nn.Sequential(convolution) if norm is None else nn.Sequential(convolution, norm_layer(norm)(channels))
