"""Cascade R-CNN: heads in a row, each trained on the boxes of the one before."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from detect.backbones import FPNOptions, ResNetOptions
from detect.errors import UserError
from detect.models import (
    BoxHeadOptions,
    CascadeHeadOptions,
    CascadeRCNN,
    CascadeRCNNOptions,
    CascadeStageOptions,
    FasterRCNN,
    FasterRCNNOptions,
    ProposalCounts,
    RegionHeadOptions,
    RPNOptions,
)
from detect.models.cascade_head import STAGES, ScaledGradient, refine
from detect.ops.boxes import iou_matrix
from detect.structures import Batch, Images, Targets

CLASSES = 3
COUNTS = ProposalCounts(60, 30)
COMMON = {
    "backbone": ResNetOptions(18, norm="batch", train_stages=5),
    "neck": FPNOptions(channels=16),
    "rpn": RPNOptions(anchor_sizes=(8, 16, 32, 64, 96), training=COUNTS, testing=COUNTS, batch_size_per_image=64),
    "box_head": BoxHeadOptions(channels=32),
}


@torch.no_grad()
def make_model(stages=STAGES) -> CascadeRCNN:
    """Return a cascade whose heads move boxes and disagree."""
    torch.manual_seed(0)
    options = CascadeRCNNOptions(**COMMON, region_head=CascadeHeadOptions(16, stages=stages))
    model = CascadeRCNN(CLASSES, options)
    model.rpn.objectness.weight.normal_(std=0.1)
    for predictor in model.region_head.predictors:
        predictor.scores.weight.normal_(std=0.3)
        predictor.deltas.weight.normal_(std=0.1)
    return model


def make_batch(*counts: int) -> Batch:
    images, length = len(counts), max(*counts, 1)
    corner = torch.rand(images, length, 2) * 20
    boxes = torch.cat([corner, corner + torch.rand(images, length, 2) * 30 + 6], dim=-1)
    valid = torch.arange(length) < torch.tensor(counts)[:, None]
    return Batch(
        images=Images(torch.randint(0, 256, (images, 3, 64, 96), dtype=torch.uint8), torch.tensor([[64, 96]] * images)),
        targets=Targets(boxes, torch.randint(0, CLASSES, (images, length)), valid, torch.zeros_like(valid)),
        ids=torch.arange(images),
        scales=torch.ones(images, 2),
    )


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def test_defaults_are_the_paper_s():
    """Cai and Vasconcelos 2018, §4.2 and §5.1."""
    stages = CascadeHeadOptions().stages
    assert [stage.positive_iou for stage in stages] == [0.5, 0.6, 0.7]
    assert [stage.delta_weights for stage in stages] == [(10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15)]
    matcher = make_model().region_head.heads[2].matcher
    assert (matcher.positive_iou, matcher.negative_iou, matcher.negative_iou_min) == (0.7, 0.7, 0)


def test_one_stage_is_faster_rcnn_with_class_agnostic_boxes():
    """The oracle of losses and detections: the same weights in both models."""
    cascade = make_model(STAGES[:1]).eval()
    region_head = RegionHeadOptions(batch_size_per_image=16, class_agnostic=True)
    faster = FasterRCNN(CLASSES, FasterRCNNOptions(**COMMON, region_head=region_head)).eval()
    state = {key.replace("region_head.stages.0.", "region_head."): value for key, value in cascade.state_dict().items()}
    faster.load_state_dict(state)
    batch, results = make_batch(2, 3), []
    for model in (cascade, faster):
        torch.manual_seed(0)
        losses = model.loss(batch)
        results.append(([losses.get(f"{name}_1", losses.get(name)) for name in losses], model.detect(batch.images)))
    (losses, detections), (expected_losses, expected) = results
    torch.testing.assert_close(losses, expected_losses, atol=0, rtol=0)
    for name in ("boxes", "scores", "labels", "valid"):
        torch.testing.assert_close(getattr(detections, name), getattr(expected, name), atol=0, rtol=0)


def test_later_stages_match_all_refined_boxes_at_their_own_iou(monkeypatch):
    """All samples of the first stage reach the last one, with the labels that the last threshold gives them."""
    model, seen = make_model(), []
    batch = make_batch(3, 2)
    for head in model.region_head.heads:
        monkeypatch.setattr(head, "losses", lambda *given, head=head: seen.append((head, *given)) or {})
    model.loss(batch)
    assert [len(given) for given in seen] == [4, 4, 4]
    for (before, _, deltas, samples), (head, _, _, following) in pairwise(seen):
        assert torch.equal(following.boxes, refine(before, deltas, samples.boxes, batch.images.sizes))
        iou = iou_matrix(following.boxes, batch.targets.boxes).masked_fill(~batch.targets.valid[:, None], -1)
        positive = iou.amax(dim=-1) >= head.matcher.positive_iou
        assert torch.equal(following.labels < CLASSES, positive)
        assert not following.boxes.requires_grad and not (following.valid & ~samples.valid).any()


def test_probabilities_are_the_mean_of_the_stages_and_boxes_come_from_the_last():
    model = make_model().eval()
    batch = make_batch(1, 1)
    features = model.features(batch.images)
    proposals = model.propose(batch.images)
    predictions = model.region_head.predict(features, proposals, batch.images.sizes)
    boxes, probabilities = proposals.boxes, []
    for place, head in enumerate(model.region_head.heads):
        logits, deltas = head(features, boxes)
        probabilities.append(logits.softmax(dim=-1)[..., :-1])
        if place < 2:
            boxes = refine(head, deltas, boxes, batch.images.sizes)
    torch.testing.assert_close(predictions.probabilities, sum(probabilities) / 3)
    assert torch.equal(predictions.boxes, boxes) and torch.equal(predictions.deltas, deltas)


def test_the_features_get_a_third_of_the_gradient():
    class Pooling(torch.nn.Module):
        def forward(self, features, boxes):
            return features[0] * 2

    features = torch.ones(1, 2, 3, 3, requires_grad=True)
    pooled = ScaledGradient(Pooling(), 1 / 3)([features], torch.zeros(1, 1, 4))
    pooled.sum().backward()
    assert torch.equal(pooled, torch.full_like(features, 2.0))
    torch.testing.assert_close(features.grad, torch.full_like(features, 2 / 3))


def test_a_gradient_reaches_every_stage():
    model = make_model()
    losses = model.loss(make_batch(3, 3))
    assert list(losses)[2:] == [f"{name}_{stage}" for stage in (1, 2, 3) for name in ("classification", "boxes")]
    total(losses).backward()
    assert all(predictor.scores.weight.grad.any() for predictor in model.region_head.predictors)


@pytest.mark.parametrize("counts", [(0,), (0, 2)])
def test_images_without_objects(counts):
    losses = make_model().loss(make_batch(*counts))
    assert all(loss.isfinite() for loss in losses.values())


def test_nothing_depends_on_data_on_a_gpu():
    batch = make_batch(2, 3).to("meta")
    with torch.device("meta"):
        model = CascadeRCNN(CLASSES, CascadeRCNNOptions(**COMMON))
        total(model.loss(batch)).backward()
        detections = model.eval().detect(batch.images)
    assert detections.boxes.shape == (2, 90, 4)


@pytest.mark.usefixtures("unchecked")
def test_the_loss_compiles_as_one_graph():
    model, batch, results = make_model(), make_batch(2, 3), []
    for loss in (model.loss, torch.compile(model.loss, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(0)
        model.zero_grad()
        losses = loss(batch)
        total(losses).backward()
        gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
        results.append((losses, gradients))
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-3)


def test_a_network_with_its_own_box_head_is_refused():
    with pytest.raises(UserError, match="a cascade needs several"):
        CascadeRCNN(CLASSES, CascadeRCNNOptions(backbone=ResNetOptions(18), neck=None))
    with pytest.raises(ValueError, match="at least 1"):
        CascadeHeadOptions(stages=())
    assert replace(CascadeHeadOptions(), stages=[CascadeStageOptions(0.5, (1, 1, 1, 1))]).stages[0].positive_iou == 0.5
