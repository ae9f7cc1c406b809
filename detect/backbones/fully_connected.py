"""Networks that end in two fully connected layers: LeNet, AlexNet, VGG and VGG-M."""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Mapping
from typing import ClassVar

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
