"""Necks: pyramids of feature maps over the levels of any backbone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Literal

from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from detect.backbones.backbone import FeatureInfo
from detect.backbones.norm import Norm, norm_layer
from detect.errors import UserError
from detect.options import options


class Neck(nn.Module):
    """Turns the named feature maps of a backbone into the list of maps that heads run on.

    Args:
        levels: the maps that `forward` returns, finest first.
    """

    names: list[str]
    """Names of the backbone's maps that `forward` takes, finest first; set by each subclass."""

    def __init__(self, levels: tuple[FeatureInfo, ...]) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, maps: dict[str, Float[Tensor, "B _c _h _w"]]) -> list[Float[Tensor, "B _c _h _w"]]:
        """Compute the feature maps of `levels`."""
        raise NotImplementedError


@options
class FPNOptions:
    """Feature pyramid network.

    Args:
        channels: width of all levels; 256 in the paper.
        first_level: 2 begins at stride 4 and adds one level by subsampling: P2 … P6 over C2 … C5 (Lin et al. 2017,
            "Feature Pyramid Networks", §4.1). 3 begins at stride 8 and adds two levels by 3×3 convolutions of stride 2:
            P3 … P7 over C3 … C5 (Lin et al. 2017, "Focal Loss for Dense Object Detection", §4).
        norm: norm after each convolution, which then has no bias. Null takes the backbone's, or `none` if that is
            frozen, as in published detectors; the paper has none.
    """

    name: Literal["fpn"] = field(default="fpn", kw_only=True)
    channels: PositiveInt = 256
    first_level: Literal[2, 3] = 2
    norm: Norm | None = None

    def build(self, levels: Mapping[str, FeatureInfo], backbone_norm: Norm) -> FPN:
        """Return the neck for the levels of a backbone. Raise `UserError` if they do not have the necessary strides."""
        norm = self.norm or ("none" if backbone_norm == "frozen" else backbone_norm)
        return FPN(levels, self.channels, self.first_level, norm)


class FPN(Neck):
    """Feature pyramid network (Lin et al. 2017, "Feature Pyramid Networks for Object Detection", §3).

    A 1×1 convolution brings each map to `channels`; the next coarser sum, upsampled by nearest neighbours, is added; a
    3×3 convolution smooths the sum. Further, coarser levels serve the largest objects (see `FPNOptions`).
    """

    def __init__(
        self, levels: Mapping[str, FeatureInfo], channels: int = 256, first_level: int = 2, norm: Norm = "none"
    ) -> None:
        names = octaves(levels, 2**first_level)
        strides = [levels[name].stride for name in names]
        extra = 1 if first_level == 2 else 2
        strides += [strides[-1] << octave for octave in range(1, extra + 1)]
        super().__init__(tuple(FeatureInfo(channels, stride) for stride in strides))
        self.names = names
        self.lateral = nn.ModuleList(_convolution(levels[name].channels, channels, 1, norm) for name in names)
        self.output = nn.ModuleList(_convolution(channels, channels, 3, norm) for _ in names)
        downsampling = [_convolution(channels, channels, 3, norm, stride=2) for _ in range(extra)] if extra > 1 else []
        self.downsampling = nn.ModuleList(downsampling)

    def forward(self, maps: dict[str, Float[Tensor, "B _c _h _w"]]) -> list[Float[Tensor, "B _c _h _w"]]:
        """Compute the pyramid, finest level first, each with twice the stride of the one before."""
        sums = [lateral(maps[name]) for lateral, name in zip(self.lateral, self.names, strict=True)]
        for level in reversed(range(len(sums) - 1)):
            coarser = F.interpolate(sums[level + 1], size=sums[level].shape[-2:], mode="nearest")
            sums[level] = sums[level] + coarser
        pyramid = [output(features) for output, features in zip(self.output, sums, strict=True)]
        if not self.downsampling:
            return [*pyramid, pyramid[-1][..., ::2, ::2]]
        pyramid.append(self.downsampling[0](pyramid[-1]))
        for convolution in self.downsampling[1:]:
            pyramid.append(convolution(F.relu(pyramid[-1])))
        return pyramid


def octaves(levels: Mapping[str, FeatureInfo], finest: int, optional: bool = True) -> list[str]:
    """Return the deepest level of each of the strides `finest`, 2 · `finest` and so on.

    Args:
        levels: the backbone's maps by name.
        finest: stride of the first level.
        optional: whether the detector also works without a neck.

    Raises:
        UserError: there are fewer than two such levels.
    """
    by_stride = {info.stride: name for name, info in levels.items()}
    names = []
    while finest in by_stride:
        names.append(by_stride[finest])
        finest *= 2
    if len(names) < 2:
        strides, remedy = ", ".join(map(str, by_stride)), "set neck to null" if optional else "choose another backbone"
        raise UserError(
            f"neck: a pyramid needs maps at strides {finest}, {2 * finest} and so on, the backbone has {strides}; "
            f"{remedy}"
            if not names
            else f"neck: a pyramid needs two maps or more, the backbone has strides {strides}; {remedy}"
        )
    return names


def _convolution(channels_in: int, channels: int, size: int, norm: Norm, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(channels_in, channels, size, stride, padding=size // 2, bias=norm == "none")
    nn.init.kaiming_uniform_(convolution.weight, a=1)
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    return nn.Sequential(convolution) if norm == "none" else nn.Sequential(convolution, norm_layer(norm)(channels))
