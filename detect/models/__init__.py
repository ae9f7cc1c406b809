"""Detectors and their parts."""

from typing import Any

from detect.models.box_head import BoxHeadOptions
from detect.models.cascade_head import CascadeHead, CascadeHeadOptions, CascadeStageOptions
from detect.models.cascade_rcnn import CascadeRCNN, CascadeRCNNOptions
from detect.models.classifier import Classifier, ClassifierOptions
from detect.models.detector import Detector, DetectorOptions, Losses
from detect.models.fast_rcnn import FastRCNN, FastRCNNOptions
from detect.models.faster_rcnn import FasterRCNN, FasterRCNNOptions
from detect.models.mask_head import MaskHead, MaskHeadOptions
from detect.models.mask_rcnn import MaskRCNN, MaskRCNNOptions
from detect.models.postprocess import PostprocessOptions
from detect.models.rcnn import RCNN, CropPredictorOptions, RCNNOptions
from detect.models.region_head import RegionHead, RegionHeadOptions
from detect.models.region_pooling import CropOptions, PoolingOptions
from detect.models.rpn import ProposalCounts, RPNOptions
from detect.models.two_stage import TwoStage
from detect.models.yolox import YOLOX, YOLOXOptions

MODELS: list[Any] = [RCNN, FastRCNN, FasterRCNN, MaskRCNN, CascadeRCNN, YOLOX]
"""Classes of all detectors, subclasses of `Detector`. A new detector is one file and one entry here; code outside of
the package can append its own."""


def model_names() -> tuple[str, ...]:
    """Return the YAML names of all detectors."""
    return tuple(model.Options.name for model in MODELS)


def options_class(name: str) -> type[DetectorOptions]:
    """Return the options class of the detector with this YAML name. Raise `KeyError` if no detector has it."""
    classes: dict[str, type[DetectorOptions]] = {model.Options.name: model.Options for model in MODELS}
    return classes[name]


def build_detector(options: DetectorOptions, num_classes: int) -> Detector:
    """Return the detector that the options describe, with initialised or loaded weights."""
    for model in MODELS:
        if type(options) is model.Options:
            detector: Detector = model(num_classes, options)
            return detector
    raise TypeError(f"{type(options).__name__}: no detector in detect.models.MODELS has these options")


__all__ = [
    "MODELS",
    "RCNN",
    "YOLOX",
    "BoxHeadOptions",
    "CascadeHead",
    "CascadeHeadOptions",
    "CascadeRCNN",
    "CascadeRCNNOptions",
    "CascadeStageOptions",
    "Classifier",
    "ClassifierOptions",
    "CropOptions",
    "CropPredictorOptions",
    "Detector",
    "DetectorOptions",
    "FastRCNN",
    "FastRCNNOptions",
    "FasterRCNN",
    "FasterRCNNOptions",
    "Losses",
    "MaskHead",
    "MaskHeadOptions",
    "MaskRCNN",
    "MaskRCNNOptions",
    "PoolingOptions",
    "PostprocessOptions",
    "ProposalCounts",
    "RCNNOptions",
    "RPNOptions",
    "RegionHead",
    "RegionHeadOptions",
    "TwoStage",
    "YOLOXOptions",
    "build_detector",
    "model_names",
    "options_class",
]
