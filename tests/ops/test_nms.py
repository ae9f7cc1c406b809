import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.ops

from detect.ops.nms import _nms_cpu, _nms_in_blocks, _nms_in_one_call, nms, nms_of_parts


def clusters(n: int, centres: int = 12, spread: float = 12.0) -> torch.Tensor:
    """Return boxes in clusters, like those of a detector."""
    centre = (torch.rand(centres, 2) * 200)[torch.randint(centres, (n,))] + torch.randn(n, 2) * spread
    sides = torch.rand(n, 2) * 60 + 20
    return torch.cat([centre - sides / 2, centre + sides / 2], dim=1)


def torchvision_keeps(boxes: torch.Tensor, threshold: float) -> list[int]:
    """Return the indices that torchvision keeps; it sorts by score, so descending scores keep the order."""
    return torchvision.ops.nms(boxes, torch.arange(len(boxes), 0, -1.0), threshold).tolist()


def kept_indices(keep: torch.Tensor) -> list[int]:
    return keep.nonzero().flatten().tolist()


def without_groups(function, boxes, valid, threshold):
    return function(boxes, valid, torch.zeros(valid.shape, dtype=torch.int64), threshold)


IMPLEMENTATIONS = pytest.mark.parametrize(
    "keep_of",
    [nms, partial(without_groups, _nms_cpu), partial(without_groups, _nms_in_blocks)],
    ids=["nms", "loop", "blocks"],
)


@IMPLEMENTATIONS
def test_by_hand(keep_of):
    # The third box overlaps only the second, which is already suppressed.
    boxes = torch.tensor([[0.0, 0, 10, 10], [3, 0, 13, 10], [7, 0, 17, 10], [50, 50, 60, 60]])
    assert keep_of(boxes, torch.ones(4, dtype=torch.bool), 0.4).tolist() == [True, False, True, True]


@IMPLEMENTATIONS
@pytest.mark.parametrize("shape", [(0,), (1,), (0, 3), (3, 0), (2, 1)])
def test_empty_lists_and_lists_of_one_box(keep_of, shape):
    keep = keep_of(torch.rand(*shape, 4), torch.ones(shape, dtype=torch.bool), 0.5)
    assert keep.shape == shape and keep.dtype == torch.bool and keep.all()


@IMPLEMENTATIONS
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.7, 1.0])
def test_equals_torchvision(keep_of, threshold):
    for n in (2, 5, 100, 400):
        boxes = clusters(n)
        keep = keep_of(boxes, torch.ones(n, dtype=torch.bool), threshold)
        assert kept_indices(keep) == torchvision_keeps(boxes, threshold)


@IMPLEMENTATIONS
def test_the_first_of_equal_boxes_survives(keep_of):
    boxes = torch.tensor([[5.0, 5, 20, 20]]).repeat(50, 1)
    assert kept_indices(keep_of(boxes, torch.ones(50, dtype=torch.bool), 0.5)) == [0]
    assert keep_of(boxes, torch.ones(50, dtype=torch.bool), 1.0).all()


@IMPLEMENTATIONS
def test_an_iou_at_the_threshold_does_not_suppress(keep_of):
    boxes = torch.tensor([[0.0, 0, 2, 1], [0, 0, 1, 1]])  # IoU 1/2, exact
    assert keep_of(boxes, torch.ones(2, dtype=torch.bool), 0.5).all()
    assert kept_indices(keep_of(boxes, torch.ones(2, dtype=torch.bool), 0.4999)) == [0]
    boxes = torch.tensor([[0.0, 0, 10, 1], [0, 0, 3, 1]])  # 3/10 and 0.3 are the same float32, above 0.3 in float64
    assert keep_of(boxes, torch.ones(2, dtype=torch.bool), 0.3).all()


@IMPLEMENTATIONS
def test_padding_neither_survives_nor_suppresses(keep_of):
    boxes, valid = clusters(200), torch.rand(200) < 0.5
    places = valid.nonzero().flatten()
    expected = places[torchvision_keeps(boxes[valid], 0.5)].tolist()
    assert kept_indices(keep_of(boxes, valid, 0.5)) == expected
    assert not keep_of(boxes, torch.zeros(200, dtype=torch.bool), 0.5).any()


@IMPLEMENTATIONS
def test_empty_boxes_suppress_nothing(keep_of):
    boxes = torch.zeros(4, 4)
    assert keep_of(boxes, torch.ones(4, dtype=torch.bool), 0.5).all()


@pytest.mark.parametrize("keep_of", [nms, _nms_cpu, _nms_in_blocks], ids=["nms", "loop", "blocks"])
def test_groups_equal_torchvision(keep_of):
    boxes, groups = clusters(300), torch.randint(0, 4, (300,))
    arguments = (0.5, groups) if keep_of is nms else (groups, 0.5)
    keep = keep_of(boxes, torch.ones(300, dtype=torch.bool), *arguments)
    expected = torchvision.ops.batched_nms(boxes, torch.arange(300, 0, -1.0), groups, 0.5)
    assert kept_indices(keep) == sorted(expected.tolist())


@IMPLEMENTATIONS
def test_lists_are_independent(keep_of):
    boxes, valid = torch.stack([clusters(80) for _ in range(6)]).view(2, 3, 80, 4), torch.rand(2, 3, 80) < 0.8
    keep = keep_of(boxes, valid, 0.5)
    for i in range(2):
        for j in range(3):
            assert torch.equal(keep[i, j], keep_of(boxes[i, j], valid[i, j], 0.5))


def chain(n: int) -> torch.Tensor:
    """Return boxes that overlap only their neighbours by more than 0.4, so that every second one survives."""
    left = torch.arange(float(n)) * 4
    return torch.stack([left, torch.zeros_like(left), left + 10, torch.ones_like(left)], dim=1)


@IMPLEMENTATIONS
def test_chains_of_any_length(keep_of):
    boxes = chain(301)
    keep = keep_of(boxes, torch.ones(301, dtype=torch.bool), 0.4)
    assert kept_indices(keep) == torchvision_keeps(boxes, 0.4) == list(range(0, 301, 2))


@pytest.mark.parametrize("pairs", [1, 2000, 40000])
def test_small_blocks_give_the_same_result(monkeypatch, pairs):
    monkeypatch.setattr("detect.ops.nms.BLOCK_PAIRS", pairs)
    boxes, valid, groups = clusters(200).view(2, 100, 4), torch.rand(2, 100) < 0.8, torch.randint(0, 3, (2, 100))
    assert torch.equal(_nms_in_blocks(boxes, valid, groups, 0.4), _nms_cpu(boxes, valid, groups, 0.4))


def test_no_gradient_and_half_precision():
    boxes = clusters(30).requires_grad_()
    valid = torch.ones(30, dtype=torch.bool)
    assert not nms(boxes, valid, 0.5).requires_grad
    half = boxes.detach().bfloat16()
    assert torch.equal(nms(half, valid, 0.5), nms(half.float(), valid, 0.5))


@pytest.mark.parametrize("lengths", [(100,), (60, 30, 10), (0, 1, 99), (50, 50)])
def test_parts_in_one_call_equal_parts_by_themselves(lengths):
    boxes, valid = clusters(200).view(2, 100, 4), torch.rand(2, 100) < 0.8
    expected = nms_of_parts(boxes, valid, 0.5, lengths)
    parts = list(zip(boxes.split(lengths, 1), valid.split(lengths, 1), strict=True))
    assert torch.equal(expected, torch.cat([nms(*part, 0.5) for part in parts], dim=1))
    assert torch.equal(_nms_in_one_call(parts, 0.5), expected)


@pytest.mark.parametrize("operator", [_nms_cpu, _nms_in_blocks])
def test_operators_pass_opcheck(operator):
    arguments = clusters(9), torch.ones(9, dtype=torch.bool), torch.zeros(9, dtype=torch.int64), 0.5
    torch.library.opcheck(operator, arguments)


@pytest.mark.parametrize("task", ["interpret", "compile"])
def test_the_triton_kernels(task, tmp_path):
    triton = pytest.importorskip("triton", reason="Triton comes with torch's CUDA builds")
    if task == "interpret" and triton.__version__.startswith("3.6") and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        pytest.skip("the interpreter of Triton 3.6 fails with numpy 2.4")
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    environment["TRITON_INTERPRET"] = str(int(task == "interpret"))
    script = Path(__file__).with_name("triton_nms.py")
    subprocess.run([sys.executable, script, task], check=True, env=environment)
