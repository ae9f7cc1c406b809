from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.roi_heads import RoIHeads

from detect.models.box_coder import BoxCoder
from detect.models.postprocess import PostprocessOptions, postprocess
from detect.structures import Proposals

CODER = BoxCoder((10.0, 10.0, 5.0, 5.0))
SIZES = torch.tensor([[100, 150], [120, 90]])


def random_proposals(images: int, count: int, valid_share: float = 0.8) -> Proposals:
    corner = torch.rand(images, count, 2) * 80
    boxes = torch.cat([corner, corner + torch.rand(images, count, 2) * 60 + 4], dim=-1)
    return Proposals(boxes, torch.rand(images, count), torch.rand(images, count) < valid_share)


def regions(proposals: Proposals) -> tuple[Tensor, Tensor]:
    return proposals.boxes, proposals.valid


def probabilities(logits):
    return logits.softmax(dim=-1)[..., :-1]


def torchvisions(logits, deltas, proposals, options: PostprocessOptions):
    heads = RoIHeads(
        *(None, None, None, 0.5, 0.5, 512, 0.25, CODER.weights),
        options.score_threshold,
        options.nms_threshold,
        options.max_detections,
    )
    valid = proposals.valid
    return heads.postprocess_detections(
        logits[valid].roll(1, dims=1),
        F.pad(deltas[valid], (0, 0, 1, 0)).flatten(1),
        [boxes[keep] for boxes, keep in zip(proposals.boxes, valid, strict=True)],
        SIZES.tolist(),
    )


@pytest.mark.parametrize(
    "changes", [{}, {"score_threshold": 0.3}, {"nms_threshold": 0.1}, {"nms_threshold": 0.9}, {"max_detections": 7}]
)
@pytest.mark.parametrize("classes", [1, 5])
def test_detections_are_torchvisions(classes, changes):
    options = PostprocessOptions(**changes)
    proposals = random_proposals(2, 60)
    logits, deltas = torch.randn(2, 60, classes + 1) * 2, torch.randn(2, 60, classes, 4)
    detections = postprocess(probabilities(logits), deltas, *regions(proposals), SIZES, CODER, options)
    for row, (boxes, scores, labels) in enumerate(zip(*torchvisions(logits, deltas, proposals, options), strict=True)):
        kept = detections.valid[row]
        assert len(boxes) == kept.sum() > 0
        torch.testing.assert_close(detections.boxes[row, kept], boxes)
        torch.testing.assert_close(detections.scores[row, kept], scores)
        assert torch.equal(detections.labels[row, kept] + 1, labels)


def test_one_box_by_hand():
    proposals = Proposals(torch.tensor([[[10.0, 10, 30, 50]]]), torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool))
    scores = torch.tensor([[[0.0, 0.75]]])
    deltas = torch.tensor([[[[9.0] * 4, [5.0, 0, 0, 0]]]])  # half a width to the right
    detections = postprocess(scores, deltas, *regions(proposals), SIZES[:1], CODER, PostprocessOptions())
    assert detections.valid.tolist() == [[True, False]]
    assert detections.labels[0, 0] == 1 and detections.boxes[0, 0].tolist() == [20, 10, 40, 50]
    torch.testing.assert_close(detections.scores, torch.tensor([[0.75, 0.0]]))


@pytest.mark.parametrize("count", [1, 5])
def test_without_valid_proposals_there_is_nothing(count):
    proposals = random_proposals(2, count, valid_share=0.0)
    arguments = (
        probabilities(torch.randn(2, count, 4) * 9),
        torch.randn(2, count, 3, 4),
        *regions(proposals),
        SIZES,
        CODER,
    )
    detections = postprocess(*arguments, PostprocessOptions())
    assert detections.boxes.shape == (2, count * 3, 4)
    assert not detections.valid.any() and not detections.scores.any() and not detections.boxes.any()


def test_valid_ones_stand_first_by_falling_score_within_the_image():
    proposals = random_proposals(2, 60)
    arguments = probabilities(torch.randn(2, 60, 4)), torch.randn(2, 60, 3, 4) * 5, *regions(proposals), SIZES, CODER
    detections = postprocess(*arguments, PostprocessOptions(max_detections=500))
    assert detections.valid.any() and not detections.valid.all()
    assert (detections.valid.int().diff(dim=1) <= 0).all() and (detections.scores.diff(dim=1) <= 0).all()
    assert (detections.boxes >= 0).all() and (detections.boxes[..., 2:] <= SIZES.flip(-1)[:, None]).all()
    assert ((detections.labels >= 0) & (detections.labels < 3)).all()


def test_few_candidates_are_the_best():
    proposals = random_proposals(2, 60, valid_share=1.0)
    logits, deltas = torch.randn(2, 60, 4), torch.zeros(2, 60, 3, 4)
    options = PostprocessOptions(nms_threshold=1.0, score_threshold=0.0, max_detections=10)
    expected = postprocess(probabilities(logits), deltas, *regions(proposals), SIZES, CODER, options)
    few = postprocess(
        probabilities(logits), deltas, *regions(proposals), SIZES, CODER, replace(options, pre_nms_top_k=10)
    )
    assert torch.equal(few.scores, expected.scores) and torch.equal(few.boxes, expected.boxes)


def test_boxes_that_are_not_finite_are_dropped():
    proposals = random_proposals(1, 8, valid_share=1.0)
    logits, deltas = torch.tensor([5.0, 0, 0]).expand(1, 8, 3), torch.zeros(1, 8, 2, 4)
    deltas[:, :4] = torch.nan
    detections = postprocess(
        probabilities(logits), deltas, *regions(proposals), SIZES[:1], CODER, PostprocessOptions(nms_threshold=1.0)
    )
    assert detections.valid.sum() == 4 and detections.boxes.isfinite().all()
