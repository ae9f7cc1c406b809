"""Assignments by hand, and those of YOLOX's own code, which tools/fixtures/yolox_outputs.py has recorded."""

from pathlib import Path

import numpy as np
import pytest
import torch

from detect.models.simota import Assignment, assign
from detect.models.yolox import Cells, cells_of, decode

RECORD = Path(__file__).parent / "yolox_assignments.npz"
STRIDES = (8, 16, 32)


def cells(height: int, width: int) -> Cells:
    return cells_of([torch.empty(1, 1, height // stride, width // stride) for stride in STRIDES], STRIDES)


def given(truths: list[list[float]], boxes: list[list[float]] | None = None, classes: int = 3) -> dict:
    """Arguments for an image of 32×64 pixels, whose cells all predict a probability of ½ and the same empty box."""
    grid = cells(32, 64)
    count = len(grid.strides)
    return {
        "class_logits": torch.zeros(count, classes),
        "objectness": torch.zeros(count),
        "boxes": torch.zeros(count, 4) if boxes is None else torch.tensor(boxes),
        "centres": grid.centres,
        "strides": grid.strides,
        "truths": torch.tensor(truths, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.zeros(len(truths), dtype=torch.int64),
        "valid": torch.ones(len(truths), dtype=torch.bool),
    }


def padded(arguments: dict, entries: int) -> dict:
    truths, labels, valid = (arguments[name] for name in ("truths", "labels", "valid"))
    return {
        **arguments,
        "truths": torch.cat([truths, torch.full((entries, 4), 7.0)]),
        "labels": torch.cat([labels, labels.new_zeros(entries)]),
        "valid": torch.cat([valid, valid.new_zeros(entries)]),
    }


# ---- by hand ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entries", [1, 5])
def test_without_ground_truths_no_cell_is_positive(entries):
    assignment = assign(**padded(given([]), entries))
    assert not assignment.positive.any()
    assert assignment.iou.isfinite().all()


def test_an_object_has_at_least_its_cheapest_cell():
    """No predicted box overlaps the object, so that it gets one cell: the one most certain of its class."""
    arguments = given([[16, 8, 24, 16]])
    arguments["class_logits"][10, 0] = 1.0  # second row, third column of stride 8: centre (20, 12)
    assignment = assign(**arguments)
    assert assignment.positive.nonzero().tolist() == [[10]]
    assert assignment.matched[10] == 0 and assignment.iou[10] == 0


def test_a_certain_cell_of_another_class_is_not_cheap():
    arguments = given([[16, 8, 24, 16]])
    arguments["class_logits"][10, 1] = arguments["class_logits"][2, 0] = 1.0
    assert assign(**arguments).positive.nonzero().tolist() == [[2]]


def test_cells_near_the_centre_learn_it():
    """All boxes are right, so that ten of the cells within 1.5 strides of (20, 12) learn it."""
    truth = [16.0, 8.0, 24.0, 16.0]
    arguments = given([truth], [truth] * 42)
    assignment = assign(**arguments)
    near = {8 * y + x for y in range(3) for x in range(1, 4)}  # stride 8: 3×3 cells
    near |= {32 + 4 * y + x for y in range(2) for x in range(3)}  # stride 16: both rows, columns 0 … 2
    near |= {40, 41}  # stride 32: |16 - 20| and |48 - 20| are below 48
    chosen = set(assignment.positive.nonzero().flatten().tolist())
    assert len(chosen) == 10 and chosen <= near
    assert (assignment.iou[assignment.positive] == 1).all()


def test_a_centre_at_exactly_the_radius_is_too_far():
    truth = [28.0, 0.0, 36.0, 8.0]  # centre (32, 4); the cells of stride 8 centred on x = 20 and 44 are 12 pixels away
    arguments = given([truth], [truth] * 42)
    arguments["class_logits"][:32, 0] = 5.0  # cheaper than coarser cells
    positive = assign(**arguments).positive[:32].view(4, 8)
    assert positive.nonzero().tolist() == [[0, 3], [0, 4], [1, 3], [1, 4]]


def test_the_ten_best_ious_sum_to_the_number_of_cells():
    """Three boxes with IoU 1 and one with 0.9 give ⌊3.9⌋ cells."""
    truth, near = [16.0, 8.0, 26.0, 18.0], [16.0, 8.0, 26.0, 17.0]
    boxes = [[0.0] * 4] * 42
    for cell, box in ((2, truth), (10, truth), (18, truth), (11, near)):
        boxes[cell] = box
    assert assign(**given([truth], boxes)).positive.nonzero().flatten().tolist() == [2, 10, 18]


def test_boxes_of_cells_that_may_learn_no_object_do_not_count():
    truth = [16.0, 8.0, 26.0, 18.0]
    boxes = [[0.0] * 4] * 42
    for cell in (10, 7, 15, 23, 31):  # the last column of stride 8 is far from the object
        boxes[cell] = truth
    assert assign(**given([truth], boxes)).positive.nonzero().flatten().tolist() == [10]


def test_a_cell_that_two_objects_want_goes_to_the_cheaper():
    wide, narrow = [16.0, 8.0, 24.0, 16.0], [17.0, 8.0, 23.0, 16.0]
    boxes = [[0.0] * 4] * 42
    boxes[10] = narrow
    assignment = assign(**given([wide, narrow], boxes))
    assert assignment.positive.nonzero().tolist() == [[10]]
    assert assignment.matched[10] == 1 and assignment.iou[10] == 1


# ---- invariants ------------------------------------------------------------------------------------------------------


def random_case(truths: int = 6) -> dict:
    grid = cells(96, 128)
    corners = torch.rand(truths, 2) * torch.tensor([96.0, 64.0])
    boxes = torch.cat([corners, corners + 8 + 24 * torch.rand(truths, 2)], dim=1)
    count = len(grid.strides)
    nearest = (grid.centres[:, None] - (boxes[:, :2] + boxes[:, 2:]) / 2).abs().amax(dim=-1).argmin(dim=1)
    return {
        "class_logits": torch.randn(count, 5),
        "objectness": torch.randn(count),
        "boxes": boxes[nearest] + torch.randn(count, 4),
        "centres": grid.centres,
        "strides": grid.strides,
        "truths": boxes,
        "labels": torch.randint(0, 5, (truths,)),
        "valid": torch.ones(truths, dtype=torch.bool),
    }


def assert_same(a: Assignment, b: Assignment) -> None:
    assert a.positive.any() and torch.equal(a.positive, b.positive)
    assert torch.equal(a.matched[a.positive], b.matched[b.positive])
    assert torch.equal(a.iou[a.positive], b.iou[b.positive])


@pytest.mark.parametrize("entries", [1, 10])
def test_padding_changes_nothing(entries):
    case = random_case()
    assert_same(assign(**case), assign(**padded(case, entries)))


def test_the_order_of_ground_truths_does_not_matter():
    case = random_case()
    order = torch.randperm(6)
    shuffled = assign(**case | {name: case[name][order] for name in ("truths", "labels")})
    assert_same(assign(**case), shuffled._replace(matched=order[shuffled.matched]))


def test_an_image_with_fewer_than_ten_cells():
    case = random_case(1) | {"truths": torch.tensor([[0.0, 0.0, 32.0, 32.0]])}
    case |= {name: case[name][-3:] for name in ("class_logits", "objectness", "boxes", "centres", "strides")}
    case["centres"] = torch.full((3, 2), 16.0)
    assert assign(**case).positive.any()


def test_half_precision_logits_are_widened():
    case = random_case()
    half = {name: case[name].half() for name in ("class_logits", "objectness")}
    wide = {name: value.float() for name, value in half.items()}
    assert_same(assign(**case | half), assign(**case | wide))


def test_it_compiles_as_one_graph(unchecked):
    case = padded(random_case(), 2)
    compiled = torch.compile(assign, fullgraph=True, backend="eager")
    assert_same(compiled(**case), assign(**case))


# ---- YOLOX's own -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(16))
def test_it_is_yoloxs(number):
    with np.load(RECORD) as record:
        names = ("canvas", "predictions", "truths", "labels", "matched", "iou")
        canvas, predictions, truths, labels, matched, iou = (
            torch.from_numpy(record[f"{name} {number}"]) for name in names
        )
    grid = cells(*canvas.tolist())
    predictions = predictions.float()
    assignment = assign(
        predictions[:, 5:],
        predictions[:, 4],
        decode(predictions[None, :, :4], grid)[0],
        grid.centres,
        grid.strides,
        truths,
        labels.long(),
        torch.ones(len(truths), dtype=torch.bool),
    )
    positive = matched != 255
    assert positive.any() and torch.equal(assignment.positive, positive)
    assert torch.equal(assignment.matched[positive], matched[positive].long())
    torch.testing.assert_close(assignment.iou[positive], iou[positive], rtol=0, atol=1e-5)
