"""Receptive fields of a network's operations.

A layer with kernel k and dilation d changes the receptive field r and the stride s to

    r ← r + (k - 1) · d · s        receptive field: pixels of the input along a side that one cell depends on
    s ← s · stride                 stride: pixels of the input from one cell to the next

(Araujo, Norris and Sim 2019, "Computing Receptive Fields of Convolutional Neural Networks": equivalent to
F(i) = (F(i+1) - 1) · stride + k, evaluated from the input).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor


@dataclass(frozen=True, slots=True)
class ReceptiveField:
    """Receptive field of a cell along each axis of a map; size and stride are `inf` for the whole input."""

    size: tuple[float, ...]
    """Pixels of the input along each side that the cell depends on."""
    stride: tuple[float, ...]
    """Pixels of the input from one cell to the next."""
    cells: int
    """Number of cells in all maps of the batch."""
    of_region: bool = False
    """True after region pooling: size and stride then count cells of the pooled region, or pixels of R-CNN's crop."""


_REGION_POOLING = {"roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "roi_align_cpu", "roi_align_triton"}
_TAPS = {"nearest": 1, "linear": 2, "bilinear": 2, "trilinear": 2, "bicubic": 4}
"""Number of cells along a side that an interpolated value depends on."""


def propagate(name: str, args: Any, fields: set[ReceptiveField], out: Tensor) -> ReceptiveField | None:
    """Return the receptive field of an operation's output from those of its inputs.

    Args:
        name: name of the aten operation.
        args: its arguments.
        fields: receptive fields of its input tensors.
        out: its output.
    """
    if name in _REGION_POOLING:
        return initial_field(out, axes=2, of_region=True)
    field = _merge(fields)
    if field is None:
        return None
    axes = len(field.size)
    if name == "convolution":
        return _slide(field, *_convolution(*args[1:7]), out)
    if name.startswith(("max_pool", "avg_pool")):
        return _slide(field, *_pool(name, args, axes), out)
    if "adaptive" in name:
        return _slide(field, *_adaptive(args[0].shape[-axes:], out.shape[-axes:]), out)
    if "upsample" in name:
        taps = _TAPS[next(word for part in name.split("_") if (word := part.rstrip("123d")) in _TAPS)]
        ratios = [before / after for before, after in zip(args[0].shape[-axes:], out.shape[-axes:], strict=True)]
        return _slide(field, [taps] * axes, ratios, out)
    if name in ("mean", "sum", "amax", "amin") and _over_map(args, axes):
        return _whole_input(field)
    if name in ("mm", "addmm"):
        rows = out.shape[0]
        return field if rows == field.cells else _whole_input(field)
    return _whole_input(field) if name in ("bmm", "baddbmm") or "attention" in name else field


def initial_field(maps: Tensor, axes: int, of_region: bool = False) -> ReceptiveField:
    """Return the receptive field of the input, where each cell depends on itself only."""
    return ReceptiveField((1,) * axes, (1,) * axes, _cells(maps, axes), of_region)


def _whole_input(field: ReceptiveField) -> ReceptiveField:
    infinite = (math.inf,) * len(field.size)
    return replace(field, size=infinite, stride=infinite)


def _merge(fields: set[ReceptiveField]) -> ReceptiveField | None:
    """Return the field where branches meet: the largest size and the finest stride (coarser maps are upsampled)."""
    axes = max((len(field.size) for field in fields), default=0)
    comparable = [field for field in fields if len(field.size) == axes]
    if len(comparable) < 2:
        return comparable[0] if comparable else None
    return ReceptiveField(
        tuple(max(sides) for sides in zip(*(field.size for field in comparable), strict=True)),
        tuple(min(sides) for sides in zip(*(field.stride for field in comparable), strict=True)),
        max(field.cells for field in comparable),
        any(field.of_region for field in comparable),
    )


def _slide(field: ReceptiveField, spans: Sequence[float], strides: Sequence[float], out: Tensor) -> ReceptiveField:
    """Return the field of a window of `spans` cells that moves by `strides` cells (formula at the top of this file)."""
    axes = zip(field.size, field.stride, spans, strict=True)
    return ReceptiveField(
        tuple(size + (span - 1) * step if span > 1 else size for size, step, span in axes),
        tuple(step * stride for step, stride in zip(field.stride, strides, strict=True)),
        _cells(out, len(spans)),
        field.of_region,
    )


def _cells(maps: Tensor, axes: int) -> int:
    return math.prod((len(maps), *maps.shape[-axes:]))


def _convolution(
    weight: Tensor, _bias: Any, stride: Sequence[int], _padding: Any, dilation: Sequence[int], transposed: bool
) -> tuple[list[float], list[float]]:
    """Return span and stride of a convolution's window in cells, along each axis."""
    kernel = weight.shape[2:]
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, per_axis(dilation, len(kernel)), strict=True)]
    strides = per_axis(stride, len(kernel))
    if transposed:  # the input's cells lie `stride` apart
        return [math.ceil(span / s) for span, s in zip(spans, strides, strict=True)], [1 / s for s in strides]
    return [*spans], [*strides]


def _pool(name: str, args: Any, axes: int) -> tuple[list[float], list[float]]:
    """Return span and stride of max_pool(x, kernel, stride, padding, dilation, …) or avg_pool(x, kernel, stride, …)."""
    kernel = per_axis(args[1], axes)
    stride = per_axis(args[2], axes) if len(args) > 2 and args[2] else kernel
    dilation = per_axis(args[4] if name.startswith("max") and len(args) > 4 else 1, axes)
    return [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)], [*stride]


def _adaptive(before: Sequence[int], after: Sequence[int]) -> tuple[list[float], list[float]]:
    """Return span and stride of an adaptive pool; cell i of m covers the cells ⌊i · n / m⌋ … ⌈(i + 1) · n / m⌉ of n."""
    spans, strides = [], []
    for n, m in zip(before, after, strict=True):
        whole = m == 1 < n
        spans.append(math.inf if whole else max(-(-(i + 1) * n // m) - i * n // m for i in range(m)))
        strides.append(math.inf if whole else n / m)
    return spans, strides


def per_axis(value: int | Sequence[int], axes: int) -> list[int]:
    """Return one number per axis, the last ones if there are more: torch pools 1-D input as 2-D of height 1."""
    values = [value] if isinstance(value, int) else list(value)
    return values * axes if len(values) == 1 else values[-axes:]


def _over_map(args: Any, axes: int) -> bool:
    """Return whether a reduction is over all axes of the map."""
    dims = args[1] if len(args) > 1 else None
    ndim = args[0].ndim
    return not dims or {dim % ndim for dim in dims} >= set(range(ndim - axes, ndim))
