"""The head on regions: samples, and predictions that a further head can refine."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from detect.backbones import BoxHead, FeatureInfo
from detect.models import PoolingOptions, PostprocessOptions, RegionHead, RegionHeadOptions
from detect.models.box_coder import BoxCoder
from detect.models.box_head import BoxHeadOptions, BoxPredictor, ConvFCBoxHead
from detect.models.region_pooling import RegionPooling
from detect.ops.boxes import clip
from detect.structures import Proposals, Targets

CLASSES = 3
SIZES = torch.tensor([[64, 96], [50, 70]])
ALL = PostprocessOptions(
    score_threshold=0.0, nms_threshold=1.0, max_detections=10_000, pre_nms_top_k=10_000, min_size=0
)


@torch.no_grad()
def make_head(**options) -> RegionHead:
    """One map of stride 16 with four channels; scores and boxes differ from region to region."""
    box_head = ConvFCBoxHead(4, 7, BoxHeadOptions(layers=1, channels=16))
    options = RegionHeadOptions(batch_size_per_image=8, **options)
    predictor = BoxPredictor(16, CLASSES, options.class_agnostic)
    predictor.scores.weight.normal_(std=2)
    predictor.deltas.weight.normal_()
    pooling = RegionPooling([FeatureInfo(4, 16)], 7, PoolingOptions())
    return RegionHead(CLASSES, pooling, box_head, predictor, options)


def make_features() -> list[Tensor]:
    return [torch.randn(2, 4, 4, 6)]


def make_proposals(count: int = 20, valid_share: float = 0.8) -> Proposals:
    corner = torch.rand(2, count, 2) * 40
    boxes = torch.cat([corner, corner + torch.rand(2, count, 2) * 20 + 4], dim=-1)
    return Proposals(boxes, torch.rand(2, count), torch.rand(2, count) < valid_share)


def make_targets(*counts: int, length: int) -> Targets:
    corner = torch.rand(len(counts), length, 2) * 40
    boxes = torch.cat([corner, corner + torch.rand(len(counts), length, 2) * 20 + 4], dim=-1)
    valid = torch.arange(length) < torch.tensor(counts)[:, None]
    return Targets(boxes, torch.randint(0, CLASSES, valid.shape), valid, torch.zeros_like(valid))


# ---- samples ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [(0, 0), (1, 0), (4, 2), (5, 5)])
def test_matched_is_the_index_of_the_ground_truth(counts):
    targets = make_targets(*counts, length=5)
    near = targets.boxes[:, torch.arange(30) % 5] + torch.randn(2, 30, 4)
    proposals = Proposals(near, torch.ones(2, 30), torch.ones(2, 30, dtype=torch.bool))
    samples = make_head(positive_fraction=1.0).sample(proposals, targets)
    assert samples.matched.shape == samples.labels.shape == samples.valid.shape == (2, 8)
    for row, count in enumerate(counts):
        objects = samples.valid[row] & (samples.labels[row] < CLASSES)
        assert objects.any() == (count > 0)
        matched = samples.matched[row, objects]
        assert (matched < count).all()
        assert torch.equal(targets.labels[row, matched], samples.labels[row, objects])
        assert torch.equal(targets.boxes[row, matched], samples.matched_boxes[row, objects])


def test_matched_by_hand():
    """A proposal on the second ground truth, one on the first, and the two ground truths themselves."""
    boxes = torch.tensor([[[0.0, 0, 10, 10], [20, 20, 40, 40]]])
    valid = torch.ones(1, 2, dtype=torch.bool)
    targets = Targets(boxes, torch.tensor([[2, 0]]), valid, ~valid)
    near = torch.tensor([[[20.0, 20, 40, 39], [0, 0, 9, 10]]])
    samples = make_head(positive_fraction=1.0).sample(Proposals(near, torch.ones(1, 2), valid), targets)
    rows = zip(samples.boxes[0].tolist(), samples.labels[0].tolist(), samples.matched[0].tolist(), strict=True)
    assert sorted(rows) == [
        ([0, 0, 9, 10], 2, 0),
        ([0, 0, 10, 10], 2, 0),
        ([20, 20, 40, 39], 0, 1),
        ([20, 20, 40, 40], 0, 1),
    ]
    assert samples.valid.all()
    assert torch.equal(samples.matched_boxes, boxes.gather(1, samples.matched[..., None].expand(-1, -1, 4)))


def test_padded_and_crowded_ground_truths_are_never_matched():
    targets = make_targets(4, 4, length=6)
    crowd = torch.zeros_like(targets.valid)
    crowd[:, 1] = True
    samples = make_head(positive_fraction=1.0).sample(make_proposals(200), replace(targets, crowd=crowd))
    objects = samples.valid & (samples.labels < CLASSES)
    assert objects.any(dim=1).all() and set(samples.matched[objects].tolist()) <= {0, 2, 3}


# ---- predictions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 20])
@pytest.mark.parametrize("class_agnostic", [False, True])
def test_predictions_are_probabilities_deltas_and_the_boxes_that_they_refer_to(class_agnostic, count):
    head, features, proposals = make_head(class_agnostic=class_agnostic), make_features(), make_proposals(count)
    predictions = head.predict(features, proposals)
    logits, deltas = head(features, proposals.boxes)
    assert predictions.probabilities.shape == (2, count, CLASSES) and logits.shape == (2, count, CLASSES + 1)
    torch.testing.assert_close(predictions.probabilities, logits.softmax(dim=-1)[..., :CLASSES])
    torch.testing.assert_close(predictions.deltas, deltas)
    background = logits.softmax(dim=-1)[..., -1]
    torch.testing.assert_close(predictions.probabilities.sum(dim=-1) + background, torch.ones(2, count))
    assert torch.equal(predictions.boxes, proposals.boxes) and torch.equal(predictions.valid, proposals.valid)
    if class_agnostic:
        assert torch.equal(predictions.deltas, predictions.deltas[..., :1, :].expand(-1, -1, CLASSES, -1))


@pytest.mark.parametrize("delta_weights", [(10.0, 10.0, 5.0, 5.0), None])
def test_decoded_predictions_are_the_detections_without_nms(delta_weights):
    head, features, proposals = make_head(delta_weights=delta_weights), make_features(), make_proposals()
    if delta_weights is None:
        head.statistics.mean.normal_(std=0.1)
        head.statistics.std.uniform_(0.1, 0.3)
    predictions = head.predict(features, proposals)
    references = predictions.boxes[:, :, None].expand(-1, -1, CLASSES, -1)
    refined = head.box_coder.decode(predictions.deltas, references)
    assert head.box_coder == BoxCoder(delta_weights or (1.0, 1.0, 1.0, 1.0))
    detections = head.detect(features, proposals, SIZES, ALL)
    assert detections.proposals is proposals
    for row in range(2):
        valid = predictions.valid[row]
        expected = clip(refined[row, valid].flatten(0, 1)[None], SIZES[row : row + 1])[0]
        scores = predictions.probabilities[row, valid].flatten()
        labels = torch.arange(CLASSES).repeat(int(valid.sum()))
        # Boxes beyond the image are clipped to nothing, and are no detections.
        large = (expected[:, 2:] > expected[:, :2]).all(dim=-1)
        order = scores[large].argsort(descending=True)
        kept = detections.valid[row]
        assert kept.sum() == large.sum() > 10
        torch.testing.assert_close(detections.scores[row, kept], scores[large][order])
        torch.testing.assert_close(detections.boxes[row, kept], expected[large][order])
        assert torch.equal(detections.labels[row, kept], labels[large][order])


def test_statistics_are_restored_in_predictions_and_not_in_the_training_output():
    head, features, proposals = make_head(delta_weights=None), make_features(), make_proposals()
    head.statistics.mean.copy_(torch.arange(12.0).view(CLASSES, 4))
    head.statistics.std.fill_(2.0)
    _, deltas = head(features, proposals.boxes)
    torch.testing.assert_close(head.predict(features, proposals).deltas, deltas * 2 + head.statistics.mean)


def test_without_valid_proposals_there_are_no_detections():
    proposals = make_proposals(valid_share=0.0)
    detections = make_head().detect(make_features(), proposals, SIZES, ALL)
    assert not detections.valid.any() and detections.proposals is proposals


def test_a_second_head_refines_the_boxes_of_the_first():
    """As in a cascade: the refined boxes are the next head's proposals."""
    first, second, features = make_head(class_agnostic=True), make_head(class_agnostic=True), make_features()
    predictions = first.predict(features, make_proposals())
    boxes = clip(first.box_coder.decode(predictions.deltas[:, :, 0], predictions.boxes), SIZES)
    refined = second.predict(features, Proposals(boxes.detach(), predictions.probabilities[..., 0], predictions.valid))
    assert torch.equal(refined.boxes, boxes) and torch.equal(refined.valid, predictions.valid)


# ---- the loss --------------------------------------------------------------------------------------------------------


class Constant(BoxHead):
    """A vector of ones for each region."""

    def __init__(self) -> None:
        super().__init__(channels_in=4, pooled=7, channels=16)

    def forward(self, regions: Tensor) -> Tensor:
        return regions.new_ones(len(regions), 16)


@torch.no_grad()
def test_loss_by_hand():
    """With logits and deltas of 0: log K, and smooth L1 of the one object whose target is not 0, over three regions."""
    head = make_head(smooth_l1_beta=1.0, delta_weights=(1, 1, 1, 1))
    head.box_head = Constant()
    for layer in (head.predictor.scores, head.predictor.deltas):
        nn.init.zeros_(layer.weight)
    valid = torch.ones(1, 1, dtype=torch.bool)
    targets = Targets(torch.tensor([[[0.0, 0, 10, 10]]]), torch.tensor([[1]]), valid, ~valid)
    samples = head.sample(
        Proposals(torch.tensor([[[1.0, 0, 11, 10], [40, 40, 50, 50]]]), torch.ones(1, 2), torch.ones(1, 2).bool()),
        targets,
    )
    # The ground truth itself is a third region.
    assert samples.valid.sum() == 3
    losses = head.losses(*head([torch.randn(1, 4, 4, 6)], samples.boxes), samples)
    torch.testing.assert_close(losses["classification"], torch.tensor(CLASSES + 1.0).log())
    torch.testing.assert_close(losses["boxes"], torch.tensor(0.5 * 0.1**2 / 3))
