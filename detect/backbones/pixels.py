"""The identity as a backbone, for R-CNN, whose network runs on one crop per region."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from detect.backbones.backbone import IMAGENET_MEAN, IMAGENET_STD, Backbone, Colour, FeatureInfo


class Pixels(Backbone):
    """One map of three channels at stride 1, the normalised pixels, to crop regions from."""

    def __init__(self, mean: Colour = IMAGENET_MEAN, std: Colour = IMAGENET_STD) -> None:
        super().__init__({"pixels": FeatureInfo(channels=3, stride=1)}, mean, std)

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> dict[str, Float[Tensor, "B 3 H W"]]:
        """Return the normalised pixels unchanged."""
        return {"pixels": pixels}
