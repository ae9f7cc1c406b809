"""Fast R-CNN: proposals from elsewhere share the features of the whole image (Girshick 2015)."""

from __future__ import annotations

from detect.backbones import CNN, ResNet
from detect.models.box_head import HeadOptions, box_trunk
from detect.models.detector import BoxOptions, Detector
from detect.models.postprocess import PostprocessOptions
from detect.models.region_pooling import PoolingOptions, RegionPooling


class FastRCNN(Detector):
    """Any backbone, and the backbone's own trunk (or two layers of 1024) on each proposal that comes with the batch.

    Args:
        num_classes: C, without background.
        backbone: `VGG`, `AlexNet`, `VGGM` or `ResNet` (FPN or C4).
    """

    def __init__(
        self,
        num_classes: int,
        backbone: CNN | None = None,
        pooling: PoolingOptions | None = None,
        head: HeadOptions | None = None,
        boxes: BoxOptions | None = None,
        detections: PostprocessOptions | None = None,
    ) -> None:
        pooling = pooling or PoolingOptions()
        body, trunk = (backbone or ResNet()).build()
        trunk = trunk or box_trunk(body, head or HeadOptions())
        super().__init__(
            num_classes=num_classes,
            backbone=body,
            rpn=None,
            pooling=RegionPooling(body.features, trunk.pooled, pooling),
            trunk=trunk,
            boxes=boxes,
            detections=detections,
        )
