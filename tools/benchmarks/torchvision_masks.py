"""torchvision's Mask R-CNN heads on our backbone, so that only RPN, box head and mask head differ in a comparison."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_inference
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign

from detect.data.masks import paste_whole
from detect.models import Detector, MaskRCNNOptions
from detect.models.box_head import build_features
from detect.options import options
from detect.structures import Batch, Detections, Images, Proposals, Targets


@options
class TorchvisionOptions(MaskRCNNOptions):
    """Options of torchvision's heads: those of `mask_rcnn` that torchvision has, too."""

    name: Literal["torchvision_mask_rcnn"] = "torchvision_mask_rcnn"  # type: ignore[assignment]


class TorchvisionMaskRCNN(Detector):
    """torchvision's RPN, box head and mask head, trained, validated and evaluated by `detect`.

    These run in float32, as released. Under bf16 autocast torchvision rounds proposals and ground truths to 8 bits of
    precision: a narrow object becomes a box without width, and the loss NaN.
    """

    Options = TorchvisionOptions

    def __init__(self, num_classes: int, options: TorchvisionOptions | None = None) -> None:
        options = options or TorchvisionOptions()
        backbone, neck, levels, _ = build_features(options.backbone, options.neck, options.box_head)
        super().__init__(num_classes, options, backbone, neck)
        channels, rpn, head, post = levels[0].channels, options.rpn, options.region_head, options.postprocess
        anchors = AnchorGenerator(tuple((int(size),) for size in rpn.anchor_sizes), ((0.5, 1.0, 2.0),) * len(levels))
        counts = {
            part: {"training": of.training, "testing": of.testing}
            for part, of in (
                ("pre", _Counts(rpn.training.pre_nms_top_k, rpn.testing.pre_nms_top_k)),
                ("post", _Counts(rpn.training.post_nms_top_k, rpn.testing.post_nms_top_k)),
            )
        }
        self.rpn = RegionProposalNetwork(
            anchors, RPNHead(channels, 3), rpn.positive_iou, rpn.negative_iou, rpn.batch_size_per_image,
            rpn.positive_fraction, counts["pre"], counts["post"], rpn.nms_threshold,
        )  # fmt: skip
        names = [str(level) for level in range(len([level for level in levels if level.stride <= 32]))]
        width, convolutions = options.box_head.channels, options.masks.convolutions
        self.heads = RoIHeads(
            MultiScaleRoIAlign(names, 7, 2), TwoMLPHead(channels * 49, width),
            FastRCNNPredictor(width, num_classes + 1),
            head.positive_iou, head.negative_iou, head.batch_size_per_image, head.positive_fraction, None,
            post.score_threshold, post.nms_threshold, post.max_detections,
            mask_roi_pool=MultiScaleRoIAlign(names, 14, 2),
            mask_head=MaskRCNNHeads(channels, (options.masks.channels,) * convolutions, 1),
            mask_predictor=MaskRCNNPredictor(options.masks.channels, options.masks.channels, num_classes + 1),
        )  # fmt: skip

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return torchvision's losses."""
        targets = _as_lists(batch.targets, batch.images)
        images, maps = self._images(batch.images), self._maps(batch.images)
        with torch.autocast("cpu", enabled=False):
            proposals, losses = self.rpn.train()(images, maps, targets)
            _, others = self.heads.train()(maps, proposals, images.image_sizes, targets)
        return losses | others

    @torch.no_grad()
    def detect(self, images: Images, proposals: Proposals | None = None) -> Detections:
        """Return torchvision's detections, with the probabilities of their masks before they are pasted."""
        listed, maps = self._images(images), self._maps(images)
        with torch.autocast("cpu", enabled=False):
            boxes, _ = self.rpn.eval()(listed, maps)
            heads = self.heads.eval()
            regions = heads.box_head(heads.box_roi_pool(maps, boxes, listed.image_sizes))
            logits, deltas = heads.box_predictor(regions)
            found, scores, labels = heads.postprocess_detections(logits, deltas, boxes, listed.image_sizes)
            pooled = heads.mask_roi_pool(maps, found, listed.image_sizes)
            masks = maskrcnn_inference(heads.mask_predictor(heads.mask_head(pooled)), labels)
        return _padded(found, scores, labels, masks)

    def _maps(self, images: Images) -> OrderedDict[str, Tensor]:
        return OrderedDict((str(level), features.float()) for level, features in enumerate(self.features(images)))

    def _images(self, images: Images) -> ImageList:
        return ImageList(images.pixels.float(), [(int(height), int(width)) for height, width in images.sizes])


class _Counts:
    def __init__(self, training: int, testing: int) -> None:
        self.training, self.testing = training, testing


def _as_lists(targets: Targets, images: Images) -> list[dict[str, Tensor]]:
    """Return torchvision's targets: background is 0, and a mask is as large as the canvas."""
    assert targets.masks is not None
    height, width = images.pixels.shape[2:]
    listed = []
    for boxes, labels, valid, crowd, masks in zip(
        targets.boxes, targets.labels, targets.valid, targets.crowd, targets.masks, strict=True
    ):
        kept = valid & ~crowd
        pasted = [
            paste_whole(mask.numpy() / 255, box.numpy(), height, width)
            for mask, box in zip(masks[kept], boxes[kept], strict=True)
        ]
        stacked = torch.from_numpy(np.stack(pasted)) if pasted else torch.zeros(0, height, width, dtype=torch.uint8)
        listed.append({"boxes": boxes[kept], "labels": labels[kept] + 1, "masks": stacked})
    return listed


def _padded(boxes: list[Tensor], scores: list[Tensor], labels: list[Tensor], masks: list[Tensor]) -> Detections:
    count = max(1, *map(len, boxes))

    def pad(values: list[Tensor]) -> Tensor:
        return torch.stack([F.pad(one, (0, 0) * (one.ndim - 1) + (0, count - len(one))) for one in values])

    valid = pad([torch.ones(len(one), dtype=torch.bool) for one in boxes])
    shifted = [one - 1 for one in labels]
    return Detections(pad(boxes), pad(scores), pad(shifted), valid, masks=pad([mask[:, 0] for mask in masks]))
