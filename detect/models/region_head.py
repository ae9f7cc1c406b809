"""Region head: samples, pools, classifies and regresses regions (Girshick 2015, §2; Ren et al. 2015, §3.3).

proposals [B, R] ─ sample ─→ Samples [B, S]
Samples          ─ pooling, box head, predictor ─→ logits [B, S, K], deltas [B, S, C, 4] ─→ loss     K = C + 1
proposals [B, R] ─ pooling, box head, predictor ─→ RegionPredictions ─ postprocess ─→ Detections [B, D]
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from detect.backbones import BoxHead
from detect.models.box_coder import BoxCoder
from detect.models.delta_statistics import DeltaStatistics
from detect.models.losses import box_regression_loss, classification_loss
from detect.models.matcher import Matcher, match
from detect.models.postprocess import PostprocessOptions, postprocess
from detect.models.sampler import Sampler
from detect.ops.boxes import gather_boxes
from detect.options import Fraction, options
from detect.structures import Detections, Proposals, Samples, Targets


@options
class RegionHeadOptions:
    """Options of sampling, matching and regression; the defaults are Faster R-CNN's with a feature pyramid.

    Args:
        batch_size_per_image: regions per image in the loss.
        positive_fraction: maximum fraction of objects among them.
        positive_iou: regions with at least this IoU with a ground truth are objects.
        negative_iou: regions below this IoU, and not below `negative_iou_min`, are background.
        negative_iou_min: minimum IoU of background; Fast R-CNN's 0.1 is a heuristic for hard examples (Girshick 2015,
            §2.3).
        class_agnostic: predict four deltas for all classes together instead of four for each class.
        delta_weights: factors of (dx, dy, dw, dh) that give the regression targets unit variance; null measures mean
            and variance of each class on the training proposals, as Fast R-CNN does (§2.3), and needs given proposals.
        smooth_l1_beta: absolute error at which smooth L1 turns from quadratic to linear.
    """

    batch_size_per_image: PositiveInt = 512
    positive_fraction: Fraction = 0.25
    positive_iou: Fraction = 0.5
    negative_iou: Fraction = 0.5
    negative_iou_min: Fraction = 0.0
    class_agnostic: bool = False
    delta_weights: tuple[PositiveFloat, PositiveFloat, PositiveFloat, PositiveFloat] | None = (10.0, 10.0, 5.0, 5.0)
    smooth_l1_beta: NonNegativeFloat = 1 / 9


@dataclass(frozen=True, slots=True)
class RegionPredictions:
    """Predictions of a head for each region, before NMS."""

    probabilities: Float[Tensor, "B R C"]
    deltas: Float[Tensor, "B R C 4"]
    boxes: Float[Tensor, "B R 4"]
    """Boxes that the deltas are relative to."""
    valid: Bool[Tensor, "B R"]


class RegionHead(nn.Module):
    """Classifies regions and refines their boxes.

    Args:
        num_classes: C, without background.
        pooling: returns features of a fixed size for each region.
        box_head: turns the features of a region into a vector.
        predictor: computes logits and deltas from the vector.
        options: sampling, matching and regression.
    """

    def __init__(
        self,
        num_classes: int,
        pooling: nn.Module,
        box_head: BoxHead,
        predictor: nn.Module,
        options: RegionHeadOptions,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.pooling, self.box_head, self.predictor = pooling, box_head, predictor
        self.box_coder = BoxCoder(options.delta_weights or (1.0, 1.0, 1.0, 1.0))
        self.statistics = None if options.delta_weights else DeltaStatistics(num_classes)
        self.matcher = Matcher(options.positive_iou, options.negative_iou, negative_iou_min=options.negative_iou_min)
        self.sampler = Sampler(options.batch_size_per_image, options.positive_fraction)
        self.smooth_l1_beta = options.smooth_l1_beta

    @property
    def predictors(self) -> tuple[nn.Module, ...]:
        """Modules that compute scores and boxes."""
        return (self.predictor,)

    @torch.no_grad()
    def sample(self, proposals: Proposals, targets: Targets) -> Samples:
        """Sample regions from proposals and ground truths, and match each with a ground truth."""
        objects = targets.valid & ~targets.crowd
        boxes = torch.cat([proposals.boxes, targets.boxes], dim=1)
        matched, labels = match(boxes, targets, self.matcher)
        labels = labels.where(torch.cat([proposals.valid, objects], dim=1), -1)
        indices, valid = self.sampler(labels)
        labels, matched = labels.gather(1, indices), matched.gather(1, indices)
        return self._samples(gather_boxes(boxes, indices), labels, matched, valid, targets)

    @torch.no_grad()
    def relabel(self, boxes: Float[Tensor, "B S 4"], valid: Bool[Tensor, "B S"], targets: Targets) -> Samples:
        """Match all boxes with the ground truths, without sampling; boxes with other IoUs become invalid."""
        matched, labels = match(boxes, targets, self.matcher)
        return self._samples(boxes, labels, matched, valid & (labels >= 0), targets)

    def _samples(
        self,
        boxes: Float[Tensor, "B S 4"],
        labels: Int[Tensor, "B S"],
        matched: Int[Tensor, "B S"],
        valid: Bool[Tensor, "B S"],
        targets: Targets,
    ) -> Samples:
        classes = torch.where(labels == 1, targets.labels.gather(1, matched), self.num_classes)
        return Samples(boxes, classes, matched, gather_boxes(targets.boxes, matched), valid)

    def forward(
        self, features: list[Float[Tensor, "B c _ _"]], boxes: Float[Tensor, "B S 4"]
    ) -> tuple[Float[Tensor, "B S K"], Float[Tensor, "B S C 4"]]:
        """Compute logits and deltas of each box."""
        logits, deltas = self.predictor(self.box_head(self.pooling(features, boxes)))
        return logits.unflatten(0, boxes.shape[:2]), deltas.unflatten(0, boxes.shape[:2])

    def loss(
        self,
        features: list[Float[Tensor, "B c _ _"]],
        samples: Samples,
        targets: Targets,
        sizes: Int[Tensor, "B 2"],
    ) -> dict[str, Float[Tensor, ""]]:
        """Compute the losses of the samples. Heads in stages refine these and match them again: with `targets`.

        Args:
            features: feature maps.
            samples: regions from `sample`.
            targets: ground truths of the images.
            sizes: height and width of each image.
        """
        logits, deltas = self(features, samples.boxes)
        return self.losses(logits, deltas, samples)

    def losses(
        self, logits: Float[Tensor, "B S K"], deltas: Float[Tensor, "B S C 4"], samples: Samples
    ) -> dict[str, Float[Tensor, ""]]:
        """Compute cross entropy over the samples and smooth L1 over the objects among them (Girshick 2015, §2.3)."""
        own_class = samples.labels.clamp(max=self.num_classes - 1)[..., None, None].expand(-1, -1, 1, 4)
        regression_targets = self.box_coder.encode(samples.matched_boxes, samples.boxes)
        if self.statistics is not None:
            regression_targets = self.statistics.normalize(regression_targets, samples.labels)
        positive = samples.labels < self.num_classes
        return {
            "classification": classification_loss(
                logits.flatten(0, 1), samples.labels.flatten(), samples.valid.flatten()
            ),
            "boxes": box_regression_loss(
                deltas.gather(2, own_class).squeeze(2), regression_targets, positive, samples.valid, self.smooth_l1_beta
            ),
        }

    def predict(self, features: list[Float[Tensor, "B c _ _"]], proposals: Proposals) -> RegionPredictions:
        """Predict class probabilities and deltas of each proposal."""
        logits, deltas = self(features, proposals.boxes)
        if self.statistics is not None:
            deltas = self.statistics.restore(deltas)
        return RegionPredictions(self.probabilities(logits), deltas, proposals.boxes, proposals.valid)

    def probabilities(self, logits: Float[Tensor, "B S K"]) -> Float[Tensor, "B S C"]:
        """Compute the probabilities of the classes, without background."""
        return logits.softmax(dim=-1)[..., :-1]

    def detect(
        self,
        features: list[Float[Tensor, "B c _ _"]],
        proposals: Proposals,
        sizes: Int[Tensor, "B 2"],
        options: PostprocessOptions,
    ) -> Detections:
        """Return the detections in images of `sizes` (height, width)."""
        detections = select_detections(self.predict(features, proposals), sizes, self.box_coder, options)
        return replace(detections, proposals=proposals)


def select_detections(
    predictions: RegionPredictions, sizes: Int[Tensor, "B 2"], box_coder: BoxCoder, options: PostprocessOptions
) -> Detections:
    """Return the detections among the predictions in images of `sizes` (height, width)."""
    return postprocess(
        predictions.probabilities,
        predictions.deltas,
        predictions.boxes,
        predictions.valid,
        sizes,
        box_coder,
        options,
    )
