"""Custom operators in ONNX for `torch.onnx.export`: resizing, NMS, RoIAlign and RoIPool.

Each computes the same as its torch operator on the CPU. Resizing is bit-identical to OpenCV's, because it uses the same
fixed-point numbers and order of sums: the exported network gets the same pixels as in training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from onnxscript import BOOL, DOUBLE, FLOAT, INT32, INT64, UINT8, ir, opset18, script

import detect.export.exportable
import detect.ops.nms
import detect.ops.roi_align  # noqa: F401  these imports register the operators
from detect.data.canvases import SIZE_DIVISIBILITY

OPSET = 18
op: Any = opset18  # its annotations allow neither numbers for tensors nor untyped values

EPSILON = 2.220446049250313e-16
"""Machine epsilon of float64; OpenCV takes a scale this close to an integer for an integer."""


def translations() -> dict[Callable, Callable]:
    """Return the `custom_translation_table`: the functions below by the torch operators that they translate."""
    operators = torch.ops.detect
    table: dict[Any, Callable] = {
        operators.letterbox.default: letterbox,
        operators.nms_cpu.default: nms,
        operators.roi_align_cpu.default: roi_align,
        torch.ops.torchvision.roi_pool.default: roi_pool,
    }
    return table


# ---- resizing images of any size onto a canvas -----------------------------------------------------------------------


def letterbox(images: UINT8, short_side: int, long_side: int) -> tuple[UINT8, INT64, FLOAT]:
    """Translate `detect.export.exportable.letterbox`."""
    before = op.Shape(images, start=1, end=3)
    sides = _double(before)
    by_short = op.Div(_real(short_side), op.ReduceMin(sides))
    by_long = op.Div(_real(long_side), op.ReduceMax(sides))
    after = op.Max(_int64(op.Round(op.Mul(sides, op.Min(by_short, by_long)))), _ints(1))
    (old_height, old_width), (height, width) = op.Split(before, num_outputs=2), op.Split(after, num_outputs=2)
    # OpenCV computes the inverse scale first, and the scale as its reciprocal.
    scale = op.Div(_real(1), op.Div(_double(after), sides))
    row_scale, column_scale = op.Split(scale, num_outputs=2)
    whole = op.Less(op.ReduceMax(op.Abs(op.Sub(scale, op.Round(scale)))), _real(EPSILON))
    resized = resampled(  # type: ignore[call-arg]  # a script function has other types
        images,
        op.Squeeze(op.Less(height, old_height)),
        *_linear_taps(old_width, width, column_scale, along_row=True),
        *_linear_taps(old_height, height, row_scale, along_row=False),
        *_area_taps(old_width, width, column_scale, whole),
        *_area_taps(old_height, height, row_scale, whole),
        op.Where(whole, _float(op.Div(_real(1), op.ReduceProd(op.Round(scale)))), 1.0),
        op.And(whole, op.Less(op.ReduceMax(op.Abs(op.Sub(scale, _real(2)))), _real(0.5))),
    )
    # The shape inference of ONNX loses the rank in a loop.
    resized = op.Reshape(resized, op.Concat(op.Shape(images, start=0, end=1), after, _ints(3), axis=0))
    margin = op.Mod(op.Neg(after), _ints(SIZE_DIVISIBILITY))
    pads = op.Concat(_ints(0, 0, 0, 0, 0), margin, _ints(0), axis=0)
    pairs = op.Concat(op.Shape(images, start=0, end=1), _ints(2), axis=0)
    ratio = op.Gather(_float(op.Div(_double(after), sides)), [1, 0])
    pixels = op.Transpose(op.Pad(resized, pads), perm=[0, 3, 1, 2])
    return pixels, op.Expand(after, pairs), op.Expand(ratio, pairs)


def _linear_taps(before, after, scale, along_row):
    """Return the two pixels around each new pixel along a side, and their weights, which add up to 2048.

    Outside of the image both are the border pixel; along a row, the first one then has the whole weight.
    """
    centre = _double(op.Range(0, op.Squeeze(after), 1))
    position = _float(op.Sub(op.Mul(op.Add(centre, _real(0.5)), scale), _real(0.5)))
    floor = op.Floor(position)
    cell, last, part = _int64(floor), op.Sub(before, _ints(1)), op.Sub(position, floor)
    if along_row:
        part = op.Where(op.Or(op.Less(cell, _ints(0)), op.GreaterOrEqual(cell, last)), 0.0, part)
    weights = (op.Cast(op.Round(op.Mul(share, 2048.0)), to=INT32.dtype) for share in (op.Sub(1.0, part), part))
    cells = (op.Min(op.Max(index, _ints(0)), last) for index in (cell, op.Add(cell, _ints(1))))
    return *cells, *weights


def _area_taps(before, after, scale, whole):
    """Return the first pixel that each new pixel may cover, and the weights of k pixels from it on: [k, n].

    If the image shrinks by an integer factor, the weights are 1 and the sums are divided at the end.
    """
    start = op.Mul(_double(op.Range(0, op.Squeeze(after), 1)), scale)
    stop = op.Add(start, scale)
    width = op.Min(scale, op.Sub(_double(before), start))
    final = op.Min(op.Floor(stop), _double(op.Sub(before, _ints(1))))
    begin = op.Min(op.Ceil(start), final)
    head, tail = op.Sub(begin, start), op.Sub(stop, final)
    # OpenCV ignores less than a thousandth of a pixel.
    head = op.Where(op.Greater(head, _real(1e-3)), head, _real(0))
    tail = op.Where(op.Greater(tail, _real(1e-3)), op.Min(tail, _real(1), width), _real(0))
    taps = op.Range(-1, op.Add(_int64(op.Ceil(op.Squeeze(scale))), 2), 1)
    cell = op.Add(begin, op.Unsqueeze(_double(taps), [1]))
    covered = op.Where(op.Less(cell, final), _real(1), op.Where(op.Equal(cell, final), tail, _real(0)))
    covered = op.Where(op.Less(cell, begin), head, covered)
    weights = op.Where(whole, op.Round(covered), op.Div(covered, width))
    return op.Sub(_int64(begin), _ints(1)), _float(weights)


@script(default_opset=op)
def resampled(
    images: UINT8,
    shrinks: BOOL,
    left: INT64,
    right: INT64,
    left_weight: INT32,
    right_weight: INT32,
    top: INT64,
    bottom: INT64,
    top_weight: INT32,
    bottom_weight: INT32,
    first_column: INT64,
    column_weights: FLOAT,
    first_row: INT64,
    row_weights: FLOAT,
    share: FLOAT,
    by_two: BOOL,
) -> UINT8:
    """Resize with OpenCV's INTER_AREA if the image shrinks, else with its INTER_LINEAR.

    INTER_AREA sums along rows and then along columns, tap by tap, so that float32 rounds as in OpenCV. Halves are
    rounded to even, but up if 2 × 2 pixels become one. INTER_LINEAR has weights of 11 bits; sums along a row lose 4
    bits, and each of the two rows is truncated to 18 bits.
    """
    if shrinks:
        width = op.Shape(images, start=2, end=3)
        shape = op.Concat(op.Shape(images, end=2), op.Shape(first_column), op.Shape(images, start=3), axis=0)
        rows = op.Expand(op.CastLike(0, share), shape)
        for tap in range(op.Squeeze(op.Shape(column_weights, start=0, end=1))):
            columns = op.Min(op.Max(op.Add(first_column, tap), 0), width - 1)
            pixels = op.CastLike(op.Gather(images, columns, axis=2), share)
            rows = rows + pixels * op.Unsqueeze(op.Gather(column_weights, tap), [1])
        height = op.Shape(images, start=1, end=2)
        shape = op.Concat(op.Shape(images, end=1), op.Shape(first_row), op.Shape(rows, start=2), axis=0)
        total = op.Expand(op.CastLike(0, share), shape)
        for tap in range(op.Squeeze(op.Shape(row_weights, start=0, end=1))):
            lines = op.Min(op.Max(op.Add(first_row, tap), 0), height - 1)
            total = total + op.Gather(rows, lines, axis=1) * op.Unsqueeze(op.Gather(row_weights, tap), [1, 2])
        mean = total * share
        resized = op.CastLike(op.Where(by_two, op.Floor(mean + 0.5), op.Round(mean)), images)
    else:
        first = op.CastLike(op.Gather(images, left, axis=2), left_weight) * op.Unsqueeze(left_weight, [1])
        second = op.CastLike(op.Gather(images, right, axis=2), left_weight) * op.Unsqueeze(right_weight, [1])
        sums = (first + second) / 16
        upper = op.Gather(sums, top, axis=1) * op.Unsqueeze(top_weight, [1, 2]) / 65536
        lower = op.Gather(sums, bottom, axis=1) * op.Unsqueeze(bottom_weight, [1, 2]) / 65536
        resized = op.CastLike((upper + lower + 2) / 4, images)
    return resized


def _ints(*values):
    return op.Constant(value_ints=values)


def _real(value):
    return op.Constant(value=ir.tensor(np.array(value, np.float64)))


def _double(values):
    return op.Cast(values, to=DOUBLE.dtype)


def _float(values):
    return op.Cast(values, to=FLOAT.dtype)


def _int64(values):
    return op.Cast(values, to=INT64.dtype)


# ---- NMS, RoIAlign and RoIPool ---------------------------------------------------------------------------------------


def nms(boxes: FLOAT, valid: BOOL, groups: INT64, iou_threshold: float) -> BOOL:
    """Translate `detect.ops.nms.nms` for boxes [B, n, 4], with a row of scores per group; earlier boxes are better."""
    shape = op.Shape(valid)
    length = op.Shape(valid, start=1, end=2)
    rank = op.Range(op.Squeeze(length), 0, -1)
    scores = op.Cast(op.Where(valid, rank, 0), to=FLOAT.dtype)
    group = op.Range(0, op.Add(op.ReduceMax(groups, keepdims=0), 1), 1)
    mine = op.Equal(op.Unsqueeze(groups, [1]), op.Unsqueeze(group, [1]))
    rows = op.Where(mine, op.Unsqueeze(scores, [1]), 0.0)
    # A score threshold of 0 excludes boxes that are invalid or of another group.
    kept = op.NonMaxSuppression(boxes, rows, length, [iou_threshold], [0.0])
    image_and_box = op.Gather(kept, [0, 2], axis=1)
    ones = op.Expand(True, op.Shape(kept, start=0, end=1))
    return op.ScatterND(op.Expand(False, shape), image_and_box, ones)


def roi_align(
    features: Sequence[FLOAT], regions: FLOAT, levels: INT64, size: int, sampling_ratio: int, aligned: bool
) -> FLOAT:
    """Translate `detect.ops.roi_align`: pool the regions of each level, then restore their order."""
    # The ONNX operator subtracts the half cell itself.
    boxes = op.Reshape(op.Add(regions, 0.5) if aligned else regions, [-1, 4])
    images = op.Range(0, op.Squeeze(op.Shape(levels, start=0, end=1)), 1)
    images = op.Reshape(op.Expand(op.Unsqueeze(images, [1]), op.Shape(levels)), [-1])
    attributes = {
        "coordinate_transformation_mode": "half_pixel" if aligned else "output_half_pixel",
        "output_height": size,
        "output_width": size,
        "sampling_ratio": sampling_ratio,
    }
    if len(features) == 1:
        return op.RoiAlign(features[0], boxes, images, **attributes)
    box_levels, pooled, indices = op.Reshape(levels, [-1]), [], []
    for level, maps in enumerate(features):
        index = op.Squeeze(op.NonZero(op.Equal(box_levels, level)), [0])
        pooled.append(op.RoiAlign(maps, op.Gather(boxes, index), op.Gather(images, index), **attributes))
        indices.append(index)
    order = op.Concat(*indices, axis=0)
    inverse = op.ScatterElements(order, order, op.Range(0, op.Squeeze(op.Shape(order)), 1))
    return op.Gather(op.Concat(*pooled, axis=0), inverse)


def roi_pool(
    features: FLOAT, regions: FLOAT, spatial_scale: float, pooled_height: int, pooled_width: int
) -> tuple[FLOAT, INT64]:
    """Translate torchvision's `roi_pool`, with a dummy for the positions of the maxima, which only gradients need."""
    shape = [pooled_height, pooled_width]
    pooled = op.MaxRoiPool(features, regions, pooled_shape=shape, spatial_scale=spatial_scale)
    return pooled, op.Shape(pooled)
