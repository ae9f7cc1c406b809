"""Convolutions and cross stage partial (CSP) layers, of which YOLOX's body, neck and head consist.

Ge et al. 2021, "YOLOX: Exceeding YOLO Series in 2021"; Wang et al. 2020, "CSPNet", §3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

Multiple = Annotated[float, Field(ge=1 / 64, le=20)]
"""Multiple of a depth or width; the stem has at least one channel."""
EPS, MOMENTUM = 1e-3, 0.03
"""Batch norm's constants in YOLOX."""


def scaled(channels: Sequence[int], width: float) -> list[int]:
    """Return numbers of channels times a multiple."""
    return [int(number * width) for number in channels]


def bottlenecks(depth: float) -> int:
    """Return the number of bottlenecks of a CSP layer that has three at `depth` 1."""
    return max(round(3 * depth), 1)


def convolution(channels_in: int, channels: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Return a convolution without bias, batch norm and SiLU."""
    layer = nn.Conv2d(channels_in, channels, size, stride, (size - 1) // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(channels, EPS, MOMENTUM), nn.SiLU(inplace=True))


def convolution3x3(channels_in: int, channels: int, stride: int = 1, depthwise: bool = False) -> nn.Sequential:
    """Return a 3×3 convolution like `convolution`, or a depthwise and a 1×1 one (Howard et al. 2017, §3.1)."""
    if not depthwise:
        return convolution(channels_in, channels, 3, stride)
    spatial = convolution(channels_in, channels_in, 3, stride, groups=channels_in)
    return nn.Sequential(spatial, convolution(channels_in, channels, 1))


class Bottleneck(nn.Module):
    """A 1×1 and a 3×3 convolution, to which `shortcut` adds the input."""

    def __init__(self, channels: int, shortcut: bool, depthwise: bool) -> None:
        super().__init__()
        self.reduce = convolution(channels, channels, 1)
        self.spatial = convolution3x3(channels, channels, depthwise=depthwise)
        self.shortcut = shortcut

    def forward(self, x: Float[Tensor, "B c h w"]) -> Float[Tensor, "B c h w"]:
        """Compute the features."""
        out = self.spatial(self.reduce(x))
        return out + x if self.shortcut else out


class CSPLayer(nn.Module):
    """Half of the channels pass `count` bottlenecks, the other half only a 1×1 convolution; another merges both."""

    def __init__(self, channels_in: int, channels: int, count: int, shortcut: bool, depthwise: bool) -> None:
        super().__init__()
        half = channels // 2
        self.main, self.side = convolution(channels_in, half, 1), convolution(channels_in, half, 1)
        self.bottlenecks = nn.Sequential(*(Bottleneck(half, shortcut, depthwise) for _ in range(count)))
        self.merge = convolution(2 * half, channels, 1)

    def forward(self, x: Float[Tensor, "B _c h w"]) -> Float[Tensor, "B c h w"]:
        """Compute the features."""
        return self.merge(torch.cat([self.bottlenecks(self.main(x)), self.side(x)], dim=1))
