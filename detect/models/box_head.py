"""Box head: pooled region → vector; box predictor: vector → class logits and box deltas."""

from __future__ import annotations

from itertools import pairwise

from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from detect.backbones import Backbone, BackboneOptions, BoxHead, FeatureInfo, FPNOptions, Neck
from detect.errors import UserError
from detect.models.low_rank import Ranks, factorize
from detect.options import Layers, options


@options
class BoxHeadOptions:
    """Layers between region pooling and predictor, for networks that have no layers left for it, as with a pyramid.

    Args:
        convolutions: number of 3×3 convolutions with batch norm.
        layers: number of fully connected layers.
        channels: width of the fully connected layers.
    """

    convolutions: Layers = 0
    layers: Layers = 2
    channels: PositiveInt = 1024


class ConvFCBoxHead(BoxHead):
    """3×3 convolutions, if any, then fully connected layers.

    Lin et al. 2017, §4.2 have two layers of 1024; torchvision's v2 has four convolutions with batch norm and one layer.
    """

    def __init__(self, channels_in: int, pooled: int = 7, options: BoxHeadOptions | None = None) -> None:
        options = options or BoxHeadOptions()
        widths = [channels_in * pooled**2] + [options.channels] * options.layers
        super().__init__(channels_in, pooled, widths[-1])
        self.convolutions = nn.Sequential()
        for _ in range(options.convolutions):
            self.convolutions.append(nn.Conv2d(channels_in, channels_in, 3, padding=1, bias=False))
            self.convolutions.append(nn.BatchNorm2d(channels_in))
            self.convolutions.append(nn.ReLU(inplace=True))
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        for layer in self.convolutions:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, regions: Float[Tensor, "N c p p"]) -> Float[Tensor, "N channels"]:
        """Compute the vector of each region."""
        vectors = self.convolutions(regions).flatten(1)
        for layer in self.layers:
            vectors = F.relu(layer(vectors))
        return vectors


class BoxPredictor(nn.Module):
    """Class logits and box deltas from a region's vector (Girshick 2015, §2.1)."""

    def __init__(self, channels: int, num_classes: int, class_agnostic: bool = False) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.scores = nn.Linear(channels, num_classes + 1)
        self.deltas = nn.Linear(channels, 4 * (1 if class_agnostic else num_classes))
        nn.init.normal_(self.scores.weight, std=0.01)
        nn.init.normal_(self.deltas.weight, std=0.001)
        for layer in (self.scores, self.deltas):
            nn.init.zeros_(layer.bias)

    def forward(self, vectors: Float[Tensor, "N c"]) -> tuple[Float[Tensor, "N K"], Float[Tensor, "N C 4"]]:
        """Compute logits of the C classes and of background, which is last (K = C + 1), and deltas of each class."""
        vectors = vectors.to(self.scores.weight.dtype)  # the box head may be in half precision
        deltas = self.deltas(vectors).float().unflatten(1, (-1, 4))
        return self.scores(vectors).float(), deltas.expand(-1, self.num_classes, -1)


def build_features(
    backbone_options: BackboneOptions,
    neck_options: FPNOptions | None,
    box_head_options: BoxHeadOptions,
    ranks: Ranks = (),
) -> tuple[Backbone, Neck | None, tuple[FeatureInfo, ...], BoxHead]:
    """Build backbone, neck, the description of the feature maps that heads run on, and box head.

    With `ranks` the box head is factorized, so that a compressed checkpoint can be loaded.

    Raises:
        UserError: `ranks` are given together with pretrained weights, which the factorization would discard.
    """
    if ranks and backbone_options.weights is not None:
        raise UserError("svd: only a trained box head can be truncated; train without svd, then run detect compress")
    backbone, box_head = backbone_options.build(multi_scale=neck_options is not None)
    neck = None if neck_options is None else neck_options.build(backbone.levels, backbone_options.norm)
    levels = tuple(backbone.levels.values())[-1:] if neck is None else neck.levels
    box_head = box_head or ConvFCBoxHead(levels[0].channels, 7, box_head_options)
    factorize(box_head, ranks)
    return backbone, neck, levels, box_head
