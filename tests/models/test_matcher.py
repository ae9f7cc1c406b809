import pytest
import torch
from torchvision.models.detection._utils import Matcher as Torchvisions

from detect.models.matcher import Matcher, match
from detect.structures import Targets


def targets_of(boxes, valid=None, crowd=None, labels=None) -> Targets:
    boxes = torch.as_tensor(boxes, dtype=torch.float32)
    none = torch.zeros(boxes.shape[:2], dtype=torch.bool)
    return Targets(
        boxes,
        torch.zeros(boxes.shape[:2], dtype=torch.int64) if labels is None else torch.as_tensor(labels),
        ~none if valid is None else torch.as_tensor(valid),
        none if crowd is None else torch.as_tensor(crowd),
    )


def random_boxes(*shape: int) -> torch.Tensor:
    corner = torch.rand(*shape, 2) * 100
    return torch.cat([corner, corner + torch.rand(*shape, 2) * 60 + 2], dim=-1)


def test_by_hand():
    iou = torch.tensor([[0.8, 0.1], [0.2, 0.7], [0.3, 0.29], [0.299, 0.0], [0.69, 0.5]])
    indices, labels = Matcher(0.7, 0.3)(iou, torch.ones(2, dtype=torch.bool))
    assert labels.tolist() == [1, 1, -1, 0, -1]
    assert indices.tolist() == [0, 1, 0, 0, 0]


def test_the_best_boxes_of_a_ground_truth_are_objects_ties_included():
    iou = torch.tensor([[0.2, 0.0], [0.2, 0.0], [0.1, 0.6], [0.0, 0.1]])
    _, labels = Matcher(0.7, 0.3, best_is_positive=True)(iou, torch.ones(2, dtype=torch.bool))
    assert labels.tolist() == [1, 1, 1, 0]


def test_a_ground_truth_that_no_box_touches_has_no_best_box():
    iou = torch.tensor([[0.0, 0.9], [0.0, 0.1]])
    _, labels = Matcher(0.7, 0.3, best_is_positive=True)(iou, torch.ones(2, dtype=torch.bool))
    assert labels.tolist() == [1, 0]


@pytest.mark.parametrize("best_is_positive", [False, True])
@pytest.mark.parametrize("shape", [(1, 5), (2, 4, 3)])
def test_without_valid_ground_truths_all_is_background(best_is_positive, shape):
    *lists, ground_truths = shape
    iou = torch.rand(shape)
    valid = torch.zeros(*lists[:-1], ground_truths, dtype=torch.bool)
    indices, labels = Matcher(0.5, 0.5, best_is_positive)(iou, valid)
    assert not labels.any() and labels.shape == indices.shape == iou.shape[:-1]


@pytest.mark.parametrize(("high", "low", "best"), [(0.7, 0.3, True), (0.5, 0.5, False), (0.5, 0.1, False)])
@pytest.mark.parametrize("ground_truths", [1, 2, 17])
def test_is_torchvisions(high, low, best, ground_truths):
    # A few values only, so that there are ties, also at the thresholds.
    iou = torch.randint(0, 21, (300, ground_truths)) / 20
    expected = Torchvisions(high, low, allow_low_quality_matches=best)(iou.T)
    indices, labels = Matcher(high, low, best)(iou, torch.ones(ground_truths, dtype=torch.bool))
    assert torch.equal(labels, torch.where(expected >= 0, 1, torch.where(expected == -1, 0, -1)))
    positive = labels == 1
    assert torch.equal(iou[positive, indices[positive]], iou[positive, expected[positive]])


def test_padding_and_order_of_ground_truths_change_nothing():
    boxes, ground_truths = random_boxes(2, 60), random_boxes(2, 5)
    matcher = Matcher(0.5, 0.3, best_is_positive=True)
    indices, labels = match(boxes, targets_of(ground_truths), matcher)

    padded = torch.cat([ground_truths, random_boxes(2, 3)], dim=1)
    valid = torch.tensor([[True] * 5 + [False] * 3] * 2)
    more_indices, more_labels = match(boxes, targets_of(padded, valid), matcher)
    assert torch.equal(labels, more_labels) and torch.equal(indices[labels == 1], more_indices[labels == 1])

    order = torch.randperm(5)
    other_indices, other_labels = match(boxes, targets_of(ground_truths[:, order]), matcher)
    assert torch.equal(labels, other_labels) and torch.equal(indices[labels == 1], order[other_indices[labels == 1]])


def test_mirrored_boxes_match_alike():
    def mirror(boxes):
        return torch.stack([200 - boxes[..., 2], boxes[..., 1], 200 - boxes[..., 0], boxes[..., 3]], dim=-1)

    boxes, ground_truths = random_boxes(1, 60).round(), random_boxes(1, 5).round()
    matcher = Matcher(0.5, 0.3, best_is_positive=True)
    for one, other in zip(
        match(boxes, targets_of(ground_truths), matcher),
        match(mirror(boxes), targets_of(mirror(ground_truths)), matcher),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_background_in_a_crowd_is_ignored():
    ground_truths = [[[0.0, 0, 10, 10], [100, 0, 200, 100], [300, 0, 400, 100]]]
    crowd = [[False, True, True]]
    boxes = torch.tensor(
        [
            [
                [0.0, 0, 10, 10],  # an object
                [110, 10, 130, 20],  # all of it in the crowd
                [93, 0, 103, 10],  # 3/10 of it in the crowd
                [97, 0, 107, 10],  # 7/10
                [197, 0, 207, 10],  # 3/10
                [310, 10, 320, 20],  # in the padding, which is no crowd
                [50, 50, 50, 50],  # empty
            ]
        ]
    )
    matcher = Matcher(0.5, 0.5)
    _, labels = match(boxes, targets_of(ground_truths, crowd=crowd), matcher)
    assert labels.tolist() == [[1, -1, 0, -1, 0, -1, 0]]
    _, labels = match(boxes, targets_of(ground_truths, valid=[[True, True, False]], crowd=crowd), matcher)
    assert labels.tolist() == [[1, -1, 0, -1, 0, 0, 0]]


def test_an_object_in_a_crowd_stays_one():
    ground_truths = [[[110.0, 10, 130, 30], [100, 0, 200, 100]]]
    _, labels = match(
        torch.tensor([[[110.0, 10, 130, 30]]]), targets_of(ground_truths, crowd=[[False, True]]), Matcher(0.5, 0.5)
    )
    assert labels.tolist() == [[1]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_large_crowds_under_autocast(dtype):
    ground_truths = [[[0.0, 0, 1000, 800], [0, 0, 1000, 400]]]
    boxes = torch.tensor([[[0.0, 0, 1000, 700], [0, 0, 1000, 300]]])
    targets = targets_of(ground_truths, crowd=[[False, True]])
    with torch.autocast("cpu", dtype):
        _, labels = match(boxes, targets, Matcher(0.9, 0.9))
    assert labels.tolist() == [[0, -1]]


@pytest.mark.parametrize("best_is_positive", [False, True])
@pytest.mark.parametrize("pairs", [1, 400, 1300])
def test_blocks_of_ground_truths_give_the_same_result(monkeypatch, best_is_positive, pairs):
    boxes, matcher = random_boxes(2, 200), Matcher(0.5, 0.4, best_is_positive)
    valid, crowd, candidates = torch.rand(2, 9) < 0.8, torch.rand(2, 9) < 0.3, torch.rand(2, 200) < 0.7
    targets = targets_of(random_boxes(2, 9).round(), valid, crowd)
    expected = match(boxes, targets, matcher, candidates)
    monkeypatch.setattr("detect.models.matcher.BLOCK_PAIRS", pairs)
    for one, other in zip(match(boxes, targets, matcher, candidates), expected, strict=True):
        assert torch.equal(one, other)
