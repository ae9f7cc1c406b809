"""detectron2's trained Faster R-CNNs, and the boxes of its Mask R-CNNs, as ours, with equal outputs.

The files are those of its model zoo (`model_final_….pkl`) and of its training (`model_….pth`), of the three kinds that
its configs call C4, DC5 and FPN. What differs from our defaults, in the order in which an image meets it:

- pixels are blue, green, red in most of its models, and of the caffe2 style not divided by their deviation; here the
  first convolution takes its channels in the other order, so that pixels stay red, green, blue;
- the caffe2 style has the stride of a bottleneck in the 1×1 convolution; DC5 dilates all of stage 5;
- anchors have unrounded shapes, and on a single map they run through the ratios of a size, not the sizes of a ratio:
  the channels of the RPN's outputs change places;
- boxes of any size are kept, and a single map has 6000 of them enter NMS;
- RoIAlign shifts its samples by half a cell and takes as many as a bin has cells.

C4 and DC5 networks see an image there as it is, here on a canvas of multiples of 32 pixels. Where the image's sides are
no such multiples, cells at the right and lower border see features of the empty canvas, where there they see zeros: the
outputs differ a little.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from detect.backbones import ResNet
from detect.backbones.backbone import IMAGENET_MEAN, IMAGENET_STD, Colour
from detect.config import FasterRCNNOptions
from detect.errors import UserError
from detect.foreign_weights.state_dicts import State, match_state, rename_by_prefix
from detect.models import (
    BoxOptions,
    FasterRCNN,
    HeadOptions,
    PoolingOptions,
    PostprocessOptions,
    ProposalCounts,
    RPNOptions,
)

Style = Literal["caffe2", "torchvision"]
Depth = Literal[18, 34, 50, 101, 152]

# Beginnings of detectron2's keys, without `bottom_up.`, and of ours; what follows them is the same but for LAYERS.
PREFIXES = {
    "backbone.stem.": "backbone.body.stem.",
    **{f"backbone.res{stage}.": f"backbone.body.layer{stage - 1}." for stage in range(2, 6)},
    **{f"backbone.fpn_lateral{stage}.": f"backbone.fpn.lateral.{stage - 2}.0." for stage in range(2, 6)},
    **{f"backbone.fpn_output{stage}.": f"backbone.fpn.output.{stage - 2}.0." for stage in range(2, 6)},
    "proposal_generator.rpn_head.conv.": "rpn.convolutions.0.",
    "proposal_generator.rpn_head.objectness_logits.": "rpn.objectness.",
    "proposal_generator.rpn_head.anchor_deltas.": "rpn.deltas.",
    "roi_heads.res5.": "trunk.stage.",
    **{f"roi_heads.box_head.fc{layer}.": f"trunk.layers.{layer - 1}." for layer in range(1, 5)},
    "roi_heads.box_predictor.cls_score.": "predictor.scores.",
    "roi_heads.box_predictor.bbox_pred.": "predictor.deltas.",
}
# Within a ResNet. The first that fits is meant.
LAYERS = {
    **{f"conv{layer}.norm.": f"bn{layer}." for layer in (1, 2, 3)},
    "shortcut.norm.": "downsample.1.",
    "shortcut.": "downsample.0.",
}
LEFT_OUT = {
    r"roi_heads\.mask_head\.": ("mask head", "boxes alone are detected"),
    r"roi_heads\.keypoint_head\.": ("keypoint head", "boxes alone are detected"),
}
"""What Mask R-CNN and Keypoint R-CNN have beside a Faster R-CNN, to be left out of their states first."""
REFUSED = {
    "sem_seg_head.": "a panoptic network",
    "head.": "a RetinaNet or FCOS",
    "roi_heads.box_predictor.0.": "a cascade of heads",
    "roi_heads.box_head.conv1.": "a box head with convolutions",
    "proposal_generator.rpn_head.conv.conv0.": "an RPN with several convolutions",
}
BLOCKS: dict[Depth, tuple[int, ...]] = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
"""Of the four last stages of each ResNet, by its depth."""
CLASSES = "roi_heads.box_predictor.cls_score.bias"
DELTAS = "roi_heads.box_predictor.bbox_pred.bias"
OBJECTNESS = "proposal_generator.rpn_head.objectness_logits.bias"
LATERAL = "backbone.fpn_lateral2.weight"
ANCHORS = "proposal_generator.anchor_generator.cell_anchors."
MEAN, STD = "pixel_mean", "pixel_std"
RATIOS = 3
"""Of the anchors' shapes, on every level."""
REMEDY = "give a Faster R-CNN of detectron2: R50 or R101 with C4, DC5 or FPN"
LEAST_SIZE = 1e-6
"""In pixels, of boxes. detectron2 keeps all that have an area; in float32 a side within an image is hardly shorter."""


@dataclass(frozen=True, slots=True)
class Pixels:
    """What becomes of an image before the first convolution, and where the bottlenecks have their stride.

    Args:
        mean: of red, green and blue.
        std: of red, green and blue.
        reversed: the first convolution takes blue, green, red.
        stride_in_1x1: of the bottlenecks.
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
    """How a network wants its pixels, and its strides, which its weights do not tell.

    Older files hold mean and deviation. Of these the caffe2 style has a deviation of one, and the mean's smallest value
    is that of blue. Newer files say nothing: then it is `style`, by default the model zoo's, caffe2.

    Args:
        state: the network's.
        style: to be believed rather than what is found in the state.

    Raises `UserError` where the state does not tell red from blue.
    """
    default = STYLES[style or "caffe2"]
    if MEAN not in state or STD not in state:
        return default
    mean, std = state[MEAN].flatten().tolist(), state[STD].flatten().tolist()
    if len(mean) != 3 or len(std) != 3 or not all(0 < value < float("inf") for value in std):
        raise UserError(f"{MEAN}, {STD}: {mean}, {std} are not those of three colours; {REMEDY}")
    if style is None and mean[0] == mean[2]:
        raise UserError(f"{MEAN}: {mean} does not tell red from blue; add --style caffe2 or --style torchvision")
    reversed_ = default.reversed if style else mean[0] < mean[2]
    if reversed_:
        mean, std = mean[::-1], std[::-1]
    return Pixels(tuple(mean), tuple(std), reversed_, default.stride_in_1x1 if style else set(std) == {1.0})


def detectron2_options(state: State, style: Style | None = None) -> FasterRCNNOptions:
    """Which of detectron2's networks `state` belongs to, in our words; the numbers are those of its `Base-RCNN-*.yaml`.

    Raises `UserError` where it is none of them.
    """
    state = _without_bottom_up(state)
    _refuse_others(state)
    fpn, c4 = LATERAL in state, "roi_heads.res5.0.conv1.weight" in state
    depth = _depth(state)
    backbone = ResNet(
        depth,
        fpn=fpn,
        fpn_channels=len(state[LATERAL]) if fpn else 256,
        norm="frozen",
        dilated=not fpn and not c4,
        stride_in_1x1=depth >= 50 and pixels_of(state, style).stride_in_1x1,
    )
    rpn = RPNOptions(
        anchors_rounded=False,
        min_size=LEAST_SIZE,
        training=ProposalCounts(2000, 1000) if fpn else ProposalCounts(12000, 2000),
        testing=ProposalCounts(1000, 1000) if fpn else ProposalCounts(6000, 1000),
    )
    layers = [state[key] for key in (f"roi_heads.box_head.fc{layer}.bias" for layer in range(1, 5)) if key in state]
    return FasterRCNNOptions(
        backbone=backbone,
        rpn=rpn,
        pooling=PoolingOptions(sampling_ratio=0, aligned=True),
        head=HeadOptions(layers=len(layers), channels=len(layers[0])) if layers else HeadOptions(),
        boxes=BoxOptions(class_wise=len(state[DELTAS]) == 4 * (len(state[CLASSES]) - 1)),
        detections=PostprocessOptions(min_size=LEAST_SIZE),
    )


def faster_rcnn_from_detectron2(state: State, style: Style | None = None) -> FasterRCNN:
    """A detector, in eval mode, with the outputs of detectron2's network and its classes.

    Norms that learnt become constants, which changes no output. `style` is explained at `pixels_of`.

    Raises `UserError` with the key that is missing, not known, given twice, of another shape, or not finite.
    """
    options, pixels = detectron2_options(state, style), pixels_of(state, style)
    num_classes = len(state[CLASSES]) - 1
    with torch.device("meta"):  # no memory for what a file of few bytes says until all of it fits
        empty = options.build(num_classes)
    assert empty.rpn is not None
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
    matched = match_state(weights, empty, _renamed, change, REMEDY, given)
    model = options.build(num_classes).eval()
    assert model.rpn is not None
    _check_anchors(state, model.rpn.anchors.shapes)
    model.load_state_dict(matched, strict=False)
    model.backbone.mean.copy_(torch.tensor(pixels.mean))
    model.backbone.std.copy_(torch.tensor(pixels.std))
    return model


def _without_bottom_up(state: State) -> dict[str, Tensor]:
    """The ResNet under a pyramid has the same keys as the one without."""
    return {key.replace("backbone.bottom_up.", "backbone."): value for key, value in state.items()}


def _refuse_others(state: State) -> None:
    """Raises `UserError` where the state is of another network, named as far as its keys tell it."""
    for beginning, what in REFUSED.items():
        if any(key.startswith(beginning) for key in state):
            raise UserError(f"{beginning}*: these are weights of {what}; {REMEDY}")
    for key, value in state.items():
        if ".conv2_offset." in key:
            raise UserError(f"{key}: its convolutions are deformable; {REMEDY}")
        if key.endswith(".conv2.weight") and value.ndim == 4 and value.shape[0] != value.shape[1]:
            raise UserError(f"{key}: its convolutions have groups (ResNeXt); {REMEDY}")
    needed = {OBJECTNESS: "no RPN", CLASSES: "no scores of background and of classes", DELTAS: "no deltas of boxes"}
    for key, what in needed.items():
        if key not in state or state[key].ndim != 1 or len(state[key]) < (2 if key == CLASSES else 1):
            raise UserError(f"{key}: {what}; {REMEDY}")


def _depth(state: State) -> Depth:
    """How many layers the ResNet has."""
    stages = ["backbone.res2.", "backbone.res3.", "backbone.res4.", "backbone.res5."]
    if "roi_heads.res5.0.conv1.weight" in state:
        stages[-1] = "roi_heads.res5."
    blocks = tuple(sum(key.startswith(at) and key.endswith(".conv1.weight") for key in state) for at in stages)
    bottlenecks = "backbone.res2.0.conv3.weight" in state
    for depth, expected in BLOCKS.items():
        if blocks == expected and bottlenecks == (depth >= 50):
            return depth
    raise UserError(f"backbone: stages of {', '.join(map(str, blocks))} blocks are of no ResNet; {REMEDY}")


def _with_statistics(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state, with mean 0 and variance 1 of frozen norms where none has any, as in detectron2's first files."""
    if any(key.endswith(".running_var") for key in state):
        return state
    added = {}
    for key, value in state.items():
        if key.endswith(".norm.weight"):
            added[key.replace(".weight", ".running_mean")] = torch.zeros(()).expand(value.shape)
            added[key.replace(".weight", ".running_var")] = torch.ones(()).expand(value.shape)
    return state | added


def _check_anchors(state: State, shapes: Float[Tensor, "L k 4"]) -> None:
    """Raises `UserError` where the file has anchors, as older ones do, and they are not ours."""
    for level, ours in enumerate(shapes):
        theirs = state.get(f"{ANCHORS}{level}")
        if theirs is None:
            continue
        if theirs.shape != ours.shape or not torch.allclose(_by_ratio(theirs, len(ours) // RATIOS), ours, atol=1e-3):
            raise UserError(f"{ANCHORS}{level}: anchors of other sizes or ratios than detectron2's own; {REMEDY}")


def _by_ratio(values: Tensor, sizes: int) -> Tensor:
    """What is for the anchors of a cell, from size by size to ratio by ratio; other lengths stay as they are."""
    if len(values) % (sizes * RATIOS):
        return values
    return values.unflatten(0, (sizes, RATIOS, -1)).transpose(0, 1).flatten(0, 2)


def _renamed(key: str) -> str:
    key = rename_by_prefix(key, PREFIXES)
    if key.startswith(("backbone.body.", "trunk.stage.")):
        for theirs, ours in LAYERS.items():
            if theirs in key:
                return key.replace(theirs, ours)
    return key
