"""AlexNet (Krizhevsky et al. 2012), cut as in Fast R-CNN (Girshick 2015, §2.2): before the last max-pool."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import field
from typing import Literal

from torch import nn
from torchvision.models import get_model

from detect.backbones.backbone import (
    CNN,
    SingleScaleBackbone,
    TrainStages,
    centre_cells,
    freeze_bottom,
    refuse_small,
)
from detect.backbones.fully_connected import FullyConnectedTrunk, WholeFullyConnected
from detect.backbones.weights import load_weights
from detect.options import options

LEAST = 63
"""Pixels along each side of the smallest crop that leaves pool5 one cell."""


@options
class AlexNet(CNN):
    """AlexNet in torchvision's form. Region pooling, 6×6, takes the place of the last max-pool.

    R-CNN's and Fast R-CNN's small network is CaffeNet, which differs from this one: torchvision has AlexNet as of
    Krizhevsky 2014 ("One weird trick for parallelizing convolutional neural networks"), without local response norms
    and groups of convolutions, with 64, 192, 384, 256 and 256 channels instead of 96, 256, 384, 384 and 256, and with
    dropout before fc6 and fc7 instead of after.
    """

    name: Literal["alexnet"] = field(default="alexnet", kw_only=True)
    train_stages: TrainStages = 4
    """How many of the stages conv1 … conv5 learn, counted from conv5; the others stay as loaded. fc6 and fc7 always
    learn. The default is Fast R-CNN's for its small networks: conv2 and up (§4.5)."""
    weights: str | None = None
    """A name of torchvision's (`IMAGENET1K_V1`), a file with a state dict of torchvision's AlexNet, or nothing."""

    def build(self) -> tuple[SingleScaleBackbone, FullyConnectedTrunk]:
        """The network as a backbone of stride 16 and 256 channels, and a trunk that gives 4096.

        ImageNet's layers have other paddings: 224 pixels would give 13 cells, centred on the pixels 15, 31, 47 …
        Padded by half a kernel each, as Fast R-CNN's CaffeNet is, they give 14, centred on 0, 16, 32 … as a ResNet's
        are, where region pooling expects them. The weights are the same, and so are the features off the border.
        """
        stages, _, trunk = self._parts()
        for stage in stages.values():
            centre_cells(stage)
        return SingleScaleBackbone(stages, channels=256), trunk

    def build_whole(self, size: int) -> WholeFullyConnected:
        """The network with torchvision's own paddings: pool5 of 9216 numbers, fc6 and fc7 of 4096 each."""
        refuse_small(size, LEAST)
        return WholeFullyConnected(size, *self._parts())

    def _parts(self) -> tuple[OrderedDict[str, nn.Sequential], nn.MaxPool2d, FullyConnectedTrunk]:
        """conv1 … conv5 with what is frozen, pool5, and fc6 with fc7."""
        network = get_model("alexnet")
        if self.weights is not None:
            load_weights(network, self.weights, "alexnet")
        layers, classifier = network.features, network.classifier
        # A stage begins with the max-pool that halves its input, where there is one.
        bounds = {"conv1": (0, 2), "conv2": (2, 5), "conv3": (5, 8), "conv4": (8, 10), "conv5": (10, 12)}
        stages = OrderedDict((name, layers[start:end]) for name, (start, end) in bounds.items())
        freeze_bottom(list(stages.values()), self.train_stages)
        trunk = FullyConnectedTrunk(classifier[1], classifier[4], pooled=6, dropout_first=True)
        return stages, layers[12], trunk
