"""The detectors and their parts."""

from detect.models.box_head import HeadOptions
from detect.models.classifier import Classifier, Learning
from detect.models.detector import BoxOptions, Detector
from detect.models.fast_rcnn import FastRCNN
from detect.models.faster_rcnn import FasterRCNN
from detect.models.postprocess import PostprocessOptions
from detect.models.rcnn import RCNN, RegionOptions, RidgeOptions, SVMOptions
from detect.models.region_pooling import CropOptions, PoolingOptions
from detect.models.rpn import ProposalCounts, RPNOptions

__all__ = [
    "RCNN",
    "BoxOptions",
    "Classifier",
    "CropOptions",
    "Detector",
    "FastRCNN",
    "FasterRCNN",
    "HeadOptions",
    "Learning",
    "PoolingOptions",
    "PostprocessOptions",
    "ProposalCounts",
    "RPNOptions",
    "RegionOptions",
    "RidgeOptions",
    "SVMOptions",
]
