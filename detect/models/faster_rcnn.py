"""Faster R-CNN: proposals from a network that shares the detector's features (Ren et al. 2015)."""

from __future__ import annotations

from typing import Literal

from detect.backbones import CNN, Backbone, ResNet, Trunk
from detect.models.box_head import BoxHead
from detect.models.detector import BoxOptions, Detector
from detect.models.postprocess import PostprocessOptions
from detect.models.region_pooling import RegionPooling
from detect.models.rpn import RPN, RPNOptions
from detect.options import options


@options
class PoolingOptions:
    """How regions are pooled; their size is the trunk's.

    Args:
        kind: `align` (He et al. 2017) or `pool` (Girshick 2015; one feature map only).
        sampling_ratio: samples a bin along each side, for `align`; 0 as many as the bin has cells.
        aligned: shift the samples by half a cell, for `align`.
    """

    kind: Literal["align", "pool"] = "align"
    sampling_ratio: int = 2
    aligned: bool = False


@options
class HeadOptions:
    """The layers between pooling and prediction where the backbone, a feature pyramid, leaves no trunk.

    Args:
        convolutions: 3×3 convolutions with batch norm.
        layers: fully connected layers.
        channels: width of these.
    """

    convolutions: int = 0
    layers: int = 2
    channels: int = 1024


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
        rpn, pooling, head = rpn or RPNOptions(), pooling or PoolingOptions(), head or HeadOptions()
        body, trunk = (backbone or ResNet()).build()
        trunk = trunk or _head(body, head)
        super().__init__(
            num_classes=num_classes,
            backbone=body,
            rpn=RPN(body.features[0].channels, [level.stride for level in body.features], rpn),
            pooling=RegionPooling(body.features, trunk.pooled, pooling.kind, pooling.sampling_ratio, pooling.aligned),
            trunk=trunk,
            boxes=boxes,
            detections=detections,
        )


def _head(backbone: Backbone, options: HeadOptions) -> Trunk:
    return BoxHead(backbone.features[0].channels, 7, options.channels, options.convolutions, options.layers)
