"""Region proposal network (Ren et al. 2015, Faster R-CNN, §3).

features   L maps [B, C, h, w]
    │ head: 3×3 convolution, then for each of the k anchors of a cell one score and four deltas
RPNOutput  logits [B, A]   deltas [B, A, 4]   anchors [A, 4]       A = Σ over levels of h · w · k
    ├ loss:    match anchors with ground truths, sample 256 per image, log loss + smooth L1
    └ propose: top-k per level, decode, clip, drop tiny boxes, NMS per level, top-k → Proposals [B, R]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from detect.errors import UserError
from detect.models.anchors import AnchorGenerator
from detect.models.box_coder import BoxCoder
from detect.models.losses import box_regression_loss, objectness_loss
from detect.models.matcher import Matcher, match
from detect.models.sampler import Sampler
from detect.ops.boxes import clip, gather_boxes, large_enough
from detect.ops.nms import nms_of_parts
from detect.ops.topk import topk
from detect.options import Fraction, Layers, options, over
from detect.structures import Proposals, Targets


@options
class ProposalCounts:
    """Maximum number of boxes per level before NMS, and per image after it.

    Args:
        pre_nms_top_k: boxes of a level, best first, that enter NMS.
        post_nms_top_k: boxes of an image, best first, that leave it as proposals.
    """

    pre_nms_top_k: PositiveInt
    post_nms_top_k: PositiveInt


_TRAINING, _TESTING = ProposalCounts(2000, 2000), ProposalCounts(1000, 1000)


@options
class RPNOptions:
    """Options of a region proposal network; the defaults are those with a feature pyramid.

    Args:
        anchor_sizes: square roots of the anchors' areas in pixels: one size per level, or all sizes of a single level.
        anchor_ratios: height over width.
        anchor_offset: position of an anchor's centre in its cell: 0 is the corner, 0.5 the middle.
        anchors_rounded: round the anchors' shapes to whole pixels.
        anchors_fitted: spread the cells of a level over the canvas, as torchvision does, instead of one stride apart.
        convolutions: 3×3 convolutions before the two output layers.
        training: counts of proposals in training.
        testing: counts of proposals in evaluation and prediction.
        nms_threshold: IoU above which NMS drops the lower-scoring of two proposals.
        min_size: proposals with a side shorter than this many pixels are dropped.
        positive_iou: anchors with at least this IoU are objects, as are the best anchors of every ground truth.
        negative_iou: anchors below this IoU are background.
        batch_size_per_image: anchors per image in the loss.
        positive_fraction: maximum fraction of objects among them.
        straddle_threshold: anchors that reach further than this many pixels over the image's border are ignored in
            training; 0 in the paper. Null trains on all, as usual with a feature pyramid.
        smooth_l1_beta: absolute error at which smooth L1 turns from quadratic to linear.
    """

    anchor_sizes: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (32, 64, 128, 256, 512)
    anchor_ratios: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (0.5, 1.0, 2.0)
    anchor_offset: float = 0.0
    anchors_rounded: bool = True
    anchors_fitted: bool = False
    convolutions: Layers = 1
    training: Annotated[ProposalCounts, over(_TRAINING)] = _TRAINING
    testing: Annotated[ProposalCounts, over(_TESTING)] = _TESTING
    nms_threshold: Fraction = 0.7
    min_size: NonNegativeFloat = 1e-3
    positive_iou: Fraction = 0.7
    negative_iou: Fraction = 0.3
    batch_size_per_image: PositiveInt = 256
    positive_fraction: Fraction = 0.5
    straddle_threshold: NonNegativeFloat | None = None
    smooth_l1_beta: NonNegativeFloat = 1 / 9


@dataclass(frozen=True, slots=True)
class RPNOutput:
    """Raw output of the head for every anchor, before sigmoid and decoding."""

    logits: Float[Tensor, "B A"]
    deltas: Float[Tensor, "B A 4"]
    anchors: Float[Tensor, "A 4"]
    level_sizes: tuple[int, ...]
    """Number of anchors of each level."""


class RPN(nn.Module):
    """Scores and refines anchors; all levels share one head."""

    def __init__(self, channels: int, strides: Sequence[int], options: RPNOptions) -> None:
        super().__init__()
        self.options = options
        sizes = options.anchor_sizes
        if len(strides) not in (1, len(sizes)):
            raise UserError(f"rpn.anchor_sizes: {len(sizes)} sizes for {len(strides)} levels; give one for each level")
        levels = [tuple(sizes)] if len(strides) == 1 else [(size,) for size in sizes]
        self.anchors = AnchorGenerator(
            strides,
            levels,
            options.anchor_ratios,
            options.anchor_offset,
            options.anchors_rounded,
            options.anchors_fitted,
        )
        self.convolutions = nn.Sequential()
        for _ in range(options.convolutions):
            self.convolutions.append(nn.Conv2d(channels, channels, 3, padding=1))
            self.convolutions.append(nn.ReLU(inplace=True))
        self.objectness = nn.Conv2d(channels, self.anchors.per_cell, 1)
        self.deltas = nn.Conv2d(channels, self.anchors.per_cell * 4, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
        self.box_coder = BoxCoder()
        self.matcher = Matcher(options.positive_iou, options.negative_iou, best_is_positive=True)
        self.sampler = Sampler(options.batch_size_per_image, options.positive_fraction)

    def forward(self, features: Sequence[Float[Tensor, "B C _ _"]]) -> RPNOutput:
        """Apply the head to each level."""
        logits, deltas = [], []
        for level in features:
            hidden = self.convolutions(level)
            logits.append(self.objectness(hidden).permute(0, 2, 3, 1).flatten(1))
            deltas.append(self.deltas(hidden).permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, 4)))
        level_sizes = tuple(level.shape[1] for level in logits)
        return RPNOutput(
            torch.cat(logits, dim=1).float(), torch.cat(deltas, dim=1).float(), self.anchors(features), level_sizes
        )

    def loss(self, output: RPNOutput, sizes: Int[Tensor, "B 2"], targets: Targets) -> dict[str, Float[Tensor, ""]]:
        """Compute log loss of objectness and smooth L1 of the deltas over the sampled anchors."""
        anchors = output.anchors.expand(len(sizes), -1, -1)
        threshold = self.options.straddle_threshold
        candidates = None if threshold is None else _within(output.anchors, sizes, threshold)
        matched, labels = match(anchors, targets, self.matcher, candidates)
        indices, valid = self.sampler(labels)
        labels, matched = labels.gather(1, indices), matched.gather(1, indices)
        regression_targets = self.box_coder.encode(gather_boxes(targets.boxes, matched), gather_boxes(anchors, indices))
        logits, deltas = output.logits.gather(1, indices), gather_boxes(output.deltas, indices)
        return {
            "rpn_objectness": objectness_loss(logits, labels, valid),
            "rpn_boxes": box_regression_loss(
                deltas, regression_targets, labels == 1, valid, self.options.smooth_l1_beta
            ),
        }

    @torch.no_grad()
    def propose(self, output: RPNOutput, sizes: Int[Tensor, "B 2"], counts: ProposalCounts) -> Proposals:
        """Return the best boxes of each image after NMS within each level, in order of descending score."""
        levels = output.logits.split(output.level_sizes, dim=1)
        scores, places = zip(*(topk(level, counts.pre_nms_top_k) for level in levels), strict=True)
        starts = accumulate(output.level_sizes[:-1], initial=0)
        indices = torch.cat([place + start for place, start in zip(places, starts, strict=True)], dim=1)
        boxes = self.box_coder.decode(gather_boxes(output.deltas, indices), output.anchors[indices])
        boxes = clip(boxes, sizes)
        large = large_enough(boxes, self.options.min_size)
        # Small and NaN boxes become padding.
        boxes = boxes.where(large.unsqueeze(-1), 0.0)
        lengths = [level.shape[1] for level in scores]
        kept = large & nms_of_parts(boxes, large, self.options.nms_threshold, lengths)
        best, indices = topk(torch.cat(scores, dim=1).masked_fill(~kept, -torch.inf), counts.post_nms_top_k)
        kept = best > -torch.inf
        return Proposals(gather_boxes(boxes, indices), best.where(kept, 0.0).sigmoid() * kept, kept)


def _within(boxes: Float[Tensor, "A 4"], sizes: Int[Tensor, "B 2"], tolerance: float) -> Tensor:
    """Return which boxes lie inside each image, up to a tolerance in pixels: [B, A]."""
    height, width = sizes.unbind(-1)
    x1, y1, x2, y2 = boxes.unbind(-1)
    inside = (x1 >= -tolerance) & (y1 >= -tolerance)
    return inside & (x2 <= width[:, None] + tolerance) & (y2 <= height[:, None] + tolerance)
