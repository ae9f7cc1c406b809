"""Faster R-CNN: proposals from a network that shares the detector's features (Ren et al. 2015)."""

from __future__ import annotations

from detect.backbones import CNN, ResNet
from detect.models.box_head import HeadOptions, box_trunk
from detect.models.detector import BoxOptions, Detector
from detect.models.postprocess import PostprocessOptions
from detect.models.region_pooling import PoolingOptions, RegionPooling
from detect.models.rpn import RPN, RPNOptions


class FasterRCNN(Detector):
    """Any backbone, an RPN on its features, and the backbone's own trunk (or two layers of 1024) on each region.

    Args:
        num_classes: C, without background.
        backbone: `ResNet` (FPN or C4) or `VGG`.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: CNN | None = None,
        rpn: RPNOptions | None = None,
        pooling: PoolingOptions | None = None,
        head: HeadOptions | None = None,
        boxes: BoxOptions | None = None,
        detections: PostprocessOptions | None = None,
    ) -> None:
        rpn, pooling = rpn or RPNOptions(), pooling or PoolingOptions()
        body, trunk = (backbone or ResNet()).build()
        trunk = trunk or box_trunk(body, head or HeadOptions())
        super().__init__(
            num_classes=num_classes,
            backbone=body,
            rpn=RPN(body.features[0].channels, [level.stride for level in body.features], rpn),
            pooling=RegionPooling(body.features, trunk.pooled, pooling),
            trunk=trunk,
            boxes=boxes,
            detections=detections,
        )
