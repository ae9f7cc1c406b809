"""VGG (Simonyan and Zisserman 2015), cut as in Fast R-CNN (Girshick 2015, §2.2): before the last max-pool."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import field
from typing import Literal

from torch import nn
from torchvision.models import get_model

from detect.backbones.backbone import CNN, SingleScaleBackbone, TrainStages, freeze_bottom, refuse_small
from detect.backbones.fully_connected import FullyConnectedTrunk, WholeFullyConnected
from detect.backbones.norm import freeze_batch_norms
from detect.backbones.weights import load_weights
from detect.options import options

LEAST = 32
"""Pixels along each side of the smallest crop that leaves pool5 one cell."""


@options
class VGG(CNN):
    """VGG of 11, 13, 16 or 19 layers. Region pooling, 7×7, takes the place of the last max-pool."""

    name: Literal["vgg"] = field(default="vgg", kw_only=True)
    depth: Literal[11, 13, 16, 19] = 16
    norm: Literal["none", "frozen", "batch"] = "none"
    """The paper has no norm. Frozen statistics mean something only with weights, or in a checkpoint."""
    train_stages: TrainStages = 3
    """How many of the stages conv1 … conv5 learn, counted from conv5; the others stay as loaded. fc6 and fc7 always
    learn. The default is Fast R-CNN's: conv3_1 and up (§4.5)."""
    weights: str | None = None
    """A name of torchvision's (`IMAGENET1K_V1`), a file with a state dict of torchvision's VGG, or nothing."""

    def build(self) -> tuple[SingleScaleBackbone, FullyConnectedTrunk]:
        """The network as a backbone of stride 16 and 512 channels, and a trunk that gives 4096."""
        stages, _, trunk = self._parts()
        return SingleScaleBackbone(stages, channels=512), trunk

    def build_whole(self, size: int) -> WholeFullyConnected:
        """The network with its last max-pool: pool5 of 25088 numbers, fc6 and fc7 of 4096 each."""
        refuse_small(size, LEAST)
        return WholeFullyConnected(size, *self._parts())

    def _parts(self) -> tuple[OrderedDict[str, nn.Sequential], nn.MaxPool2d, FullyConnectedTrunk]:
        """conv1 … conv5 with what is frozen, pool5, and fc6 with fc7."""
        name = f"vgg{self.depth}" if self.norm == "none" else f"vgg{self.depth}_bn"
        network = get_model(name, init_weights=self.weights is None)
        if self.weights is not None:
            load_weights(network, self.weights, name)
        if self.norm == "frozen":
            freeze_batch_norms(network)

        stages = _stages(network.features)
        freeze_bottom(list(stages.values()), self.train_stages)
        trunk = FullyConnectedTrunk(network.classifier[0], network.classifier[3], pooled=7)
        return stages, network.features[-1], trunk


def _stages(layers: nn.Sequential) -> OrderedDict[str, nn.Sequential]:
    """conv1 … conv5; all but the first begin with the max-pool that halves their input."""
    pools = [place for place, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
    starts = [0, *pools[:-1]]
    return OrderedDict(
        (f"conv{i}", layers[start:end]) for i, (start, end) in enumerate(zip(starts, pools, strict=True), start=1)
    )
