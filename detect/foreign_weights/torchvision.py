"""Conversion of torchvision's Faster R-CNN, and of the box branch of its Mask R-CNN, with equal outputs."""

from __future__ import annotations

import torch
from torch import Tensor

from detect.backbones import ResNetOptions
from detect.backbones.norm import FrozenBatchNorm2d
from detect.errors import UserError
from detect.foreign_weights.state_dicts import BATCHES, State, match_state, rename_by_prefix
from detect.models import BoxHeadOptions, FasterRCNN, FasterRCNNOptions, RPNOptions

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
    # Files older than torchvision 0.13, such as the published v1, have one level less in these keys.
    **{f"rpn.head.conv.{kind}": f"rpn.convolutions.0.{kind}" for kind in ("weight", "bias")},
    **{
        f"backbone.fpn.{theirs}.{level}.{kind}": f"neck.{ours}.{level}.0.{kind}"
        for theirs, ours in (("inner_blocks", "lateral"), ("layer_blocks", "output"))
        for level in range(4)
        for kind in ("weight", "bias")
    },
}
CLASSES = "roi_heads.box_predictor.cls_score.bias"
REMEDY = "give a state dict of torchvision's fasterrcnn_resnet50_fpn or fasterrcnn_resnet50_fpn_v2"
LEFT_OUT = {
    r"roi_heads\.mask_": ("mask head", "only boxes are detected"),
    r"roi_heads\.keypoint_": ("keypoint head", "only boxes are detected"),
}
"""Tensors of Mask R-CNN and Keypoint R-CNN that Faster R-CNN does not have, for `leave_out`."""


def torchvision_options(state: State) -> FasterRCNNOptions:
    """Return our options for the torchvision network of `state`.

    `fasterrcnn_resnet50_fpn` has frozen batch norms, an FPN without norms, one convolution in the RPN and two fully
    connected layers in the box head. `fasterrcnn_resnet50_fpn_v2` (Li et al. 2021, "Benchmarking Detection Transfer
    Learning with Vision Transformers") has trained batch norms, also in the FPN, two convolutions in the RPN, and four
    convolutions and one fully connected layer in the box head. Apart from the anchor positions, the rest equals our
    defaults.
    """
    if "roi_heads.box_head.fc6.weight" in state:
        return FasterRCNNOptions(backbone=ResNetOptions(50, norm="frozen"), rpn=RPNOptions(anchors_fitted=True))
    return FasterRCNNOptions(
        backbone=ResNetOptions(50, norm="batch"),
        rpn=RPNOptions(convolutions=2, anchors_fitted=True),
        box_head=BoxHeadOptions(convolutions=4, layers=1),
    )


def faster_rcnn_from_torchvision(state: State, frozen_eps: float = 0.0) -> FasterRCNN:
    """Convert torchvision's `fasterrcnn_resnet50_fpn` or `…_v2` to a detector in eval mode with equal outputs.

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
        empty = FasterRCNN(num_classes, options)
    matched = match_state(state, empty, _rename, _background_last, REMEDY, given=pixels)
    model = FasterRCNN(num_classes, options).eval()
    model.load_state_dict(matched, strict=False)
    if not any(key.endswith(BATCHES) for key in state):
        _change_eps(model, frozen_eps)
    return model


def _rename(key: str) -> str:
    return rename_by_prefix(key, PREFIXES)


def _background_last(key: str, value: Tensor) -> Tensor:
    """Move background, which has no box, from torchvision's first class to our last."""
    if key.startswith("region_head.predictor.scores."):
        return value.roll(-1, dims=0)
    if key.startswith("region_head.predictor.deltas."):
        return value[4:]
    return value


@torch.no_grad()
def _change_eps(model: FasterRCNN, eps: float) -> None:
    """Change the weights of the frozen norms so that the outputs are those with `eps`, which is not an option."""
    for norm in model.modules():
        if isinstance(norm, FrozenBatchNorm2d):
            variance = norm.running_var.double()
            norm.weight *= ((variance + norm.eps) / (variance + eps)).sqrt()
