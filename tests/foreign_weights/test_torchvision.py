from dataclasses import replace
from functools import cache, partial

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import (
    FasterRCNN,
    fasterrcnn_resnet50_fpn,
    fasterrcnn_resnet50_fpn_v2,
    maskrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn_v2,
)
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import FrozenBatchNorm2d, box_iou

from detect.errors import UserError
from detect.foreign_weights.torchvision import detector_from_torchvision
from detect.models import MaskRCNN, ProposalCounts
from detect.structures import Images

CLASSES = 7  # and background
BEFORE_NMS, AFTER_NMS = 200, 20
OPTIONS = {
    "num_classes": CLASSES + 1,
    "rpn_pre_nms_top_n_test": BEFORE_NMS,
    "rpn_post_nms_top_n_test": AFTER_NMS,
    "_skip_resize": True,
}
BATCHES = [1, 1, 1, 1, 2, 2, 3, 3, 3, 3]


def regions(features: dict[str, Tensor]) -> Tensor:
    return features["1"].unfold(2, 7, 3).unfold(3, 7, 3).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)


@torch.no_grad()
def calibrated(model: nn.Module) -> nn.Module:
    """Set random batch norm statistics near those of the activations, and scale the outputs to order one."""
    for name, norm in model.named_modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 1.0
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.2, 0.2)
            if name.endswith("bn3"):
                norm.weight *= 0.3  # a random network amplifies small differences, unlike a trained one
    model.backbone.body.conv1.weight *= 0.01  # a variance so small that eps matters
    pixels = (torch.randint(0, 256, (2, 3, 96, 96)) / 255 - 0.45) / 0.23
    model.roi_heads.box_head.train()(regions(model.backbone.train()(pixels)))
    model.eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean += 0.1 * norm.running_var.sqrt() * torch.randn_like(norm.running_mean)
            norm.running_var *= torch.empty_like(norm.running_var).uniform_(0.8, 1.5)

    features = model.backbone(pixels)
    hidden, vectors = model.rpn.head.conv(features["1"]), model.roi_heads.box_head(regions(features))
    for layer, inputs, deviation in (
        (model.rpn.head.cls_logits, hidden, 1.0),
        (model.rpn.head.bbox_pred, hidden, 0.3),
        (model.roi_heads.box_predictor.cls_score, vectors, 1.0),
        (model.roi_heads.box_predictor.bbox_pred, vectors, 0.5),
    ):
        layer.weight *= deviation / layer(inputs).std()
        layer.bias.normal_(std=deviation / 4)
    return model


@cache
def v1_of_batch_norms() -> FasterRCNN:
    torch.manual_seed(0)
    return calibrated(fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, **OPTIONS))


def v1(eps: float) -> FasterRCNN:
    """Return a model with frozen norms like the published one, whose eps was 0 before torchvision 0.13."""
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=partial(FrozenBatchNorm2d, eps=eps)
    )
    model = FasterRCNN(backbone, **OPTIONS)
    model.load_state_dict(v1_of_batch_norms().state_dict(), strict=False)
    return model.eval()


def v2() -> FasterRCNN:
    torch.manual_seed(0)
    return calibrated(fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, **OPTIONS))


def random_batch(images: int) -> list[Tensor]:
    return [
        torch.randint(0, 256, (3, *torch.randint(64, 193, (2,)).tolist()), dtype=torch.uint8) for _ in range(images)
    ]


def on_canvas(images: list[Tensor]) -> Images:
    sizes = torch.tensor([image.shape[1:] for image in images])
    height, width = (-(-sizes.amax(dim=0) // 32) * 32).tolist()
    pixels = torch.full(
        (len(images), 3, height, width), 255, dtype=torch.uint8
    )  # the canvas outside of an image may have any content
    for canvas, image in zip(pixels, images, strict=True):
        canvas[:, : image.shape[1], : image.shape[2]] = image
    return Images(pixels, sizes)


def imported(theirs: nn.Module, **options):
    ours = detector_from_torchvision(theirs.state_dict(), **options)
    assert not ours.training and ours.num_classes == CLASSES
    ours.rpn.options = replace(ours.rpn.options, testing=ProposalCounts(BEFORE_NMS, AFTER_NMS))
    return ours


def assert_same_detections(detections, row: int, expected: dict[str, Tensor]) -> None:
    """Assert that detections match one to one, in any order of equal scores."""
    kept = detections.valid[row]
    boxes, scores, labels = detections.boxes[row, kept], detections.scores[row, kept], detections.labels[row, kept]
    assert len(boxes) == len(expected["boxes"]) > 0
    # For a box that is clipped to a sliver, the corners are a better measure than the IoU.
    near = (boxes[:, None] - expected["boxes"]).abs().amax(dim=-1) <= 1e-2
    same = (
        (near | (box_iou(boxes, expected["boxes"]) >= 0.999))
        & ((scores[:, None] - expected["scores"]).abs() <= 1e-4)
        & (labels[:, None] + 1 == expected["labels"])
    )
    assert (same.sum(dim=0) == 1).all() and (same.sum(dim=1) == 1).all()


@pytest.mark.parametrize(
    ("build", "eps"),
    [(partial(v1, eps=0.0), {}), (partial(v1, eps=1e-5), {"frozen_eps": 1e-5}), (v1_of_batch_norms, {}), (v2, {})],
    ids=["v1", "v1-eps", "v1-batch", "v2"],
)
@torch.no_grad()
def test_outputs_are_torchvisions(build, eps, request):
    theirs = build()
    theirs.transform.train()  # resizing can be skipped only in training mode
    ours = imported(theirs, **eps)
    heads = []
    theirs.rpn.head.register_forward_hook(lambda _, __, output: heads.append(concat_box_prediction_layers(*output)))
    # The published variants are tested with all batches, the others with one.
    batches = BATCHES if request.node.callspec.id in ("v1", "v2") else [2]
    for images in map(random_batch, batches):
        expected = theirs([image / 255 for image in images])
        logits, deltas = heads.pop()
        canvas = on_canvas(images)
        output = ours.rpn(ours.features(canvas))
        torch.testing.assert_close(output.logits.flatten(), logits.flatten(), atol=1e-4, rtol=0)
        torch.testing.assert_close(output.deltas.flatten(0, 1), deltas, atol=1e-4, rtol=0)
        assert logits.std() > 1 and deltas.std() > 0.1
        detections = ours.detect(canvas)
        for row, detected in enumerate(expected):
            assert_same_detections(detections, row, detected)


@torch.no_grad()
def with_mask_outputs(model: nn.Module) -> nn.Module:
    """Scale the logits of the masks to order one, after `calibrated`."""
    heads = model.eval().roi_heads
    features = model.backbone((torch.randint(0, 256, (2, 3, 96, 96)) / 255 - 0.45) / 0.23)
    regions = features["0"].unfold(2, 14, 5).unfold(3, 14, 5).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    for norm in heads.mask_head.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(std=0.1)
            norm.running_var.uniform_(0.5, 1.5)
    last = heads.mask_predictor.mask_fcn_logits
    last.weight /= heads.mask_predictor(heads.mask_head(regions)).std()
    last.bias.normal_(std=0.3)
    return model


@pytest.mark.parametrize("build", [maskrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2], ids=["v1", "v2"])
@torch.no_grad()
def test_probabilities_of_masks_are_torchvisions(build):
    """Compared before they are pasted."""
    torch.manual_seed(0)
    theirs = with_mask_outputs(calibrated(build(weights=None, weights_backbone=None, **OPTIONS)))
    theirs.transform.train()
    ours, logits = imported(theirs), []
    assert type(ours) is MaskRCNN
    theirs.roi_heads.mask_predictor.register_forward_hook(lambda _, __, output: logits.append(output))
    for images in map(random_batch, (1, 2)):
        expected, canvas = theirs([image / 255 for image in images]), on_canvas(images)
        probabilities = iter(logits.pop().sigmoid())
        detections = ours.detect(canvas)
        for row, detected in enumerate(expected):
            assert_same_detections(detections, row, detected)
            for box, label in zip(detected["boxes"], detected["labels"], strict=True):
                one, is_same = next(probabilities)[label], detections.labels[row] + 1 == label
                distances = (detections.boxes[row] - box).abs().amax(dim=-1).masked_fill(~is_same, 1e9)
                mask = detections.masks[row, distances.argmin()]
                assert (mask - one).abs().max() <= 1e-4 and mask.std() > 0.05


def test_shorter_keys_of_old_mask_heads():
    state = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3).state_dict()
    old = state
    for layer in range(4):
        old = renamed(old, f"roi_heads.mask_head.{layer}.0.", f"roi_heads.mask_head.mask_fcn{layer + 1}.")
    assert old.keys() != state.keys()
    new, old = detector_from_torchvision(state).state_dict(), detector_from_torchvision(old).state_dict()
    assert all(torch.equal(value, old[key]) for key, value in new.items())


def renamed(state: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    return {key.replace(old, new): value for key, value in state.items()}


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return v1_of_batch_norms().state_dict()


def test_shorter_keys_of_old_versions(state):
    old = renamed(state, "rpn.head.conv.0.0.", "rpn.head.conv.")
    for level in range(4):
        for blocks in ("inner_blocks", "layer_blocks"):
            old = renamed(old, f"{blocks}.{level}.0.", f"{blocks}.{level}.")
    assert old.keys() != state.keys()
    new, old = detector_from_torchvision(state).state_dict(), detector_from_torchvision(old).state_dict()
    assert all(torch.equal(value, old[key]) for key, value in new.items())


def test_half_precision_becomes_single(state):
    model = detector_from_torchvision({key: value.half() for key, value in state.items()})
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}


LOGITS = "rpn.head.cls_logits.weight"
SCORES = "roi_heads.box_predictor.cls_score.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {}, "cls_score.bias: no scores"),
        (
            lambda state: {key: value for key, value in state.items() if key != LOGITS},
            "rpn.objectness.weight: no value",
        ),
        (lambda state: state | {"roi_heads.other.weight": torch.zeros(1)}, "roi_heads.other.weight: unknown key"),
        (
            lambda state: state | {"backbone.body.layer4.3.conv1.weight": torch.zeros(1)},
            "layer4.3.conv1.weight: unknown key",
        ),
        (lambda state: state | {"rpn.head.conv.bias": state["rpn.head.conv.0.0.bias"]}, "rpn.head.conv.bias: given tw"),
        (
            lambda state: state | {LOGITS: state[LOGITS][:2]},
            r"cls_logits.weight: has shape \[2, 256, 1, 1\] instead of \[3, 256, 1, 1",
        ),
        (lambda state: state | {SCORES: torch.tensor(0.0)}, r"cls_score.weight: has shape \[\] instead of \[8, 1024\]"),
        (lambda state: state | {SCORES: state[SCORES] * torch.nan}, "cls_score.weight: .* not finite"),
    ],
)
def test_mismatched_keys_are_named(state, change, message):
    with pytest.raises(UserError, match=message) as error:
        detector_from_torchvision(change(state))
    assert "\n" not in str(error.value)
