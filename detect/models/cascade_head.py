"""Cascade of region heads, each trained on the boxes that the one before has refined (Cai and Vasconcelos 2018, §4).

samples of IoU ≥ 0.5 ─ head 1 ─→ boxes ─ matched at 0.6 ─ head 2 ─→ boxes ─ matched at 0.7 ─ head 3 ─→ boxes
prediction: mean of the three heads' probabilities, boxes of the last head
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from detect.models.detector import Losses
from detect.models.postprocess import PostprocessOptions
from detect.models.region_head import RegionHead, RegionHeadOptions, RegionPredictions, select_detections
from detect.ops.boxes import clip, large_enough
from detect.options import Fraction, options
from detect.structures import Detections, Proposals, Samples, Targets

Features = list[Float[Tensor, "B c _ _"]]


@options
class CascadeStageOptions:
    """Options of one head of the cascade.

    Args:
        positive_iou: regions with at least this IoU with a ground truth are objects, all others are background.
        delta_weights: factors of (dx, dy, dw, dh) that give the regression targets unit variance. They grow from stage
            to stage, because the boxes get closer to the ground truths.
    """

    positive_iou: Fraction
    delta_weights: tuple[PositiveFloat, PositiveFloat, PositiveFloat, PositiveFloat]


STAGES = (
    CascadeStageOptions(0.5, (10.0, 10.0, 5.0, 5.0)),
    CascadeStageOptions(0.6, (20.0, 20.0, 10.0, 10.0)),
    CascadeStageOptions(0.7, (30.0, 30.0, 15.0, 15.0)),
)


@options
class CascadeHeadOptions:
    """Options of the cascade; the defaults are the paper's (§4.2 and §5.1), with detectron2's factors.

    The first stage samples regions, and all of these pass through all stages.

    Args:
        batch_size_per_image: regions per image in the loss.
        positive_fraction: maximum fraction of objects among them.
        stages: the heads in their order, each with `positive_iou`, the minimum IoU of objects, all others being
            background, and `delta_weights`.
        smooth_l1_beta: absolute error at which smooth L1 turns from quadratic to linear.
    """

    batch_size_per_image: PositiveInt = 512
    positive_fraction: Fraction = 0.25
    stages: Annotated[tuple[CascadeStageOptions, ...], Field(min_length=1)] = STAGES
    smooth_l1_beta: NonNegativeFloat = 1 / 9

    def of_stage(self, stage: CascadeStageOptions) -> RegionHeadOptions:
        """Return the options of the region head of a stage. Its deltas are class-agnostic: it refines regions."""
        return RegionHeadOptions(
            self.batch_size_per_image,
            self.positive_fraction,
            positive_iou=stage.positive_iou,
            negative_iou=stage.positive_iou,
            class_agnostic=True,
            delta_weights=stage.delta_weights,
            smooth_l1_beta=self.smooth_l1_beta,
        )


class CascadeHead(nn.Module):
    """Region heads in a row.

    Args:
        build: builds the head of one stage.
        options: the stages.
    """

    statistics = None

    def __init__(self, build: Callable[[RegionHeadOptions], RegionHead], options: CascadeHeadOptions) -> None:
        super().__init__()
        self.stages = nn.ModuleList(build(options.of_stage(stage)) for stage in options.stages)
        for stage in self.heads:
            stage.pooling = ScaledGradient(stage.pooling, 1 / len(options.stages))

    @property
    def heads(self) -> list[RegionHead]:
        """The region heads."""
        return list(self.stages)  # type: ignore[arg-type]

    @property
    def predictors(self) -> tuple[nn.Module, ...]:
        """Modules that compute scores and boxes."""
        return tuple(head.predictor for head in self.heads)

    def sample(self, proposals: Proposals, targets: Targets) -> Samples:
        """Sample regions for the first stage."""
        return self.heads[0].sample(proposals, targets)

    def loss(self, features: Features, samples: Samples, targets: Targets, sizes: Int[Tensor, "B 2"]) -> Losses:
        """Compute the losses of each stage, with its number in their names; training sums them.

        Each stage after the first one gets all boxes of the one before, without sampling and without adding the ground
        truths again.
        """
        losses: Losses = {}
        for number, head in enumerate(self.heads, start=1):
            logits, deltas = head(features, samples.boxes)
            losses |= {f"{name}_{number}": loss for name, loss in head.losses(logits, deltas, samples).items()}
            if number < len(self.heads):
                boxes = refine(head, deltas, samples.boxes, sizes)
                samples = self.heads[number].relabel(boxes, samples.valid & large_enough(boxes, 0.0), targets)
        return losses

    def predict(self, features: Features, proposals: Proposals, sizes: Int[Tensor, "B 2"]) -> RegionPredictions:
        """Return the mean of the stages' probabilities, and the deltas of the last stage."""
        probabilities, boxes = [], proposals.boxes
        for number, head in enumerate(self.heads, start=1):
            logits, deltas = head(features, boxes)
            probabilities.append(head.probabilities(logits))
            if number < len(self.heads):
                boxes = refine(head, deltas, boxes, sizes)
        return RegionPredictions(torch.stack(probabilities).mean(dim=0), deltas, boxes, proposals.valid)

    def detect(
        self, features: Features, proposals: Proposals, sizes: Int[Tensor, "B 2"], options: PostprocessOptions
    ) -> Detections:
        """Return the detections in images of `sizes` (height, width)."""
        predictions = self.predict(features, proposals, sizes)
        detections = select_detections(predictions, sizes, self.heads[-1].box_coder, options)
        return replace(detections, proposals=proposals)


@torch.no_grad()
def refine(
    head: RegionHead, deltas: Float[Tensor, "B S C 4"], boxes: Float[Tensor, "B S 4"], sizes: Int[Tensor, "B 2"]
) -> Float[Tensor, "B S 4"]:
    """Return the boxes that a head's class-agnostic deltas describe, within their image."""
    return clip(head.box_coder.decode(deltas[:, :, 0], boxes), sizes)


class ScaledGradient(nn.Module):
    """Region pooling whose gradient into the features is multiplied by a factor.

    With 1 / number of stages, the features get the mean of the stages' gradients, as in detectron2; the paper does not
    say how they are weighted.
    """

    def __init__(self, pooling: nn.Module, factor: float) -> None:
        super().__init__()
        self.pooling, self.factor = pooling, factor

    def forward(self, features: Features, boxes: Float[Tensor, "B S 4"]) -> Float[Tensor, "N c p p"]:
        """Pool the regions."""
        regions = self.pooling(features, boxes)
        return _ScaleGradient.apply(regions, self.factor) if regions.requires_grad else regions


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return values.view_as(values)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None
