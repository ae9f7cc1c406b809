"""Two-stage detection: proposals → region pooling → box head → classes and boxes.

images      ─ backbone, neck ─→ features   L maps [B, c, h, w]
features    ─ RPN            ─→ proposals  [B, R]                       or proposals that come with the batch
proposals   ─ RegionHead     ─→ loss:   sample S regions, match them with the ground truths, classify and regress
                             └→ detect: classify and regress all R, decode, NMS → Detections [B, D]
samples, detections ─ MaskHead ─→ loss, masks                           if the detector has one
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from detect.backbones import Backbone, Neck
from detect.models.cascade_head import CascadeHead
from detect.models.detector import Detector, DetectorOptions, Losses, finite_boxes, known_targets
from detect.models.mask_head import MaskHead
from detect.models.region_head import RegionHead
from detect.models.rpn import RPN, RPNOutput
from detect.structures import Batch, Detections, Images, Proposals

Features = list[Float[Tensor, "B _c _h _w"]]
Part = Literal["rpn", "boxes"]
PARTS: tuple[Part, ...] = ("rpn", "boxes")


class TwoStage(Detector):
    """Base class of all R-CNN detectors.

    Args:
        num_classes: C, without background.
        options: options of the model.
        backbone: feature maps of the whole image.
        neck: pyramid over these maps, if any.
        rpn: proposes regions from the features; without it proposals come with the batch.
        region_head: classifies and refines regions.
    """

    def __init__(
        self,
        num_classes: int,
        options: DetectorOptions,
        backbone: Backbone,
        neck: Neck | None,
        rpn: RPN | None,
        region_head: RegionHead | CascadeHead,
    ) -> None:
        super().__init__(num_classes, options, backbone, neck)
        self.rpn, self.region_head = rpn, region_head
        self.mask_head: MaskHead | None = None
        """Predicts the masks of the detections; set by subclasses."""

    def loss(self, batch: Batch, parts: Sequence[Part] = PARTS) -> Losses:
        """Return the losses of RPN and region head by name; alternating training selects one with `parts`."""
        features = self.features(batch.images)
        return self._loss(features, self._rpn(features), batch, parts)

    @torch.no_grad()
    def detect(self, images: Images, proposals: Proposals | None = None) -> Detections:
        """Return the detections in pixels of the canvas, with the proposals."""
        features = self.features(images)
        return self._detect(features, self._rpn(features), images, proposals)

    @torch.no_grad()
    def validate(self, batch: Batch) -> tuple[Losses, Detections]:
        """Return losses and detections with one pass of backbone and RPN."""
        features = self.features(batch.images)
        rpn_output = self._rpn(features)
        losses = self._loss(features, rpn_output, batch, PARTS)
        return losses, self._detect(features, rpn_output, batch.images, batch.proposals)

    @torch.no_grad()
    def propose(self, images: Images) -> Proposals:
        """Return the RPN's proposals, with the counts of training."""
        return self._proposals(self._rpn(self.features(images)), images, None, training=True)

    def fp32_modules(self) -> tuple[nn.Module, ...]:
        """Return the predictors, which compute scores and boxes."""
        return self.region_head.predictors

    def _rpn(self, features: Features) -> RPNOutput | None:
        return None if self.rpn is None else self.rpn(features)

    def _loss(self, features: Features, rpn_output: RPNOutput | None, batch: Batch, parts: Sequence[Part]) -> Losses:
        targets = known_targets(batch.targets, self.num_classes)
        losses: Losses = {}
        if "rpn" in parts and self.rpn is not None and rpn_output is not None:
            losses |= self.rpn.loss(rpn_output, batch.images.sizes, targets)
        if "boxes" in parts:
            proposals = self._proposals(rpn_output, batch.images, batch.proposals, training=True)
            samples = self.region_head.sample(proposals, targets)
            losses |= self.region_head.loss(features, samples, targets, batch.images.sizes)
            if self.mask_head is not None:
                losses |= self.mask_head.loss(features, samples, targets)
        return losses

    def _detect(
        self, features: Features, rpn_output: RPNOutput | None, images: Images, given: Proposals | None
    ) -> Detections:
        proposals = self._proposals(rpn_output, images, given, training=False)
        detections = self.region_head.detect(features, proposals, images.sizes, self.postprocessing)
        return detections if self.mask_head is None else self.mask_head.detect(features, detections)

    def _proposals(
        self, rpn_output: RPNOutput | None, images: Images, given: Proposals | None, training: bool
    ) -> Proposals:
        """Return the given proposals or, without them, the RPN's."""
        if given is not None:
            boxes, valid = finite_boxes(given.boxes, given.valid)
            return Proposals(boxes, given.scores, valid)
        if self.rpn is None or rpn_output is None:
            raise ValueError("a detector without an RPN needs proposals")
        counts = self.rpn.options.training if training else self.rpn.options.testing
        return self.rpn.propose(rpn_output, images.sizes, counts)
