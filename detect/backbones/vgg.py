"""VGG (Simonyan and Zisserman 2015)."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import field
from typing import Literal

from torch import nn
from torchvision.models import get_model

from detect.backbones.backbone import Network, TrainStages
from detect.backbones.fully_connected import FullyConnectedCNN, FullyConnectedTrunk
from detect.backbones.norm import Norm, replace_norms
from detect.options import options


@options
class VGG(FullyConnectedCNN):
    """VGG of 11, 13, 16 or 19 layers, a backbone of stride 16 and 512 channels with regions of 7×7."""

    head = ("classifier.6.",)
    least = 32

    name: Literal["vgg"] = field(default="vgg", kw_only=True)
    depth: Literal[11, 13, 16, 19] = 16
    """The paper's networks A, B, D and E."""
    norm: Norm = "none"
    """The paper has no norm. Frozen statistics mean something only with weights, or in a checkpoint."""
    train_stages: TrainStages = 3
    """How many of the stages conv1 … conv5 learn, counted from conv5; the others stay as loaded. fc6 and fc7 always
    learn. The default is Fast R-CNN's: conv3_1 and up (§4.5)."""

    def architecture(self) -> str:
        """vgg16, or vgg16_bn where there is a norm."""
        return f"vgg{self.depth}" if self.norm == "none" else f"vgg{self.depth}_bn"

    def make(self, num_classes: int) -> Network:
        """torchvision's network, with the chosen norm."""
        init = self.weights is None and self.initialization is None
        network = get_model(self.architecture(), init_weights=init, num_classes=num_classes)
        replace_norms(network, self.norm)
        return network

    def stages(self, network: Network) -> OrderedDict[str, nn.Sequential]:
        """conv1 … conv5; all but the first begin with the max-pool that halves their input."""
        layers = network.features
        pools = [place for place, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
        bounds = zip([0, *pools[:-1]], pools, strict=True)
        return OrderedDict((f"conv{i}", layers[start:end]) for i, (start, end) in enumerate(bounds, start=1))

    def last_pool(self, network: Network) -> nn.Module:
        """pool5."""
        return network.features[-1]

    def trunk(self, network: Network) -> FullyConnectedTrunk:
        """fc6 and fc7, 4096 each."""
        return FullyConnectedTrunk(network.classifier[0], network.classifier[3], pooled=7)
