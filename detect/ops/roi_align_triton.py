"""RoIAlign over several feature levels by Triton kernels, forward and backward, on channels-last features.

`_pool`:    a program averages the samples of some bins of one region, for some channels → pooled [N, p, p, C]
`_scatter`: likewise adds the gradient of the bins to the cells of their samples, by atomics → gradients [B, H, W, C]
`_gather`:  a program owns some cells of one map, and adds the gradients of all regions in order → the same gradients

Features are read in their own dtype and summed in float32. Positions are rounded as in the CPU's kernel.

For features of M bytes in bfloat16, `_pool` reads M from memory; the L2 cache serves regions that overlap. The canvas
of `detect.ops.roi_align` moves at least 17 M: the cast to float32 3, the borders 4, the concatenation 4, the copy to
channels first 4, and the pooling 2. `_scatter` moves 7 M (zeros 2, sums 2, the cast 3), and `_gather` writes M. These
numbers are computed, not measured.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

BINS = 8
"""Bins of a program of `_pool` and `_scatter`."""
CELLS = 16
"""Neighbouring cells of a row that a program of `_gather` owns."""
CHANNELS = 256
"""Maximum number of channels of a program: with bfloat16, 16 bytes for each thread of a warp."""
MAX_BIN = tl.constexpr(32768.0)
"""Maximum length of a bin in cells, if it determines the number of samples; longer ones get none, to bound the time."""


@triton.jit
def _of_level(values, level):
    value = values[0]
    for i in tl.static_range(1, len(values)):
        if level == i:
            value = values[i]
    return value


@triton.jit
def _samples(side, sampling_ratio: tl.constexpr):
    """Return the number of samples along a bin; none for NaN and infinity."""
    if sampling_ratio > 0:
        samples = tl.full((), sampling_ratio, tl.int32)
    else:
        samples = tl.ceil(tl.where(side <= MAX_BIN, side, 0.0)).to(tl.int32)
    return samples


@triton.jit
def _region(boxes, n, scale, size: tl.constexpr, sampling_ratio: tl.constexpr, aligned: tl.constexpr):
    """Return the rows and the columns of region n, each as its start, a bin's length, and samples per bin."""
    shift: tl.constexpr = 0.5 if aligned else 0.0
    left, top = tl.load(boxes + n * 4) * scale - shift, tl.load(boxes + n * 4 + 1) * scale - shift
    right, bottom = tl.load(boxes + n * 4 + 2) * scale - shift, tl.load(boxes + n * 4 + 3) * scale - shift
    width, height = right - left, bottom - top
    if not aligned:
        width, height = tl.maximum(width, 1.0), tl.maximum(height, 1.0)
    bin_h, bin_w = tl.div_rn(height, size * 1.0), tl.div_rn(width, size * 1.0)
    return (top, bin_h, _samples(bin_h, sampling_ratio)), (left, bin_w, _samples(bin_w, sampling_ratio))


@triton.jit
def _share(rows, columns):
    """Return the weight of a sample in the mean of its bin."""
    return tl.div_rn(1.0, tl.maximum(rows[2] * columns[2], 1).to(tl.float32))


@triton.jit
def _taps(side, index, sample, length):
    """Return the two cells around a sample along one side, the weight of the second, and whether it is on the map.

    Args:
        side: the rows or the columns of a region.
        index: the bin's row or column.
        sample: index of the sample within the bin.
        length: cells of the map, as a float.
    """
    start, bin_, samples = side
    within = tl.div_rn((sample + 0.5) * bin_, samples.to(tl.float32))
    position = start + tl.cast(index, tl.float32) * bin_ + within
    inside = (position >= -1.0) & (position <= length)  # False for NaN
    position = tl.where(inside, tl.maximum(position, 0.0), 0.0)
    last = tl.cast(length, tl.int32) - 1
    low = tl.minimum(position.to(tl.int32), last)
    fraction = tl.where(low < last, position - low.to(tl.float32), 0.0)
    return low, tl.minimum(low + 1, last), fraction, inside


@triton.jit
def _corners(rows, columns, bin_, i, j, height, width, size: tl.constexpr):
    """Return the four cells around sample (i, j) of each bin, their weights, and whether the sample is on the map."""
    y0, y1, bottom, in_rows = _taps(rows, bin_ // size, i, height)
    x0, x1, right, in_columns = _taps(columns, bin_ % size, j, width)
    top, left, share, stride = 1.0 - bottom, 1.0 - right, _share(rows, columns), tl.cast(width, tl.int32)
    cells = y0 * stride + x0, y0 * stride + x1, y1 * stride + x0, y1 * stride + x1
    weights = top * left * share, top * right * share, bottom * left * share, bottom * right * share
    return cells, weights, in_rows & in_columns


@triton.jit
def _bins(size: tl.constexpr, channels: tl.constexpr, bins: tl.constexpr, block: tl.constexpr):
    """Return the region of this program, its bins, its channels, their places in the pooled regions, and a mask."""
    blocks: tl.constexpr = (size * size + bins - 1) // bins
    n = (tl.program_id(0) // blocks).to(tl.int64)
    bin_ = tl.program_id(0) % blocks * bins + tl.arange(0, bins)
    channel = tl.program_id(1) * block + tl.arange(0, block)
    places = (n * (size * size) + bin_[:, None]) * channels + channel[None, :]
    return n, bin_, channel, places, (bin_ < size * size)[:, None] & (channel < channels)[None, :]


@triton.jit
def _image(maps, level, image, height, width, channels: tl.constexpr):
    return _of_level(maps, level) + image * tl.cast(height, tl.int64) * tl.cast(width, tl.int64) * channels


@triton.jit(do_not_specialize=["of_image"])
def _pool(
    maps,
    pooled,
    boxes,
    levels,
    heights,
    widths,
    scales,
    of_image,
    channels: tl.constexpr,
    size: tl.constexpr,
    sampling_ratio: tl.constexpr,
    aligned: tl.constexpr,
    bins: tl.constexpr,
    block: tl.constexpr,
):
    n, bin_, channel, places, used = _bins(size, channels, bins, block)
    level = tl.load(levels + n).to(tl.int32)
    height, width = _of_level(heights, level), _of_level(widths, level)
    rows, columns = _region(boxes, n, _of_level(scales, level), size, sampling_ratio, aligned)
    image = _image(maps, level, n // of_image, height, width, channels) + channel[None, :]
    total = tl.zeros([bins, block], tl.float32)
    for i in range(rows[2]):
        for j in range(columns[2]):
            cells, weights, inside = _corners(rows, columns, bin_, i, j, height, width, size)
            inside = inside[:, None] & used
            mean = weights[0][:, None] * tl.load(image + cells[0][:, None] * channels, inside, 0.0).to(tl.float32)
            for k in tl.static_range(1, 4):
                value = tl.load(image + cells[k][:, None] * channels, inside, 0.0).to(tl.float32)
                mean += weights[k][:, None] * value
            total += mean
    tl.store(pooled + places, total.to(pooled.dtype.element_ty), used)


@triton.jit(do_not_specialize=["of_image"])
def _scatter(
    maps,
    upstream,
    boxes,
    levels,
    heights,
    widths,
    scales,
    of_image,
    channels: tl.constexpr,
    size: tl.constexpr,
    sampling_ratio: tl.constexpr,
    aligned: tl.constexpr,
    bins: tl.constexpr,
    block: tl.constexpr,
):
    n, bin_, channel, places, used = _bins(size, channels, bins, block)
    level = tl.load(levels + n).to(tl.int32)
    height, width = _of_level(heights, level), _of_level(widths, level)
    rows, columns = _region(boxes, n, _of_level(scales, level), size, sampling_ratio, aligned)
    image = _image(maps, level, n // of_image, height, width, channels) + channel[None, :]
    gradient = tl.load(upstream + places, used, 0.0).to(tl.float32)
    for i in range(rows[2]):
        for j in range(columns[2]):
            cells, weights, inside = _corners(rows, columns, bin_, i, j, height, width, size)
            for k in tl.static_range(4):
                target = image + cells[k][:, None] * channels
                tl.atomic_add(target, weights[k][:, None] * gradient, inside[:, None] & used, sem="relaxed")


@triton.jit
def _weights(cell, side, index, length):
    """Return the sum of the weights of `cell` in the samples of bin `index` along one side."""
    weights = tl.zeros_like(cell).to(tl.float32)
    for sample in range(side[2]):
        low, high, fraction, inside = _taps(side, index, sample, length)
        weight = tl.where(cell == low, 1.0 - fraction, 0.0) + tl.where(cell == high, fraction, 0.0)
        weights += tl.where(inside, weight, 0.0)
    return weights


@triton.jit
def _near(first, last, side, size: tl.constexpr):
    """Return whether a region may have samples less than a cell away from the cells `first` to `last` of one side."""
    return (side[0] <= last + 1) & (side[0] + side[1] * size >= first - 1)


@triton.jit
def _row(heights, widths, cells: tl.constexpr):
    """Return the level of this program's cells, their row, and the column of the first."""
    tile, level = tl.program_id(0), 0
    for i in tl.static_range(len(heights) - 1):
        tiles = tl.cast(heights[i], tl.int32) * tl.cdiv(tl.cast(widths[i], tl.int32), cells)
        if (level == i) & (tile >= tiles):
            tile, level = tile - tiles, level + 1
    of_row = tl.cdiv(tl.cast(_of_level(widths, level), tl.int32), cells)
    return level, tile // of_row, tile % of_row * cells


@triton.jit(do_not_specialize=["of_image"])
def _gather(
    maps,
    upstream,
    boxes,
    levels,
    heights,
    widths,
    scales,
    of_image,
    channels: tl.constexpr,
    size: tl.constexpr,
    sampling_ratio: tl.constexpr,
    aligned: tl.constexpr,
    cells: tl.constexpr,
    block: tl.constexpr,
):
    level, y, first = _row(heights, widths, cells)
    height, width, scale = _of_level(heights, level), _of_level(widths, level), _of_level(scales, level)
    x, channel = first + tl.arange(0, cells), tl.program_id(1) * block + tl.arange(0, block)
    number = tl.program_id(2).to(tl.int64)
    total = tl.zeros([cells, block], tl.float32)
    for n in range(number * of_image, (number + 1) * of_image):
        rows, columns = _region(boxes, n, scale, size, sampling_ratio, aligned)
        near = _near(y, y, rows, size) & _near(first, first + cells - 1, columns, size)
        if near & (tl.load(levels + n).to(tl.int32) == level):
            for row in range(size):
                weight = _weights(y, rows, row, height) * _share(rows, columns)
                if weight > 0.0:
                    for column in range(size):
                        weights = weight * _weights(x, columns, column, width)
                        place = ((n * size + row) * size + column) * channels + channel
                        gradient = tl.load(upstream + place, channel < channels, 0.0).to(tl.float32)
                        total += weights[:, None] * gradient[None, :]
    image = _image(maps, level, number, height, width, channels)
    places = image + (y * tl.cast(width, tl.int32) + x[:, None]) * channels + channel[None, :]
    used = (x < tl.cast(width, tl.int32))[:, None] & (channel < channels)[None, :]
    tl.store(places, total.to(maps[0].dtype.element_ty), used)


def pool(
    features: Sequence[Tensor],
    boxes: Tensor,
    levels: Tensor,
    strides: Sequence[float],
    size: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Return the pooled regions [N, C, p, p], in the features' dtype; see `detect.ops.roi_align`."""
    maps = [_channels_last(level) for level in features]
    channels = maps[0].shape[-1]
    pooled = maps[0].new_empty(levels.numel(), size, size, channels)
    if pooled.numel():
        block = _block(channels)
        grid = levels.numel() * triton.cdiv(size * size, BINS), triton.cdiv(channels, block)
        _launch(_pool, grid, maps, pooled, boxes, levels, strides, sampling_ratio, aligned, bins=BINS)
    return pooled.permute(0, 3, 1, 2)


def pool_backward(
    gradient: Tensor,
    boxes: Tensor,
    levels: Tensor,
    strides: Sequence[float],
    heights: Sequence[int],
    widths: Sequence[int],
    sampling_ratio: int,
    aligned: bool,
) -> list[Tensor]:
    """Return the gradients of the features, in the dtype of `gradient`."""
    upstream = _channels_last(gradient)
    channels = upstream.shape[-1]
    shapes = [(len(boxes), height, width, channels) for height, width in zip(heights, widths, strict=True)]
    blocks = triton.cdiv(channels, _block(channels))
    options = strides, sampling_ratio, aligned
    if torch.are_deterministic_algorithms_enabled():
        maps = [upstream.new_empty(shape) for shape in shapes]
        tiles = sum(height * triton.cdiv(width, CELLS) for height, width in zip(heights, widths, strict=True))
        _launch(_gather, (tiles, blocks, len(boxes)), maps, upstream, boxes, levels, *options, cells=CELLS)
    else:
        maps = [upstream.new_zeros(shape, dtype=torch.float32) for shape in shapes]
        grid = levels.numel() * triton.cdiv(upstream.shape[1] ** 2, BINS), blocks
        _launch(_scatter, grid, maps, upstream, boxes, levels, *options, bins=BINS)
    return [level.to(upstream.dtype).permute(0, 3, 1, 2) for level in maps]


def _launch(kernel, grid, maps, pooled, boxes, levels, strides, sampling_ratio, aligned, **tile) -> None:
    """Run a kernel.

    Heights and widths are passed as floats: for ints Triton would compile a kernel for each kind of value.
    """
    if 0 in grid:
        return
    channels = maps[0].shape[-1]
    with torch.cuda.device_of(boxes):
        # Products must not be fused with sums: positions are then rounded as on the CPU.
        kernel[grid](
            tuple(maps),
            pooled,
            boxes.float().contiguous(),
            levels.contiguous(),
            tuple(float(level.shape[1]) for level in maps),
            tuple(float(level.shape[2]) for level in maps),
            tuple(1 / stride for stride in strides),
            levels.shape[1],
            channels=channels,
            size=pooled.shape[1],
            sampling_ratio=sampling_ratio,
            aligned=aligned,
            block=_block(channels),
            enable_fp_fusion=False,
            **tile,
        )


def _block(channels: int) -> int:
    return min(CHANNELS, triton.next_power_of_2(channels))


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.permute(0, 2, 3, 1).contiguous()
