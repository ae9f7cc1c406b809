"""Bodies of detectors: networks cut into stages, with named feature maps.

The options of a network (`BackboneOptions`, one subclass per file) build it in three ways:

- `build(multi_scale=True)`: a `Backbone` with a feature map for each stage, on which a neck builds a pyramid;
- `build(multi_scale=False)`: a `Backbone` with one feature map, and the network's remaining layers as a `BoxHead` on
  each pooled region (Ren et al. 2017, "Object Detection Networks on Convolutional Feature Maps");
- `build_crop_network(size)`: the whole network, for R-CNN, which runs it on one crop per region.

A new network is one new file and one line in `detect.backbones.AnyBackbone`.

Shapes: B images, H and W pixels of the canvas, N regions, p cells along a side of a pooled region, c channels, h and w
cells of a feature map.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from detect.backbones.initialization import Initialization, initialize
from detect.backbones.norm import Norm, freeze
from detect.backbones.weights import load_weights
from detect.errors import UserError
from detect.options import options

TrainStages = Literal[0, 1, 2, 3, 4, 5]
Colour = tuple[float, float, float]
"""Red, green and blue, on the scale 0 … 255."""
Network = Any
"""A whole network in torchvision's form: a module whose layers have torchvision's names."""
Stages = OrderedDict[str, nn.Sequential]
"""The stages of a network by name, from the pixels on."""

IMAGENET_MEAN: Colour = (123.675, 116.28, 103.53)
IMAGENET_STD: Colour = (58.395, 57.12, 57.375)


@dataclass(frozen=True, slots=True)
class FeatureInfo:
    """Channels and stride of a feature map."""

    channels: int
    stride: int
    """Pixels of the canvas from one cell to the next, along each axis."""


class Backbone(nn.Module):
    """The part of a network that runs once on the whole image.

    It takes normalised pixels, (RGB - mean) / std. Both are buffers, so that checkpoints contain them; by default they
    are ImageNet's, as for all of torchvision's weights that the option `weights` can name.

    Args:
        levels: the feature maps that `forward` returns, by name, finest first.
        mean: mean of each channel, on the scale 0 … 255.
        std: standard deviation of each channel, on the scale 0 … 255.
    """

    mean: Float[Tensor, " 3"]
    std: Float[Tensor, " 3"]

    def __init__(
        self, levels: Mapping[str, FeatureInfo], mean: Colour = IMAGENET_MEAN, std: Colour = IMAGENET_STD
    ) -> None:
        super().__init__()
        self.levels = dict(levels)
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> dict[str, Float[Tensor, "B _c _h _w"]]:
        """Compute the feature maps of `levels`.

        H and W must be multiples of 32; a map of stride s has ⌈H / s⌉ × ⌈W / s⌉ cells.
        """
        raise NotImplementedError

    def keep_levels(self, names: Sequence[str]) -> None:
        """Make `forward` return these levels only."""
        self.levels = {name: self.levels[name] for name in names}


class StagedBackbone(Backbone):
    """A backbone that runs its stages in order; each level is the output of the stage with the same name."""

    def __init__(
        self,
        stages: Mapping[str, nn.Sequential],
        levels: Mapping[str, FeatureInfo],
        mean: Colour = IMAGENET_MEAN,
        std: Colour = IMAGENET_STD,
    ) -> None:
        super().__init__({name: levels[name] for name in stages if name in levels}, mean, std)
        self.body = nn.ModuleDict(stages)

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> dict[str, Float[Tensor, "B _c _h _w"]]:
        """Compute the feature maps of `levels`."""
        maps = {}
        for name, stage in self.body.items():
            pixels = stage(pixels)
            if name in self.levels:
                maps[name] = pixels
        return maps

    def keep_last_level(self) -> None:
        """Make `forward` return the last level only."""
        self.levels = dict([self.levels.popitem()])

    def pop_stage(self) -> nn.Module:
        """Remove the last stage with its level, and return it."""
        name = list(self.body)[-1]
        self.levels.pop(name, None)
        return self.body.pop(name)


class BoxHead(nn.Module):
    """The part of a detector that turns each pooled region into a vector.

    Args:
        channels_in: channels of a pooled region.
        pooled: cells along each side of a pooled region.
        channels: length of the vector.
    """

    def __init__(self, channels_in: int, pooled: int, channels: int) -> None:
        super().__init__()
        self.channels_in = channels_in
        self.pooled = pooled
        self.channels = channels

    def forward(self, regions: Float[Tensor, "N c p p"]) -> Float[Tensor, "N channels"]:
        """Compute one vector per region; N may be 0."""
        raise NotImplementedError


class StageBoxHead(BoxHead):
    """The last stage of a network, such as a ResNet's res5, from 14×14 to 7×7 cells, then global average pooling."""

    def __init__(self, stage: nn.Module, channels_in: int, channels: int) -> None:
        super().__init__(channels_in, pooled=14, channels=channels)
        self.stage = stage

    def forward(self, regions: Float[Tensor, "N c p p"]) -> Float[Tensor, "N channels"]:
        """Compute the averaged last stage of each region."""
        return self.stage(regions).mean(dim=(2, 3))


class CropNetwork(BoxHead):
    """A whole network as R-CNN's box head: each region is a crop of `pooled` × `pooled` normalised pixels.

    Args:
        size: pixels along each side of a crop.
        layers: names and widths of the layers that can be the features of a crop, in the network's order.
    """

    def __init__(self, size: int, layers: dict[str, int]) -> None:
        super().__init__(channels_in=3, pooled=size, channels=list(layers.values())[-1])
        self.layers = layers

    def forward(self, regions: Float[Tensor, "N 3 p p"]) -> Float[Tensor, "N channels"]:
        """Compute the last layer of each crop."""
        return list(self.forward_layers(regions).values())[-1]

    def forward_layers(self, crops: Float[Tensor, "N 3 p p"]) -> dict[str, Float[Tensor, "N _"]]:
        """Compute each of `layers`, after its ReLU; N may be 0."""
        raise NotImplementedError


class AveragedCropNetwork(CropNetwork):
    """All stages and global average pooling, whose output is the only choice for the features of a crop."""

    def __init__(self, size: int, stages: Mapping[str, nn.Sequential], channels: int) -> None:
        super().__init__(size, {"pool5": channels})
        self.body = nn.Sequential(OrderedDict(stages))

    def forward_layers(self, crops: Float[Tensor, "N 3 p p"]) -> dict[str, Float[Tensor, "N _"]]:
        """Compute the averaged last stage of each crop."""
        return {"pool5": self.body(crops).mean(dim=(2, 3))}


@options
class BackboneOptions(ABC):
    """Base class of the options of networks; each network has a subclass with further fields."""

    mean: ClassVar[Colour] = IMAGENET_MEAN
    std: ClassVar[Colour] = IMAGENET_STD
    classifier_keys: ClassVar[tuple[str, ...]]
    """Prefixes of the state dict keys of the classification layers, which detectors do not have."""

    initialization: Initialization | None = field(default=None, kw_only=True)
    """`xavier`, `he` or `gaussian` (see `initialization.py`); null initialises the weights as torchvision does."""
    weights: str | None = field(default=None, kw_only=True)
    """A name of torchvision's weights (`IMAGENET1K_V1`), a file with a state dict that has torchvision's keys, a
    checkpoint of a classifier that `detect train` wrote, or null. For some networks of timm also `pip`, the weights in
    an installed package."""

    @property
    @abstractmethod
    def train_stages(self) -> TrainStages | None:
        """Number of stages that are trained, counted from the last; a field of each subclass, with its own default.

        None trains all stages.
        """

    @property
    def norm(self) -> Norm:
        """Norm layers of the network; a field of the subclasses that offer a choice."""
        return "none"

    @abstractmethod
    def architecture(self) -> str:
        """Return the network's name with its depth: torchvision's name if torchvision has the network."""

    @abstractmethod
    def make(self, num_classes: int) -> Network:
        """Return the whole network in torchvision's form, without loading weights."""

    @abstractmethod
    def stages(self, network: Network) -> Stages:
        """Return the layers of `network`, not copies, as at most five stages from the pixels to the last map."""

    def network(self, num_classes: int = 1000) -> Network:
        """Return the whole network with its classifier, with initialised or loaded weights; nothing is frozen.

        Raises:
            UserError: the weights are not available or do not fit.
        """
        network = self.make(num_classes)
        if self.initialization is not None:
            initialize(network, self.initialization)
        if self.weights is not None:
            load_weights(network, self.weights, self.architecture(), self.classifier_keys)
        return network

    def dense(self, network: Network, size: int) -> nn.Module:
        """Return a trained classifier in its form for whole images: the mean of the class scores over the image.

        A network that ends in global average pooling and a linear layer is such a mean as it is (He et al. 2016, §3.4),
        and is returned.

        Args:
            network: the whole network.
            size: pixels along each side of the crops on which it was trained.

        Raises:
            UserError: the network changes the size of its features for such crops, which has no dense form.
        """
        return network

    @abstractmethod
    def build(self, multi_scale: bool) -> tuple[Backbone, BoxHead | None]:
        """Return the backbone and, if layers of the network remain, a box head that consists of these.

        With `multi_scale` the backbone has all its levels, for a neck, and the box head is None. Without it the
        backbone has one level.

        Raises:
            UserError: the weights are not available or do not fit.
        """

    @abstractmethod
    def build_crop_network(self, size: int) -> CropNetwork:
        """Return the network up to the layer before its classifier, for crops of `size` × `size` pixels.

        Raises:
            UserError: `size` is too small for the network, or the weights are not available or do not fit.
        """

    def _trainable_stages(self, network: Network) -> Stages:
        """Return the stages of a network, with all but the last `train_stages` frozen."""
        stages = self.stages(network)
        for stage in frozen_stages(stages, self.train_stages):
            freeze(stage)
        return stages


def frozen_stages(stages: Stages, train_stages: int | None) -> list[nn.Sequential]:
    """Return all stages but the last `train_stages`. Raise `UserError` if there are fewer stages than that."""
    if train_stages is None:
        return []
    if not 0 <= train_stages <= len(stages):
        raise UserError(f"train_stages: {train_stages}: the network has {len(stages)} stages; give 0 … {len(stages)}")
    return list(stages.values())[: len(stages) - train_stages]


def centre_cells(layers: nn.Module) -> None:
    """Pad, in place, all convolutions and pools by half their kernels: cell i at stride s is centred on pixel s · i.

    A canvas whose sides are multiples of s then gives side / s cells. RoIPool rounds x / s to a cell, and RoIAlign with
    `aligned=False` samples at cell x / s: both expect this position. An even kernel has no middle. It gets the padding
    of the next smaller odd kernel, none for 2×2, since half of it would add a cell.
    """
    for layer in layers.modules():
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            kernel = layer.kernel_size
            height, width = kernel if isinstance(kernel, tuple) else (kernel, kernel)
            layer.padding = ((height - 1) // 2, (width - 1) // 2)
        if isinstance(layer, nn.MaxPool2d):
            layer.ceil_mode = False


def refuse_small_crops(size: int, minimum: int) -> None:
    """Raise `UserError` if crops of `size` pixels a side are too small for a network."""
    if size < minimum:
        raise UserError(f"size: {size}: the network needs crops of at least {minimum} pixels a side")
