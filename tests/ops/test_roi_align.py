import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.ops
from torch import Tensor
from torch._subclasses import FakeTensorMode

from detect.ops.roi_align import _pool_cpu, _pool_cpu_backward, _pool_on_canvas, multilevel_roi_align

HEIGHT, WIDTH, CHANNELS = 64, 96, 5
STRIDES = [4, 8, 16, 32]

Pool = Callable[..., Tensor]


def pool_on_canvas(features, strides, boxes, levels, size, sampling_ratio=2, aligned=False) -> Tensor:
    """Run the GPU implementation on the CPU."""
    regions = boxes / torch.tensor(strides)[levels].unsqueeze(-1) - (0.5 if aligned else 0.0)
    pooled = _pool_on_canvas(features, regions, levels, size, sampling_ratio, aligned)
    return pooled.to(features[0].dtype)


BOTH = pytest.mark.parametrize("pool", [multilevel_roi_align, pool_on_canvas], ids=["kernel", "canvas"])


def pyramid(images: int, strides: list[int], dtype=torch.float32) -> list[Tensor]:
    maps = [torch.randn(images, CHANNELS, HEIGHT // stride, WIDTH // stride) for stride in strides]
    return [level.to(dtype, memory_format=torch.channels_last).detach().requires_grad_() for level in maps]


def random_boxes(*shape: int) -> Tensor:
    """Return boxes of all sizes, some of them touching the edge of the image."""
    size = torch.tensor([WIDTH, HEIGHT])
    corners = (torch.rand(*shape, 2, 2) * 1.2 - 0.1).clamp(0, 1) * size
    return torch.cat([corners.amin(dim=-2), corners.amax(dim=-2)], dim=-1)


def wide_enough(boxes: Tensor, stride: int) -> Tensor:
    """Enlarge boxes to at least one cell, within the image: a narrower box samples outside of the map."""
    stride *= 1.01
    x1, y1, x2, y2 = boxes.unbind(-1)
    x1, y1 = x1.clamp(max=WIDTH - stride), y1.clamp(max=HEIGHT - stride)
    return torch.stack([x1, y1, torch.maximum(x2, x1 + stride), torch.maximum(y2, y1 + stride)], dim=-1)


def level_by_level(features, strides, boxes, levels, size, sampling_ratio=2, aligned=False) -> Tensor:
    """Call torchvision's operator once per region, on its level: the oracle."""
    pooled = [
        torchvision.ops.roi_align(
            features[level][image : image + 1], [box[None]], size, 1 / strides[level], sampling_ratio, aligned
        )
        for image, (row, row_levels) in enumerate(zip(boxes, levels.tolist(), strict=True))
        for box, level in zip(row, row_levels, strict=True)
    ]
    return torch.cat(pooled)


@BOTH
def test_by_hand(pool):
    # The mean of the four samples of a bin on a ramp is the ramp's value at the centre of the box.
    ramp = torch.arange(8.0).expand(1, 1, 8, 8).contiguous()
    boxes = torch.tensor([[[2.0, 2, 6, 6], [0, 0, 4, 8]]])
    levels = torch.zeros(1, 2, dtype=torch.int64)
    assert pool([ramp], [1], boxes, levels, 1).flatten().tolist() == [4, 2]
    assert pool([ramp], [1], boxes, levels, 1, aligned=True).flatten().tolist() == [3.5, 1.5]
    left, right = pool([ramp], [1], boxes, levels, 2)[0, 0, 0].tolist()
    assert (left, right) == (3, 5)


@BOTH
@pytest.mark.parametrize(("images", "regions"), [(1, 0), (2, 0), (1, 1)])
def test_no_region_and_one_region(pool, images, regions):
    boxes = random_boxes(images, regions)
    levels = torch.zeros(images, regions, dtype=torch.int64)
    pooled = pool(pyramid(images, STRIDES), STRIDES, boxes, levels, 7)
    assert pooled.shape == (images * regions, CHANNELS, 7, 7)
    pooled.sum().backward()


@BOTH
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling_ratio", [0, 1, 2, 3])
@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize("strides", [[16], STRIDES], ids=["one", "pyramid"])
def test_values_and_gradients_equal_torchvision(pool, strides, size, sampling_ratio, aligned):
    features, boxes = pyramid(2, strides), random_boxes(2, 12)
    levels = torch.randint(len(strides), (2, 12))
    if pool is pool_on_canvas:
        boxes = wide_enough(boxes, max(strides))
    results = [
        function(features, strides, boxes, levels, size, sampling_ratio, aligned) for function in (pool, level_by_level)
    ]
    torch.testing.assert_close(*results, atol=3e-5, rtol=0)  # positions on the canvas round differently
    upstream = torch.randn_like(results[0])
    gradients = [torch.autograd.grad(pooled, features, upstream, materialize_grads=True) for pooled in results]
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=0)


@BOTH
def test_borders_to_the_last_cell(pool):
    features = pyramid(1, STRIDES)
    whole = torch.tensor([0.0, 0, WIDTH, HEIGHT])
    corner = torch.tensor([WIDTH - 32.0, HEIGHT - 32, WIDTH, HEIGHT])
    boxes, levels = torch.stack([whole, corner]).repeat(4, 1)[None], torch.arange(4).repeat_interleave(2)[None]
    for aligned in (False, True):
        results = [f(features, STRIDES, boxes, levels, 7, 2, aligned) for f in (pool, level_by_level)]
        torch.testing.assert_close(*results, atol=1e-5, rtol=0)


def test_levels_on_the_canvas_do_not_mix():
    """Also test boxes narrower than a cell, whose bins are widened to a cell and reach beyond the map."""
    strides = [4, 8]
    slivers = torch.tensor([[[WIDTH - 0.5, 0, WIDTH, HEIGHT], [0, HEIGHT - 0.5, WIDTH, HEIGHT]]])
    for level, other in ((0, 1), (1, 0)):
        features = [torch.ones(1, 1, HEIGHT // stride, WIDTH // stride) for stride in strides]
        features[other].fill_(1000)
        pooled = pool_on_canvas(features, strides, slivers, torch.full((1, 2), level), 7)
        torch.testing.assert_close(pooled, torch.ones_like(pooled))


@pytest.mark.parametrize("box", [[torch.nan] * 4, [0, 0, torch.inf, torch.inf], [torch.nan, 0, 4, 4]])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_nonfinite_boxes_do_not_crash(box, sampling_ratio):
    features = pyramid(1, [16])
    pooled = multilevel_roi_align(
        features, [16], torch.tensor([[box]]), torch.zeros(1, 1, dtype=torch.int64), 7, sampling_ratio
    )
    pooled.sum().backward()
    assert features[0].grad.isfinite().all()


def test_boxes_far_outside_pool_zeros():
    boxes = torch.tensor([[[-900.0, -900, -800, -800], [1e6, 1e6, 1e6 + 50, 1e6 + 50]]])
    pooled = multilevel_roi_align(pyramid(1, [16]), [16], boxes, torch.zeros(1, 2, dtype=torch.int64), 7)
    assert not pooled.any()


@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_values_but_not_positions(pool, dtype):
    features, boxes = pyramid(2, STRIDES, dtype), random_boxes(2, 12)
    levels = torch.randint(4, (2, 12))
    boxes = wide_enough(boxes, 32)
    pooled = pool(features, STRIDES, boxes, levels, 7)
    expected = pool([level.float() for level in features], STRIDES, boxes, levels, 7)
    assert pooled.dtype == dtype
    assert torch.equal(pooled, expected.to(dtype))
    pooled.sum().backward()
    assert {level.grad.dtype for level in features} == {dtype}


def test_threads_share_the_work(monkeypatch):
    features, boxes, levels = pyramid(2, STRIDES), random_boxes(2, 9), torch.randint(4, (2, 9))
    results = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=threads: count)
        pooled = multilevel_roi_align(features, STRIDES, boxes, levels, 7)
        results.append([pooled, *torch.autograd.grad(pooled.square().sum(), features)])
    for one, three in zip(*results, strict=True):
        assert torch.equal(one, three)


def test_operators_pass_opcheck():
    features, boxes, levels = pyramid(2, [8, 16]), random_boxes(2, 3) / 16, torch.randint(2, (2, 3))
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(_pool_cpu, (features, boxes, levels, 2, 2, False), test_utils=checks)
    gradient = torch.randn(6, CHANNELS, 2, 2)
    torch.library.opcheck(_pool_cpu_backward, (gradient, boxes, levels, [8, 4], [12, 6], 2, False), test_utils=checks)


@pytest.mark.parametrize("triton", [False, True])
def test_static_shapes_on_cuda(monkeypatch, triton):
    monkeypatch.setattr("detect.ops.roi_align.has_triton", lambda: triton)
    with FakeTensorMode(), torch.device("cuda"):
        features = [torch.empty(2, CHANNELS, 64 // stride, 96 // stride, dtype=torch.bfloat16) for stride in STRIDES]
        pooled = multilevel_roi_align(features, STRIDES, torch.empty(2, 3, 4), torch.empty(2, 3, dtype=torch.int64), 7)
    assert (pooled.shape, pooled.dtype, pooled.device.type) == ((6, CHANNELS, 7, 7), torch.bfloat16, "cuda")


@pytest.mark.parametrize("task", ["interpret", "compile"])
def test_the_triton_kernels(task, tmp_path):
    triton = pytest.importorskip("triton", reason="Triton comes with torch's CUDA builds")
    if task == "interpret" and triton.__version__.startswith("3.6") and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        pytest.skip("the interpreter of Triton 3.6 fails with numpy 2.4")
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    environment["TRITON_INTERPRET"] = str(int(task == "interpret"))
    script = Path(__file__).with_name("triton_roi_align.py")
    subprocess.run([sys.executable, script, task], check=True, env=environment)
