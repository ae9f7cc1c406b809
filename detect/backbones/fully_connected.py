"""Networks that end in fully connected layers: what LeNet, AlexNet, VGG and VGG-M have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Mapping
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from detect.backbones.backbone import (
    CNN,
    Network,
    SingleScaleBackbone,
    Trunk,
    WholeCNN,
    freeze_bottom,
    refuse_small,
)


class FullyConnectedTrunk(Trunk):
    """Two fully connected layers, fc6 and fc7, with activation and dropout.

    Args:
        fc6: takes the flattened region.
        fc7: takes fc6.
        pooled: cells along each side of a region.
        dropout_first: drop from what each layer takes, as torchvision's AlexNet, instead of from what it gives.
        dropout: the share that is dropped.
        activation: ReLU if not given.
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
        """fc7 of every region."""
        return self.vectors(regions)[1]

    def vectors(self, regions: Float[Tensor, "N c p p"]) -> tuple[Float[Tensor, "N _"], Float[Tensor, "N channels"]]:
        """fc6 and fc7 of every region."""
        pool5 = regions.flatten(1)
        if self.dropout_first:
            fc6 = self.activation(self.fc6(self.dropout(pool5)))
            return fc6, self.activation(self.fc7(self.dropout(fc6)))
        fc6 = self.dropout(self.activation(self.fc6(pool5)))
        return fc6, self.dropout(self.activation(self.fc7(fc6)))


class WholeFullyConnected(WholeCNN):
    """The convolutions, the last pool, fc6 and fc7.

    fc6 fits one size of pool5 only. Crops of another size than the paper's are averaged to it, as torchvision does.

    Args:
        size: pixels along each side of a crop.
        stages: conv1 … conv5.
        pool5: the last pool.
        trunk: fc6 and fc7.
    """

    def __init__(
        self, size: int, stages: Mapping[str, nn.Sequential], pool5: nn.Module, trunk: FullyConnectedTrunk
    ) -> None:
        fc6, fc7 = trunk.fc6, trunk.fc7
        super().__init__(size, {"pool5": fc6.in_features, "fc6": fc6.out_features, "fc7": fc7.out_features})
        self.body = nn.Sequential(OrderedDict(stages))
        self.pool5 = nn.Sequential(pool5, nn.AdaptiveAvgPool2d(trunk.pooled))
        self.fully_connected = trunk

    def forward_layers(self, crops: Float[Tensor, "N 3 p p"]) -> dict[str, Float[Tensor, "N _"]]:
        """pool5, fc6 and fc7 of every crop."""
        pool5 = self.pool5(self.body(crops))
        fc6, fc7 = self.fully_connected.vectors(pool5)
        return {"pool5": pool5.flatten(1), "fc6": fc6, "fc7": fc7}


class FullyConnectedCNN(CNN):
    """A network of convolutions and two fully connected layers, cut before the last pool (Girshick 2015, §2.2).

    Region pooling takes the place of that pool.
    """

    least: ClassVar[int]
    """Pixels along each side of the smallest crop that leaves the last pool one cell."""
    stride: ClassVar[int] = 16
    """Pixels from one cell to the next before the last pool."""

    @abstractmethod
    def last_pool(self, network: Network) -> nn.Module:
        """What region pooling takes the place of."""

    @abstractmethod
    def trunk(self, network: Network) -> FullyConnectedTrunk:
        """fc6 and fc7."""

    def centre(self, stages: nn.Sequential) -> None:
        """Move, in place, the cells to where region pooling expects them: cell i at stride s on pixel s · i."""

    def build(self) -> tuple[SingleScaleBackbone, FullyConnectedTrunk]:
        """The network as a backbone of one map, and a trunk of fc6 and fc7, which always learn."""
        network = self.network()
        stages, trunk = self._frozen(network), self.trunk(network)
        self.centre(nn.Sequential(*stages.values()))
        return SingleScaleBackbone(stages, trunk.channels_in, self.stride, self.mean, self.std), trunk

    def build_whole(self, size: int) -> WholeFullyConnected:
        """The network with the paddings that it was made with, its last pool, fc6 and fc7."""
        refuse_small(size, self.least)
        network = self.network()
        return WholeFullyConnected(size, self._frozen(network), self.last_pool(network), self.trunk(network))

    def _frozen(self, network: Network) -> OrderedDict[str, nn.Sequential]:
        stages = self.stages(network)
        freeze_bottom(list(stages.values()), self.train_stages)
        return stages
