"""VGG-M (Chatfield et al. 2014, "Return of the Devil in the Details", Table 1), the medium network of Fast R-CNN."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import field
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor, nn

from detect.backbones.backbone import FeatureInfo, Network, Stages, TrainStages, centre_cells
from detect.backbones.fully_connected import FullyConnectedBoxHead, FullyConnectedOptions
from detect.backbones.norm import LocalResponseNorm
from detect.backbones.weights import refuse_names
from detect.options import options

# A stage begins with the max-pool that halves its input, where there is one.
STAGES = {"conv1": (0, 3), "conv2": (3, 7), "conv3": (7, 10), "conv4": (10, 12), "conv5": (12, 14)}


@options
class VGGMOptions(FullyConnectedOptions):
    """VGG_CNN_M_1024, the VGG-M whose fc7 has 1024 channels: stride 16, 512 channels, regions of 6×6.

    torchvision has no such network, so weights are a file. Its keys are `weight` and `bias` of features.0, .4, .8, .10
    and .12 (conv1 … conv5) and of classifier.0 and .3 (fc6 and fc7). The published Caffe model takes BGR minus mean and
    does not divide by the deviation: reverse conv1's three input channels and multiply them by 58.395, 57.12 and 57.375
    (R, G, B).
    """

    classifier_keys = ("classifier.6.",)
    smallest_crop = 41
    levels: ClassVar = {
        "conv1": FeatureInfo(96, 2),
        "conv2": FeatureInfo(256, 8),
        "conv3": FeatureInfo(512, 16),
        "conv4": FeatureInfo(512, 16),
        "conv5": FeatureInfo(512, 16),
    }

    name: Literal["vgg_m"] = field(default="vgg_m", kw_only=True)
    train_stages: TrainStages = 4
    """Number of stages of conv1 … conv5 that are trained, counted from conv5; the others stay as loaded. fc6 and fc7
    are always trained. The default is Fast R-CNN's for its small networks: conv2 and up (§4.5)."""

    def architecture(self) -> str:
        """Return vgg_m."""
        return "vgg_m"

    def make(self, num_classes: int) -> Network:
        """Return the network in the form of torchvision's VGG."""
        refuse_names(self.weights, self.architecture())
        return VGGMNetwork(num_classes)

    def stages(self, network: Network) -> Stages:
        """Return conv1 … conv5."""
        return OrderedDict((name, network.features[start:end]) for name, (start, end) in STAGES.items())

    def centre(self, stages: nn.Sequential) -> None:
        """Pad every layer by half its kernel, in place.

        With the original paddings 224 pixels give 13 cells, centred on the pixels 17, 33, 49 … Fast R-CNN keeps these
        and pools regions one cell off. Padded by half a kernel, the layers give 14 cells, centred on 0, 16, 32 … as in
        AlexNet and ResNet here.
        """
        centre_cells(stages)

    def last_pool(self, network: Network) -> nn.Module:
        """Return pool5."""
        return network.features[14]

    def box_head(self, network: Network) -> FullyConnectedBoxHead:
        """Return fc6 of 4096 and fc7 of 1024."""
        return FullyConnectedBoxHead(network.classifier[0], network.classifier[3], pooled=6)


class VGGMNetwork(nn.Module):
    """The whole network; pools round their output size up, as in Caffe."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(*_convolutions(), nn.MaxPool2d(3, 2, ceil_mode=True))
        self.avgpool = nn.AdaptiveAvgPool2d(6)
        self.classifier = nn.Sequential(
            nn.Linear(512 * 6 * 6, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(4096, 1024),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(1024, num_classes),
        )

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C"]:
        """Compute the logits."""
        return self.classifier(self.avgpool(self.features(pixels)).flatten(1))


def _convolutions() -> nn.Sequential:
    """Return conv1 … conv5 with the original paddings; pools round their output size up, as in Caffe."""
    return nn.Sequential(
        nn.Conv2d(3, 96, 7, stride=2),
        nn.ReLU(inplace=True),
        LocalResponseNorm(),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.Conv2d(96, 256, 5, stride=2, padding=1),
        nn.ReLU(inplace=True),
        LocalResponseNorm(),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.Conv2d(256, 512, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(512, 512, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(512, 512, 3, padding=1),
        nn.ReLU(inplace=True),
    )
