"""What every network gives: features of the image, and a trunk that turns the features of a region into a vector.

A CNN is trunk ∘ backbone. The backbone runs once an image, the trunk once a region; where a network is cut is the
choice of its own file. A new network is a new file with a description (`CNN`), a `Backbone` and, maybe, a `Trunk`.
R-CNN cuts at the pixels: there the trunk is the whole network (`WholeCNN`), and a region is a crop of the image.

Letters of the shapes: B images, H and W pixels of the canvas, N regions, p cells of a pooled region,
c channels, h and w cells of a feature map.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from detect.backbones.initialization import Initialization, initialize
from detect.backbones.norm import freeze
from detect.backbones.weights import load_weights
from detect.errors import UserError
from detect.options import options

TrainStages = Literal[0, 1, 2, 3, 4, 5]
Colour = tuple[float, float, float]
"""Red, green and blue, on the scale 0 … 255."""
Network = Any
"""A whole network in torchvision's form. Its layers go by torchvision's names, of which types know nothing."""

IMAGENET_MEAN: Colour = (123.675, 116.28, 103.53)
IMAGENET_STD: Colour = (58.395, 57.12, 57.375)


@dataclass(frozen=True, slots=True)
class FeatureInfo:
    """What one feature map of a backbone looks like."""

    channels: int
    stride: int
    """Pixels of the canvas from one cell to the next, along each axis."""


class Backbone(nn.Module):
    """The part of a network that sees the whole image.

    It takes pixels that are normalised already, (RGB - mean) / std. The two are buffers, so that a checkpoint carries
    them; by default they are ImageNet's, with which torchvision trained all the weights that `weights:` can name.
    """

    mean: Float[Tensor, " 3"]
    """Of each channel, on the scale 0 … 255."""
    std: Float[Tensor, " 3"]
    """Of each channel, on the scale 0 … 255."""

    def __init__(
        self, features: tuple[FeatureInfo, ...], mean: Colour = IMAGENET_MEAN, std: Colour = IMAGENET_STD
    ) -> None:
        super().__init__()
        self.features = features
        """One entry for each map that `forward` gives, finest first."""
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B _c _h _w"]]:
        """The feature maps. H and W must be multiples of 32; a map of stride s has ⌈H / s⌉ × ⌈W / s⌉ cells."""
        raise NotImplementedError


class SingleScaleBackbone(Backbone):
    """A backbone that gives the output of its last stage only."""

    def __init__(
        self,
        stages: Mapping[str, nn.Sequential],
        channels: int,
        stride: int = 16,
        mean: Colour = IMAGENET_MEAN,
        std: Colour = IMAGENET_STD,
    ) -> None:
        super().__init__((FeatureInfo(channels, stride),), mean, std)
        self.body = nn.Sequential(OrderedDict(stages))

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B _c _h _w"]]:
        """One map."""
        return [self.body(pixels)]


class Trunk(nn.Module):
    """The part of a network that sees one pooled region.

    A region has `channels_in` channels and `pooled` × `pooled` cells; it becomes a vector of `channels` numbers.
    """

    def __init__(self, channels_in: int, pooled: int, channels: int) -> None:
        super().__init__()
        self.channels_in = channels_in
        self.pooled = pooled
        self.channels = channels

    def forward(self, regions: Float[Tensor, "N c p p"]) -> Float[Tensor, "N channels"]:
        """One vector a region; N may be 0."""
        raise NotImplementedError


class AveragingTrunk(Trunk):
    """A last stage that halves 14×14 cells to 7×7, and the mean over what remains."""

    def __init__(self, stage: nn.Sequential, channels_in: int, channels: int) -> None:
        super().__init__(channels_in, pooled=14, channels=channels)
        self.stage = stage

    def forward(self, regions: Float[Tensor, "N c p p"]) -> Float[Tensor, "N channels"]:
        """The averaged last stage of every region."""
        return self.stage(regions).mean(dim=(2, 3))


class WholeCNN(Trunk):
    """A network from the pixels on: each region is a crop of `pooled` × `pooled` pixels, normalised already.

    Args:
        size: pixels along each side of a crop.
        layers: width of every layer that crops can be described by, in the network's order.
    """

    def __init__(self, size: int, layers: dict[str, int]) -> None:
        super().__init__(channels_in=3, pooled=size, channels=list(layers.values())[-1])
        self.layers = layers

    def forward(self, regions: Float[Tensor, "N 3 p p"]) -> Float[Tensor, "N channels"]:
        """The last layer of every crop."""
        return list(self.forward_layers(regions).values())[-1]

    def forward_layers(self, crops: Float[Tensor, "N 3 p p"]) -> dict[str, Float[Tensor, "N _"]]:
        """Every layer of `layers`, after its ReLU; N may be 0."""
        raise NotImplementedError


class WholeAveraging(WholeCNN):
    """All stages, and the mean over the last map, which is the one layer that describes a crop."""

    def __init__(self, size: int, stages: Mapping[str, nn.Sequential], channels: int) -> None:
        super().__init__(size, {"pool5": channels})
        self.body = nn.Sequential(OrderedDict(stages))

    def forward_layers(self, crops: Float[Tensor, "N 3 p p"]) -> dict[str, Float[Tensor, "N _"]]:
        """The averaged last stage of every crop."""
        return {"pool5": self.body(crops).mean(dim=(2, 3))}


@options
class CNN(ABC):
    """The description of a network, to be filled from YAML; each network is a frozen dataclass of its own."""

    mean: ClassVar[Colour] = IMAGENET_MEAN
    std: ClassVar[Colour] = IMAGENET_STD
    head: ClassVar[tuple[str, ...]]
    """How the names of the layers begin that tell the classes apart; no detector has them."""

    initialization: Initialization | None = field(default=None, kw_only=True)
    """`xavier`, `he` or `gaussian`; null draws the weights as torchvision does. See `initialization.py`."""
    weights: str | None = field(default=None, kw_only=True)
    """A name of torchvision's (`IMAGENET1K_V1`), a file with a state dict of torchvision's form of the network, a
    checkpoint of a classifier that `detect train` wrote, or nothing."""

    @property
    @abstractmethod
    def train_stages(self) -> TrainStages:
        """How many stages learn, counted from the last; a field of each network, with a default of its own."""

    @abstractmethod
    def architecture(self) -> str:
        """The network's name, with depth and so on: torchvision's where it has the network."""

    @abstractmethod
    def make(self, num_classes: int) -> Network:
        """The network whole, in torchvision's form, as it comes."""

    @abstractmethod
    def stages(self, network: Network) -> OrderedDict[str, nn.Sequential]:
        """The five stages, or fewer, from the pixels to the last map; they are the network's own layers."""

    def network(self, num_classes: int = 1000) -> Network:
        """The network whole, with its classifier, initialised or loaded as chosen; all of it learns.

        Raises `UserError` where the weights cannot be had or do not fit.
        """
        network = self.make(num_classes)
        if self.initialization is not None:
            initialize(network, self.initialization)
        if self.weights is not None:
            load_weights(network, self.weights, self.architecture(), self.head)
        return network

    @abstractmethod
    def build(self) -> tuple[Backbone, Trunk | None]:
        """The network, cut in two. There is no trunk where the box head brings its own layers (FPN).

        Raises `UserError` where the weights cannot be had or do not fit.
        """

    @abstractmethod
    def build_whole(self, size: int) -> WholeCNN:
        """The network up to the layer before its classifier, for crops of `size` × `size` pixels.

        Raises `UserError` where `size` is too small for it, and where the weights cannot be had or do not fit.
        """


def freeze_bottom(stages: list[nn.Sequential], train_stages: int) -> None:
    """Freeze, in place, all stages but the last `train_stages`."""
    if not 0 <= train_stages <= len(stages):
        raise UserError(f"train_stages: {train_stages}: the network has {len(stages)} stages; give 0 … {len(stages)}")
    for stage in stages[: len(stages) - train_stages]:
        freeze(stage)


def centre_cells(layers: nn.Module) -> None:
    """Pad, in place, all convolutions and pools by half their kernels: cell i at stride s is centred on pixel s · i.

    A canvas whose sides are multiples of s then gives side / s cells. RoIPool rounds x / s to a cell, and unshifted
    RoIAlign reads at cell x / s: both look where the cells are.
    """
    for layer in layers.modules():
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            kernel = layer.kernel_size
            height, width = kernel if isinstance(kernel, tuple) else (kernel, kernel)
            layer.padding = (height // 2, width // 2)
        if isinstance(layer, nn.MaxPool2d):
            layer.ceil_mode = False


def refuse_small(size: int, least: int) -> None:
    """Raise `UserError` where crops of `size` pixels a side are too small for a network."""
    if size < least:
        raise UserError(f"size: {size}: the network needs crops of at least {least} pixels a side")
