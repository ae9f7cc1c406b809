"""Conversion of YOLOX's files with equal outputs: nano, tiny, s, m, l and x, also with other multiples and classes.

YOLOX reads BGR and we read RGB, so the input channels of the first convolution are reversed. Its image sizes differ
from ours by at most a pixel: it rounds them down. Boxes are clipped to the image here, which YOLOX leaves out.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from detect.backbones import CSPDarknetOptions, PAFPNOptions
from detect.errors import UserError
from detect.foreign_weights.state_dicts import State, match_state
from detect.models import YOLOX, YOLOXOptions

_RENAMED = (
    # the body
    (r"^backbone\.backbone\.stem\.conv\.conv\.", "backbone.body.stem.0.convolution."),
    (r"^backbone\.backbone\.stem\.conv\.bn\.", "backbone.body.stem.0.norm."),
    (r"^backbone\.backbone\.dark5\.1\.conv1\.", "backbone.body.dark5.1.reduce."),
    (r"^backbone\.backbone\.dark5\.1\.conv2\.", "backbone.body.dark5.1.merge."),
    (r"^backbone\.backbone\.", "backbone.body."),
    # the neck, level 0 finest
    (r"^backbone\.lateral_conv0\.", "neck.reduce.1."),
    (r"^backbone\.C3_p4\.", "neck.top_down.1."),
    (r"^backbone\.reduce_conv1\.", "neck.reduce.0."),
    (r"^backbone\.C3_p3\.", "neck.top_down.0."),
    (r"^backbone\.bu_conv2\.", "neck.downsample.0."),
    (r"^backbone\.C3_n3\.", "neck.bottom_up.0."),
    (r"^backbone\.bu_conv1\.", "neck.downsample.1."),
    (r"^backbone\.C3_n4\.", "neck.bottom_up.1."),
    # the head
    (r"^head\.stems\.(\d)\.", r"head.levels.\1.stem."),
    (r"^head\.cls_convs\.(\d)\.", r"head.levels.\1.class_branch."),
    (r"^head\.reg_convs\.(\d)\.", r"head.levels.\1.box_branch."),
    (r"^head\.cls_preds\.(\d)\.", r"head.levels.\1.classes."),
    (r"^head\.reg_preds\.(\d)\.", r"head.levels.\1.boxes."),
    (r"^head\.obj_preds\.(\d)\.", r"head.levels.\1.objectness."),
    # cross stage partial layers, their bottlenecks, and convolutions
    (r"\.m\.(\d+)\.conv1\.", r".bottlenecks.\1.reduce."),
    (r"\.m\.(\d+)\.conv2\.", r".bottlenecks.\1.spatial."),
    (r"\.conv1\.", ".main."),
    (r"\.conv2\.", ".side."),
    (r"\.conv3\.", ".merge."),
    (r"\.dconv\.", ".0."),
    (r"\.pconv\.", ".1."),
    (r"\.conv\.", ".0."),
    (r"\.bn\.", ".1."),
)
"""Regular expressions for parts of YOLOX's keys with what replaces them, in this order."""
STEM = "backbone.backbone.stem.conv.conv.weight"
CLASSES = "head.cls_preds.0.bias"
REMEDY = "give a file of YOLOX with its nano, tiny, s, m, l or x network"
_DEPTHS = {1: 0.33, 2: 0.67, 3: 1.0, 4: 1.33}
"""Multiple of the depth by the number of bottlenecks in the neck."""


def yolox_options(state: State) -> YOLOXOptions:
    """Return our options for the network of `state`. Raise `UserError` if it is not YOLOX's."""
    for key in (STEM, CLASSES):
        if key not in state or not state[key].ndim:
            raise UserError(f"{key}: no such tensor; {REMEDY}")
    stem, classes = state[STEM], state[CLASSES]
    if stem.shape[1:] != (12, 3, 3):  # the order of the colours of a 6×6 stem is unknown
        raise UserError(f"{STEM}: has shape {list(stem.shape)}, not that of Focus, [n, 12, 3, 3]; {REMEDY}")
    if not len(classes):
        raise UserError(f"{CLASSES}: has no classes; {REMEDY}")
    counted = {int(found[1]) for key in state if (found := re.match(r"backbone\.C3_p3\.m\.(\d+)\.", key))}
    count, depthwise = len(counted), any(".dconv." in key for key in state)
    depth, width = _DEPTHS.get(count, count / 3), len(stem) / 64
    if not 0 < depth < 20 or not 0 < width < 20:
        raise UserError(f"{STEM}: depth {depth:g} and width {width:g}, which no network has; {REMEDY}")
    return YOLOXOptions(
        backbone=CSPDarknetOptions(depth=depth, width=width, depthwise=depthwise),
        neck=PAFPNOptions(depth=depth, width=width, depthwise=depthwise),
        depthwise=depthwise,
    )


def detector_from_yolox(state: State) -> YOLOX:
    """Convert YOLOX's network to our detector, in eval mode, with equal outputs on equal pixels.

    Args:
        state: the state dict, in YOLOX's files under `model`.

    Raises:
        UserError: a key is missing, unknown or given twice, or its value has another shape or is not finite.
    """
    options, num_classes = yolox_options(state), len(state[CLASSES])
    with torch.device("meta"):  # a small file can claim large shapes: allocate only after they have matched
        empty = YOLOX(num_classes, options)
    matched = match_state(state, empty, rename, _stem, REMEDY, given=("backbone.mean", "backbone.std"))
    model = YOLOX(num_classes, options).eval()
    model.load_state_dict(matched, strict=False)
    return model


def image_size(options: YOLOXOptions) -> int:
    """Return the longest side of YOLOX's images: 416 pixels for nano and tiny, 640 for the others."""
    assert isinstance(options.backbone, CSPDarknetOptions)
    return 416 if options.backbone.width < 0.5 else 640


def rename(key: str) -> str:
    """Return our key for YOLOX's."""
    for pattern, ours in _RENAMED:
        key = re.sub(pattern, ours, key)
    return key


def _stem(key: str, value: Tensor) -> Tensor:
    """Turn the 3×3 convolution behind YOLOX's Focus into a 6×6 convolution of RGB.

    Focus puts the pixels (row, column) = (0, 0), (1, 0), (0, 1), (1, 1) of each 2×2 into the channels 0 … 2, 3 … 5, …
    """
    if key != "backbone.body.stem.0.convolution.weight":
        return value
    column, row, colour, y, x = 1, 2, 3, 4, 5
    parts = value.unflatten(1, (2, 2, 3)).permute(0, colour, y, row, x, column)
    return parts.reshape(len(value), 3, 6, 6).flip(1)
