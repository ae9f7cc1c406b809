"""Imported weights give the detections of detectron2 that are stored in `detectron2_*.npz`.

These files were made by tools/fixtures/detectron2_detections.py, which also generates the weights and images.
"""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from detect.backbones.backbone import IMAGENET_MEAN, IMAGENET_STD
from detect.errors import UserError
from detect.foreign_weights.detectron2 import detector_from_detectron2, detectron2_options, pixels_of
from detect.models import ProposalCounts
from detect.models.cascade_head import STAGES
from detect.structures import Images

HERE = Path(__file__).parent
RECIPE = HERE.parents[1] / "tools" / "fixtures" / "detectron2_detections.py"


def _recipe():
    spec = importlib.util.spec_from_file_location(RECIPE.stem, RECIPE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[RECIPE.stem] = module  # its dataclass needs this
    spec.loader.exec_module(module)
    return module


recipe = _recipe()


def shapes_of(name):
    with np.load(HERE / f"detectron2_{name}.npz") as record:
        lines = [line.split() for line in str(record["shapes"]).splitlines()]
    return {key: tuple(map(int, sides)) for key, *sides in lines}


def recorded_state(name):
    weights = recipe.state_dict(shapes_of(name), torchvision_style=name == "fpn_torchvision")
    return {key: torch.from_numpy(value) for key, value in weights.items()}


def on_canvas(pixels):
    height, width = pixels.shape[:2]
    canvas = torch.full((1, 3, -(-height // 32) * 32, -(-width // 32) * 32), 255, dtype=torch.uint8)
    canvas[0, :, :height, :width] = torch.from_numpy(pixels).permute(2, 0, 1)
    return Images(canvas, torch.tensor([[height, width]]))


def assert_same_detections(detections, boxes, scores, labels, masks=None, is_cascade=False):
    """Assert that detections match one to one, in any order of equal scores, and have the same masks."""
    kept = detections.valid[0]
    ours = detections.boxes[0, kept]
    assert len(ours) == len(boxes) > 0
    # For a box that is clipped to a sliver, the corners are a better measure than the IoU.
    near = (ours[:, None] - boxes).abs().amax(dim=-1) <= 1e-2
    same = (
        (near | (box_iou(ours, boxes) >= 0.999))
        & ((detections.scores[0, kept][:, None] - scores).abs() <= 1e-4)
        & (detections.labels[0, kept][:, None] == labels)
    )
    if masks is not None:
        cells = detections.masks[0, kept][:, 1 :: recipe.CELLS, 1 :: recipe.CELLS].flatten(1)
        difference = (cells[:, None] - masks.flatten(1) / 65535).abs().amax(dim=-1)
        # Three stages in a row amplify the rounding of random networks.
        assert difference[same].max() <= (2e-4 if is_cascade else 1e-4) and masks.float().std() > 3000
    assert (same.sum(dim=0) == 1).all() and (same.sum(dim=1) == 1).all()


@pytest.mark.parametrize("name", recipe.CASES)
@torch.no_grad()
def test_outputs_are_detectron2s(name):
    case = recipe.CASES[name]
    model = detector_from_detectron2(recorded_state(name), "torchvision" if name == "fpn_torchvision" else None)
    assert not model.training and model.num_classes == recipe.CLASSES
    model.rpn.options = replace(model.rpn.options, testing=ProposalCounts(200, case.regions))
    with np.load(HERE / f"detectron2_{name}.npz") as record:
        of_image, *expected = (record[key] for key in ("image", "boxes", "scores", "labels", "masks") if key in record)
        assert (len(expected) == 4) == (model.mask_head is not None)
    images = recipe.images(case)
    assert len(images) == case.images
    for number, pixels in enumerate(images):
        there = [torch.from_numpy(values[of_image == number]) for values in expected[:3]]
        there += [torch.from_numpy(values[of_image == number].astype(np.float32)) for values in expected[3:]]
        assert_same_detections(model.detect(on_canvas(pixels)), *there, is_cascade=name == "cascade")
    labels = np.unique(expected[2])
    assert len(labels) > 3 and np.ptp(expected[1]) > 0.3  # several classes, high and low scores


# ---- pixel normalisation and strides ---------------------------------------------------------------------------------

BGR = {"pixel_mean": torch.tensor([103.53, 116.28, 123.675])[:, None, None], "pixel_std": torch.ones(3, 1, 1)}
RGB = {
    "pixel_mean": torch.tensor(IMAGENET_MEAN)[:, None, None],
    "pixel_std": torch.tensor(IMAGENET_STD)[:, None, None],
}
GREY = {"pixel_mean": torch.full((3, 1, 1), 127.5), "pixel_std": torch.full((3, 1, 1), 127.5)}


def test_the_default_style_is_the_model_zoos():
    pixels = pixels_of({})
    assert pixels == pixels_of({}, "caffe2")
    assert (pixels.mean, pixels.std) == (IMAGENET_MEAN, (1, 1, 1))
    assert pixels.reversed and pixels.stride_in_1x1
    pixels = pixels_of({}, "torchvision")
    assert (pixels.mean, pixels.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert not pixels.reversed and not pixels.stride_in_1x1


def test_the_style_follows_from_mean_and_standard_deviation():
    pixels = pixels_of(BGR)
    assert pixels.mean == pytest.approx(IMAGENET_MEAN) and pixels.std == (1, 1, 1)
    assert pixels.reversed and pixels.stride_in_1x1
    pixels = pixels_of(RGB)
    assert pixels.mean == pytest.approx(IMAGENET_MEAN) and pixels.std == pytest.approx(IMAGENET_STD)
    assert not pixels.reversed and not pixels.stride_in_1x1
    # As in detectron2's ResNeXt: BGR, but divided by the standard deviation.
    pixels = pixels_of({key: value.flip(0) for key, value in RGB.items()})
    assert pixels.mean == pytest.approx(IMAGENET_MEAN) and pixels.std == pytest.approx(IMAGENET_STD)
    assert pixels.reversed and not pixels.stride_in_1x1


def test_a_given_style_overrides_the_file():
    pixels = pixels_of(RGB, "caffe2")
    assert pixels.mean == pytest.approx(IMAGENET_MEAN[::-1])
    assert pixels.reversed and pixels.stride_in_1x1


def test_a_grey_mean_needs_a_style():
    with pytest.raises(
        UserError, match="does not distinguish red from blue; add --style caffe2 or --style torchvision"
    ):
        pixels_of(GREY)
    assert pixels_of(GREY, "torchvision").mean == (127.5,) * 3


@pytest.mark.parametrize("std", [torch.zeros(3), torch.ones(1), torch.tensor([1.0, torch.nan, 1.0])])
def test_an_invalid_standard_deviation_is_refused(std):
    with pytest.raises(UserError, match="are not valid for three channels"):
        pixels_of(BGR | {"pixel_std": std})


# ---- architectures ---------------------------------------------------------------------------------------------------


def empty_state(name, **changes):
    """Return a state dict without memory."""
    return {key: torch.empty(shape, device="meta") for key, shape in (shapes_of(name) | changes).items()}


def test_architecture_depth_and_widths_follow_from_the_state():
    options = {name: detectron2_options(empty_state(name)) for name in recipe.CASES}
    backbones = {name: chosen.backbone for name, chosen in options.items()}
    boxes = ("fpn", "c4", "dc5", "fpn_torchvision")
    assert [backbones[name].depth for name in boxes] == [50, 50, 50, 101]
    assert [options[name].neck is not None for name in boxes] == [True, False, False, True]
    assert [backbones[name].dilated for name in boxes] == [False, False, True, False]
    assert all(backbone.stride_in_1x1 for backbone in backbones.values())
    assert (options["dc5"].box_head.layers, options["dc5"].box_head.channels) == (2, 64)
    assert [options[name].region_head.class_agnostic for name in boxes] == [False, False, True, False]
    assert (options["c4"].rpn.testing.pre_nms_top_k, options["c4"].rpn.testing.post_nms_top_k) == (6000, 1000)
    assert (options["fpn"].rpn.testing.pre_nms_top_k, options["fpn"].rpn.testing.post_nms_top_k) == (1000, 1000)
    assert [options[name].predicts_masks for name in boxes] == [False] * 4
    heads = {name: options[name].masks for name in ("mask_fpn", "mask_c4", "mask_dc5", "cascade")}
    assert [head.convolutions for head in heads.values()] == [4, 0, 4, 4]
    assert {head.channels for head in heads.values()} == {256}
    assert options["cascade"].region_head.stages == STAGES and options["cascade"].box_head.channels == 64


RES3 = "backbone.bottom_up.res3.0.conv2"
OTHERS = {
    "of a YOLOX, which detect import yolox reads": {"backbone.backbone.stem.x": (3,), "head.x": (3,)},
    "of a RetinaNet or FCOS": {"head.cls_score.weight": (3,)},
    "of a cascade of more than three stages": {"roi_heads.box_predictor.3.cls_score.weight": (3,)},
    "of a mask head with norms": {"roi_heads.mask_head.mask_fcn1.norm.weight": (3,)},
    "of a box head with convolutions": {"roi_heads.box_head.conv1.weight": (3,)},
    "of an RPN with several convolutions": {"proposal_generator.rpn_head.conv.conv0.weight": (3,)},
    "of a panoptic network": {"sem_seg_head.p2.0.weight": (3,)},
    "res3.0.conv2_offset.weight: deformable convolutions are not supported": {f"{RES3}_offset.weight": (27, 128, 3, 3)},
    r"res3.0.conv2.weight: grouped convolutions \(ResNeXt\) are not supported": {f"{RES3}.weight": (512, 16, 3, 3)},
    "objectness_logits.bias: no RPN": {"proposal_generator.rpn_head.objectness_logits.bias": None},
    "cls_score.bias: no scores of background": {"roi_heads.box_predictor.cls_score.bias": None},
    "bbox_pred.bias: no box deltas": {"roi_heads.box_predictor.bbox_pred.bias": None},
    "no ResNet has stages of 3, 4, 7, 3 blocks": {"backbone.bottom_up.res4.6.conv1.weight": (256, 1024, 1, 1)},
}


@pytest.mark.parametrize("message", OTHERS)
def test_other_networks_are_refused_by_name(message):
    shapes = shapes_of("fpn") | OTHERS[message]
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items() if shape is not None}
    with pytest.raises(UserError, match=message) as error:
        detectron2_options(state)
    assert "\n" not in str(error.value) and "give a Faster, Mask or Cascade R-CNN of detectron2" in str(error.value)


def test_an_empty_state_is_refused():
    with pytest.raises(UserError, match="no RPN"):
        detector_from_detectron2({})


# ---- old and damaged files -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def state():
    return recorded_state("c4")


@pytest.fixture(scope="module")
def imported(state):
    return detector_from_detectron2(state).state_dict()


def equal(model, expected):
    return all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


def cell_anchors(sizes):
    """Return anchors in detectron2's order: by size, then by ratio."""
    shapes = [(size / ratio**0.5, size * ratio**0.5) for size in sizes for ratio in (0.5, 1.0, 2.0)]
    return torch.tensor([[-width / 2, -height / 2, width / 2, height / 2] for width, height in shapes])


def test_anchors_and_pixels_of_old_files_are_checked(state, imported):
    old = state | BGR | {"proposal_generator.anchor_generator.cell_anchors.0": cell_anchors([32, 64, 128, 256, 512])}
    assert equal(detector_from_detectron2(old), imported)
    other = old | {"proposal_generator.anchor_generator.cell_anchors.0": cell_anchors([16, 32, 64, 128, 256])}
    with pytest.raises(UserError, match=r"cell_anchors\.0: anchors of other sizes"):
        detector_from_detectron2(other)


def test_frozen_norms_without_statistics_have_mean_0_and_variance_1(state):
    first = {key: value for key, value in state.items() if ".running_" not in key}
    model = detector_from_detectron2(first).state_dict()
    means = [value for key, value in model.items() if key.endswith(".running_mean")]
    variances = [value for key, value in model.items() if key.endswith(".running_var")]
    assert len(means) == len(variances) == 53
    assert not any(value.any() for value in means) and all((value == 1).all() for value in variances)


def test_batch_counts_are_left_out(state, imported):
    counted = state | {"backbone.stem.conv1.norm.num_batches_tracked": torch.tensor(7)}
    assert equal(detector_from_detectron2(counted), imported)


SCORES, DELTAS = "roi_heads.box_predictor.cls_score.weight", "proposal_generator.rpn_head.anchor_deltas.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {key: value for key, value in state.items() if key != SCORES}, "predictor.scores.weight: no va"),
        (lambda state: state | {"roi_heads.other.weight": torch.zeros(1)}, "roi_heads.other.weight: unknown key"),
        (lambda state: state | {"backbone.bottom_up.stem.conv1.weight": torch.zeros(1)}, "stem.conv1.weight"),
        (
            lambda state: state | {DELTAS: state[DELTAS][:12]},
            r"deltas.weight: has shape \[12, 1024, 1, 1\] instead of \[60, 1024, 1",
        ),
        (lambda state: state | {SCORES: state[SCORES] * torch.inf}, "cls_score.weight: .* not finite"),
    ],
)
def test_mismatched_keys_are_named(state, change, message):
    with pytest.raises(UserError, match=message) as error:
        detector_from_detectron2(change(state))
    assert "\n" not in str(error.value)
