"""Mask head: the mask of each region in a grid over its box (He et al. 2017, "Mask R-CNN", §3).

boxes [B, S] ─ RoIAlign 14×14, convolutions, deconvolution, 1×1 ─→ logits of the own class [B, S, 28, 28]
training:    boxes are the sampled objects, the targets are their ground truths' masks within these boxes
prediction:  boxes are the detections, after NMS
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int, UInt8
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from detect.backbones import BoxHead, FeatureInfo
from detect.backbones.backbone import StageBoxHead
from detect.backbones.norm import Norm, norm_layer
from detect.models.region_pooling import PoolingOptions, RegionPooling
from detect.ops.boxes import gather_boxes
from detect.options import Layers, options
from detect.structures import Detections, Samples, Targets

POOLED = 14
"""Cells along each side of a pooled region."""


@options
class MaskHeadOptions:
    """Options of the mask head; the defaults are the paper's with a feature pyramid (§3, figure 4).

    Args:
        convolutions: number of 3×3 convolutions.
        channels: width of these and of the deconvolution.
        norm: norm after each 3×3 convolution, which then has no bias.
        samples: maximum number of objects per image in the loss. A region takes 1 GFLOP (2 per multiplication) in the
            default head, so fewer samples make a training step on a GPU cheaper.
    """

    convolutions: Layers = 4
    channels: PositiveInt = 256
    norm: Norm = "none"
    samples: PositiveInt = 128


class MaskHead(nn.Module):
    """Fully convolutional network on each region, with one sigmoid mask for each class.

    Args:
        num_classes: C, without background.
        pooling: returns features of a fixed size for each region.
        channels_in: channels of the regions, after `stage`.
        options: layers and number of samples.
        stage: layers of the box head that run first: without a pyramid, both heads share the network's last stage.
    """

    def __init__(
        self,
        num_classes: int,
        pooling: nn.Module,
        channels_in: int,
        options: MaskHeadOptions,
        stage: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.num_classes, self.samples, self.pooling = num_classes, options.samples, pooling
        self._stage = (stage,)  # in a tuple: the box head owns the parameters
        self.convolutions = nn.Sequential()
        for _ in range(options.convolutions):
            convolution = nn.Conv2d(channels_in, options.channels, 3, padding=1, bias=options.norm == "none")
            self.convolutions.append(convolution)
            if options.norm != "none":
                self.convolutions.append(norm_layer(options.norm)(options.channels))
            self.convolutions.append(nn.ReLU(inplace=True))
            channels_in = options.channels
        self.deconvolution = nn.ConvTranspose2d(channels_in, options.channels, 2, stride=2)
        self.predictor = nn.Conv2d(options.channels, num_classes, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        nn.init.normal_(self.predictor.weight, std=0.001)

    def forward(
        self, features: Sequence[Float[Tensor, "B c _ _"]], boxes: Float[Tensor, "B S 4"], labels: Int[Tensor, "B S"]
    ) -> Float[Tensor, "B S m m"]:
        """Compute the logits of the mask of each box, for the class `labels`."""
        regions = self.pooling(features, boxes)
        for stage in self._stage:
            regions = regions if stage is None else stage(regions)
        regions = F.relu(self.deconvolution(self.convolutions(regions)))
        # The predictor's 1×1 convolution, for the own class only: all classes would take C times the memory.
        bias, weight = self.predictor.bias, self.predictor.weight.flatten(1)
        assert bias is not None
        own = labels.flatten()
        logits = torch.baddbmm(bias[own][:, None, None], F.embedding(own, weight)[:, None], regions.flatten(2))
        return logits.float().view(*boxes.shape[:2], *regions.shape[2:])

    def loss(
        self, features: Sequence[Float[Tensor, "B c _ _"]], samples: Samples, targets: Targets
    ) -> dict[str, Float[Tensor, ""]]:
        """Compute the binary cross entropy of the own class, averaged over all cells of the objects (§3).

        Args:
            features: feature maps.
            samples: samples of the box head, objects first. At most `options.samples` objects count.
            targets: ground truths; those without a mask do not count.
        """
        if targets.masks is None:
            raise ValueError("a mask head needs the masks of the ground truths")
        has_mask = targets.masks.amax(dim=(2, 3)) > 0
        positive = samples.valid & (samples.labels < self.num_classes) & has_mask.gather(1, samples.matched)
        used = slice(_used_slots(positive, self.samples))
        boxes, matched, positive = samples.boxes[:, used], samples.matched[:, used], positive[:, used]
        logits = self(features, boxes, samples.labels[:, used].clamp(max=self.num_classes - 1))
        masks = mask_targets(targets, matched, boxes, logits.shape[-1])
        losses = F.binary_cross_entropy_with_logits(logits, masks.float(), reduction="none").mean(dim=(2, 3))
        return {"masks": torch.where(positive, losses, 0.0).sum() / positive.sum().clamp(min=1)}

    def detect(self, features: Sequence[Float[Tensor, "B c _ _"]], detections: Detections) -> Detections:
        """Return the detections with their masks."""
        slots = detections.valid.shape[1]
        used = _used_slots(detections.valid, slots)
        logits = self(features, detections.boxes[:, :used], detections.labels[:, :used])
        return replace(detections, masks=F.pad(logits.sigmoid(), (0, 0, 0, 0, 0, slots - used)))


@torch.no_grad()
def mask_targets(
    targets: Targets, matched: Int[Tensor, "B S"], boxes: Float[Tensor, "B S 4"], size: int
) -> Bool[Tensor, "B S m m"]:
    """Return the ground truth's mask within each box: one bilinear sample at the centre of each cell, at least 0.5.

    Outside of the ground truth's own box the mask is zero.

    Args:
        targets: ground truths with masks.
        matched: index of the ground truth of each box.
        boxes: the boxes.
        size: m, cells along each side.
    """
    assert targets.masks is not None
    count, side = boxes.shape[:2], targets.masks.shape[-1]
    masks: UInt8[Tensor, "B S M M"] = targets.masks.gather(1, matched[..., None, None].expand(-1, -1, side, side))
    ours, theirs = boxes.flatten(0, 1), gather_boxes(targets.boxes, matched).flatten(0, 1)
    cells = (torch.arange(size, device=boxes.device) + 0.5) / size
    corner, extent = theirs[:, None, :2], (theirs[:, 2:] - theirs[:, :2]).clamp(min=1e-3)[:, None]
    points = ours[:, None, :2] + cells[:, None] * (ours[:, 2:] - ours[:, :2])[:, None]
    places = (points - corner) / extent * 2 - 1  # -1 … 1 across the ground truth's box
    x, y = places.unbind(-1)
    grid = torch.stack([x[:, None, :].expand(-1, size, -1), y[:, :, None].expand(-1, -1, size)], dim=-1)
    values = F.grid_sample(masks.flatten(0, 1)[:, None].float(), grid, align_corners=False)
    return (values >= 127.5).squeeze(1).unflatten(0, count)


def build_mask_head(
    num_classes: int,
    options: MaskHeadOptions,
    levels: Sequence[FeatureInfo],
    pooling: PoolingOptions,
    box_head: BoxHead,
) -> MaskHead:
    """Build the mask head on the feature maps of the box head.

    If the box head is the network's last stage, the mask head shares it, as in the paper's figure 4 (left).
    """
    stage = box_head.stage if isinstance(box_head, StageBoxHead) else None
    channels = levels[0].channels if stage is None else box_head.channels
    return MaskHead(num_classes, RegionPooling(levels, POOLED, pooling), channels, options, stage)


def _used_slots(valid: Bool[Tensor, "B n"], limit: int) -> int:
    """Return the number of slots to compute: on the CPU up to the last valid one, at least 1; otherwise `limit`.

    On a GPU, reading the number would wait for the device; a graph has one shape for all batches.
    """
    limit = min(limit, valid.shape[1])
    if valid.device.type != "cpu" or torch.compiler.is_compiling():
        return limit
    last = (valid * torch.arange(1, valid.shape[1] + 1)).amax()
    return min(limit, max(1, int(last)))
