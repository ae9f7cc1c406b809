"""torchvision's trained Faster R-CNNs, and the boxes of its Mask R-CNNs, as ours, with equal outputs."""

from __future__ import annotations

import torch
from torch import Tensor

from detect.backbones import ResNet
from detect.backbones.norm import FrozenBatchNorm2d
from detect.config import FasterRCNNOptions
from detect.errors import UserError
from detect.foreign_weights.state_dicts import BATCHES, State, match_state, rename_by_prefix
from detect.models import FasterRCNN, HeadOptions, RPNOptions

# Beginnings of torchvision's keys, and of ours; what follows them is the same. Both versions share the table, since no
# key of one means something else in the other. Where several fit, the longest is meant.
PREFIXES = {
    "backbone.body.conv1.": "backbone.body.stem.conv1.",
    "backbone.body.bn1.": "backbone.body.stem.bn1.",
    "backbone.body.layer": "backbone.body.layer",
    "backbone.fpn.inner_blocks.": "backbone.fpn.lateral.",
    "backbone.fpn.layer_blocks.": "backbone.fpn.output.",
    "rpn.head.conv.0.0.": "rpn.convolutions.0.",
    "rpn.head.conv.1.0.": "rpn.convolutions.2.",
    "rpn.head.cls_logits.": "rpn.objectness.",
    "rpn.head.bbox_pred.": "rpn.deltas.",
    # v1: two fully connected layers
    "roi_heads.box_head.fc6.": "trunk.layers.0.",
    "roi_heads.box_head.fc7.": "trunk.layers.1.",
    # v2: four convolutions, each with its norm, and one fully connected layer
    **{f"roi_heads.box_head.{i}.0.": f"trunk.convolutions.{3 * i}." for i in range(4)},
    **{f"roi_heads.box_head.{i}.1.": f"trunk.convolutions.{3 * i + 1}." for i in range(4)},
    "roi_heads.box_head.5.": "trunk.layers.0.",
    "roi_heads.box_predictor.cls_score.": "predictor.scores.",
    "roi_heads.box_predictor.bbox_pred.": "predictor.deltas.",
    # Files from before torchvision 0.13, the published v1 among them, number these layers less deeply.
    **{f"rpn.head.conv.{kind}": f"rpn.convolutions.0.{kind}" for kind in ("weight", "bias")},
    **{
        f"backbone.fpn.{theirs}.{level}.{kind}": f"backbone.fpn.{ours}.{level}.0.{kind}"
        for theirs, ours in (("inner_blocks", "lateral"), ("layer_blocks", "output"))
        for level in range(4)
        for kind in ("weight", "bias")
    },
}
CLASSES = "roi_heads.box_predictor.cls_score.bias"
REMEDY = "give a state dict of torchvision's fasterrcnn_resnet50_fpn or fasterrcnn_resnet50_fpn_v2"
LEFT_OUT = {
    r"roi_heads\.mask_": ("mask head", "boxes alone are detected"),
    r"roi_heads\.keypoint_": ("keypoint head", "boxes alone are detected"),
}
"""What Mask R-CNN and Keypoint R-CNN have beside a Faster R-CNN, to be left out of their states first."""


def torchvision_options(state: State) -> FasterRCNNOptions:
    """Which of torchvision's two networks `state` belongs to, in our words.

    `fasterrcnn_resnet50_fpn` has frozen norms, a pyramid without norms, one convolution in the RPN and two layers in
    the box head. In `fasterrcnn_resnet50_fpn_v2` (Li et al. 2021, "Benchmarking Detection Transfer Learning with Vision
    Transformers") the norms learn, the pyramid has them too, the RPN has two convolutions and the box head four and one
    layer. In all else but the places of the anchors the two are what our defaults are.
    """
    if "roi_heads.box_head.fc6.weight" in state:
        return FasterRCNNOptions(backbone=ResNet(50, norm="frozen"), rpn=RPNOptions(anchors_fitted=True))
    return FasterRCNNOptions(
        backbone=ResNet(50, norm="batch"),
        rpn=RPNOptions(convolutions=2, anchors_fitted=True),
        head=HeadOptions(convolutions=4, layers=1),
    )


def faster_rcnn_from_torchvision(state: State, frozen_eps: float = 0.0) -> FasterRCNN:
    """A detector, in eval mode, with the outputs of torchvision's `fasterrcnn_resnet50_fpn` or `…_v2`.

    It has the classes of `state` but for background: torchvision's label l is our l - 1. With the weights trained on
    COCO that makes 90 classes, the category ids less one, of which ten are names of nothing.

    Args:
        state: the model's `state_dict()`.
        frozen_eps: `eps` of torchvision's frozen norms, which a state dict does not tell: 0 in a model that began as
            the published detector, 1e-5 in one that began from an ImageNet backbone. Norms that learn have 1e-5.

    Raises `UserError` with the key that is missing, not known, given twice, of another shape, or not finite.
    """
    if CLASSES not in state or state[CLASSES].ndim != 1 or len(state[CLASSES]) < 2:
        raise UserError(f"{CLASSES}: no scores of background and of classes; {REMEDY}")
    options, num_classes = torchvision_options(state), len(state[CLASSES]) - 1
    # torchvision keeps the mean and deviation of pixels, which are ImageNet's as well, outside of the state.
    pixels = ("backbone.mean", "backbone.std")
    with torch.device("meta"):  # no memory for what a file of few bytes says until all of it fits
        empty = options.build(num_classes)
    matched = match_state(state, empty, _renamed, _background_last, REMEDY, given=pixels)
    model = options.build(num_classes).eval()
    model.load_state_dict(matched, strict=False)
    if not any(key.endswith(BATCHES) for key in state):
        _change_eps(model, frozen_eps)
    return model


def _renamed(key: str) -> str:
    return rename_by_prefix(key, PREFIXES)


def _background_last(key: str, value: Tensor) -> Tensor:
    """Background is torchvision's first class and our last; ours has no box."""
    if key.startswith("predictor.scores."):
        return value.roll(-1, dims=0)
    if key.startswith("predictor.deltas."):
        return value[4:]
    return value


@torch.no_grad()
def _change_eps(model: FasterRCNN, eps: float) -> None:
    """What the frozen norms would compute with `eps`, by other weights: then the options alone describe the network."""
    for norm in model.modules():
        if isinstance(norm, FrozenBatchNorm2d):
            variance = norm.running_var.double()
            norm.weight *= ((variance + norm.eps) / (variance + eps)).sqrt()
