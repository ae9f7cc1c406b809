"""Checks the Triton kernels of NMS without a GPU, in an own process, as the tests' type checks rewrite kernels.

`interpret` (with TRITON_INTERPRET=1) compares them with the loop on the CPU; `compile` compiles them for an H100.
"""

import sys

import numpy as np
import torch

from detect.ops.nms import _nms_cpu
from detect.ops.nms_triton import _compare, _select, launch


def check(boxes: torch.Tensor, valid: torch.Tensor, threshold: float, groups: torch.Tensor | None = None) -> None:
    expected = _nms_cpu(
        boxes, valid, torch.zeros_like(valid, dtype=torch.int64) if groups is None else groups, threshold
    )
    assert torch.equal(launch(boxes, valid, threshold, groups), expected), (boxes.shape, threshold)


def clusters(lists: int, n: int) -> torch.Tensor:
    centres = torch.rand(lists, n, 2) * 60
    sides = torch.rand(lists, n, 2) * 60 + 20
    return torch.cat([centres - sides / 2, centres + sides / 2], dim=-1)


def chain(n: int) -> torch.Tensor:
    left = torch.arange(float(n)) * 4
    return torch.stack([left, torch.zeros_like(left), left + 10, torch.ones_like(left)], dim=1)[None]


def interpret() -> None:
    torch.manual_seed(0)
    np.seterr(all="ignore")  # the interpreter divides by zero in padding
    for lists, n in ((0, 3), (2, 0), (1, 1), (3, 2), (2, 31), (2, 32), (2, 33), (1, 150)):
        for threshold in (0.0, 0.5, 1.0):
            check(clusters(lists, n), torch.rand(lists, n) < 0.8, threshold)
        check(clusters(lists, n), torch.ones(lists, n, dtype=torch.bool), 0.5, torch.randint(0, 3, (lists, n)))
    check(chain(140), torch.ones(1, 140, dtype=torch.bool), 0.4)
    check(torch.zeros(1, 40, 4), torch.ones(1, 40, dtype=torch.bool), 0.5)
    check(torch.tensor([5.0, 5, 20, 20]).expand(1, 40, 4), torch.ones(1, 40, dtype=torch.bool), 0.5)


def compile() -> None:
    import triton
    from triton.backends.compiler import GPUTarget

    pointers = {"boxes": "*fp32", "groups": "*i64", "bits": "*i32", "valid": "*u8", "keep": "*u8"}
    types = pointers | {"n": "i32", "words": "i32", "threshold": "fp32"}
    for kernel, constants in (
        (_compare, {"grouped": True, "tile_rows": 32, "tile_words": 4}),
        (_compare, {"grouped": False, "tile_rows": 32, "tile_words": 4}),
        (_select, {"tile_rows": 32, "tile_words": 64}),
        (_select, {"tile_rows": 4, "tile_words": 4096}),
    ):
        signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
        source = triton.compiler.ASTSource(kernel, signature, constexprs=constants)
        options = {"enable_fp_fusion": False}
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        assert compiled.asm["cubin"] and "fma" not in compiled.asm["ptx"]


if __name__ == "__main__":
    {"interpret": interpret, "compile": compile}[sys.argv[1]]()
