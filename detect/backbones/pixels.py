"""No network at all: the pixels themselves, for R-CNN, whose network sees one crop after the other."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from detect.backbones.backbone import IMAGENET_MEAN, IMAGENET_STD, Backbone, Colour, FeatureInfo


class Pixels(Backbone):
    """The identity: one map of three channels at stride 1, from which regions are cropped as from any other."""

    def __init__(self, mean: Colour = IMAGENET_MEAN, std: Colour = IMAGENET_STD) -> None:
        super().__init__((FeatureInfo(channels=3, stride=1),), mean, std)

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B 3 H W"]]:
        """The normalised pixels, as given."""
        return [pixels]
