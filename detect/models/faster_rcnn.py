"""Faster R-CNN: a region proposal network shares the detector's features (Ren et al. 2015)."""

from __future__ import annotations

from dataclasses import field
from typing import ClassVar, Literal

from detect.backbones import AnyBackbone, AnyNeck, FPNOptions, ResNetOptions
from detect.errors import UserError
from detect.models.box_head import BoxHeadOptions, BoxPredictor, build_features
from detect.models.detector import DetectorOptions
from detect.models.low_rank import Ranks
from detect.models.postprocess import PostprocessOptions
from detect.models.region_head import RegionHead, RegionHeadOptions
from detect.models.region_pooling import PoolingOptions, RegionPooling
from detect.models.rpn import RPN, RPNOptions
from detect.models.two_stage import TwoStage
from detect.options import options


@options
class FasterRCNNOptions(DetectorOptions):
    """Options of Faster R-CNN; the defaults are those with a feature pyramid (Lin et al. 2017, §4 and §5.2).

    Args:
        backbone: body of the network.
        neck: feature pyramid; null runs on the backbone's last map, with the network's own layers as box head.
        rpn: region proposal network.
        pooling: region pooling.
        box_head: layers on a pooled region, if the network has no layers left for it.
        region_head: sampling, matching and regression.
        postprocess: selection of detections from the predictions.
        svd: ranks of the box head's fully connected layers, set by `detect compress`.
    """

    proposals: ClassVar = "own"
    recipes: ClassVar[tuple[str, ...]] = ("joint", "alternating")

    name: Literal["faster_rcnn"] = "faster_rcnn"
    backbone: AnyBackbone = field(default_factory=ResNetOptions)
    neck: AnyNeck | None = field(default_factory=FPNOptions)
    rpn: RPNOptions = field(default_factory=RPNOptions)
    pooling: PoolingOptions = field(default_factory=PoolingOptions)
    box_head: BoxHeadOptions = field(default_factory=BoxHeadOptions)
    region_head: RegionHeadOptions = field(default_factory=RegionHeadOptions)
    postprocess: PostprocessOptions = field(default_factory=PostprocessOptions)
    svd: Ranks = ()


class FasterRCNN(TwoStage):
    """Faster R-CNN."""

    Options: ClassVar[type[DetectorOptions]] = FasterRCNNOptions
    rpn: RPN
    region_head: RegionHead

    def __init__(self, num_classes: int, options: FasterRCNNOptions | None = None) -> None:
        options = options or FasterRCNNOptions()
        if options.region_head.delta_weights is None:
            raise UserError("region_head.delta_weights: null needs given proposals; give four factors")
        backbone, neck, levels, box_head = build_features(options.backbone, options.neck, options.box_head, options.svd)
        rpn = RPN(levels[0].channels, [level.stride for level in levels], options.rpn)
        region_head = RegionHead(
            num_classes,
            RegionPooling(levels, box_head.pooled, options.pooling),
            box_head,
            BoxPredictor(box_head.channels, num_classes, options.region_head.class_agnostic),
            options.region_head,
        )
        super().__init__(num_classes, options, backbone, neck, rpn, region_head)
