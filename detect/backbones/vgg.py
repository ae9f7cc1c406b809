"""VGG (Simonyan and Zisserman 2015)."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import field
from typing import ClassVar, Literal

from pydantic import model_validator
from torch import nn
from torchvision.models import get_model

from detect.backbones.backbone import FeatureInfo, Network, Stages, TrainStages
from detect.backbones.fully_connected import FullyConnectedBoxHead, FullyConnectedOptions
from detect.backbones.norm import LocalResponseNorm, Norm, replace_norms
from detect.backbones.weights import refuse_names
from detect.options import options

MADE_FROM = {"vgg_a_lrn": "vgg11", "vgg_c": "vgg16", "vgg_c_bn": "vgg16_bn"}
"""Networks that torchvision does not have, and those of torchvision's that they differ from in a few layers."""


@options
class VGGOptions(FullyConnectedOptions):
    """VGG of 11, 13, 16 or 19 layers, or A-LRN or C: stride 16, 512 channels, regions of 7×7."""

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
    depth: Literal[11, 13, 16, 19, "A-LRN", "C"] = 16
    """Number of layers: 11, 13, 16 and 19 are the paper's networks A, B, D and E (Table 1). `A-LRN` is A with local
    response normalisation after its first layer. `C` is D with 1×1 instead of 3×3 convolutions as the third layers of
    conv3, conv4 and conv5. torchvision has no weights of these two."""
    norm: Norm = "none"
    """The paper has none. Frozen statistics make sense only with weights or in a checkpoint. A-LRN allows no other."""
    train_stages: TrainStages = 3
    """Number of stages of conv1 … conv5 that are trained, counted from conv5; the others stay as loaded. fc6 and fc7
    are always trained. The default is Fast R-CNN's: conv3_1 and up (§4.5)."""

    @model_validator(mode="after")
    def _has_one_norm(self) -> VGGOptions:
        if self.depth == "A-LRN" and self.norm != "none":
            raise ValueError(f"norm is {self.norm}, but A-LRN has local response normalisation; set norm to none")
        return self

    def architecture(self) -> str:
        """Return vgg16, or vgg16_bn with a norm; for A-LRN and C vgg_a_lrn, vgg_c or vgg_c_bn."""
        name = {"A-LRN": "vgg_a_lrn", "C": "vgg_c"}.get(str(self.depth), f"vgg{self.depth}")
        return name if self.norm == "none" else f"{name}_bn"

    def make(self, num_classes: int) -> Network:
        """Return torchvision's network with the chosen norm; for A-LRN and C that of A or D, with the difference."""
        init = self.weights is None and self.initialization is None
        name = self.architecture()
        if name in MADE_FROM:
            refuse_names(self.weights, name)
        network = get_model(MADE_FROM.get(name, name), init_weights=init, num_classes=num_classes)
        if self.depth == "A-LRN":
            network.features.insert(2, LocalResponseNorm())
        elif self.depth == "C":
            _shrink_third_layers(network.features)
        replace_norms(network, self.norm)
        return network

    def stages(self, network: Network) -> Stages:
        """Return conv1 … conv5; all but the first begin with the max-pool that halves their input."""
        layers = network.features
        pools = _pools(layers)
        bounds = zip([0, *pools[:-1]], pools, strict=True)
        return OrderedDict((f"conv{i}", layers[start:end]) for i, (start, end) in enumerate(bounds, start=1))

    def last_pool(self, network: Network) -> nn.Module:
        """Return pool5."""
        return network.features[-1]

    def box_head(self, network: Network) -> FullyConnectedBoxHead:
        """Return fc6 and fc7, of 4096 each."""
        return FullyConnectedBoxHead(network.classifier[0], network.classifier[3], pooled=7)


def _pools(layers: nn.Sequential) -> list[int]:
    """Return the places of the max-pools, which end conv1 … conv5."""
    return [index for index, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]


def _shrink_third_layers(layers: nn.Sequential) -> None:
    """Make D's third convolutions of conv3, conv4 and conv5 1×1, in place, initialised as torchvision does."""
    for pool in _pools(layers)[2:]:
        last, third = [(i, layer) for i, layer in enumerate(layers[:pool]) if isinstance(layer, nn.Conv2d)][-1]
        layers[last] = convolution = nn.Conv2d(third.in_channels, third.out_channels, kernel_size=1)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(convolution.get_parameter("bias"))
