"""AlexNet (Krizhevsky et al. 2012)."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import field
from typing import Literal

from torch import nn
from torchvision.models import get_model

from detect.backbones.backbone import Network, TrainStages, centre_cells
from detect.backbones.fully_connected import FullyConnectedCNN, FullyConnectedTrunk
from detect.options import options

# A stage begins with the max-pool that halves its input, where there is one.
STAGES = {"conv1": (0, 2), "conv2": (2, 5), "conv3": (5, 8), "conv4": (8, 10), "conv5": (10, 12)}


@options
class AlexNet(FullyConnectedCNN):
    """AlexNet in torchvision's form, a backbone of stride 16 and 256 channels with regions of 6×6.

    R-CNN's and Fast R-CNN's small network is CaffeNet, which differs from this one: torchvision has AlexNet as of
    Krizhevsky 2014 ("One weird trick for parallelizing convolutional neural networks"), without local response norms
    and groups of convolutions, with 64, 192, 384, 256 and 256 channels instead of 96, 256, 384, 384 and 256, and with
    dropout before fc6 and fc7 instead of after.
    """

    head = ("classifier.6.",)
    least = 63

    name: Literal["alexnet"] = field(default="alexnet", kw_only=True)
    train_stages: TrainStages = 4
    """How many of the stages conv1 … conv5 learn, counted from conv5; the others stay as loaded. fc6 and fc7 always
    learn. The default is Fast R-CNN's for its small networks: conv2 and up (§4.5)."""

    def architecture(self) -> str:
        """alexnet."""
        return "alexnet"

    def make(self, num_classes: int) -> Network:
        """torchvision's network."""
        return get_model("alexnet", num_classes=num_classes)

    def network(self, num_classes: int = 1000) -> Network:
        """The network whole; with the paper's Gaussians the biases of conv2, conv4, conv5, fc6 and fc7 are one (§5)."""
        network = super().network(num_classes)
        if self.initialization == "gaussian" and self.weights is None:
            for layer in (
                *(network.features[place] for place in (3, 8, 10)),
                network.classifier[1],
                network.classifier[4],
            ):
                nn.init.ones_(layer.bias)
        return network

    def stages(self, network: Network) -> OrderedDict[str, nn.Sequential]:
        """conv1 … conv5."""
        return OrderedDict((name, network.features[start:end]) for name, (start, end) in STAGES.items())

    def centre(self, stages: nn.Sequential) -> None:
        """Pad every layer by half its kernel, in place.

        ImageNet's layers have other paddings: 224 pixels would give 13 cells, centred on the pixels 15, 31, 47 …
        Padded by half a kernel each, as Fast R-CNN's CaffeNet is, they give 14, centred on 0, 16, 32 … as a ResNet's
        are, where region pooling expects them. The weights are the same, and so are the features off the border.
        """
        centre_cells(stages)

    def last_pool(self, network: Network) -> nn.Module:
        """pool5."""
        return network.features[12]

    def trunk(self, network: Network) -> FullyConnectedTrunk:
        """fc6 and fc7, 4096 each."""
        return FullyConnectedTrunk(network.classifier[1], network.classifier[4], pooled=6, dropout_first=True)
