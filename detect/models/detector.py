"""The R-CNN family on one screen: proposals → region pooling → trunk → scores and boxes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Literal, Self

import torch
from jaxtyping import Bool, Float
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from detect.backbones import Backbone, Trunk
from detect.models.box_coder import BoxCoder
from detect.models.box_head import BoxPredictor
from detect.models.delta_statistics import DeltaStatistics
from detect.models.losses import box_regression_loss, classification_loss
from detect.models.matcher import Matcher, match
from detect.models.postprocess import PostprocessOptions, postprocess
from detect.models.region_pooling import RegionPooling, Warp
from detect.models.rpn import RPN, ProposalCounts, RPNOutput
from detect.models.sampler import Sampler
from detect.ops.boxes import take
from detect.options import Fraction, options
from detect.structures import Batch, Detections, Images, Proposals, Samples, Targets

Part = Literal["rpn", "boxes"]
Losses = dict[str, Float[Tensor, ""]]


@options
class BoxOptions:
    """What can be chosen of the second stage.

    Args:
        samples: regions an image in the loss.
        positive_fraction: the largest share of objects among them.
        positive_iou: regions with at least this IoU with a truth are objects.
        negative_iou: regions below this IoU are background.
        negative_from: but only from this IoU on; Fast R-CNN's 0.1 is its way to hard examples (Girshick 2015, §2.3).
        class_wise: four deltas for every class, or the same four for all.
        delta_weights: factors of (dx, dy, dw, dh) that give the targets unit variance; null measures mean and variance
            of each class on the proposals to train on, as Fast R-CNN does (§2.3); an RPN has none yet.
        beta: where smooth L1 turns from square to straight.
    """

    samples: PositiveInt = 512
    positive_fraction: Fraction = 0.25
    positive_iou: Fraction = 0.5
    negative_iou: Fraction = 0.5
    negative_from: Fraction = 0.0
    class_wise: bool = True
    delta_weights: tuple[PositiveFloat, PositiveFloat, PositiveFloat, PositiveFloat] | None = (10.0, 10.0, 5.0, 5.0)
    beta: NonNegativeFloat = 1 / 9


class Detector(nn.Module):
    """The stages of every R-CNN; the members of the family differ only in what they put here.

    Args:
        num_classes: C, without background.
        backbone: features of the whole image.
        rpn: proposes regions from the features; without it they come with the batch.
        pooling: features of each region.
        trunk: a vector from the features of a region.
        predictor: logits and deltas from that vector.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: Backbone,
        rpn: RPN | None,
        pooling: RegionPooling | Warp,
        trunk: Trunk,
        boxes: BoxOptions | None = None,
        detections: PostprocessOptions | None = None,
        predictor: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.options = boxes or BoxOptions()
        self.detections = detections or PostprocessOptions()
        self.backbone, self.rpn, self.pooling, self.trunk = backbone, rpn, pooling, trunk
        self.predictor = predictor or BoxPredictor(trunk.channels, num_classes, self.options.class_wise)
        self.coder = BoxCoder(self.options.delta_weights or (1.0, 1.0, 1.0, 1.0))
        self.statistics = None if self.options.delta_weights else DeltaStatistics(num_classes)
        self.matcher = Matcher(
            self.options.positive_iou, self.options.negative_iou, negative_from=self.options.negative_from
        )
        self.sampler = Sampler(self.options.samples, self.options.positive_fraction)
        self.memory_format = torch.channels_last

    def lay_out(self, memory_format: torch.memory_format) -> Self:
        """Brings weights, and from now on pixels, into this order; it changes times alone."""
        self.memory_format = memory_format
        return self.to(memory_format=memory_format)

    # ---- what is asked of a detector ---------------------------------------------------------------------------------

    def loss(self, batch: Batch, parts: Sequence[Part] = ("rpn", "boxes")) -> Losses:
        """The losses by name, to be summed; `parts` chooses whose, for training in alternation."""
        features = self.features(batch.images)
        return self._losses(features, self._rpn(features), batch, parts)

    def detect(self, images: Images, proposals: Proposals | None = None) -> Detections:
        """The detections of each image, in pixels of the canvas."""
        return self.propose_and_detect(images, proposals)[1]

    @torch.no_grad()
    def propose_and_detect(self, images: Images, proposals: Proposals | None = None) -> tuple[Proposals, Detections]:
        """The detections, and the proposals that they were made from."""
        features = self.features(images)
        proposals = self.regions(features, images, proposals)
        return proposals, self.postprocess(*self.heads(features, proposals.boxes), proposals, images)

    @torch.no_grad()
    def propose(self, images: Images) -> Proposals:
        """The RPN's proposals, as many as in training."""
        return self._proposals(self._rpn(self.features(images)), images, None, training=True)

    @torch.no_grad()
    def validate(self, batch: Batch) -> tuple[Losses, Detections, Proposals]:
        """Losses, detections and the proposals that these were made from, with one pass of backbone and RPN."""
        features = self.features(batch.images)
        output = self._rpn(features)
        losses = self._losses(features, output, batch, ("rpn", "boxes"))
        proposals = self._proposals(output, batch.images, batch.proposals, training=False)
        detections = self.postprocess(*self.heads(features, proposals.boxes), proposals, batch.images)
        return losses, detections, proposals

    # ---- the stages --------------------------------------------------------------------------------------------------

    def features(self, images: Images) -> list[Float[Tensor, "B c _ _"]]:
        """The backbone's maps of the normalised images; beyond an image's border its canvas is zero."""
        mean, std = self.backbone.mean[:, None, None], self.backbone.std[:, None, None]
        pixels = (images.pixels.to(mean.dtype) - mean) / std
        height, width = (images.sizes[:, side, None] for side in (0, 1))
        rows = torch.arange(pixels.shape[2], device=pixels.device) < height
        columns = torch.arange(pixels.shape[3], device=pixels.device) < width
        pixels = pixels * (rows[:, None, :, None] & columns[:, None, None, :])
        # Of R-CNN's backbone, the pixels themselves, nothing can be asked: its trunk is the whole network.
        dtype = next(chain(self.backbone.parameters(), self.trunk.parameters())).dtype
        pixels = pixels.to(dtype, memory_format=self.memory_format)
        return self.backbone(pixels)

    def regions(
        self, features: list[Float[Tensor, "B c _ _"]], images: Images, given: Proposals | None = None
    ) -> Proposals:
        """The proposals to detect in: those that came with the batch, else the RPN's."""
        return self._proposals(self._rpn(features), images, given, training=False)

    def heads(
        self, features: list[Float[Tensor, "B c _ _"]], boxes: Float[Tensor, "B S 4"]
    ) -> tuple[Float[Tensor, "B S K"], Float[Tensor, "B S C 4"]]:
        """Logits and deltas of each box."""
        logits, deltas = self.predictor(self.trunk(self.pooling(features, boxes)))
        return logits.unflatten(0, boxes.shape[:2]), deltas.unflatten(0, boxes.shape[:2])

    def postprocess(
        self, logits: Float[Tensor, "B S K"], deltas: Float[Tensor, "B S C 4"], proposals: Proposals, images: Images
    ) -> Detections:
        """The detections that the heads' output for the proposals stands for."""
        if self.statistics is not None:
            deltas = self.statistics.restore(deltas)
        return postprocess(self.scores(logits), deltas, proposals, images.sizes, self.coder, self.detections)

    def scores(self, logits: Float[Tensor, "B S K"]) -> Float[Tensor, "B S C"]:
        """The probability of each class."""
        return logits.softmax(dim=-1)[..., :-1]

    @torch.no_grad()
    def sample(self, proposals: Proposals, targets: Targets) -> Samples:
        """Proposals to train on, the truths among them, each with its class (background is C) and its truth's box."""
        truth = targets.valid & ~targets.crowd
        boxes = torch.cat([proposals.boxes, targets.boxes], dim=1)
        matched, labels = match(boxes, targets, self.matcher)
        labels = labels.where(torch.cat([proposals.valid, truth], dim=1), -1)
        indices, valid = self.sampler(labels)
        labels, matched = labels.gather(1, indices), matched.gather(1, indices)
        classes = torch.where(labels == 1, targets.labels.gather(1, matched), self.num_classes)
        return Samples(take(boxes, indices), classes, take(targets.boxes, matched), valid)

    def _rpn(self, features: list[Tensor]) -> RPNOutput | None:
        return None if self.rpn is None else self.rpn(features)

    def _proposals(
        self, output: RPNOutput | None, images: Images, given: Proposals | None, training: bool
    ) -> Proposals:
        """The proposals that came with the batch, else the RPN's."""
        if given is not None:
            boxes, valid = _finite(given.boxes, given.valid)
            return Proposals(boxes, given.scores, valid)
        if self.rpn is None or output is None:
            raise ValueError("a detector without an RPN needs proposals in its batch")
        counts: ProposalCounts = self.rpn.options.training if training else self.rpn.options.testing
        return self.rpn.propose(output, images.sizes, counts)

    def _losses(self, features: list[Tensor], output: RPNOutput | None, batch: Batch, parts: Sequence[Part]) -> Losses:
        losses: Losses = {}
        targets = self._targets(batch.targets)
        if "rpn" in parts and self.rpn is not None and output is not None:
            losses |= self.rpn.loss(output, batch.images.sizes, targets)
        if "boxes" in parts:
            proposals = self._proposals(output, batch.images, batch.proposals, training=True)
            samples = self.sample(proposals, targets)
            losses |= self._box_losses(*self.heads(features, samples.boxes), samples)
        return losses

    def _targets(self, targets: Targets) -> Targets:
        """The truths without those that are none: of NaN or infinity, or of no class, which no reader lets in."""
        if not targets.boxes.shape[1]:  # nothing to match with: one place of padding, as collate makes it
            count = len(targets.boxes)
            empty = targets.valid.new_zeros(count, 1)
            targets = Targets(targets.boxes.new_zeros(count, 1, 4), targets.labels.new_zeros(count, 1), empty, empty)
        known = (targets.labels >= 0) & (targets.labels < self.num_classes)
        boxes, valid = _finite(targets.boxes, targets.valid & known)
        return Targets(boxes, targets.labels.clamp(0, self.num_classes - 1), valid, targets.crowd)

    def _box_losses(self, logits: Tensor, deltas: Tensor, samples: Samples) -> Losses:
        positive = samples.labels < self.num_classes
        own_class = samples.labels.clamp(max=self.num_classes - 1)[..., None, None].expand(-1, -1, 1, 4)
        goals = self.coder.encode(samples.matched_boxes, samples.boxes)
        if self.statistics is not None:
            goals = self.statistics.normalize(goals, samples.labels)
        return {
            "classification": classification_loss(
                logits.flatten(0, 1), samples.labels.flatten(), samples.valid.flatten()
            ),
            "boxes": box_regression_loss(
                deltas.gather(2, own_class).squeeze(2), goals, positive, samples.valid, self.options.beta
            ),
        }


def _finite(boxes: Float[Tensor, "B n 4"], valid: Bool[Tensor, "B n"]) -> tuple[Tensor, Tensor]:
    """The boxes, and which are valid: one with NaN or infinity, on which region pooling crashes, is padding."""
    good = valid & boxes.isfinite().all(dim=-1)
    return boxes.where(good[..., None], 0.0), good
