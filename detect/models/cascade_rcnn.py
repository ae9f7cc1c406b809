"""Cascade R-CNN: region heads of rising quality in a row (Cai and Vasconcelos 2018, "Cascade R-CNN")."""

from __future__ import annotations

from dataclasses import field
from typing import ClassVar, Literal

from detect.backbones import AnyBackbone, AnyNeck, FPNOptions, ResNetOptions
from detect.errors import UserError
from detect.models.box_head import BoxHeadOptions, BoxPredictor, ConvFCBoxHead, build_features
from detect.models.cascade_head import CascadeHead, CascadeHeadOptions
from detect.models.detector import DetectorOptions
from detect.models.mask_head import MaskHeadOptions, build_mask_head
from detect.models.postprocess import PostprocessOptions
from detect.models.region_head import RegionHead, RegionHeadOptions
from detect.models.region_pooling import PoolingOptions, RegionPooling
from detect.models.rpn import RPN, RPNOptions
from detect.models.two_stage import TwoStage
from detect.options import options


@options
class CascadeRCNNOptions(DetectorOptions):
    """Options of Cascade R-CNN; the defaults are those with a feature pyramid (§5.1).

    Args:
        backbone: body of the network.
        neck: feature pyramid; null runs on the backbone's last map, which needs a network without own box head layers.
        rpn: region proposal network.
        pooling: region pooling.
        box_head: layers on a pooled region, separate in each stage.
        region_head: sampling and the stages.
        masks: mask head, which is trained on the samples of the first stage; null for boxes only.
        postprocess: selection of detections from the predictions.
    """

    proposals: ClassVar = "own"

    name: Literal["cascade_rcnn"] = "cascade_rcnn"
    backbone: AnyBackbone = field(default_factory=ResNetOptions)
    neck: AnyNeck | None = field(default_factory=FPNOptions)
    rpn: RPNOptions = field(default_factory=RPNOptions)
    pooling: PoolingOptions = field(default_factory=PoolingOptions)
    box_head: BoxHeadOptions = field(default_factory=BoxHeadOptions)
    region_head: CascadeHeadOptions = field(default_factory=CascadeHeadOptions)
    masks: MaskHeadOptions | None = None
    postprocess: PostprocessOptions = field(default_factory=PostprocessOptions)


class CascadeRCNN(TwoStage):
    """Cascade R-CNN."""

    Options = CascadeRCNNOptions
    rpn: RPN
    region_head: CascadeHead

    def __init__(self, num_classes: int, options: CascadeRCNNOptions | None = None) -> None:
        options = options or CascadeRCNNOptions()
        backbone, neck, levels, box_head = build_features(options.backbone, options.neck, options.box_head)
        if not isinstance(box_head, ConvFCBoxHead):
            raise UserError("neck: null leaves a box head of the network's own layers, and a cascade needs several")
        rpn = RPN(levels[0].channels, [level.stride for level in levels], options.rpn)
        pooling = RegionPooling(levels, box_head.pooled, options.pooling)

        def build(head_options: RegionHeadOptions) -> RegionHead:
            head = ConvFCBoxHead(levels[0].channels, box_head.pooled, options.box_head)
            predictor = BoxPredictor(head.channels, num_classes, class_agnostic=True)
            return RegionHead(num_classes, pooling, head, predictor, head_options)

        super().__init__(num_classes, options, backbone, neck, rpn, CascadeHead(build, options.region_head))
        if options.masks is not None:
            self.mask_head = build_mask_head(num_classes, options.masks, levels, options.pooling, box_head)
