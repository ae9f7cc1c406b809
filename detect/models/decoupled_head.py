"""The decoupled head of YOLOX (Ge et al. 2021, §2.1): classes and boxes have convolutions of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from detect.backbones import FeatureInfo
from detect.backbones.csp import convolution, convolution3x3

PRIOR = 0.01
"""Probability of classes and objectness at the start of training (Lin et al. 2017, "Focal Loss", §3.3)."""


class RawPredictions(NamedTuple):
    """Outputs of the head at the A cells of all levels, finest level first, row by row."""

    classes: Float[Tensor, "B A C"]
    """Logits of the classes."""
    boxes: Float[Tensor, "B A 4"]
    """Shift of the centre from the cell's upper left corner, and logarithm of width and height, in cells."""
    objectness: Float[Tensor, "B A"]
    """Logits of the objectness."""


class LevelHead(nn.Module):
    """The head at one level of the pyramid."""

    def __init__(self, channels_in: int, channels: int, num_classes: int, depthwise: bool) -> None:
        super().__init__()
        self.stem = convolution(channels_in, channels, 1)
        self.class_branch, self.box_branch = (
            nn.Sequential(*(convolution3x3(channels, channels, depthwise=depthwise) for _ in range(2))) for _ in "cb"
        )
        self.classes, self.boxes, self.objectness = (nn.Conv2d(channels, width, 1) for width in (num_classes, 4, 1))
        for predictor in (self.classes, self.objectness):
            assert predictor.bias is not None
            nn.init.constant_(predictor.bias, math.log(PRIOR / (1 - PRIOR)))

    def forward(self, features: Float[Tensor, "B c h w"]) -> RawPredictions:
        """Compute the predictions at each cell, row by row, in float32."""
        x = self.stem(features)
        of_classes, of_boxes = self.class_branch(x), self.box_branch(x)
        # In prediction with bf16 weights the predictors keep float32.
        inputs = (x.to(self.classes.weight.dtype) for x in (of_classes, of_boxes, of_boxes))
        maps = (predictor(x) for predictor, x in zip(self.predictors, inputs, strict=True))
        classes, boxes, objectness = (out.float().flatten(2).mT for out in maps)
        return RawPredictions(classes, boxes, objectness.squeeze(-1))

    @property
    def predictors(self) -> tuple[nn.Module, ...]:
        """The last layers, which compute classes, boxes and objectness."""
        return self.classes, self.boxes, self.objectness


class DecoupledHead(nn.Module):
    """One head for each level; they share no weights.

    Args:
        levels: maps that the head runs on.
        num_classes: C.
        channels: width of the convolutions.
        depthwise: depthwise separable instead of 3×3 convolutions, as in YOLOX-nano.
    """

    def __init__(self, levels: Sequence[FeatureInfo], num_classes: int, channels: int, depthwise: bool) -> None:
        super().__init__()
        self.levels = nn.ModuleList(LevelHead(level.channels, channels, num_classes, depthwise) for level in levels)

    @property
    def heads(self) -> list[LevelHead]:
        """The heads of the levels, finest first."""
        return [head for head in self.levels if isinstance(head, LevelHead)]

    def forward(self, features: Sequence[Float[Tensor, "B _c _h _w"]]) -> RawPredictions:
        """Compute the predictions of all levels."""
        outputs = [head(level) for head, level in zip(self.heads, features, strict=True)]
        return RawPredictions(*(torch.cat(parts, dim=1) for parts in zip(*outputs, strict=True)))
