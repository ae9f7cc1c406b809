"""AlexNet (Krizhevsky et al. 2012)."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import field
from typing import ClassVar, Literal

from torch import nn
from torchvision.models import get_model

from detect.backbones.backbone import FeatureInfo, Network, Stages, TrainStages, centre_cells
from detect.backbones.fully_connected import FullyConnectedBoxHead, FullyConnectedOptions
from detect.options import options

# A stage begins with the max-pool that halves its input, where there is one.
STAGES = {"conv1": (0, 2), "conv2": (2, 5), "conv3": (5, 8), "conv4": (8, 10), "conv5": (10, 12)}


@options
class AlexNetOptions(FullyConnectedOptions):
    """AlexNet in torchvision's form: stride 16, 256 channels, regions of 6×6.

    R-CNN's and Fast R-CNN's small network is CaffeNet, which differs from this one: torchvision has AlexNet as of
    Krizhevsky 2014 ("One weird trick for parallelizing convolutional neural networks"), without local response norms
    and groups of convolutions, with 64, 192, 384, 256 and 256 channels instead of 96, 256, 384, 384 and 256, and with
    dropout before fc6 and fc7 instead of after.
    """

    classifier_keys = ("classifier.6.",)
    smallest_crop = 63
    levels: ClassVar = {
        "conv1": FeatureInfo(64, 4),
        "conv2": FeatureInfo(192, 8),
        "conv3": FeatureInfo(384, 16),
        "conv4": FeatureInfo(256, 16),
        "conv5": FeatureInfo(256, 16),
    }

    name: Literal["alexnet"] = field(default="alexnet", kw_only=True)
    train_stages: TrainStages = 4
    """Number of stages of conv1 … conv5 that are trained, counted from conv5; the others stay as loaded. fc6 and fc7
    are always trained. The default is Fast R-CNN's for its small networks: conv2 and up (§4.5)."""

    def architecture(self) -> str:
        """Return alexnet."""
        return "alexnet"

    def make(self, num_classes: int) -> Network:
        """Return torchvision's network."""
        return get_model("alexnet", num_classes=num_classes)

    def network(self, num_classes: int = 1000) -> Network:
        """Return the whole network; with `gaussian` the biases of conv2, conv4, conv5, fc6 and fc7 are 1 (§5)."""
        network = super().network(num_classes)
        if self.initialization == "gaussian" and self.weights is None:
            for layer in (
                *(network.features[index] for index in (3, 8, 10)),
                network.classifier[1],
                network.classifier[4],
            ):
                nn.init.ones_(layer.bias)
        return network

    def stages(self, network: Network) -> Stages:
        """Return conv1 … conv5."""
        return OrderedDict((name, network.features[start:end]) for name, (start, end) in STAGES.items())

    def centre(self, stages: nn.Sequential) -> None:
        """Pad every layer by half its kernel, in place.

        With torchvision's own paddings 224 pixels give 13 cells, centred on the pixels 15, 31, 47 … Padded by half a
        kernel, like Fast R-CNN's CaffeNet, they give 14, centred on 0, 16, 32 … as in a ResNet, where region pooling
        expects them. The weights are the same, and so are the features away from the border.
        """
        centre_cells(stages)

    def last_pool(self, network: Network) -> nn.Module:
        """Return pool5."""
        return network.features[12]

    def box_head(self, network: Network) -> FullyConnectedBoxHead:
        """Return fc6 and fc7, of 4096 each."""
        return FullyConnectedBoxHead(network.classifier[1], network.classifier[4], pooled=6, dropout_first=True)
