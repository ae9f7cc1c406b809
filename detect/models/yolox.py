"""YOLOX (Ge et al. 2021, "YOLOX: Exceeding YOLO Series in 2021"), an anchor-free one-stage detector.

images ─ backbone, neck ─→ features  maps of strides 8, 16, 32
       ─ decoupled head ─→ classes, box and objectness of each cell
       ├→ loss:   SimOTA assigns ground truths to cells; IoU of boxes, cross entropies of classes and objectness, per
       │          positive cell. An image without objects counts as ten such cells, in the paper's code as none
       └→ detect: score = objectness · best class, NMS
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field, replace
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from detect.backbones import AnyBackbone, CSPDarknetOptions, PAFPNOptions
from detect.models.decoupled_head import DecoupledHead, RawPredictions
from detect.models.detector import Detector, DetectorOptions, Losses, known_targets
from detect.models.postprocess import PostprocessOptions, suppress
from detect.models.simota import CANDIDATES, Assignment, assign
from detect.ops.boxes import clip, gather_boxes, large_enough, paired_iou
from detect.ops.topk import topk
from detect.options import options, over
from detect.structures import Batch, Detections, Images, Proposals, Targets

BOX_WEIGHT = 5.0
"""Weight of the box loss."""
MAX_LOG_SIZE = 10.0
"""Largest predicted logarithm of a width or height in cells: 22,000 cells."""

POSTPROCESS = PostprocessOptions(score_threshold=0.01, nms_threshold=0.65)


@options
class YOLOXOptions(DetectorOptions):
    """Options of YOLOX; the defaults are those of YOLOX-s.

    Args:
        backbone: body of the network, with maps of strides 8, 16 and 32.
        neck: pyramid over these maps.
        head_channels: width of the head; by default that of the finest level.
        depthwise: depthwise separable instead of 3×3 convolutions in the head, as in YOLOX-nano.
        postprocess: selection of detections from the predictions.
    """

    proposals: ClassVar = "none"

    name: Literal["yolox"] = "yolox"
    backbone: AnyBackbone = field(default_factory=CSPDarknetOptions)
    neck: PAFPNOptions = field(default_factory=PAFPNOptions)
    head_channels: PositiveInt | None = None
    depthwise: bool = False
    postprocess: Annotated[PostprocessOptions, over(POSTPROCESS)] = POSTPROCESS


class Cells(NamedTuple):
    """The A cells of all levels, finest level first, row by row."""

    corners: Float[Tensor, "A 2"]
    """x and y of the upper left corner in pixels."""
    centres: Float[Tensor, "A 2"]
    """x and y of the centre in pixels."""
    strides: Float[Tensor, " A"]


class YOLOX(Detector):
    """YOLOX."""

    Options: ClassVar[type[DetectorOptions]] = YOLOXOptions

    def __init__(self, num_classes: int, options: YOLOXOptions | None = None) -> None:
        options = options or YOLOXOptions()
        backbone, _ = options.backbone.build(multi_scale=True)
        neck = options.neck.build(backbone.levels, options.backbone.norm)
        super().__init__(num_classes, options, backbone, neck)
        channels = options.head_channels or neck.levels[0].channels
        self.head = DecoupledHead(neck.levels, num_classes, channels, options.depthwise)

    def loss(self, batch: Batch) -> Losses:
        """Return the losses of boxes, objectness and classes, and in the closing epochs one of the raw boxes."""
        return self._loss(*self._predict(batch.images), batch)

    @torch.no_grad()
    def detect(self, images: Images, proposals: Proposals | None = None) -> Detections:
        """Return the detections in pixels of the canvas."""
        return self._detect(*self._predict(images), images)

    @torch.no_grad()
    def validate(self, batch: Batch) -> tuple[Losses, Detections]:
        """Return losses and detections with one pass of the network."""
        outputs = self._predict(batch.images)
        return self._loss(*outputs, batch), self._detect(*outputs, batch.images)

    def fp32_modules(self) -> tuple[nn.Module, ...]:
        """Return the predictors, which compute scores and boxes."""
        return tuple(predictor for level in self.head.heads for predictor in level.predictors)

    def _predict(self, images: Images) -> tuple[RawPredictions, Cells]:
        features = self.features(images)
        return self.head(features), cells_of(features, [level.stride for level in self.levels])

    def _loss(self, raw: RawPredictions, cells: Cells, batch: Batch) -> Losses:
        targets = known_targets(batch.targets, self.num_classes)
        boxes = decode(raw.boxes, cells)
        positive, matched, ious = self._assign(raw, boxes, cells, targets)
        # With the positive cells alone as the divisor, a batch of nearly empty images would outweigh all others.
        empty = ~(targets.valid & ~targets.crowd).any(dim=1)
        count = (positive.sum() + CANDIDATES * empty.sum()).clamp(min=1)

        truths = gather_boxes(targets.boxes, matched)
        of_boxes = 1 - paired_iou(boxes, truths) ** 2
        wanted = F.one_hot(targets.labels.gather(1, matched), self.num_classes) * ious[..., None]
        of_classes = F.binary_cross_entropy_with_logits(raw.classes, wanted, reduction="none").sum(dim=-1)
        of_objectness = F.binary_cross_entropy_with_logits(raw.objectness, positive.float(), reduction="none")
        counted = positive | ~inside_crowd(cells, targets)
        losses = {
            "boxes": BOX_WEIGHT * torch.where(positive, of_boxes, 0.0).sum() / count,
            "objectness": torch.where(counted, of_objectness, 0.0).sum() / count,
            "classes": torch.where(positive, of_classes, 0.0).sum() / count,
        }
        if batch.closing is not None:
            of_raw = F.l1_loss(raw.boxes, encode(truths, cells), reduction="none").sum(dim=-1)
            losses["raw_boxes"] = batch.closing * torch.where(positive, of_raw, 0.0).sum() / count
        return losses

    def _assign(self, raw: RawPredictions, boxes: Float[Tensor, "B A 4"], cells: Cells, targets: Targets) -> Assignment:
        """Assign the cells of each image in turn, which bounds the memory."""
        objects = targets.valid & ~targets.crowd
        images = zip(raw.classes, raw.objectness, boxes, targets.boxes, targets.labels, objects, strict=True)
        assignments = [
            assign(classes, objectness, predicted, cells.centres, cells.strides, truths, labels, valid)
            for classes, objectness, predicted, truths, labels, valid in images
        ]
        return Assignment(*map(torch.stack, zip(*assignments, strict=True)))

    def _detect(self, raw: RawPredictions, cells: Cells, images: Images) -> Detections:
        options, boxes = self.postprocessing, decode(raw.boxes, cells)
        scores, labels = raw.classes.sigmoid().max(dim=-1)
        scores = scores * raw.objectness.sigmoid()
        candidates = (scores > options.score_threshold) & large_enough(clip(boxes, images.sizes), options.min_size)
        scores, best = topk(scores.where(candidates, -1.0), options.pre_nms_top_k)
        detections = suppress(gather_boxes(boxes, best), scores, labels.gather(1, best), options)
        return replace(detections, boxes=clip(detections.boxes, images.sizes))


def cells_of(features: Sequence[Float[Tensor, "B _c _h _w"]], strides: Sequence[int]) -> Cells:
    """Return the cells of feature maps."""
    corners, of_cells = [], []  # of each level
    for level, stride in zip(features, strides, strict=True):
        height, width = level.shape[2:]
        y, x = (stride * torch.arange(n, device=level.device, dtype=torch.float32) for n in (height, width))
        corners.append(torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], dim=-1).flatten(0, 1))
        of_cells.append(torch.full_like(corners[-1][:, 0], stride))
    all_corners, all_strides = torch.cat(corners), torch.cat(of_cells)
    return Cells(all_corners, all_corners + all_strides[:, None] / 2, all_strides)


def decode(raw: Float[Tensor, "B A 4"], cells: Cells) -> Float[Tensor, "B A 4"]:
    """Return the predicted boxes, xyxy in pixels of the canvas."""
    strides = cells.strides[:, None]
    centres = raw[..., :2] * strides + cells.corners
    halves = raw[..., 2:].clamp(max=MAX_LOG_SIZE).exp() * strides / 2
    return torch.cat([centres - halves, centres + halves], dim=-1)


def encode(boxes: Float[Tensor, "B A 4"], cells: Cells) -> Float[Tensor, "B A 4"]:
    """Return the raw predictions that `decode` would turn into these boxes."""
    strides = cells.strides[:, None]
    centres = (boxes[..., :2] + boxes[..., 2:]) / 2
    sizes = (boxes[..., 2:] - boxes[..., :2]) / strides
    return torch.cat([(centres - cells.corners) / strides, torch.log(sizes + 1e-8)], dim=-1)


def inside_crowd(cells: Cells, targets: Targets) -> Bool[Tensor, "B A"]:
    """Return a mask of the cells whose centre is in a crowd region."""
    crowd = targets.valid & targets.crowd
    x, y = cells.centres.unbind(-1)
    x1, y1, x2, y2 = targets.boxes.where(crowd[..., None], 0.0)[..., None].unbind(-2)
    return ((x >= x1) & (x < x2) & (y >= y1) & (y < y2)).any(dim=1)
