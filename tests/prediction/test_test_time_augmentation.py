from dataclasses import replace

import pytest
import torch

from detect.errors import UserError
from detect.models import PostprocessOptions
from detect.prediction.test_time_augmentation import (
    Augmentation,
    augmentations,
    flip_boxes,
    flip_detections,
    merge_detections,
)
from detect.structures import Detections


def detections(boxes, scores, labels) -> Detections:
    scores = torch.tensor([scores])
    return Detections(torch.tensor([boxes]), scores, torch.tensor([labels]), scores > 0)


def test_augmentations_by_hand():
    assert augmentations(False, [1.0]) == (Augmentation(),)
    assert augmentations(True, [0.5, 1.0]) == (
        Augmentation(0.5),
        Augmentation(0.5, True),
        Augmentation(1.0),
        Augmentation(1.0, True),
    )


@pytest.mark.parametrize("scales", [[], [0.0], [float("nan")], [-1.0], [1.0, 1e6]])
def test_invalid_scales(scales):
    with pytest.raises(UserError, match=r"scales: .* give factors"):
        augmentations(False, scales)


def test_flipped_boxes():
    boxes = torch.tensor([[[10.0, 5, 30, 20]], [[0.0, 0, 7, 7]]])
    flipped = flip_boxes(boxes, torch.tensor([100, 7]))
    assert flipped.tolist() == [[[70.0, 5, 90, 20]], [[0.0, 0, 7, 7]]]
    assert torch.equal(flip_boxes(flipped, torch.tensor([100, 7])), boxes)


def test_duplicates_are_merged_within_each_class():
    one = detections([[0.0, 0, 10, 10], [50.0, 50, 60, 60]], [0.9, 0.3], [0, 1])
    other = detections([[0.0, 0, 10, 9], [50.0, 50, 60, 60]], [0.8, 0.6], [0, 0])
    merged = merge_detections([one, other], PostprocessOptions(max_detections=5))
    assert merged.valid.tolist() == [[True, True, True, False]]
    assert merged.scores[merged.valid].tolist() == pytest.approx([0.9, 0.6, 0.3])
    assert merged.labels[merged.valid].tolist() == [0, 0, 1]
    assert merged.boxes[merged.valid].tolist() == [[0, 0, 10, 10], [50, 50, 60, 60], [50, 50, 60, 60]]


def test_max_detections():
    many = detections([[float(20 * i), 0, 20 * i + 10, 10] for i in range(4)], [0.4, 0.3, 0.2, 0.1], [0, 0, 0, 0])
    merged = merge_detections([many, many], PostprocessOptions(max_detections=3))
    assert merged.scores.tolist() == [pytest.approx([0.4, 0.3, 0.2])] and merged.valid.all()


def test_padding_suppresses_nothing():
    empty = detections([[0.0, 0, 10, 10]], [0.0], [0])
    merged = merge_detections([empty, detections([[0.0, 0, 10, 10]], [0.1], [0])], PostprocessOptions())
    assert merged.scores.tolist() == [[pytest.approx(0.1), 0.0]] and merged.valid.tolist() == [[True, False]]
    assert not merge_detections([empty, empty], PostprocessOptions()).valid.any()


def with_masks(one: Detections, *values: float) -> Detections:
    """Detections whose masks have one value each in the left half, and zeros in the right half."""
    masks = torch.zeros(1, len(values), 4, 4)
    masks[..., :2] = torch.tensor(values)[None, :, None, None]
    return replace(one, masks=masks)


def test_masks_are_flipped_with_their_boxes():
    given = with_masks(detections([[10.0, 5, 30, 20], [0.0, 0, 7, 7]], [0.9, 0.8], [0, 1]), 0.25, 1.0)
    flipped = flip_detections(given, torch.tensor([100]))
    assert flipped.boxes[0, 0].tolist() == [70, 5, 90, 20]
    assert flipped.masks[0, :, 0].tolist() == [[0, 0, 0.25, 0.25], [0, 0, 1, 1]]
    again = flip_detections(flipped, torch.tensor([100]))
    assert torch.equal(again.boxes, given.boxes) and torch.equal(again.masks, given.masks)
    assert flip_detections(replace(given, masks=None), torch.tensor([100])).masks is None


def test_merged_detections_keep_their_own_masks():
    one = with_masks(detections([[0.0, 0, 10, 10], [50.0, 50, 60, 60]], [0.9, 0.3], [0, 1]), 0.1, 0.2)
    other = with_masks(detections([[0.0, 0, 10, 9], [50.0, 50, 60, 60]], [0.8, 0.6], [0, 0]), 0.3, 0.4)
    merged = merge_detections([one, other], PostprocessOptions(max_detections=3))
    assert merged.scores[0].tolist() == pytest.approx([0.9, 0.6, 0.3])
    assert merged.masks[0, :, 0, 0].tolist() == pytest.approx([0.1, 0.4, 0.2])
    assert merge_detections([replace(one, masks=None)] * 2, PostprocessOptions()).masks is None
