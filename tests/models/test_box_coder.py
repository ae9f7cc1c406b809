import math

import pytest
import torch
from torchvision.models.detection._utils import BoxCoder as Torchvisions

from detect.models.box_coder import MAX_LOG_SCALE, BoxCoder

WEIGHTS = [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)]


def random_boxes(*shape: int) -> torch.Tensor:
    corner = torch.rand(*shape, 2) * 100
    return torch.cat([corner, corner + torch.rand(*shape, 2) * 80 + 1], dim=-1)


def test_by_hand():
    # From a 10 × 20 box at (0, 0) to a 20 × 10 box whose centre is 5 right of and 10 below the first one's.
    reference, box = torch.tensor([0.0, 0, 10, 20]), torch.tensor([0.0, 15, 20, 25])
    deltas = torch.tensor([5 / 10, 10 / 20, math.log(2), -math.log(2)])
    torch.testing.assert_close(BoxCoder().encode(box, reference), deltas)
    torch.testing.assert_close(BoxCoder().decode(deltas, reference), box)
    weighted = BoxCoder((10.0, 10.0, 5.0, 5.0))
    torch.testing.assert_close(weighted.encode(box, reference), deltas * torch.tensor([10, 10, 5, 5]))


def test_no_deltas_no_change():
    boxes = random_boxes(9)
    assert not BoxCoder().encode(boxes, boxes).any()
    torch.testing.assert_close(BoxCoder().decode(torch.zeros(9, 4), boxes), boxes)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("shape", [(0,), (1,), (3, 50)])
def test_decode_undoes_encode(weights, shape):
    coder, boxes, references = BoxCoder(weights), random_boxes(*shape), random_boxes(*shape)
    torch.testing.assert_close(coder.decode(coder.encode(boxes, references), references), boxes, atol=1e-3, rtol=0)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_is_torchvisions(weights):
    ours, theirs, boxes, references = BoxCoder(weights), Torchvisions(weights), random_boxes(200), random_boxes(200)
    torch.testing.assert_close(ours.encode(boxes, references), theirs.encode_single(boxes, references))
    deltas = torch.randn(200, 4) * 3
    torch.testing.assert_close(ours.decode(deltas, references), theirs.decode_single(deltas, references))


def test_scale_is_limited():
    decoded = BoxCoder().decode(torch.tensor([0.0, 0, 1000, 1000]), torch.tensor([0.0, 0, 16, 16]))
    torch.testing.assert_close(decoded[2:] - decoded[:2], torch.tensor([1000.0, 1000]))
    assert math.exp(MAX_LOG_SCALE) == pytest.approx(62.5)


def test_padding_stays_finite():
    nothing = torch.zeros(1, 4)
    assert BoxCoder().encode(nothing, nothing).isfinite().all()
    assert BoxCoder().encode(nothing, random_boxes(1)).isfinite().all()
    assert BoxCoder().encode(random_boxes(1), nothing).isfinite().all()


def test_half_precision_deltas_give_full_precision_boxes():
    references = random_boxes(20)
    decoded = BoxCoder().decode(torch.zeros(20, 4, dtype=torch.bfloat16), references)
    torch.testing.assert_close(decoded, references)
