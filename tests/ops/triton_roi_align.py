"""Checks the Triton kernels of RoIAlign without a GPU, in an own process, as the tests' type checks rewrite kernels.

`interpret` (with TRITON_INTERPRET=1) compares them with torchvision and with the kernel of the CPU, through the
operators; `compile` compiles them for an H100.
"""

import itertools
import sys

import numpy as np
import torch
from test_roi_align import level_by_level
from torch import Tensor

from detect.ops import roi_align_triton
from detect.ops.roi_align import _pool_triton, _pool_triton_backward, multilevel_roi_align

HEIGHT, WIDTH = 24, 80
STRIDES = [4, 8, 16]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def pyramid(images: int, strides: list[int], channels: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    maps = [torch.randn(images, channels, -(-HEIGHT // stride), WIDTH // stride) for stride in strides]
    return [level.to(dtype).requires_grad_() for level in maps]


def edge_cases() -> Tensor:
    """Return boxes at and beyond the edges, boxes narrower than a cell, and boxes without an area."""
    return torch.tensor(
        [
            [0.0, 0, WIDTH, HEIGHT],
            [-9, -7, 13, 11],
            [70, 20, WIDTH + 9, HEIGHT + 9],
            [WIDTH - 0.5, 3, WIDTH, 20],
            [-4, -4, 0, 0],
            [WIDTH, HEIGHT, WIDTH, HEIGHT],
            [20, 10, 20, 10],
            [-90, -90, -80, -80],
            [10, 8, 10.01, 8.01],
        ]
    )


def random_boxes(*shape: int) -> Tensor:
    corners = (torch.rand(*shape, 2, 2) * 1.4 - 0.2) * torch.tensor([WIDTH, HEIGHT])
    return torch.cat([corners.amin(dim=-2), corners.amax(dim=-2)], dim=-1)


def gradients(pooled: Tensor, features: list[Tensor], upstream: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(pooled, features, upstream, retain_graph=True, materialize_grads=True)
    assert [level.dtype for level in found] == [level.dtype for level in features]
    return [level.float() for level in found]


def check(features, strides, boxes, levels, size: int, sampling_ratio: int, aligned: bool) -> None:
    pooled = _pool_triton(features, boxes, levels, strides, size, sampling_ratio, aligned)
    expected = multilevel_roi_align(features, strides, boxes, levels, size, sampling_ratio, aligned)
    assert pooled.dtype == features[0].dtype
    assert not len(pooled) or pooled.is_contiguous(memory_format=torch.channels_last)
    if pooled.dtype == torch.bfloat16:  # the interpreter cuts bits off; see `compile` for a GPU
        exact = [level.detach().float() for level in features]
        exact = multilevel_roi_align(exact, strides, boxes, levels, size, sampling_ratio, aligned)
        assert torch.equal(pooled.float(), (exact.view(torch.int32) & -(2**16)).view(torch.float32))
    else:
        assert torch.equal(pooled, expected)
    if len(pooled) and pooled.dtype == torch.float32:
        expected = level_by_level(features, strides, boxes, levels, size, sampling_ratio, aligned)
        torch.testing.assert_close(pooled, expected, atol=1e-5, rtol=0)
    upstream = torch.randn_like(pooled)
    of_expected = gradients(expected, features, upstream)
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic)
        found = gradients(pooled, features, upstream)
        torch.use_deterministic_algorithms(False)
        # One unit in the last place, since sums in another order may round differently.
        rtol = 1e-5 if pooled.dtype == torch.float32 else torch.finfo(pooled.dtype).eps
        torch.testing.assert_close(found, of_expected, atol=1e-5, rtol=rtol)


def check_nonfinite(box: list[float], sampling_ratio: int) -> None:
    features, boxes, levels = pyramid(1, [16], 2), torch.tensor([[box]]), torch.zeros(1, 1, dtype=torch.int64)
    pooled = _pool_triton(features, boxes, levels, [16], 2, sampling_ratio, False)
    assert torch.equal(pooled, multilevel_roi_align(features, [16], boxes, levels, 2, sampling_ratio))
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic)
        assert gradients(pooled, features, torch.ones_like(pooled))[0].isfinite().all()
        torch.use_deterministic_algorithms(False)


def interpret() -> None:
    torch.manual_seed(0)
    np.seterr(all="ignore")  # the interpreter computes with NaN
    _pool_triton.register_kernel("cpu")(roi_align_triton.pool)
    _pool_triton_backward.register_kernel("cpu")(roi_align_triton.pool_backward)
    for sampling_ratio, aligned in itertools.product((0, 1, 2), (False, True)):
        boxes = edge_cases()[None]
        levels = torch.arange(boxes.shape[1])[None] % 3
        check(pyramid(1, STRIDES, 3), STRIDES, boxes, levels, 2, sampling_ratio, aligned)
        check(pyramid(2, STRIDES, 5), STRIDES, random_boxes(2, 3), torch.randint(3, (2, 3)), 3, sampling_ratio, aligned)
    for dtype in DTYPES:
        check(pyramid(2, STRIDES, 4, dtype), STRIDES, random_boxes(2, 2), torch.randint(3, (2, 2)), 3, 2, False)
    for images, regions in ((1, 0), (0, 2), (1, 1)):
        check(
            pyramid(images, [8], 3), [8], random_boxes(images, regions), torch.zeros(images, regions).long(), 2, 2, True
        )
    strides = [4, 8, 16, 32, 40, 80]
    check(pyramid(1, strides, 1), strides, random_boxes(1, 6), torch.arange(6)[None], 1, 2, True)
    channels_last = [level.detach().to(memory_format=torch.channels_last) for level in pyramid(1, [8], 300)]
    roi_align_triton.CHANNELS = 128
    check([channels_last[0].requires_grad_()], [8], random_boxes(1, 2), torch.zeros(1, 2).long(), 2, 1, False)
    nan, inf = torch.nan, torch.inf
    for box, sampling_ratio in itertools.product(([nan] * 4, [0, 0, inf, inf], [nan, 0, 4, 4]), (0, 2)):
        check_nonfinite(box, sampling_ratio)
    boxes, levels = torch.tensor([[[0, 0, 1e9, 1e9]]]), torch.zeros(1, 1, dtype=torch.int64)
    assert not _pool_triton(pyramid(1, [16], 2), boxes, levels, [16], 2, 0, False).any()  # would take hours
    check_operators()


def check_operators() -> None:
    features, boxes, levels = pyramid(2, [8, 16], 3), random_boxes(2, 1), torch.tensor([[0], [1]])
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(_pool_triton, (features, boxes, levels, [8, 16], 2, 1, False), test_utils=checks)
    sizes = [level.shape[2] for level in features], [level.shape[3] for level in features]
    arguments = torch.randn(2, 3, 2, 2), boxes, levels, [8.0, 16.0], *sizes, 1, False
    torch.library.opcheck(_pool_triton_backward, arguments, test_utils=checks)


def compile() -> None:
    for dtype in ("fp32", "bf16", "fp16"):
        for sampling_ratio in (0, 2):
            compile_for_h100(roi_align_triton._pool, dtype, dtype, sampling_ratio)
        scatter = compile_for_h100(roi_align_triton._scatter, dtype, "fp32", 2)
        assert "add.v4.f32" in scatter
        compile_for_h100(roi_align_triton._gather, dtype, dtype, 2)


def compile_for_h100(kernel, dtype: str, map_dtype: str, sampling_ratio: int) -> str:
    """Compile for four levels of 256 channels, as `_launch` asks for it; return PTX with vectors of 16 bytes."""
    import triton
    from triton.backends.compiler import GPUTarget

    types = dict.fromkeys(("heights", "widths", "scales"), ("fp32",) * 4) | {"maps": (f"*{map_dtype}",) * 4}
    types |= {"pooled": f"*{dtype}", "upstream": f"*{dtype}", "boxes": "*fp32", "levels": "*i64", "of_image": "i32"}
    tile = {"bins": roi_align_triton.BINS, "cells": roi_align_triton.CELLS, "block": 256}
    options = {"channels": 256, "size": 7, "sampling_ratio": sampling_ratio, "aligned": False}
    names = kernel.arg_names
    constants = {name: value for name, value in (tile | options).items() if name in names}
    signature = {name: types.get(name, "constexpr") for name in names}
    aligned = [(0, level) for level in range(4)] + [(names.index(name),) for name in (names[1], "boxes", "levels")]
    attributes = {place: [["tt.divisibility", 16]] for place in aligned}
    source = triton.compiler.ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    target = GPUTarget("cuda", 90, 32)
    compiled = triton.compile(source, target=target, options={"enable_fp_fusion": False})
    ptx = compiled.asm["ptx"]
    assert compiled.asm["cubin"] and "fma" not in ptx and ".v4.b32" in ptx
    assert map_dtype != "bf16" or "cvt.rn.bf16x2.f32" in ptx  # to the nearest
    return ptx


if __name__ == "__main__":
    {"interpret": interpret, "compile": compile}[sys.argv[1]]()
