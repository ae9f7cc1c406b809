import copy

import pytest
import torch
from torch import nn
from torchvision.ops import box_iou

from detect.backbones import ResNetOptions
from detect.backbones.norm import FrozenBatchNorm2d
from detect.models import (
    BoxHeadOptions,
    Detector,
    FasterRCNNOptions,
    MaskHeadOptions,
    MaskRCNNOptions,
    PostprocessOptions,
    ProposalCounts,
    RPNOptions,
    build_detector,
)
from detect.ops.winograd import WinogradConv2d
from detect.prediction.prepare import fold_norms, prepare
from detect.structures import Detections, Images

NETWORKS = {
    "frozen": {"backbone": ResNetOptions(depth=18, norm="frozen", train_stages=5)},
    "batch": {"backbone": ResNetOptions(depth=18, norm="batch", train_stages=5)},
    "C4": {"backbone": ResNetOptions(depth=18, norm="batch", train_stages=5), "neck": None},
    "group": {"backbone": ResNetOptions(depth=18, norm="group", train_stages=5)},
    "masks": {
        "backbone": ResNetOptions(depth=18, norm="batch", train_stages=5),
        "masks": MaskHeadOptions(convolutions=2, channels=16, norm="batch"),
    },
    "C4 masks": {
        "backbone": ResNetOptions(depth=18, norm="batch", train_stages=5),
        "neck": None,
        "masks": MaskHeadOptions(convolutions=0, channels=16),
    },
}


def options(network) -> FasterRCNNOptions:
    counts = ProposalCounts(100, 20)
    return (MaskRCNNOptions if "masks" in network else FasterRCNNOptions)(
        **network,
        rpn=RPNOptions(anchor_sizes=(8, 16, 32, 48, 64), training=counts, testing=counts),
        box_head=BoxHeadOptions(convolutions=1, layers=1, channels=32),
        postprocess=PostprocessOptions(score_threshold=0.01),
    )


def made(network) -> Detector:
    """A detector with random batch norm statistics and class scores."""
    model = build_detector(options(network), num_classes=2).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
            for values, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.3, 0.3),
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 1.5),
            ):
                nn.init.uniform_(values, low, high)
    nn.init.normal_(model.region_head.predictor.scores.weight, std=0.5)
    return model


def images() -> Images:
    return Images(torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8), torch.tensor([[64, 96], [50, 70]]))


def assert_close(one: Detections, other: Detections, score: float, iou: float) -> None:
    """Assert that each detection clearly above the score threshold has a match, in both directions."""
    for first, second in ((one, other), (other, one)):
        assert first.valid.any()
        for place in range(len(first.boxes)):
            own = first.valid[place] & (first.scores[place] > 0.01 + score)
            overlaps = box_iou(first.boxes[place][own], second.boxes[place][second.valid[place]])
            same = first.labels[place][own][:, None] == second.labels[place][second.valid[place]]
            near = (first.scores[place][own][:, None] - second.scores[place][second.valid[place]]).abs() <= score
            assert (same & near & (overlaps >= iou)).any(dim=1).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_folded_norms_detect_the_same(name):
    model, inputs = made(NETWORKS[name]), images()
    assert_close(prepare(model).detect(inputs), model.detect(inputs), score=1e-4, iou=0.999)


@pytest.mark.parametrize("name", ["masks", "C4 masks"])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 0.05)])
def test_masks_stay_the_same(name, precision, tolerance):
    model, inputs = made(NETWORKS[name]), images()
    nn.init.normal_(model.mask_head.predictor.weight, std=0.1)
    boxes, labels = torch.tensor([[[5.0, 5, 50, 40], [30, 10, 60, 50]]] * 2), torch.tensor([[0, 1], [1, 0]])
    with torch.no_grad():
        expected, masks = (
            one.mask_head(one.features(inputs), boxes, labels).sigmoid() for one in (model, prepare(model, precision))
        )
    assert masks.dtype == torch.float32 and expected.std() > 0.05
    assert (masks - expected).abs().mean() < tolerance


@pytest.mark.parametrize("name", ["frozen", "batch", "C4", "masks", "C4 masks"])
def test_no_batch_norm_is_left(name):
    prepared = prepare(made(NETWORKS[name]))
    assert not any(isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d) for module in prepared.modules())
    assert not any(parameter.requires_grad for parameter in prepared.parameters()) and not prepared.training


def test_winograd_convolutions():
    model = made(NETWORKS["batch"])
    prepared = prepare(model)
    fast = [name for name, module in prepared.named_modules() if isinstance(module, WinogradConv2d)]
    # Convolutions of stride 1 of each block, and those of the FPN, the RPN and the box head.
    assert len(fast) == 4 * 4 - 3 + 4 + 1 + 1 and "backbone.body.layer1.0.conv1" in fast
    assert not any(isinstance(module, WinogradConv2d) for module in prepare(model, "bf16").modules())
    assert not any(isinstance(module, WinogradConv2d) for module in model.modules())


def test_bf16_scores_are_close():
    model, inputs = made(NETWORKS["batch"]), images()
    prepared = prepare(model, "bf16")
    assert next(prepared.backbone.parameters()).dtype == next(prepared.rpn.parameters()).dtype == torch.bfloat16
    detections = prepared.detect(inputs)
    assert detections.boxes.dtype == detections.scores.dtype == torch.float32
    with torch.no_grad():
        full, half = (one.rpn(one.features(inputs)) for one in (prepare(model), prepared))
        error = (half.logits - full.logits).square().mean().sqrt() / full.logits.std()
        assert 0 < error < 0.02  # bf16 has 8 bits; the order of sums depends on the machine
        boxes = torch.tensor([[10.0, 10, 50, 40]]).expand(2, 1, 4)
        (scores, deltas), (logits, _) = (
            one.region_head(one.features(inputs), boxes) for one in (prepare(model), prepared)
        )
    torch.testing.assert_close(logits.softmax(-1), scores.softmax(-1), atol=0.05, rtol=0)
    assert logits.dtype == deltas.dtype == torch.float32


@pytest.mark.parametrize("has", [True, False])
def test_a_cpu_without_bf16_is_a_warning(monkeypatch, caplog, has):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    prepare(made(NETWORKS["batch"]))
    assert not caplog.messages
    prepare(made(NETWORKS["batch"]), "bf16")
    message = "precision: this cpu emulates bf16, many times slower than fp32"
    assert caplog.messages == ([] if has else [message])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_original_is_not_changed(precision):
    model = made(NETWORKS["batch"]).train()
    before = copy.deepcopy(model.state_dict())
    prepare(model, precision)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())
    assert {value.dtype for value in after.values()} == {torch.float32, torch.int64}


def test_a_network_without_batch_norms_is_not_changed():
    layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1, bias=False), nn.GroupNorm(1, 2))
    before = copy.deepcopy(layers.state_dict())
    fold_norms(layers)
    after = layers.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.SyncBatchNorm])
def test_a_convolution_and_its_batch_norm_by_hand(norm):
    layers = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), norm(1, eps=0.0), nn.ReLU()).eval()
    with torch.no_grad():
        layers[0].weight.fill_(3.0)
        layers[1].weight.fill_(2.0), layers[1].bias.fill_(1.0)
        layers[1].running_mean.fill_(5.0), layers[1].running_var.fill_(4.0)
        fold_norms(layers)
    # (3 x - 5) / 2 · 2 + 1 = 3 x - 4
    assert layers[0].weight.item() == pytest.approx(3.0) and layers[0].bias.item() == pytest.approx(-4.0)
    assert isinstance(layers[1], nn.Identity) and isinstance(layers[2], nn.ReLU)


def test_backbones_and_necks_are_compiled(monkeypatch):
    asked = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: asked.append((type(self).__name__, options)))
    model = made(NETWORKS["batch"])
    prepare(model)
    prepare(model, compile=True)
    assert asked == [("ResNet", {"dynamic": False}), ("FPN", {"dynamic": False})]
