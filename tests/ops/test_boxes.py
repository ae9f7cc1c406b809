import pytest
import torch
import torchvision.ops

from detect.ops.boxes import area, clip, gather_boxes, intersection_matrix, iou_matrix, large_enough


def random_boxes(*shape: int, size: float = 100.0) -> torch.Tensor:
    corners = torch.rand(*shape, 2, 2) * size
    return torch.cat([corners.amin(dim=-2), corners.amax(dim=-2)], dim=-1)


def test_area_by_hand():
    boxes = torch.tensor([[0.0, 0, 2, 3], [1, 1, 1, 5], [4, 4, 2, 2], [4, 4, 2, 9], [-1, -2, 1, 2]])
    assert area(boxes).tolist() == [6, 0, 0, 0, 8]


@pytest.mark.parametrize("shape", [(0,), (1,), (2, 0), (3, 5)])
def test_area_equals_torchvision(shape):
    boxes = random_boxes(*shape)
    torch.testing.assert_close(area(boxes).flatten(), torchvision.ops.box_area(boxes.view(-1, 4)))


def test_iou_by_hand():
    a = torch.tensor([[0.0, 0, 2, 2], [0, 0, 4, 4], [9, 9, 9, 9]])
    b = torch.tensor([[1.0, 1, 3, 3], [0, 0, 2, 2], [2, 0, 4, 2], [9, 9, 9, 9]])
    assert intersection_matrix(a, b).tolist() == [[1, 4, 0, 0], [4, 4, 4, 0], [0, 0, 0, 0]]
    expected = torch.tensor([[1 / 7, 1, 0, 0], [4 / 16, 4 / 16, 4 / 16, 0], [0, 0, 0, 0]])
    torch.testing.assert_close(iou_matrix(a, b), expected)


@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 3), (3, 0), (1, 1), (17, 40)])
def test_iou_equals_torchvision(n, m):
    a, b = random_boxes(n), random_boxes(m)
    torch.testing.assert_close(iou_matrix(a, b), torchvision.ops.box_iou(a, b))


def test_batched_iou_equals_the_iou_of_each_list():
    a, b = random_boxes(3, 5), random_boxes(3, 7)
    ious = iou_matrix(a, b)
    assert ious.shape == (3, 5, 7)
    for i in range(3):
        torch.testing.assert_close(ious[i], iou_matrix(a[i], b[i]))


def test_iou_of_tiny_boxes_is_exact():
    boxes = random_boxes(20) * 1e-4
    torch.testing.assert_close(iou_matrix(boxes, boxes).diagonal(), torch.ones(20))


def test_boxes_are_clipped_to_their_own_image():
    boxes = torch.tensor([-5.0, -6, 50, 60]).expand(2, 1, 4)
    clipped = clip(boxes, torch.tensor([[20, 30], [100, 40]]))
    assert clipped.flatten().tolist() == [0, 0, 30, 20, 0, 0, 40, 60]


def test_clip_equals_torchvision():
    boxes = random_boxes(2, 50) * 2 - 50
    sizes = torch.tensor([[40, 90], [70, 30]])
    expected = [torchvision.ops.clip_boxes_to_image(b, s.tolist()) for b, s in zip(boxes, sizes, strict=True)]
    assert torch.equal(clip(boxes, sizes), torch.stack(expected))


def test_large_enough_requires_both_sides():
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 1.9, 5], [0, 0, 5, 1.9], [3, 3, 1, 1], [torch.nan, 0, 5, 5]])
    assert large_enough(boxes, 2).tolist() == [True, False, False, False, False]


def test_gather_boxes_by_hand():
    boxes = torch.arange(24.0).view(2, 3, 4)
    gathered = gather_boxes(boxes, torch.tensor([[2, 0], [1, 1]]))
    assert gathered.tolist() == [[boxes[0, 2].tolist(), boxes[0, 0].tolist()], [boxes[1, 1].tolist()] * 2]
    assert gather_boxes(boxes, torch.zeros(2, 0, dtype=torch.int64)).shape == (2, 0, 4)
