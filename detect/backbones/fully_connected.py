"""What follows the convolutions of AlexNet, VGG and VGG-M: the layers fc6 and fc7, as a trunk or within the network."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from detect.backbones.backbone import Trunk, WholeCNN


class FullyConnectedTrunk(Trunk):
    """fc6 and fc7 with ReLU and dropout.

    Args:
        fc6: takes the flattened region.
        fc7: takes fc6.
        pooled: cells along each side of a region.
        dropout_first: drop from what each layer takes, as torchvision's AlexNet, instead of from what it gives.
    """

    def __init__(self, fc6: nn.Linear, fc7: nn.Linear, pooled: int, dropout_first: bool = False) -> None:
        super().__init__(channels_in=fc6.in_features // pooled**2, pooled=pooled, channels=fc7.out_features)
        self.fc6, self.fc7 = fc6, fc7
        self.dropout = nn.Dropout(0.5)
        self.dropout_first = dropout_first

    def forward(self, regions: Float[Tensor, "N c p p"]) -> Float[Tensor, "N channels"]:
        """fc7 of every region."""
        return self.vectors(regions)[1]

    def vectors(self, regions: Float[Tensor, "N c p p"]) -> tuple[Float[Tensor, "N _"], Float[Tensor, "N channels"]]:
        """fc6 and fc7 of every region."""
        pool5 = regions.flatten(1)
        if self.dropout_first:
            fc6 = F.relu(self.fc6(self.dropout(pool5)))
            return fc6, F.relu(self.fc7(self.dropout(fc6)))
        fc6 = self.dropout(F.relu(self.fc6(pool5)))
        return fc6, self.dropout(F.relu(self.fc7(fc6)))


class WholeFullyConnected(WholeCNN):
    """conv1 … conv5, the last max-pool, fc6 and fc7.

    fc6 fits one size of pool5 only. Crops of another size than ImageNet's are averaged to it, as torchvision does.

    Args:
        size: pixels along each side of a crop.
        stages: conv1 … conv5.
        pool5: the last max-pool.
        trunk: fc6 and fc7.
    """

    def __init__(
        self, size: int, stages: Mapping[str, nn.Sequential], pool5: nn.MaxPool2d, trunk: FullyConnectedTrunk
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
