"""The detectors and their parts."""

from detect.models.detector import BoxOptions, Detector
from detect.models.faster_rcnn import FasterRCNN, HeadOptions, PoolingOptions
from detect.models.postprocess import PostprocessOptions
from detect.models.rpn import ProposalCounts, RPNOptions

__all__ = [
    "BoxOptions",
    "Detector",
    "FasterRCNN",
    "HeadOptions",
    "PoolingOptions",
    "PostprocessOptions",
    "ProposalCounts",
    "RPNOptions",
]
