"""RoIAlign over several feature levels at once (He et al. 2017, Mask R-CNN, §3), without data-dependent shapes.

Equal to `torchvision.ops.roi_align` in float32 on the level of each region. On the CPU a compiled kernel reads
channels-last features, where the channels of a cell are contiguous, and uses every core. On CUDA a Triton kernel reads
such features in their own type. On other devices, and where Triton is missing, all levels are placed side by side on
one canvas, so that a single call of torchvision's kernel pools from all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

from detect.ops.threads import in_threads
from detect.ops.triton_kernels import has_triton


def multilevel_roi_align(
    features: Sequence[Float[Tensor, "B C _ _"]],
    strides: Sequence[float],
    boxes: Float[Tensor, "B S 4"],
    levels: Int[Tensor, "B S"],
    size: int,
    sampling_ratio: int = 2,
    aligned: bool = False,
) -> Float[Tensor, "N C p p"]:
    """Pool `size` × `size` bins of bilinear samples from each of the N = B · S boxes.

    Args:
        features: one feature map per level, all with the same B and C.
        strides: image pixels per cell, for each level.
        boxes: xyxy in pixels, within the image.
        levels: the level to pool each box from.
        size: bins along each side.
        sampling_ratio: samples per bin along each side; 0 uses as many as the bin has cells.
        aligned: shift the samples by half a cell to their exact position (detectron2's "RoIAlign v2").
    """
    if boxes.is_cuda and has_triton():
        return _pool_triton(features, boxes, levels, strides, size, sampling_ratio, aligned)
    scales = _select_by_level(levels, [1 / stride for stride in strides])
    regions = boxes.float() * scales.unsqueeze(-1) - (0.5 if aligned else 0.0)
    if boxes.device.type == "cpu":
        maps = [level.float() for level in features]
        pooled = _pool_cpu(maps, regions, levels, size, sampling_ratio, aligned)
    else:
        pooled = _pool_on_canvas(features, regions, levels, size, sampling_ratio, aligned)
    return pooled.to(features[0].dtype)


def _select_by_level(levels: Int[Tensor, "B S"], values: Sequence[float]) -> Float[Tensor, "B S"]:
    """Return `values[level]` without an index tensor, since copying one to the GPU synchronises."""
    out = torch.full_like(levels, values[0], dtype=torch.float32)
    for level, value in enumerate(values[1:], start=1):
        out = out.masked_fill(levels == level, value)
    return out


# ---- CUDA: a Triton kernel -------------------------------------------------------------------------------------------


@torch.library.custom_op("detect::roi_align_triton", mutates_args=(), device_types="cuda")
def _pool_triton(
    features: Sequence[Tensor],
    boxes: Tensor,
    levels: Tensor,
    strides: Sequence[float],
    size: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    from detect.ops.roi_align_triton import pool

    return pool(features, boxes, levels, strides, size, sampling_ratio, aligned)


@_pool_triton.register_fake
def _(features, boxes, levels, strides, size, sampling_ratio, aligned):
    return features[0].new_empty(levels.numel(), size, size, features[0].shape[1]).permute(0, 3, 1, 2)


@torch.library.custom_op("detect::roi_align_triton_backward", mutates_args=(), device_types="cuda")
def _pool_triton_backward(
    gradient: Tensor,
    boxes: Tensor,
    levels: Tensor,
    strides: Sequence[float],
    heights: Sequence[int],
    widths: Sequence[int],
    sampling_ratio: int,
    aligned: bool,
) -> list[Tensor]:
    from detect.ops.roi_align_triton import pool_backward

    return pool_backward(gradient, boxes, levels, strides, heights, widths, sampling_ratio, aligned)


@_pool_triton_backward.register_fake
def _(gradient, boxes, levels, strides, heights, widths, sampling_ratio, aligned):
    return _empty_gradients(gradient, len(boxes), heights, widths)


def _save_for_triton(ctx, inputs, output) -> None:
    features, boxes, levels, ctx.strides, _, ctx.sampling_ratio, ctx.aligned = inputs
    ctx.save_for_backward(boxes, levels)
    ctx.sizes = _sizes(features)


def _backward_by_triton(ctx, gradient):
    options = ctx.strides, *ctx.sizes, ctx.sampling_ratio, ctx.aligned
    return _pool_triton_backward(gradient, *ctx.saved_tensors, *options), None, None, None, None, None, None


_pool_triton.register_autograd(_backward_by_triton, setup_context=_save_for_triton)


# ---- Other devices: all levels on one canvas -------------------------------------------------------------------------


def _pool_on_canvas(
    features: Sequence[Tensor], regions: Tensor, levels: Tensor, size: int, sampling_ratio: int, aligned: bool
) -> Tensor:
    """Pool from a canvas with level 0 on the left and the smaller levels in a column on the right.

    Each level has a replicated border: a bilinear sample may lie up to one cell outside of its map, where it has the
    value of the border. The border is two cells wide at the right and bottom: if `aligned` is False, bins are at least
    one cell wide, so samples of a narrower box at the edge may lie further out. They also have the border's value;
    torchvision returns zero for them.
    """
    # float32 throughout: half precision would move a corner by up to a cell, and the kernel accepts only one dtype.
    framed = [F.pad(level.float(), (1, 2, 1, 2), mode="replicate") for level in features]
    first, rest = framed[0], framed[1:]
    origins = [(1, 1)]
    if rest:
        width = max(level.shape[-1] for level in rest)
        column = torch.cat([F.pad(level, (0, width - level.shape[-1])) for level in rest], dim=-2)
        height = max(first.shape[-2], column.shape[-2])
        columns = [F.pad(part, (0, 0, 0, height - part.shape[-2])) for part in (first, column)]
        top = 1
        for level in rest:
            origins.append((first.shape[-1] + 1, top))
            top += level.shape[-2]
        canvas = torch.cat(columns, dim=-1)
    else:
        canvas = first
    # torchvision's kernel subtracts the half cell itself.
    shift = torch.stack([_select_by_level(levels, side) for side in zip(*origins, strict=True)], dim=-1)
    shift = shift + (0.5 if aligned else 0.0)
    image = torch.arange(len(regions), device=regions.device, dtype=regions.dtype)[:, None].expand(levels.shape)
    rois = torch.cat([image[..., None], regions + shift.repeat(1, 1, 2)], dim=-1).flatten(0, 1)
    return roi_align(canvas, rois, size, 1.0, sampling_ratio, aligned)


# ---- CPU kernel ------------------------------------------------------------------------------------------------------


@torch.library.custom_op("detect::roi_align_cpu", mutates_args=(), device_types="cpu")
def _pool_cpu(
    features: Sequence[Tensor], regions: Tensor, levels: Tensor, size: int, sampling_ratio: int, aligned: bool
) -> Tensor:
    maps = tuple(_channels_last(level) for level in features)
    count, channels = levels.numel(), features[0].shape[1]
    pooled = np.zeros((count, size, size, channels), np.float32)
    rois, images, level_of = _flatten(regions, levels)
    in_threads(
        count,
        lambda start, stop: _pool(maps, rois, images, level_of, pooled, sampling_ratio, aligned, start, stop),
    )
    return torch.from_numpy(pooled).permute(0, 3, 1, 2)


@_pool_cpu.register_fake
def _(features, regions, levels, size, sampling_ratio, aligned):
    return regions.new_empty(levels.numel(), size, size, features[0].shape[1]).permute(0, 3, 1, 2)


@torch.library.custom_op("detect::roi_align_cpu_backward", mutates_args=(), device_types="cpu")
def _pool_cpu_backward(
    gradient: Tensor,
    regions: Tensor,
    levels: Tensor,
    heights: Sequence[int],
    widths: Sequence[int],
    sampling_ratio: int,
    aligned: bool,
) -> list[Tensor]:
    channels = gradient.shape[1]
    maps = tuple(
        np.zeros((len(regions), height, width, channels), np.float32)
        for height, width in zip(heights, widths, strict=True)
    )
    rois, images, level_of = _flatten(regions, levels)
    upstream = _channels_last(gradient)
    # The threads write to the same maps, so each processes some of the channels.
    in_threads(
        channels,
        lambda start, stop: _scatter(maps, rois, images, level_of, upstream, sampling_ratio, aligned, start, stop),
    )
    return [torch.from_numpy(level).permute(0, 3, 1, 2) for level in maps]


@_pool_cpu_backward.register_fake
def _(gradient, regions, levels, heights, widths, sampling_ratio, aligned):
    return _empty_gradients(gradient, len(regions), heights, widths)


def _save_for_backward(ctx, inputs, output) -> None:
    features, regions, levels, _, ctx.sampling_ratio, ctx.aligned = inputs
    ctx.save_for_backward(regions, levels)
    ctx.sizes = _sizes(features)


def _backward(ctx, gradient):
    regions, levels = ctx.saved_tensors
    gradients = _pool_cpu_backward(gradient, regions, levels, *ctx.sizes, ctx.sampling_ratio, ctx.aligned)
    return gradients, None, None, None, None, None


_pool_cpu.register_autograd(_backward, setup_context=_save_for_backward)


def _sizes(features: Sequence[Tensor]) -> tuple[list[int], list[int]]:
    """Return the heights and the widths of the feature maps."""
    return [level.shape[-2] for level in features], [level.shape[-1] for level in features]


def _empty_gradients(gradient: Tensor, images: int, heights: Sequence[int], widths: Sequence[int]) -> list[Tensor]:
    return [
        gradient.new_empty(images, height, width, gradient.shape[1]).permute(0, 3, 1, 2)
        for height, width in zip(heights, widths, strict=True)
    ]


def _channels_last(tensor: Tensor) -> np.ndarray:
    return tensor.detach().permute(0, 2, 3, 1).contiguous().numpy()


def _flatten(regions: Tensor, levels: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the regions [N, 4] with the image and the level of each."""
    images = torch.arange(len(levels))[:, None].expand(levels.shape)
    return regions.detach().reshape(-1, 4).numpy(), images.reshape(-1).numpy(), levels.reshape(-1).numpy()


@numba.njit(cache=True, nogil=True, inline="always")
def _bin(roi, size, sampling_ratio, aligned):
    """Return height and width of a region's bins, and the number of samples per bin along y and x."""
    width, height = roi[2] - roi[0], roi[3] - roi[1]
    if not aligned:
        width, height = max(width, np.float32(1)), max(height, np.float32(1))
    bin_h, bin_w = height / np.float32(size), width / np.float32(size)
    if sampling_ratio > 0:
        return bin_h, bin_w, sampling_ratio, sampling_ratio
    return bin_h, bin_w, int(np.ceil(bin_h)), int(np.ceil(bin_w))


@numba.njit(cache=True, nogil=True, inline="always")
def _position(corner, side, index, sample, samples):
    """Return the position of a sample of bin `index`, in cells."""
    return corner + np.float32(index) * side + (np.float32(sample) + np.float32(0.5)) * side / np.float32(samples)


@numba.njit(cache=True, nogil=True, inline="always")
def _taps(position, length):
    """Return the two cells around a sample and their weights; zero weights far outside of the map and for NaN."""
    if not (position >= -1.0 and position <= length):
        return 0, 0, np.float32(0), np.float32(0)
    position = max(position, np.float32(0))
    low = int(position)
    if low >= length - 1:
        return length - 1, length - 1, np.float32(1), np.float32(0)
    fraction = np.float32(position - np.float32(low))
    return low, low + 1, np.float32(1) - fraction, fraction


@numba.njit(cache=True, nogil=True)
def _pool(maps, rois, images, level_of, pooled, sampling_ratio, aligned, start, stop):
    """Fill `pooled[start:stop]`; a sample is the weighted sum of four cells, over all channels."""
    size, channels = pooled.shape[1], pooled.shape[3]
    for n in range(start, stop):
        roi, level = rois[n], maps[level_of[n]]
        image, height, width = level[images[n]], level.shape[1], level.shape[2]
        bin_h, bin_w, samples_h, samples_w = _bin(roi, size, sampling_ratio, aligned)
        share = np.float32(1) / np.float32(max(1, samples_h * samples_w))
        for row in range(size):
            for column in range(size):
                out = pooled[n, row, column]
                for i in range(samples_h):
                    y = _position(roi[1], bin_h, row, i, samples_h)
                    y0, y1, top, bottom = _taps(y, height)
                    for j in range(samples_w):
                        x = _position(roi[0], bin_w, column, j, samples_w)
                        x0, x1, left, right = _taps(x, width)
                        a, b = top * left * share, top * right * share
                        c, d = bottom * left * share, bottom * right * share
                        p, q, r, s = image[y0, x0], image[y0, x1], image[y1, x0], image[y1, x1]
                        for k in range(channels):
                            out[k] += a * p[k] + b * q[k] + c * r[k] + d * s[k]


@numba.njit(cache=True, nogil=True)
def _scatter(maps, rois, images, level_of, gradient, sampling_ratio, aligned, start, stop):
    """Add the gradient of channels `start:stop` to the cells that `_pool` has read."""
    size = gradient.shape[1]
    for n in range(len(rois)):
        roi, level = rois[n], maps[level_of[n]]
        image, height, width = level[images[n]], level.shape[1], level.shape[2]
        bin_h, bin_w, samples_h, samples_w = _bin(roi, size, sampling_ratio, aligned)
        share = np.float32(1) / np.float32(max(1, samples_h * samples_w))
        for row in range(size):
            for column in range(size):
                upstream = gradient[n, row, column]
                for i in range(samples_h):
                    y = _position(roi[1], bin_h, row, i, samples_h)
                    y0, y1, top, bottom = _taps(y, height)
                    for j in range(samples_w):
                        x = _position(roi[0], bin_w, column, j, samples_w)
                        x0, x1, left, right = _taps(x, width)
                        a, b = top * left * share, top * right * share
                        c, d = bottom * left * share, bottom * right * share
                        for k in range(start, stop):
                            image[y0, x0, k] += a * upstream[k]
                            image[y0, x1, k] += b * upstream[k]
                            image[y1, x0, k] += c * upstream[k]
                            image[y1, x1, k] += d * upstream[k]
