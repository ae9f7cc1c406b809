"""VGG (Simonyan and Zisserman 2015)."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import field
from typing import ClassVar, Literal

from torch import nn
from torchvision.models import get_model

from detect.backbones.backbone import FeatureInfo, Network, Stages, TrainStages
from detect.backbones.fully_connected import FullyConnectedBoxHead, FullyConnectedOptions
from detect.backbones.norm import Norm, replace_norms
from detect.options import options


@options
class VGGOptions(FullyConnectedOptions):
    """VGG of 11, 13, 16 or 19 layers: stride 16, 512 channels, regions of 7×7."""

    classifier_keys = ("classifier.6.",)
    smallest_crop = 32
    levels: ClassVar = {
        "conv1": FeatureInfo(64, 1),
        "conv2": FeatureInfo(128, 2),
        "conv3": FeatureInfo(256, 4),
        "conv4": FeatureInfo(512, 8),
        "conv5": FeatureInfo(512, 16),
    }

    name: Literal["vgg"] = field(default="vgg", kw_only=True)
    depth: Literal[11, 13, 16, 19] = 16
    """The paper's networks A, B, D and E."""
    norm: Norm = "none"
    """The paper has none. Frozen statistics make sense only with weights or in a checkpoint."""
    train_stages: TrainStages = 3
    """Number of stages of conv1 … conv5 that are trained, counted from conv5; the others stay as loaded. fc6 and fc7
    are always trained. The default is Fast R-CNN's: conv3_1 and up (§4.5)."""

    def architecture(self) -> str:
        """Return vgg16, or vgg16_bn with a norm."""
        return f"vgg{self.depth}" if self.norm == "none" else f"vgg{self.depth}_bn"

    def make(self, num_classes: int) -> Network:
        """Return torchvision's network with the chosen norm."""
        init = self.weights is None and self.initialization is None
        network = get_model(self.architecture(), init_weights=init, num_classes=num_classes)
        replace_norms(network, self.norm)
        return network

    def stages(self, network: Network) -> Stages:
        """Return conv1 … conv5; all but the first begin with the max-pool that halves their input."""
        layers = network.features
        pools = [index for index, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
        bounds = zip([0, *pools[:-1]], pools, strict=True)
        return OrderedDict((f"conv{i}", layers[start:end]) for i, (start, end) in enumerate(bounds, start=1))

    def last_pool(self, network: Network) -> nn.Module:
        """Return pool5."""
        return network.features[-1]

    def box_head(self, network: Network) -> FullyConnectedBoxHead:
        """Return fc6 and fc7, of 4096 each."""
        return FullyConnectedBoxHead(network.classifier[0], network.classifier[3], pooled=7)
