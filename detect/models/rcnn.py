"""R-CNN: the whole network on each proposal, then linear SVMs and ridge regression (Girshick et al. 2014)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import NonNegativeInt, PositiveFloat
from torch import Tensor, nn
from torch.nn import functional as F

from detect.backbones import CNN, Pixels, ResNet, WholeCNN
from detect.errors import UserError
from detect.models.detector import BoxOptions, Detector, Losses, Part
from detect.models.losses import classification_loss
from detect.models.postprocess import PostprocessOptions
from detect.models.region_pooling import CropOptions, Warp
from detect.models.rpn import RPNOutput
from detect.options import options
from detect.structures import Batch

Layer = Literal["pool5", "fc6", "fc7"]


@options
class RegionOptions:
    """How R-CNN describes and judges a region; each alternative is an ablation of the paper (§3.2).

    Args:
        layer: that the SVMs see; null takes the network's last.
        classifier: `svm`, trained after the network, or the `softmax` that the network was fine-tuned with.
        regression: move boxes by ridge regression on pool5; without it detections are proposals.
    """

    layer: Layer | None = None
    classifier: Literal["svm", "softmax"] = "svm"
    regression: bool = True


@options
class SVMOptions:
    """How the SVMs are trained; the defaults are those of the paper's code.

    Args:
        c: what a violated margin costs, against half the squared norm of the weights.
        positive_weight: how many times as much it costs for a positive.
        bias_scale: the constant that is appended to each feature. The larger, the less the bias is held near zero.
        negative_iou: a region is a negative of a class if its IoU with every truth of the class is below this.
        hard_margin: a negative enters the cache if its score is above this.
        evict_margin: a negative leaves the cache if its score is below this when its SVM has been trained.
        retrain_after: an SVM is trained anew when more negatives than this are new in its cache.
        feature_norm: the mean norm to which features are scaled, so that one `c` is right for every layer.
    """

    c: PositiveFloat = 1e-3
    positive_weight: PositiveFloat = 2.0
    bias_scale: PositiveFloat = 10.0
    negative_iou: PositiveFloat = 0.3
    hard_margin: float = -1.0001
    evict_margin: float = -1.2
    retrain_after: NonNegativeInt = 2000
    feature_norm: PositiveFloat = 20.0


@options
class RidgeOptions:
    """How boxes are regressed; the defaults are those of the paper's code.

    Args:
        penalty: λ, against the squared errors summed over the samples of a class.
        min_iou: regions are samples if their largest IoU with a truth is above this.
        feature_norm: the mean norm to which features are scaled.
    """

    penalty: PositiveFloat = 1000.0
    min_iou: float = 0.6
    feature_norm: PositiveFloat = 20.0


class RCNN(Detector):
    """A network from pixels to a vector, on every proposal by itself.

    The loss fine-tunes the network with softmax; SVMs and regressors are found later (`detect.training.rcnn_stages`).

    Args:
        num_classes: C, without background.
        backbone: `AlexNet`, `VGG`, `VGGM` or `ResNet`.
        crop: how proposals are cut out.
        regions: how they are judged.
    """

    trunk: WholeCNN
    predictor: RegionPredictor

    def __init__(
        self,
        num_classes: int,
        backbone: CNN | None = None,
        crop: CropOptions | None = None,
        regions: RegionOptions | None = None,
        boxes: BoxOptions | None = None,
        detections: PostprocessOptions | None = None,
    ) -> None:
        crop, regions = crop or CropOptions(), regions or RegionOptions()
        backbone = backbone or ResNet()
        network = backbone.build_whole(crop.size)
        self.at_once = crop.at_once
        super().__init__(
            num_classes=num_classes,
            backbone=Pixels(backbone.mean, backbone.std),
            rpn=None,
            pooling=Warp(crop),
            trunk=network,
            boxes=boxes or BoxOptions(delta_weights=(1, 1, 1, 1)),
            detections=detections,
            predictor=RegionPredictor(network.layers, num_classes, regions),
        )

    def heads(
        self, features: list[Float[Tensor, "B 3 _ _"]], boxes: Float[Tensor, "B S 4"]
    ) -> tuple[Float[Tensor, "B S _"], Float[Tensor, "B S C 4"]]:
        """Logits, or the SVMs' margins, and deltas of each box."""
        layers = self.describe(features, boxes)
        logits, deltas = self.predictor({name: values.flatten(0, 1) for name, values in layers.items()})
        return logits.unflatten(0, boxes.shape[:2]), deltas.unflatten(0, boxes.shape[:2])

    def describe(
        self, features: list[Float[Tensor, "B 3 _ _"]], boxes: Float[Tensor, "B S 4"]
    ) -> dict[str, Float[Tensor, "B S _"]]:
        """The layers of each box's crop; a bounded number of crops goes through the network at a time."""
        parts = []
        for some in boxes.split(max(1, self.at_once // len(boxes)), dim=1):
            layers = self.trunk.forward_layers(self.pooling(features, some))
            parts.append({name: values.unflatten(0, some.shape[:2]) for name, values in layers.items()})
        return {name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]}

    def scores(self, logits: Float[Tensor, "B S _"]) -> Float[Tensor, "B S C"]:
        """Softmax's probabilities, or margins brought into 0 … 1, which leaves their order."""
        return logits.sigmoid() if self.predictor.options.classifier == "svm" else super().scores(logits)

    def _losses(self, features: list[Tensor], output: RPNOutput | None, batch: Batch, parts: Sequence[Part]) -> Losses:
        """That of fine-tuning (§2.3)."""
        proposals = self._proposals(None, batch.images, batch.proposals, training=True)
        samples = self.sample(proposals, self._targets(batch.targets))
        logits = self.predictor.logits(self.trunk(self.pooling(features, samples.boxes)))
        return {"classification": classification_loss(logits, samples.labels.flatten(), samples.valid.flatten())}


class RegionPredictor(nn.Module):
    """What judges a region by its layers: the softmax of fine-tuning, an SVM a class, a box regressor a class.

    Args:
        layers: their widths, in the network's order.
        num_classes: C, without background.
        options: see there.
    """

    def __init__(self, layers: dict[str, int], num_classes: int, options: RegionOptions) -> None:
        super().__init__()
        last = list(layers)[-1]
        self.options, self.num_classes, self.layer = options, num_classes, options.layer or last
        if self.layer not in layers:
            raise UserError(f"model.regions.layer: the network has {', '.join(layers)}, not {self.layer}")
        if options.classifier == "softmax" and self.layer != last:
            raise UserError(f"model.regions.layer: softmax takes the last, {last}; choose svm for {self.layer}")
        self.logits = nn.Linear(layers[last], num_classes + 1)
        self.svms = nn.Linear(layers[self.layer], num_classes) if options.classifier == "svm" else None
        self.regressors = nn.Linear(layers["pool5"], 4 * num_classes) if options.regression else None
        nn.init.normal_(self.logits.weight, std=0.01)
        nn.init.zeros_(self.logits.bias)
        # Not learned by gradients: until they are set, they find nothing and move nothing.
        for layer in (self.svms, self.regressors):
            if layer is not None:
                layer.requires_grad_(False)
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, layers: dict[str, Float[Tensor, "N _"]]) -> tuple[Float[Tensor, "N _"], Float[Tensor, "N C 4"]]:
        """Margins of the C classes, or logits of these and background; deltas."""
        judge = self.logits if self.svms is None else self.svms
        margins, pool5 = judge(layers[self.layer].float()), layers["pool5"].float()
        if self.regressors is None:
            return margins, pool5.new_zeros(len(pool5), self.num_classes, 4)
        return margins, F.linear(pool5, self.regressors.weight, self.regressors.bias).unflatten(1, (-1, 4))
