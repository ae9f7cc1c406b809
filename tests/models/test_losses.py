import math

import pytest
import torch
from torch.nn import functional as F
from torchvision.models.detection.roi_heads import fastrcnn_loss

from detect.models.losses import box_regression_loss, classification_loss, objectness_loss


def test_objectness_by_hand():
    logits, labels = torch.tensor([0.0, 100, 7, math.log(3)]), torch.tensor([1, 1, 0, 0])
    valid = torch.tensor([True, True, False, True])
    expected = (math.log(2) + 0 + math.log(4)) / 3
    torch.testing.assert_close(objectness_loss(logits, labels, valid), torch.tensor(expected))


def test_boxes_by_hand():
    # Smooth L1 with beta 1: 0.5 · 0.5² below it, 3 - 0.5 above.
    deltas, targets = torch.tensor([[0.5, 3, 0, 0]] * 4), torch.zeros(4, 4)
    positive, valid = torch.tensor([True, False, True, False]), torch.tensor([True, True, False, False])
    loss = box_regression_loss(deltas, targets, positive, valid, beta=1.0)
    assert loss == (0.125 + 2.5) / 2


@pytest.mark.parametrize("count", [0, 1, 5])
def test_without_valid_samples_losses_are_zero_and_so_are_gradients(count):
    none = torch.zeros(count, dtype=torch.bool)
    logits, deltas = torch.randn(count, 4, requires_grad=True), torch.randn(count, 4, requires_grad=True)
    labels = torch.zeros(count, dtype=torch.int64)
    loss = (
        classification_loss(logits, labels, none)
        + objectness_loss(logits[:, 0], labels, none)
        + box_regression_loss(deltas, deltas.detach() + 1, ~none, none, 1.0)
    )
    assert loss == 0
    loss.backward()
    assert not logits.grad.any() and not deltas.grad.any()


def test_what_padding_holds_does_not_matter():
    valid = torch.tensor([True, False])
    logits, targets = torch.tensor([[1.0, 2], [torch.nan, torch.nan]]), torch.tensor([[0.0] * 4, [torch.nan] * 4])
    assert classification_loss(logits, torch.tensor([0, 1]), valid).isfinite()
    assert objectness_loss(logits[:, 0], torch.tensor([0, 1]), valid).isfinite()
    assert box_regression_loss(targets + 1, targets, torch.ones(2, dtype=torch.bool), valid, 1.0).isfinite()


def test_losses_are_torchvisions():
    classes, count = 4, 50
    logits, deltas = torch.randn(count, classes + 1), torch.randn(count, classes, 4)
    labels, targets = torch.randint(0, classes + 1, (count,)), torch.randn(count, 4)
    valid = torch.ones(count, dtype=torch.bool)
    # torchvision has background first, with deltas of its own.
    theirs = fastrcnn_loss(
        logits.roll(1, dims=1),
        F.pad(deltas, (0, 0, 1, 0)).flatten(1),
        [(labels + 1) % (classes + 1)],
        [targets],
    )
    own = deltas[torch.arange(count), labels.clamp(max=classes - 1)]
    torch.testing.assert_close(classification_loss(logits, labels, valid), theirs[0])
    torch.testing.assert_close(box_regression_loss(own, targets, labels < classes, valid, 1 / 9), theirs[1])
