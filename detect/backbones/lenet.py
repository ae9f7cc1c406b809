"""LeNet-5 (LeCun et al. 1998, §II.B)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import field
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor, nn

from detect.backbones.backbone import FeatureInfo, Network, Stages, TrainStages, centre_cells
from detect.backbones.fully_connected import FullyConnectedBoxHead, FullyConnectedOptions
from detect.backbones.weights import refuse_names
from detect.options import options

ACTIVATIONS = {"tanh": nn.Tanh, "sigmoid": nn.Sigmoid}


@options
class LeNetOptions(FullyConnectedOptions):
    """LeNet-5 on grey images: stride 2, 16 channels, regions of 5×5.

    fc6 and fc7 are the paper's C5 and F6, with 120 and 84 channels; C5, a 5×5 convolution on 5×5 cells, is fully
    connected. Differences to the paper, as usual today: C3 is connected to all maps of S2, pooling has no parameters,
    and softmax replaces the radial basis functions. With ten classes it has 61,706 parameters.
    """

    mean = (127.5, 127.5, 127.5)
    std = (127.5, 127.5, 127.5)
    classifier_keys = ("classifier.4.",)
    smallest_crop = 16
    levels: ClassVar = {"conv1": FeatureInfo(6, 1), "conv2": FeatureInfo(16, 2)}

    name: Literal["lenet"] = field(default="lenet", kw_only=True)
    activation: Literal["tanh", "sigmoid"] = field(default="tanh", kw_only=True)
    """Activation of all layers but the last; the paper's is 1.7159 tanh(2x / 3) (Appendix A). With `sigmoid`, train by
    `training.optimizer: adam`: the gradients are too small for plain SGD."""
    train_stages: TrainStages = 2
    """Number of stages of conv1 and conv2, the paper's C1 and C3, that are trained, counted from conv2. fc6 and fc7 are
    always trained."""

    def architecture(self) -> str:
        """Return lenet or lenet_sigmoid."""
        return "lenet" if self.activation == "tanh" else f"lenet_{self.activation}"

    def make(self, num_classes: int) -> Network:
        """Return the network in the form of torchvision's AlexNet."""
        refuse_names(self.weights, self.architecture())
        return LeNetNetwork(num_classes, ACTIVATIONS[self.activation])

    def stages(self, network: Network) -> Stages:
        """Return conv1, with the conversion to grey, and conv2, with the pool before it."""
        return OrderedDict(conv1=network.features[:3], conv2=network.features[3:6])

    def centre(self, stages: nn.Sequential) -> None:
        """Pad the convolutions by half their kernels, in place; the paper has no padding and loses the border."""
        centre_cells(stages)

    def last_pool(self, network: Network) -> nn.Module:
        """Return the paper's S4."""
        return network.features[6]

    def box_head(self, network: Network) -> FullyConnectedBoxHead:
        """Return C5 and F6."""
        c5, f6 = network.classifier[0], network.classifier[2]
        return FullyConnectedBoxHead(c5, f6, pooled=5, dropout=0.0, activation=ACTIVATIONS[self.activation]())


class LeNetNetwork(nn.Module):
    """The whole network; for images of another size than 32×32, S4 is average-pooled to C5's 5×5 cells."""

    def __init__(self, num_classes: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.features = nn.Sequential(
            Grey(),
            nn.Conv2d(1, 6, 5),
            activation(),
            nn.AvgPool2d(2),
            nn.Conv2d(6, 16, 5),
            activation(),
            nn.AvgPool2d(2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(5)
        self.classifier = nn.Sequential(
            nn.Linear(16 * 5 * 5, 120), activation(), nn.Linear(120, 84), activation(), nn.Linear(84, num_classes)
        )

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C"]:
        """Compute the logits."""
        return self.classifier(self.avgpool(self.features(pixels)).flatten(1))


class Grey(nn.Module):
    """Luma of red, green and blue (ITU-R BT.601), without parameters."""

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 1 H W"]:
        """Compute one channel."""
        red, green, blue = pixels.split(1, dim=1)
        return 0.299 * red + 0.587 * green + 0.114 * blue
