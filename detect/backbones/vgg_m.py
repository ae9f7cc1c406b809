"""VGG-M (Chatfield et al. 2014, "Return of the Devil in the Details", Table 1), the medium network of Fast R-CNN.

Cut as there (Girshick 2015, §2.2): before the last max-pool.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import field
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from detect.backbones.backbone import (
    CNN,
    SingleScaleBackbone,
    TrainStages,
    centre_cells,
    freeze_bottom,
    refuse_small,
)
from detect.backbones.fully_connected import FullyConnectedTrunk, WholeFullyConnected
from detect.backbones.weights import FILES, load_weights
from detect.errors import UserError
from detect.options import options

LEAST = 41
"""Pixels along each side of the smallest crop that leaves pool5 one cell."""


@options
class VGGM(CNN):
    """VGG_CNN_M_1024, the VGG-M with 1024 numbers in fc7. Region pooling, 6×6, takes the place of the last max-pool."""

    name: Literal["vgg_m"] = field(default="vgg_m", kw_only=True)
    train_stages: TrainStages = 4
    """How many of the stages conv1 … conv5 learn, counted from conv5; the others stay as loaded. fc6 and fc7 always
    learn. The default is Fast R-CNN's for its small networks: conv2 and up (§4.5)."""
    weights: str | None = None
    """A file with a state dict, or nothing; torchvision has no such network. Its keys are `weight` and `bias` of
    features.0, .4, .8, .10 and .12 (conv1 … conv5) and of classifier.0 and .3 (fc6 and fc7). The published Caffe model
    takes BGR from which only the mean is subtracted: reverse conv1's three channels of input and multiply them by
    58.395, 57.12 and 57.375 (R, G, B)."""

    def build(self) -> tuple[SingleScaleBackbone, FullyConnectedTrunk]:
        """The network as a backbone of stride 16 and 512 channels, and a trunk that gives 1024.

        ImageNet's layers have other paddings: 224 pixels would give 13 cells, centred on the pixels 17, 33, 49 …
        Fast R-CNN leaves it at that and pools regions one cell beside where they are. Here every layer is padded by
        half its kernel, which gives 14 cells, centred on 0, 16, 32 … as AlexNet's and a ResNet's are.
        """
        stages, _, trunk = self._parts()
        for stage in stages.values():
            centre_cells(stage)
        return SingleScaleBackbone(stages, channels=512), trunk

    def build_whole(self, size: int) -> WholeFullyConnected:
        """The network with ImageNet's paddings: pool5 of 18432 numbers, fc6 of 4096 and fc7 of 1024."""
        refuse_small(size, LEAST)
        return WholeFullyConnected(size, *self._parts())

    def _parts(self) -> tuple[OrderedDict[str, nn.Sequential], nn.MaxPool2d, FullyConnectedTrunk]:
        """conv1 … conv5 with what is frozen, pool5, and fc6 with fc7."""
        if self.weights is not None and not self.weights.endswith(FILES):
            raise UserError(f"weights: {self.weights}: torchvision has none for vgg_m; give a {', '.join(FILES)} file")
        layers, fc6, fc7 = _convolutions(), nn.Linear(512 * 6 * 6, 4096), nn.Linear(4096, 1024)
        if self.weights is not None:
            # The places that these layers have in torchvision's VGG.
            network = nn.ModuleDict({"features": layers, "classifier": nn.ModuleDict({"0": fc6, "3": fc7})})
            load_weights(network, self.weights, "vgg_m")
        # A stage begins with the max-pool that halves its input, where there is one.
        bounds = {"conv1": (0, 3), "conv2": (3, 7), "conv3": (7, 10), "conv4": (10, 12), "conv5": (12, 14)}
        stages = OrderedDict((name, layers[start:end]) for name, (start, end) in bounds.items())
        freeze_bottom(list(stages.values()), self.train_stages)
        return stages, nn.MaxPool2d(3, 2, ceil_mode=True), FullyConnectedTrunk(fc6, fc7, pooled=6)


class LocalResponseNorm(nn.Module):
    """Each number divided by (2 + 1e-4 · the sum of squares over five neighbouring channels)^0.75.

    As Caffe's, whose alpha, 5e-4, is for the mean of the squares (Krizhevsky et al. 2012, §3.3, with Chatfield's
    constants). torch's module gives the same, but in channels-last takes twice as long on the CPU, and in half
    precision its squares are infinite from 256 on: here they are float32.
    """

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """The normalised x, of the same dtype."""
        channels = x.shape[1]
        squares = F.pad(x.float().square(), (0, 0, 0, 0, 2, 2))
        total = squares[:, :channels]
        for shift in range(1, 5):
            total = total + squares[:, shift : shift + channels]
        return (x * (2 + 1e-4 * total).pow(-0.75)).to(x.dtype)


def _convolutions() -> nn.Sequential:
    """conv1 … conv5 with ImageNet's paddings; the pools round their sizes up, as Caffe's do."""
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
