"""What becomes of a pooled region: a vector, then a score for every class and four deltas for every class."""

from __future__ import annotations

from itertools import pairwise

from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from detect.backbones import Backbone, Trunk
from detect.options import Layers, options


@options
class HeadOptions:
    """The layers between pooling and prediction where the backbone, a feature pyramid, leaves no trunk.

    Args:
        convolutions: 3×3 convolutions with batch norm.
        layers: fully connected layers.
        channels: width of these.
    """

    convolutions: Layers = 0
    layers: Layers = 2
    channels: PositiveInt = 1024


class BoxHead(Trunk):
    """The trunk of detectors with a feature pyramid: maybe some 3×3 convolutions, then fully connected layers.

    Two layers of 1024 are Lin et al. 2017, §4.2; four convolutions with batch norm and one layer are torchvision's v2.
    """

    def __init__(
        self, channels_in: int, pooled: int = 7, channels: int = 1024, convolutions: int = 0, layers: int = 2
    ) -> None:
        widths = [channels_in * pooled**2] + [channels] * layers
        super().__init__(channels_in, pooled, widths[-1])
        self.convolutions = nn.Sequential()
        for _ in range(convolutions):
            self.convolutions.append(nn.Conv2d(channels_in, channels_in, 3, padding=1, bias=False))
            self.convolutions.append(nn.BatchNorm2d(channels_in))
            self.convolutions.append(nn.ReLU(inplace=True))
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        for layer in self.convolutions:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, regions: Float[Tensor, "N c p p"]) -> Float[Tensor, "N channels"]:
        """The vector of every region."""
        vectors = self.convolutions(regions).flatten(1)
        for layer in self.layers:
            vectors = F.relu(layer(vectors))
        return vectors


def box_trunk(backbone: Backbone, head: HeadOptions) -> BoxHead:
    """The trunk for a backbone that leaves none."""
    return BoxHead(backbone.features[0].channels, 7, head.channels, head.convolutions, head.layers)


class BoxPredictor(nn.Module):
    """Class scores and box deltas from a region's vector (Girshick 2015, §2.1)."""

    def __init__(self, channels: int, num_classes: int, class_wise: bool = True) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.scores = nn.Linear(channels, num_classes + 1)
        self.deltas = nn.Linear(channels, 4 * (num_classes if class_wise else 1))
        nn.init.normal_(self.scores.weight, std=0.01)
        nn.init.normal_(self.deltas.weight, std=0.001)
        for layer in (self.scores, self.deltas):
            nn.init.zeros_(layer.bias)

    def forward(self, vectors: Float[Tensor, "N c"]) -> tuple[Float[Tensor, "N K"], Float[Tensor, "N C 4"]]:
        """Logits of the C classes and, last, background (K = C + 1); deltas, the same for all where class-agnostic."""
        vectors = vectors.to(self.scores.weight.dtype)  # the trunk may be in half precision
        deltas = self.deltas(vectors).float().unflatten(1, (-1, 4))
        return self.scores(vectors).float(), deltas.expand(-1, self.num_classes, -1)
