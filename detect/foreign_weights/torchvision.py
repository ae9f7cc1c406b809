"""Conversion of torchvision's Faster R-CNN and Mask R-CNN with equal outputs.

Boxes, scores and the 28 × 28 probabilities of the masks are equal; masks in pixels are not: torchvision moves the box
of a mask to whole pixels before it pastes, and here the formula is detectron2's, which is closer to the objects.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from detect.backbones import ResNetOptions
from detect.backbones.norm import FrozenBatchNorm2d
from detect.errors import UserError
from detect.foreign_weights.state_dicts import BATCHES, State, match_state, rename_by_prefix
from detect.models import (
    BoxHeadOptions,
    FasterRCNN,
    FasterRCNNOptions,
    MaskHeadOptions,
    MaskRCNNOptions,
    RPNOptions,
    build_detector,
)

# Our prefix of a key by torchvision's; the rest of the key is the same. The longest matching prefix is replaced. Both
# versions share the table, because every key has the same meaning in both.
PREFIXES = {
    "backbone.body.conv1.": "backbone.body.stem.conv1.",
    "backbone.body.bn1.": "backbone.body.stem.bn1.",
    "backbone.body.layer": "backbone.body.layer",
    "backbone.fpn.inner_blocks.": "neck.lateral.",
    "backbone.fpn.layer_blocks.": "neck.output.",
    "rpn.head.conv.0.0.": "rpn.convolutions.0.",
    "rpn.head.conv.1.0.": "rpn.convolutions.2.",
    "rpn.head.cls_logits.": "rpn.objectness.",
    "rpn.head.bbox_pred.": "rpn.deltas.",
    # v1: two fully connected layers
    "roi_heads.box_head.fc6.": "region_head.box_head.layers.0.",
    "roi_heads.box_head.fc7.": "region_head.box_head.layers.1.",
    # v2: four convolutions, each with its norm, and one fully connected layer
    **{f"roi_heads.box_head.{i}.0.": f"region_head.box_head.convolutions.{3 * i}." for i in range(4)},
    **{f"roi_heads.box_head.{i}.1.": f"region_head.box_head.convolutions.{3 * i + 1}." for i in range(4)},
    "roi_heads.box_head.5.": "region_head.box_head.layers.0.",
    "roi_heads.box_predictor.cls_score.": "region_head.predictor.scores.",
    "roi_heads.box_predictor.bbox_pred.": "region_head.predictor.deltas.",
    # masks: four convolutions, in v2 each with its norm
    **{f"roi_heads.mask_head.{i}.0.": f"mask_head.convolutions.{2 * i}." for i in range(4)},
    "roi_heads.mask_predictor.conv5_mask.": "mask_head.deconvolution.",
    "roi_heads.mask_predictor.mask_fcn_logits.": "mask_head.predictor.",
    # Files older than torchvision 0.13, such as the published v1, have one level less in these keys.
    **{f"rpn.head.conv.{kind}": f"rpn.convolutions.0.{kind}" for kind in ("weight", "bias")},
    **{
        f"backbone.fpn.{theirs}.{level}.{kind}": f"neck.{ours}.{level}.0.{kind}"
        for theirs, ours in (("inner_blocks", "lateral"), ("layer_blocks", "output"))
        for level in range(4)
        for kind in ("weight", "bias")
    },
    **{f"roi_heads.mask_head.mask_fcn{i + 1}.": f"mask_head.convolutions.{2 * i}." for i in range(4)},
}
WITH_NORM = {
    f"roi_heads.mask_head.{i}.{layer}.": f"mask_head.convolutions.{3 * i + layer}."
    for i in range(4)
    for layer in (0, 1)
}
"""Prefixes of v2's mask head, whose convolutions are followed by a norm."""
CLASSES = "roi_heads.box_predictor.cls_score.bias"
REMEDY = "give a state dict of torchvision's fasterrcnn_resnet50_fpn, maskrcnn_resnet50_fpn or their v2"
LEFT_OUT = {r"roi_heads\.keypoint_": ("keypoint head", "only boxes and masks are detected")}
"""Tensors of Keypoint R-CNN, for `leave_out`."""
MASKS = "roi_heads.mask_predictor.mask_fcn_logits.bias"


def torchvision_options(state: State) -> FasterRCNNOptions:
    """Return our options for the torchvision network of `state`.

    `fasterrcnn_resnet50_fpn` has frozen batch norms, an FPN without norms, one convolution in the RPN and two fully
    connected layers in the box head. `fasterrcnn_resnet50_fpn_v2` (Li et al. 2021, "Benchmarking Detection Transfer
    Learning with Vision Transformers") has trained batch norms, also in the FPN, two convolutions in the RPN, and four
    convolutions and one fully connected layer in the box head. Apart from the anchor positions, the rest equals our
    defaults.
    """
    is_v1 = "roi_heads.box_head.fc6.weight" in state
    given: dict[str, Any] = {
        "backbone": ResNetOptions(50, norm="frozen" if is_v1 else "batch"),
        "rpn": RPNOptions(convolutions=1 if is_v1 else 2, anchors_fitted=True),
        "box_head": BoxHeadOptions() if is_v1 else BoxHeadOptions(convolutions=4, layers=1),
    }
    if MASKS not in state:
        return FasterRCNNOptions(**given)
    return MaskRCNNOptions(**given, masks=MaskHeadOptions(norm="none" if is_v1 else "batch"))


def detector_from_torchvision(state: State, frozen_eps: float = 0.0) -> FasterRCNN:
    """Convert torchvision's `fasterrcnn_resnet50_fpn`, `maskrcnn_resnet50_fpn` or their `…_v2` to our detector.

    It is in eval mode and has equal outputs; see above for masks.

    It has the same classes except background: torchvision's label l is our l - 1. Weights trained on COCO have 90
    classes, the category ids minus one, ten of them unused.

    Args:
        state: the model's `state_dict()`.
        frozen_eps: `eps` of torchvision's frozen batch norms, which is not in a state dict: 0 in the published detector
            and models fine-tuned from it, 1e-5 in models trained from an ImageNet backbone. Trained batch norms have
            1e-5.

    Raises:
        UserError: a key is missing, unknown or given twice, or its value has another shape or is not finite.
    """
    if CLASSES not in state or state[CLASSES].ndim != 1 or len(state[CLASSES]) < 2:
        raise UserError(f"{CLASSES}: no scores of background and classes; {REMEDY}")
    options, num_classes = torchvision_options(state), len(state[CLASSES]) - 1
    # torchvision's pixel mean and standard deviation, also those of ImageNet, are not in the state dict.
    pixels = ("backbone.mean", "backbone.std")
    with torch.device("meta"):  # a small file can claim large shapes: allocate only after they have matched
        empty = build_detector(options, num_classes)
    rename = _rename_v2 if "roi_heads.mask_head.0.1.weight" in state else _rename
    matched = match_state(state, empty, rename, _background_last, REMEDY, given=pixels)
    model = build_detector(options, num_classes).eval()
    assert isinstance(model, FasterRCNN)
    model.load_state_dict(matched, strict=False)
    if not any(key.endswith(BATCHES) for key in state):
        _change_eps(model, frozen_eps)
    return model


def _rename(key: str) -> str:
    return rename_by_prefix(key, PREFIXES)


def _rename_v2(key: str) -> str:
    return rename_by_prefix(key, PREFIXES | WITH_NORM)


def _background_last(key: str, value: Tensor) -> Tensor:
    """Move background, which has no box, from torchvision's first class to our last."""
    if key.startswith("region_head.predictor.scores."):
        return value.roll(-1, dims=0)
    if key.startswith("region_head.predictor.deltas."):
        return value[4:]
    if key.startswith("mask_head.predictor."):
        return value[1:]
    return value


@torch.no_grad()
def _change_eps(model: FasterRCNN, eps: float) -> None:
    """Change the weights of the frozen norms so that the outputs are those with `eps`, which is not an option."""
    for norm in model.modules():
        if isinstance(norm, FrozenBatchNorm2d):
            variance = norm.running_var.double()
            norm.weight *= ((variance + norm.eps) / (variance + eps)).sqrt()
