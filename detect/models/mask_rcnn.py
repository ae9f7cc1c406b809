"""Mask R-CNN: Faster R-CNN with a head that predicts a mask for each object (He et al. 2017)."""

from __future__ import annotations

from dataclasses import field
from typing import ClassVar, Literal

from detect.models.faster_rcnn import FasterRCNN, FasterRCNNOptions
from detect.models.mask_head import MaskHeadOptions, build_mask_head
from detect.options import options


@options
class MaskRCNNOptions(FasterRCNNOptions):
    """Options of Mask R-CNN: those of Faster R-CNN, and its mask head.

    Args:
        masks: mask head.
    """

    recipes: ClassVar = ("joint",)

    name: Literal["mask_rcnn"] = "mask_rcnn"  # type: ignore[assignment]
    masks: MaskHeadOptions = field(default_factory=MaskHeadOptions)


class MaskRCNN(FasterRCNN):
    """Mask R-CNN."""

    Options = MaskRCNNOptions

    def __init__(self, num_classes: int, options: MaskRCNNOptions | None = None) -> None:
        options = options or MaskRCNNOptions()
        super().__init__(num_classes, options)
        box_head = self.region_head.box_head
        self.mask_head = build_mask_head(num_classes, options.masks, self.levels, options.pooling, box_head)
