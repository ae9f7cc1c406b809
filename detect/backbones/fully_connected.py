"""Networks that end in two fully connected layers: LeNet, AlexNet, VGG and VGG-M."""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain, repeat
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from detect.backbones.backbone import (
    BackboneOptions,
    BoxHead,
    CropNetwork,
    FeatureInfo,
    Network,
    StagedBackbone,
    refuse_small_crops,
)
from detect.errors import UserError


class FullyConnectedBoxHead(BoxHead):
    """Two fully connected layers, fc6 and fc7, with activation and dropout.

    Args:
        fc6: the layer on the flattened region.
        fc7: the layer on fc6.
        pooled: cells along each side of a region.
        dropout_first: apply dropout to the input of each layer, like torchvision's AlexNet, instead of its output.
        dropout: probability of dropout.
        activation: by default ReLU.
    """

    def __init__(
        self,
        fc6: nn.Linear,
        fc7: nn.Linear,
        pooled: int,
        dropout_first: bool = False,
        dropout: float = 0.5,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__(channels_in=fc6.in_features // pooled**2, pooled=pooled, channels=fc7.out_features)
        self.fc6, self.fc7 = fc6, fc7
        self.dropout = nn.Dropout(dropout)
        self.dropout_first = dropout_first
        self.activation = activation or nn.ReLU()

    def forward(self, regions: Float[Tensor, "N c p p"]) -> Float[Tensor, "N channels"]:
        """Compute fc7 of each region."""
        return self.forward_layers(regions)[1]

    def forward_layers(
        self, regions: Float[Tensor, "N c p p"]
    ) -> tuple[Float[Tensor, "N _"], Float[Tensor, "N channels"]]:
        """Compute fc6 and fc7 of each region."""
        pool5 = regions.flatten(1)
        if self.dropout_first:
            fc6 = self.activation(self.fc6(self.dropout(pool5)))
            return fc6, self.activation(self.fc7(self.dropout(fc6)))
        fc6 = self.dropout(self.activation(self.fc6(pool5)))
        return fc6, self.dropout(self.activation(self.fc7(fc6)))


class FullyConnectedCropNetwork(CropNetwork):
    """Convolutions, last pool, fc6 and fc7.

    fc6 needs a fixed size of pool5. For crops of another size than the paper's, pool5 is average-pooled to it, as in
    torchvision.

    Args:
        size: pixels along each side of a crop.
        stages: conv1 … conv5.
        pool5: the last pool.
        fully_connected: fc6 and fc7.
    """

    def __init__(
        self,
        size: int,
        stages: Mapping[str, nn.Sequential],
        pool5: nn.Module,
        fully_connected: FullyConnectedBoxHead,
    ) -> None:
        fc6, fc7 = fully_connected.fc6, fully_connected.fc7
        super().__init__(size, {"pool5": fc6.in_features, "fc6": fc6.out_features, "fc7": fc7.out_features})
        self.body = nn.Sequential(OrderedDict(stages))
        self.pool5 = nn.Sequential(pool5, nn.AdaptiveAvgPool2d(fully_connected.pooled))
        self.fully_connected = fully_connected

    def forward_layers(self, crops: Float[Tensor, "N 3 p p"]) -> dict[str, Float[Tensor, "N _"]]:
        """Compute pool5, fc6 and fc7 of each crop."""
        pool5 = self.pool5(self.body(crops))
        fc6, fc7 = self.fully_connected.forward_layers(pool5)
        return {"pool5": pool5.flatten(1), "fc6": fc6, "fc7": fc7}


def dense_network(network: Network, pooled: int) -> nn.Sequential:
    """Return a classifier on images of any size, whose fully connected layers are convolutions on its features.

    features     [B, c, h, w]
    classifier   [B, C, h - p + 1, w - p + 1]     class score map: the logits of every region of p × p cells
    average      [B, C]                           mean over the map

    On images of the size of its crops, it has the logits of `network`. In a larger image, the logits of a region are
    those of a crop that is padded with what is around it, not with zeros.

    Args:
        network: in torchvision's form, with `features` and `classifier`.
        pooled: p, cells along each side of the region that the first fully connected layer takes.
    """
    sides = chain([pooled], repeat(1))
    layers = [_convolution(one, next(sides)) if isinstance(one, nn.Linear) else one for one in network.classifier]
    return nn.Sequential(
        OrderedDict(features=network.features, classifier=nn.Sequential(*layers), average=MeanOverMap())
    )


class MeanOverMap(nn.Module):
    """Mean of each channel over all cells."""

    def forward(self, x: Float[Tensor, "B c h w"]) -> Float[Tensor, "B c"]:
        """Compute the means."""
        return x.mean(dim=(2, 3))


def _convolution(linear: nn.Linear, side: int) -> nn.Conv2d:
    """Return a fully connected layer on regions of `side` × `side` cells as a convolution with the same weights."""
    channels = linear.in_features // side**2
    convolution = nn.Conv2d(channels, linear.out_features, side, device="meta")
    weight = linear.weight.detach().unflatten(1, (channels, side, side))
    # The images are channels-last: otherwise the weights would be reordered in each call, which takes most of the time.
    convolution.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last))
    convolution.bias = linear.bias
    return convolution


class FullyConnectedOptions(BackboneOptions):
    """A network of convolutions and two fully connected layers, cut before the last pool (Girshick 2015, §2.2).

    Region pooling takes the place of that pool.
    """

    smallest_crop: ClassVar[int]
    """Pixels along each side of the smallest crop for which the last pool has one cell."""
    levels: ClassVar[dict[str, FeatureInfo]]
    """Feature map of each stage."""

    @abstractmethod
    def last_pool(self, network: Network) -> nn.Module:
        """Return the pool that region pooling replaces."""

    @abstractmethod
    def box_head(self, network: Network) -> FullyConnectedBoxHead:
        """Return fc6 and fc7."""

    def centre(self, stages: nn.Sequential) -> None:
        """Change paddings, in place, so that cell i at stride s is on pixel s · i, where region pooling expects it."""

    def dense(self, network: Network, size: int) -> nn.Sequential:
        """Return the network with its fully connected layers as convolutions (Simonyan and Zisserman 2015, §3.2)."""
        refuse_small_crops(size, self.smallest_crop)
        with torch.device("meta"):
            cells = replace(self, weights=None).make(1).features(torch.empty(1, 3, size, size)).shape[-1]
        pooled = self.box_head(network).pooled
        if cells != pooled:
            raise UserError(
                f"data.size: {size}: such crops have {cells}×{cells} cells, which are resized to the {pooled}×{pooled} "
                "of the first fully connected layer; for dense evaluation, train with a size that gives as many"
            )
        return dense_network(network, pooled)

    def build(self, multi_scale: bool) -> tuple[StagedBackbone, FullyConnectedBoxHead | None]:
        """Return the stages and, for use without a neck, fc6 and fc7, which are always trained."""
        network = self.network()
        stages = self._trainable_stages(network)
        self.centre(nn.Sequential(*stages.values()))
        backbone = StagedBackbone(stages, self.levels, self.mean, self.std)
        if multi_scale:
            return backbone, None
        backbone.keep_last_level()
        return backbone, self.box_head(network)

    def build_crop_network(self, size: int) -> FullyConnectedCropNetwork:
        """Return the network with its original paddings, its last pool, fc6 and fc7."""
        refuse_small_crops(size, self.smallest_crop)
        network = self.network()
        stages = self._trainable_stages(network)
        return FullyConnectedCropNetwork(size, stages, self.last_pool(network), self.box_head(network))
