"""CSPDarknet, the body of YOLOX (Ge et al. 2021, "YOLOX: Exceeding YOLO Series in 2021", §2.1).

Five stages halve the image in turn: the stem is a strided convolution; each of the others is one, too, with a cross
stage partial layer behind it.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from detect.backbones.backbone import (
    AveragedCropNetwork,
    BackboneOptions,
    FeatureInfo,
    Network,
    StageBoxHead,
    StagedBackbone,
    Stages,
    TrainStages,
    refuse_small_crops,
)
from detect.backbones.csp import EPS, MOMENTUM, CSPLayer, Multiple, bottlenecks, convolution, convolution3x3, scaled
from detect.backbones.norm import Norm
from detect.backbones.weights import FILES
from detect.errors import UserError
from detect.options import options

GREY = 114.0
"""Value of the pixels beyond the image, on the scale 0 … 255."""
_WIDTHS = (64, 128, 256, 512, 1024)
"""Channels of the stages at width 1."""
_DARK = {"dark2": 1, "dark3": 3, "dark4": 3, "dark5": 1}
"""Stages behind the stem, with the length of their CSP layers relative to that of dark2."""


@options
class CSPDarknetOptions(BackboneOptions):
    """CSPDarknet; the defaults are those of YOLOX-s.

    YOLOX trains it from scratch together with the detector; there are no published weights of the body alone.
    """

    mean = (GREY, GREY, GREY)
    std = (1.0, 1.0, 1.0)
    classifier_keys = ("fc.",)

    name: Literal["csp_darknet"] = field(default="csp_darknet", kw_only=True)
    depth: Multiple = 0.33
    """Multiple of the number of bottlenecks: 0.33 in YOLOX-nano, tiny and s, 0.67 in m, 1 in l, 1.33 in x."""
    width: Multiple = 0.5
    """Multiple of the channels: 0.25 in YOLOX-nano, 0.375 in tiny, 0.5 in s, 0.75 in m, 1 in l, 1.25 in x."""
    depthwise: bool = False
    """Depthwise separable instead of 3×3 convolutions, as in YOLOX-nano."""
    train_stages: TrainStages | None = None
    """Number of the five stages stem, dark2 … dark5 that are trained, counted from dark5; null trains all."""

    @property
    def norm(self) -> Norm:
        """Batch norm."""
        return "batch"

    def architecture(self) -> str:
        """Return csp_darknet."""
        return "csp_darknet"

    def make(self, num_classes: int) -> Network:
        """Return the network with an average pool and a linear layer, as a classifier."""
        if self.weights is not None and not self.weights.endswith(FILES):
            no_names = f"weights: {self.weights}: torchvision has none for csp_darknet"
            raise UserError(f"{no_names}; give a {', '.join(FILES)} file")
        return CSPDarknet(self, num_classes)

    def stages(self, network: Network) -> Stages:
        """Return stem, dark2, dark3, dark4 and dark5."""
        return OrderedDict((name, getattr(network, name)) for name in ("stem", *_DARK))

    @property
    def levels(self) -> dict[str, FeatureInfo]:
        """Outputs of dark2 … dark5, at strides 4 … 32."""
        widths = scaled(_WIDTHS, self.width)[1:]
        return {name: FeatureInfo(width, 4 << i) for i, (name, width) in enumerate(zip(_DARK, widths, strict=True))}

    def build(self, multi_scale: bool) -> tuple[StagedBackbone, StageBoxHead | None]:
        """Return all levels, or dark4 with dark5 as box head."""
        levels = self.levels
        backbone = StagedBackbone(self._trainable_stages(self.network()), levels, self.mean, self.std)
        if multi_scale:
            return backbone, None
        box_head = StageBoxHead(backbone.pop_stage(), levels["dark4"].channels, levels["dark5"].channels)
        backbone.keep_last_level()
        return backbone, box_head

    def build_crop_network(self, size: int) -> AveragedCropNetwork:
        """Return all stages with their average pool."""
        refuse_small_crops(size, 1)
        return AveragedCropNetwork(size, self._trainable_stages(self.network()), self.levels["dark5"].channels)


class CSPDarknet(nn.Module):
    """The whole network, as a classifier."""

    def __init__(self, options: CSPDarknetOptions, num_classes: int) -> None:
        super().__init__()
        channels_in, *widths = scaled(_WIDTHS, options.width)
        self.stem = nn.Sequential(Stem(channels_in))
        for (name, length), channels in zip(_DARK.items(), widths, strict=True):
            pooling = [SpatialPyramidPooling(channels)] if name == "dark5" else []
            count = length * bottlenecks(options.depth)
            layer = CSPLayer(channels, channels, count, shortcut=name != "dark5", depthwise=options.depthwise)
            down = convolution3x3(channels_in, channels, stride=2, depthwise=options.depthwise)
            self.add_module(name, nn.Sequential(down, *pooling, layer))
            channels_in = channels
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels_in, num_classes)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K"]:
        """Compute the logits of the classes."""
        for name in ("stem", *_DARK):
            images = self.get_submodule(name)(images)
        return self.fc(self.avgpool(images).flatten(1))


class Stem(nn.Module):
    """A 6×6 convolution of stride 2, equal to YOLOX's Focus: each 2×2 pixels become channels of a 3×3 convolution.

    YOLOX takes pixels in 0 … 255, grey beyond the image, and zero beyond the canvas. A detector subtracts the grey as
    mean and sets the pixels beyond the image to zero; the stem adds it again.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, channels, 6, stride=2, padding=2, bias=False)
        self.norm, self.activation = nn.BatchNorm2d(channels, EPS, MOMENTUM), nn.SiLU(inplace=True)

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B c h w"]:
        """Compute the features, from pixels minus the grey."""
        return self.activation(self.norm(self.convolution(pixels + GREY)))


class SpatialPyramidPooling(nn.Module):
    """Max pools of 5×5, 9×9 and 13×13 cells beside the map itself (He et al. 2014, in the form of YOLOv3-SPP)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce, self.merge = convolution(channels, channels // 2, 1), convolution(channels // 2 * 4, channels, 1)

    def forward(self, x: Float[Tensor, "B c h w"]) -> Float[Tensor, "B c h w"]:
        """Compute the features."""
        maps = [self.reduce(x)]
        for _ in range(3):  # two 5×5 pools in sequence are one of 9×9, three one of 13×13
            maps.append(F.max_pool2d(maps[-1], 5, stride=1, padding=2))
        return self.merge(torch.cat(maps, dim=1))
