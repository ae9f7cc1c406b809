"""Conversion of detectron2's Faster, Mask and Cascade R-CNN with equal outputs.

Supported are files of the model zoo (`model_final_….pkl`) and of training (`model_….pth`), with the architectures C4,
DC5 and FPN. Differences from our defaults, in the order of the forward pass:

- Most models expect BGR pixels, which the caffe2 style does not divide by the standard deviation. Here the input
  channels of the first convolution are reversed instead, and pixels stay RGB.
- The caffe2 style has the stride of a bottleneck in its first 1×1 convolution; DC5 dilates stage 5.
- Anchor shapes are not rounded. On a single feature map, anchors are ordered by size and then by ratio, ours by ratio
  and then by size, so the RPN's output channels are permuted.
- Boxes of any size are kept, and on a single feature map 6000 proposals enter NMS.
- RoIAlign shifts its samples by half a cell of the feature map, and takes as many as a bin has cells.

In detectron2, C4 and DC5 networks process the image without padding, here on a canvas of multiples of 32 pixels. If the
image has other sides, the features at the right and lower border are computed from the empty canvas instead of zeros,
and the outputs differ slightly.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from detect.backbones import FPNOptions, ResNetOptions
from detect.backbones.backbone import IMAGENET_MEAN, IMAGENET_STD, Colour
from detect.errors import UserError
from detect.foreign_weights.state_dicts import State, match_state, rename_by_prefix
from detect.models import (
    BoxHeadOptions,
    CascadeRCNN,
    CascadeRCNNOptions,
    FasterRCNN,
    FasterRCNNOptions,
    MaskHeadOptions,
    MaskRCNNOptions,
    PoolingOptions,
    PostprocessOptions,
    ProposalCounts,
    RegionHeadOptions,
    RPNOptions,
    TwoStage,
    build_detector,
)

Style = Literal["caffe2", "torchvision"]
Depth = Literal[18, 34, 50, 101, 152]

# Our prefix of a key by detectron2's, without `bottom_up.`; the rest of the key is the same except for LAYERS.
PREFIXES = {
    "backbone.stem.": "backbone.body.stem.",
    **{f"backbone.res{stage}.": f"backbone.body.layer{stage - 1}." for stage in range(2, 6)},
    **{f"backbone.fpn_lateral{stage}.": f"neck.lateral.{stage - 2}.0." for stage in range(2, 6)},
    **{f"backbone.fpn_output{stage}.": f"neck.output.{stage - 2}.0." for stage in range(2, 6)},
    "proposal_generator.rpn_head.conv.": "rpn.convolutions.0.",
    "proposal_generator.rpn_head.objectness_logits.": "rpn.objectness.",
    "proposal_generator.rpn_head.anchor_deltas.": "rpn.deltas.",
    "roi_heads.res5.": "region_head.box_head.stage.",
    **{f"roi_heads.box_head.fc{layer}.": f"region_head.box_head.layers.{layer - 1}." for layer in range(1, 5)},
    "roi_heads.box_predictor.cls_score.": "region_head.predictor.scores.",
    "roi_heads.box_predictor.bbox_pred.": "region_head.predictor.deltas.",
    **{f"roi_heads.mask_head.mask_fcn{i + 1}.": f"mask_head.convolutions.{2 * i}." for i in range(8)},
    "roi_heads.mask_head.deconv.": "mask_head.deconvolution.",
    "roi_heads.mask_head.predictor.": "mask_head.predictor.",
    **{
        f"roi_heads.{theirs.format(stage)}": f"region_head.stages.{stage}.{ours}"
        for stage in range(3)
        for theirs, ours in (
            *((f"box_head.{{}}.fc{layer}.", f"box_head.layers.{layer - 1}.") for layer in range(1, 5)),
            ("box_predictor.{}.cls_score.", "predictor.scores."),
            ("box_predictor.{}.bbox_pred.", "predictor.deltas."),
        )
    },
}
# Parts of a key within a ResNet; the first match is replaced.
LAYERS = {
    **{f"conv{layer}.norm.": f"bn{layer}." for layer in (1, 2, 3)},
    "shortcut.norm.": "downsample.1.",
    "shortcut.": "downsample.0.",
}
LEFT_OUT = {r"roi_heads\.keypoint_head\.": ("keypoint head", "only boxes and masks are detected")}
"""Tensors of Keypoint R-CNN, for `leave_out`."""
REFUSED = {
    "sem_seg_head.": "a panoptic network",
    "backbone.backbone.": "a YOLOX, which detect import yolox reads",
    "head.": "a RetinaNet or FCOS",
    "roi_heads.box_predictor.3.": "a cascade of more than three stages",
    "roi_heads.mask_head.mask_fcn1.norm.": "a mask head with norms",
    "roi_heads.box_head.conv1.": "a box head with convolutions",
    "proposal_generator.rpn_head.conv.conv0.": "an RPN with several convolutions",
}
"""Networks that are not supported, by a prefix of their keys."""
BLOCKS: dict[Depth, tuple[int, ...]] = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
"""Number of blocks in the last four stages of a ResNet, by its depth."""
CLASSES = "roi_heads.box_predictor.cls_score.bias"
DELTAS = "roi_heads.box_predictor.bbox_pred.bias"
CASCADE = "roi_heads.box_predictor.0.cls_score.bias"
MASKS = "roi_heads.mask_head.deconv.bias"
OBJECTNESS = "proposal_generator.rpn_head.objectness_logits.bias"
LATERAL = "backbone.fpn_lateral2.weight"
ANCHORS = "proposal_generator.anchor_generator.cell_anchors."
MEAN, STD = "pixel_mean", "pixel_std"
RATIOS = 3
"""Number of anchor aspect ratios, on every level."""
REMEDY = "give a Faster, Mask or Cascade R-CNN of detectron2: R50 or R101 with C4, DC5 or FPN"
MIN_SIZE = 1e-6
"""Minimum side of boxes in pixels. detectron2 keeps all boxes with an area; in float32 hardly any side is shorter."""


@dataclass(frozen=True, slots=True)
class Pixels:
    """Normalisation of an image, channel order of the first convolution, and position of the bottlenecks' stride.

    Args:
        mean: mean of red, green and blue.
        std: standard deviation of red, green and blue.
        reversed: the first convolution expects BGR.
        stride_in_1x1: bottlenecks have their stride in the first 1×1 convolution.
    """

    mean: Colour
    std: Colour
    reversed: bool
    stride_in_1x1: bool


STYLES: dict[Style, Pixels] = {
    "caffe2": Pixels(IMAGENET_MEAN, (1.0, 1.0, 1.0), reversed=True, stride_in_1x1=True),
    "torchvision": Pixels(IMAGENET_MEAN, IMAGENET_STD, reversed=False, stride_in_1x1=False),
}


def pixels_of(state: State, style: Style | None = None) -> Pixels:
    """Return the pixel normalisation and strides of a network, which cannot be inferred from its weights.

    Older files have a mean and standard deviation. The caffe2 style has a standard deviation of 1, and the smallest
    mean is blue's. Newer files have neither; then `style` is used, by default caffe2, as in the model zoo.

    Args:
        state: state dict of the network.
        style: overrides the mean and standard deviation in the state dict.

    Raises:
        UserError: the mean does not distinguish red from blue, or mean and standard deviation are invalid.
    """
    default = STYLES[style or "caffe2"]
    if MEAN not in state or STD not in state:
        return default
    mean, std = state[MEAN].flatten().tolist(), state[STD].flatten().tolist()
    if len(mean) != 3 or len(std) != 3 or not all(0 < value < float("inf") for value in std):
        raise UserError(f"{MEAN}, {STD}: {mean}, {std} are not valid for three channels; {REMEDY}")
    if style is None and mean[0] == mean[2]:
        raise UserError(f"{MEAN}: {mean} does not distinguish red from blue; add --style caffe2 or --style torchvision")
    reversed_ = default.reversed if style else mean[0] < mean[2]
    if reversed_:
        mean, std = mean[::-1], std[::-1]
    return Pixels(tuple(mean), tuple(std), reversed_, default.stride_in_1x1 if style else set(std) == {1.0})


def detectron2_options(state: State, style: Style | None = None) -> FasterRCNNOptions | CascadeRCNNOptions:
    """Return our options for the detectron2 network of `state`, with the values of detectron2's `Base-RCNN-*.yaml`.

    Args:
        state: state dict of the network.
        style: see `pixels_of`.

    Raises:
        UserError: the network is not supported.
    """
    state = _without_bottom_up(state)
    _refuse_others(state)
    fpn, c4 = LATERAL in state, "roi_heads.res5.0.conv1.weight" in state
    depth = _depth(state)
    backbone = ResNetOptions(
        depth,
        norm="frozen",
        dilated=not fpn and not c4,
        stride_in_1x1=depth >= 50 and pixels_of(state, style).stride_in_1x1,
    )
    rpn = RPNOptions(
        anchors_rounded=False,
        min_size=MIN_SIZE,
        training=ProposalCounts(2000, 1000) if fpn else ProposalCounts(12000, 2000),
        testing=ProposalCounts(1000, 1000) if fpn else ProposalCounts(6000, 1000),
    )
    box_head = "roi_heads.box_head.0" if CASCADE in state else "roi_heads.box_head"
    layers = [state[key] for key in (f"{box_head}.fc{layer}.bias" for layer in range(1, 5)) if key in state]
    common: dict[str, Any] = {
        "backbone": backbone,
        "neck": FPNOptions(channels=len(state[LATERAL])) if fpn else None,
        "rpn": rpn,
        "pooling": PoolingOptions(sampling_ratio=0, aligned=True),
        "box_head": BoxHeadOptions(layers=len(layers), channels=len(layers[0])) if layers else BoxHeadOptions(),
        "postprocess": PostprocessOptions(min_size=MIN_SIZE),
    }
    masks = _mask_options(state)
    if CASCADE in state:
        return CascadeRCNNOptions(**common, masks=masks)
    common["region_head"] = RegionHeadOptions(class_agnostic=len(state[DELTAS]) != 4 * (len(state[CLASSES]) - 1))
    return FasterRCNNOptions(**common) if masks is None else MaskRCNNOptions(**common, masks=masks)


def _mask_options(state: State) -> MaskHeadOptions | None:
    if MASKS not in state:
        return None
    convolutions = sum(bool(re.fullmatch(r"roi_heads\.mask_head\.mask_fcn\d+\.weight", key)) for key in state)
    return MaskHeadOptions(convolutions=convolutions, channels=len(state[MASKS]))


def detector_from_detectron2(state: State, style: Style | None = None) -> TwoStage:
    """Convert a network of detectron2 to a detector in eval mode with equal outputs and classes.

    Trained batch norms become frozen ones, which does not change the outputs.

    Args:
        state: state dict of the network.
        style: see `pixels_of`.

    Raises:
        UserError: a key is missing, unknown or given twice, or its value has another shape or is not finite.
    """
    options, pixels = detectron2_options(state, style), pixels_of(state, style)
    num_classes = len(state[CASCADE if CASCADE in state else CLASSES]) - 1
    with torch.device("meta"):  # a small file can claim large shapes: allocate only after they have matched
        empty = build_detector(options, num_classes)
    assert isinstance(empty, FasterRCNN | CascadeRCNN)
    sizes = empty.rpn.anchors.shapes.shape[1] // RATIOS
    state = _with_statistics(_without_bottom_up(state))
    weights = {key: value for key, value in state.items() if not key.startswith((ANCHORS, MEAN, STD))}

    def change(ours: str, value: Tensor) -> Tensor:
        if ours == "backbone.body.stem.conv1.weight" and pixels.reversed:
            return value.flip(1) if value.ndim == 4 else value
        if ours.startswith(("rpn.objectness.", "rpn.deltas.")):
            return _by_ratio(value, sizes)
        return value

    given = ("backbone.mean", "backbone.std")
    matched = match_state(weights, empty, _rename, change, REMEDY, given)
    model = build_detector(options, num_classes).eval()
    assert isinstance(model, FasterRCNN | CascadeRCNN)
    _check_anchors(state, model.rpn.anchors.shapes)
    model.load_state_dict(matched, strict=False)
    model.backbone.mean.copy_(torch.tensor(pixels.mean))
    model.backbone.std.copy_(torch.tensor(pixels.std))
    return model


def _without_bottom_up(state: State) -> dict[str, Tensor]:
    """Return the state with the keys of a ResNet without FPN."""
    return {key.replace("backbone.bottom_up.", "backbone."): value for key, value in state.items()}


def _refuse_others(state: State) -> None:
    """Raise `UserError` if the network is not supported; the message names known networks."""
    for prefix, network in REFUSED.items():
        if any(key.startswith(prefix) for key in state):
            raise UserError(f"{prefix}*: these are weights of {network}; {REMEDY}")
    for key, value in state.items():
        if ".conv2_offset." in key:
            raise UserError(f"{key}: deformable convolutions are not supported; {REMEDY}")
        if key.endswith(".conv2.weight") and value.ndim == 4 and value.shape[0] != value.shape[1]:
            raise UserError(f"{key}: grouped convolutions (ResNeXt) are not supported; {REMEDY}")
    stage = ".0" if CASCADE in state else ""
    classes, deltas = (key.replace("box_predictor", f"box_predictor{stage}") for key in (CLASSES, DELTAS))
    required = {OBJECTNESS: "no RPN", classes: "no scores of background and classes", deltas: "no box deltas"}
    for key, missing in required.items():
        if key not in state or state[key].ndim != 1 or len(state[key]) < (2 if key == classes else 1):
            raise UserError(f"{key}: {missing}; {REMEDY}")


def _depth(state: State) -> Depth:
    """Return the number of layers of the ResNet."""
    stages = ["backbone.res2.", "backbone.res3.", "backbone.res4.", "backbone.res5."]
    if "roi_heads.res5.0.conv1.weight" in state:
        stages[-1] = "roi_heads.res5."
    blocks = tuple(sum(key.startswith(at) and key.endswith(".conv1.weight") for key in state) for at in stages)
    bottlenecks = "backbone.res2.0.conv3.weight" in state
    for depth, expected in BLOCKS.items():
        if blocks == expected and bottlenecks == (depth >= 50):
            return depth
    raise UserError(f"backbone: no ResNet has stages of {', '.join(map(str, blocks))} blocks; {REMEDY}")


def _with_statistics(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add mean 0 and variance 1 to frozen norms if none has statistics, as in the first files of detectron2."""
    if any(key.endswith(".running_var") for key in state):
        return state
    added = {}
    for key, value in state.items():
        if key.endswith(".norm.weight"):
            added[key.replace(".weight", ".running_mean")] = torch.zeros(()).expand(value.shape)
            added[key.replace(".weight", ".running_var")] = torch.ones(()).expand(value.shape)
    return state | added


def _check_anchors(state: State, shapes: Float[Tensor, "L k 4"]) -> None:
    """Raise `UserError` if the file contains anchors, like older files, that differ from ours."""
    for level, ours in enumerate(shapes):
        theirs = state.get(f"{ANCHORS}{level}")
        if theirs is None:
            continue
        if theirs.shape != ours.shape or not torch.allclose(_by_ratio(theirs, len(ours) // RATIOS), ours, atol=1e-3):
            raise UserError(f"{ANCHORS}{level}: anchors of other sizes or ratios than detectron2's defaults; {REMEDY}")


def _by_ratio(values: Tensor, sizes: int) -> Tensor:
    """Reorder values per anchor from size-major to ratio-major order; values of another length are not changed."""
    if len(values) % (sizes * RATIOS):
        return values
    return values.unflatten(0, (sizes, RATIOS, -1)).transpose(0, 1).flatten(0, 2)


def _rename(key: str) -> str:
    key = rename_by_prefix(key, PREFIXES)
    if key.startswith(("backbone.body.", "region_head.box_head.stage.")):
        for theirs, ours in LAYERS.items():
            if theirs in key:
                return key.replace(theirs, ours)
    return key
