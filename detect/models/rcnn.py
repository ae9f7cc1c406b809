"""R-CNN: the whole network on each proposal, then linear SVMs and ridge regression (Girshick et al. 2014)."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from detect.backbones import AnyBackbone, CropNetwork, Pixels, ResNetOptions
from detect.errors import UserError
from detect.models.detector import DetectorOptions
from detect.models.losses import classification_loss
from detect.models.postprocess import PostprocessOptions
from detect.models.region_head import RegionHead, RegionHeadOptions
from detect.models.region_pooling import CropOptions, Warp
from detect.models.two_stage import TwoStage
from detect.options import options, over
from detect.structures import Samples, Targets

Layer = Literal["pool5", "fc6", "fc7"]
REGION_HEAD = RegionHeadOptions(batch_size_per_image=128, delta_weights=(1, 1, 1, 1))
POSTPROCESS = PostprocessOptions(nms_threshold=0.3)


@options
class CropPredictorOptions:
    """Classification and regression of a crop; the alternatives to the defaults are ablations of the paper (§3.2).

    Args:
        layer: the features of the SVMs; null takes the network's last layer.
        classifier: `svm`, trained after the network, or the `softmax` of fine-tuning.
        regression: refine boxes by ridge regression on pool5; without it the boxes of detections are proposals.
    """

    layer: Layer | None = None
    classifier: Literal["svm", "softmax"] = "svm"
    regression: bool = True


@options
class RCNNOptions(DetectorOptions):
    """Options of R-CNN; the defaults are the paper's, except for the network.

    Args:
        backbone: the network that runs on each crop.
        crop: cropping of proposals.
        predictor: classification and regression of crops.
        region_head: sampling and matching for fine-tuning.
        postprocess: selection of detections from the predictions.
    """

    proposals: ClassVar = "given"
    recipes: ClassVar = ("rcnn_stages",)

    name: Literal["rcnn"] = "rcnn"
    backbone: AnyBackbone = field(default_factory=ResNetOptions)
    crop: CropOptions = field(default_factory=CropOptions)
    predictor: CropPredictorOptions = field(default_factory=CropPredictorOptions)
    region_head: Annotated[RegionHeadOptions, over(REGION_HEAD)] = REGION_HEAD
    postprocess: Annotated[PostprocessOptions, over(POSTPROCESS)] = POSTPROCESS


class RCNN(TwoStage):
    """R-CNN: the backbone returns the image itself, and the region head runs a whole network on each crop.

    The loss fine-tunes the network with softmax; SVMs and regressors are trained afterwards
    (`detect.training.rcnn_stages`).
    """

    Options = RCNNOptions
    region_head: CropHead

    def __init__(self, num_classes: int, options: RCNNOptions | None = None) -> None:
        options = options or RCNNOptions()
        if options.region_head.delta_weights is None:
            raise UserError("region_head.delta_weights: rcnn needs four factors; the paper's are 1")
        network = options.backbone.build_crop_network(options.crop.size)
        backbone = Pixels(options.backbone.mean, options.backbone.std)
        super().__init__(num_classes, options, backbone, None, None, CropHead(num_classes, network, options))


class CropHead(RegionHead):
    """R-CNN's region head: warp, network, then softmax for training, SVMs and regressors for detection."""

    box_head: CropNetwork
    predictor: CropPredictor

    def __init__(self, num_classes: int, network: CropNetwork, options: RCNNOptions) -> None:
        super().__init__(
            num_classes,
            Warp(options.crop),
            network,
            CropPredictor(network.layers, num_classes, options.predictor),
            options.region_head,
        )
        self.crops_per_pass = options.crop.batch_size

    def forward(
        self, features: list[Float[Tensor, "B 3 _ _"]], boxes: Float[Tensor, "B S 4"]
    ) -> tuple[Float[Tensor, "B S _"], Float[Tensor, "B S C 4"]]:
        """Compute margins (SVMs) or logits (softmax), and deltas, of each box."""
        layers = self.describe(features, boxes)
        logits, deltas = self.predictor({name: values.flatten(0, 1) for name, values in layers.items()})
        return logits.unflatten(0, boxes.shape[:2]), deltas.unflatten(0, boxes.shape[:2])

    def describe(
        self, features: list[Float[Tensor, "B 3 _ _"]], boxes: Float[Tensor, "B S 4"]
    ) -> dict[str, Float[Tensor, "B S _"]]:
        """Compute the features of each box's crop by layer, with at most `crops_per_pass` crops at a time."""
        chunks = []
        for chunk in boxes.split(max(1, self.crops_per_pass // len(boxes)), dim=1):
            layers = self.box_head.forward_layers(self.pooling(features, chunk))
            chunks.append({name: values.unflatten(0, chunk.shape[:2]) for name, values in layers.items()})
        return {name: torch.cat([chunk[name] for chunk in chunks], dim=1) for name in chunks[0]}

    def loss(
        self,
        features: list[Float[Tensor, "B 3 _ _"]],
        samples: Samples,
        targets: Targets,
        sizes: Int[Tensor, "B 2"],
    ) -> dict[str, Float[Tensor, ""]]:
        """Compute the cross entropy of fine-tuning (§2.3)."""
        logits = self.predictor.logits(self.box_head(self.pooling(features, samples.boxes)))
        return {"classification": classification_loss(logits, samples.labels.flatten(), samples.valid.flatten())}

    def probabilities(self, logits: Float[Tensor, "B S _"]) -> Float[Tensor, "B S C"]:
        """Compute the softmax, or the sigmoid of margins, which keeps their order."""
        return logits.sigmoid() if self.predictor.options.classifier == "svm" else super().probabilities(logits)


class CropPredictor(nn.Module):
    """Predictions from the layers of a crop: softmax of fine-tuning, one SVM and one box regressor per class.

    Args:
        layers: names and widths of the layers, in the network's order.
        num_classes: C, without background.
        options: choice of classifier and layer.
    """

    def __init__(self, layers: dict[str, int], num_classes: int, options: CropPredictorOptions) -> None:
        super().__init__()
        last = list(layers)[-1]
        self.options, self.num_classes, self.layer = options, num_classes, options.layer or last
        if self.layer not in layers:
            raise UserError(f"predictor.layer: the network has {', '.join(layers)}, not {self.layer}")
        if options.classifier == "softmax" and self.layer != last:
            raise UserError(f"predictor.layer: softmax uses the last, {last}; choose svm for {self.layer}")
        self.logits = nn.Linear(layers[last], num_classes + 1)
        self.svms = nn.Linear(layers[self.layer], num_classes) if options.classifier == "svm" else None
        self.regressors = nn.Linear(layers["pool5"], 4 * num_classes) if options.regression else None
        nn.init.normal_(self.logits.weight, std=0.01)
        nn.init.zeros_(self.logits.bias)
        # Not trained by gradients: until they are fitted, all margins and deltas are zero.
        for layer in (self.svms, self.regressors):
            if layer is not None:
                layer.requires_grad_(False)
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, layers: dict[str, Float[Tensor, "N _"]]) -> tuple[Float[Tensor, "N _"], Float[Tensor, "N C 4"]]:
        """Compute margins of the C classes (SVMs) or logits of classes and background (softmax), and deltas."""
        classifier = self.logits if self.svms is None else self.svms
        scores, pool5 = classifier(layers[self.layer].float()), layers["pool5"].float()
        if self.regressors is None:
            return scores, pool5.new_zeros(len(pool5), self.num_classes, 4)
        return scores, F.linear(pool5, self.regressors.weight, self.regressors.bias).unflatten(1, (-1, 4))
