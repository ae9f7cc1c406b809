"""Path aggregation feature pyramid network, the neck of YOLOX.

Liu et al. 2018, "Path Aggregation Network for Instance Segmentation", §3.1; Ge et al. 2021, "YOLOX", §2.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from detect.backbones.backbone import FeatureInfo
from detect.backbones.csp import CSPLayer, Multiple, bottlenecks, convolution, convolution3x3, scaled
from detect.backbones.necks import Neck, octaves
from detect.backbones.norm import Norm
from detect.options import options

STRIDES = (8, 16, 32)
_WIDTHS = (256, 512, 1024)
"""Channels of the levels at width 1."""


@options
class PAFPNOptions:
    """Path aggregation feature pyramid network over the maps of strides 8, 16 and 32; batch norm after each layer.

    Args:
        depth: multiple of the number of bottlenecks, in YOLOX that of the body.
        width: multiple of the channels, 256, 512 and 1024; in YOLOX that of the body.
        depthwise: depthwise separable instead of 3×3 convolutions, as in YOLOX-nano.
    """

    name: Literal["pafpn"] = field(default="pafpn", kw_only=True)
    depth: Multiple = 0.33
    width: Multiple = 0.5
    depthwise: bool = False

    def build(self, levels: Mapping[str, FeatureInfo], backbone_norm: Norm) -> PAFPN:
        """Return the neck for the levels of a backbone. Raise `UserError` if they do not have the necessary strides."""
        return PAFPN(levels, self)


class PAFPN(Neck):
    """Path aggregation feature pyramid network.

    The way down, as in a feature pyramid, gives each level the semantics of the coarser ones; the way up then gives it
    the places of the finer ones. Maps are concatenated, not added, and pass a CSP layer.
    """

    def __init__(self, levels: Mapping[str, FeatureInfo], options: PAFPNOptions) -> None:
        self.names = octaves(levels, STRIDES[0], optional=False)[: len(STRIDES)]
        given = [levels[name].channels for name in self.names]
        widths = scaled(_WIDTHS, options.width)[: len(given)]
        super().__init__(tuple(map(FeatureInfo, widths, STRIDES)))
        depthwise = options.depthwise

        def layer(channels_in: int, channels: int) -> CSPLayer:
            return CSPLayer(channels_in, channels, bottlenecks(options.depth), shortcut=False, depthwise=depthwise)

        from_coarser = [*widths[1:-1], given[-1]]
        self.reduce = nn.ModuleList(convolution(c, width, 1) for c, width in zip(from_coarser, widths, strict=False))
        self.top_down = nn.ModuleList(layer(width + c, width) for width, c in zip(widths[:-1], given, strict=False))
        self.downsample = nn.ModuleList(convolution3x3(w, w, stride=2, depthwise=depthwise) for w in widths[:-1])
        self.bottom_up = nn.ModuleList(layer(2 * finer, coarser) for finer, coarser in pairwise(widths))

    def forward(self, maps: dict[str, Float[Tensor, "B _c _h _w"]]) -> list[Float[Tensor, "B _c _h _w"]]:
        """Compute the pyramid, finest level first."""
        given = [maps[name] for name in self.names]
        reduced: list[Tensor] = []
        x = given[-1]
        for level in reversed(range(len(self.reduce))):
            x = self.reduce[level](x)
            reduced.insert(0, x)
            coarser = F.interpolate(x, size=given[level].shape[-2:], mode="nearest")
            x = self.top_down[level](torch.cat([coarser, given[level]], dim=1))
        pyramid = [x]
        for downsample, layer, features in zip(self.downsample, self.bottom_up, reduced, strict=True):
            pyramid.append(layer(torch.cat([downsample(pyramid[-1]), features], dim=1)))
        return pyramid
