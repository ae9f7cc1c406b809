"""Winograd convolutions F(4×4, 3×3): kernel 3×3, stride 1, a quarter of the multiplications (Lavin & Gray 2016).

x [B, C, H, W]
    │ transform 6×6 tiles that overlap by two cells:             V = Bᵀ d B        [36, T, C]    T = ⌈H/4⌉ · ⌈W/4⌉
    │ one matrix product for each of the 36 cells of a tile:     M = V U           [36, T, O]    U = G g Gᵀ, once
    └ transform back to tiles of 4×4 output cells:               y = Aᵀ M A + bias [B, O, H, W]

On the CPU in float32 with 256 channels it is three times as fast as oneDNN's convolution. The result differs from the
sum in float64 by about 1e-6 standard deviations of the output, five times as much as a direct float32 sum does.

Gradients cost the same. The gradient of x is the same convolution of the output's gradient, with each kernel rotated by
180°. The gradient of the kernels reverses the transforms: dM = A dy Aᵀ for each tile, dU = Vᵀ dM summed over the tiles,
dg = Gᵀ dU G.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple, Self

import numba
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from detect.ops.threads import in_threads

CELLS = 4
"""Output cells along each side of a tile."""
TILE = CELLS + 2
"""Input cells along each side of a tile."""
MIN_CHANNELS = 64
"""With fewer channels the transforms cost more than the products save."""
MIN_CHANNELS_TRAINING, MIN_TILES_TRAINING = 128, 40
"""In training the kernels are transformed at every step, which pays off only with more channels and larger maps."""
TILES_PER_PRODUCT = 1024
"""V and M then have 38 MB each at 256 channels; larger products are no faster."""

# The interpolation points are 0, ±1, ±2 and infinity (Lavin & Gray 2016, §4.3).
_G = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
_GG = torch.kron(*(torch.tensor(_G, dtype=torch.float64),) * 2)
"""[36, 9]: the transform G g Gᵀ as a matrix on the nine cells of a kernel."""


class WinogradConv2d(nn.Module):
    """`nn.Conv2d` with a 3×3 kernel, stride 1 and padding 1, for inference."""

    weight: Float[Tensor, "36 C O"]
    bias: Float[Tensor, " O"]

    def __init__(self, weight: Float[Tensor, "36 C O"], bias: Float[Tensor, " O"]) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    @classmethod
    def of(cls, convolution: nn.Conv2d) -> Self:
        """Convert a convolution for which `is_winograd` returns True."""
        bias = convolution.bias
        zeros = convolution.weight.new_zeros(convolution.out_channels)
        return cls(transform_weight(convolution.weight.detach()), zeros if bias is None else bias.detach())

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B O H W"]:
        """Return the convolution of x, in channels-last memory format."""
        return _winograd_cpu(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        """Return the number of input and output channels, for `print`."""
        return f"{self.weight.shape[1]}, {self.weight.shape[2]}"


class TrainableWinogradConv2d(nn.Conv2d):
    """`nn.Conv2d` that computes its output and gradients with Winograd's algorithm where that is faster."""

    @classmethod
    def convert(cls, convolution: nn.Conv2d) -> None:
        """Change the class of a convolution in place, which keeps its parameters, names and hooks."""
        convolution.__class__ = cls

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B O H W"]:
        """Return the convolution of x, in the memory format of x."""
        supported = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        if not supported or -(-x.shape[2] // CELLS) * -(-x.shape[3] // CELLS) < MIN_TILES_TRAINING:
            return super().forward(x)
        y = _convolution_cpu(x, self.weight)
        return y if self.bias is None else y + self.bias[:, None, None]


def is_winograd(convolution: nn.Conv2d, min_channels: int = MIN_CHANNELS) -> bool:
    """Return whether `WinogradConv2d` supports a convolution and is faster."""
    shape = convolution.kernel_size, convolution.stride, convolution.padding, convolution.dilation, convolution.groups
    return (
        type(convolution) in (nn.Conv2d, TrainableWinogradConv2d)
        and shape == ((3, 3), (1, 1), (1, 1), (1, 1), 1)
        and convolution.padding_mode == "zeros"
        and min(convolution.in_channels, convolution.out_channels) >= min_channels
        and convolution.weight.device.type == "cpu"
        and convolution.weight.dtype == torch.float32
    )


def train_with_winograd(module: nn.Module) -> None:
    """Convert all convolutions that become faster to `TrainableWinogradConv2d`, in place."""
    for child in module.modules():
        if isinstance(child, nn.Conv2d) and is_winograd(child, MIN_CHANNELS_TRAINING):
            TrainableWinogradConv2d.convert(child)


def transform_weight(weight: Float[Tensor, "O C 3 3"]) -> Float[Tensor, "36 C O"]:
    """Return U = G g Gᵀ for every pair of channels, computed in float64."""
    cells = weight.double().permute(2, 3, 1, 0).flatten(0, 1).flatten(1)  # [9, C·O]
    return (_GG @ cells).to(weight.dtype).view(TILE**2, weight.shape[1], weight.shape[0])


@torch.library.custom_op("detect::winograd_cpu", mutates_args=(), device_types="cpu")
def _winograd_cpu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return _convolve(x, weight, bias)


@_winograd_cpu.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(len(x), *x.shape[2:], weight.shape[2]).permute(0, 3, 1, 2)


@torch.library.custom_op("detect::winograd_convolution_cpu", mutates_args=(), device_types="cpu")
def _convolution_cpu(x: Tensor, weight: Tensor) -> Tensor:
    return _like(x, _convolve(x, transform_weight(weight), weight.new_zeros(len(weight))))


@_convolution_cpu.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return _like(x, x.new_empty(len(x), len(weight), *x.shape[2:]))


@torch.library.custom_op("detect::winograd_convolution_cpu_backward", mutates_args=(), device_types="cpu")
def _convolution_cpu_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, of_x: bool, of_weight: bool
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and of the kernels; a gradient that is not requested is empty."""
    gx, gw = x.new_empty(0), x.new_empty(0)
    if of_x:
        rotated = transform_weight(weight.flip(2, 3).transpose(0, 1))
        gx = _like(x, _convolve(gradient, rotated, gradient.new_zeros(x.shape[1])))
    if of_weight:
        gw = _weight_gradient(gradient, x)
    return gx, gw


@_convolution_cpu_backward.register_fake
def _(gradient: Tensor, x: Tensor, weight: Tensor, of_x: bool, of_weight: bool) -> tuple[Tensor, Tensor]:
    gx = _like(x, torch.empty_like(x)) if of_x else x.new_empty(0)
    return gx, torch.empty_like(weight, memory_format=torch.contiguous_format) if of_weight else x.new_empty(0)


def _save_for_backward(ctx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
    of_x, of_weight = ctx.needs_input_grad
    gx, gw = _convolution_cpu_backward(gradient, *ctx.saved_tensors, of_x, of_weight)
    return gx if of_x else None, gw if of_weight else None


_convolution_cpu.register_autograd(_backward, setup_context=_save_for_backward)


def _like(x: Tensor, y: Tensor) -> Tensor:
    """Return y in the memory format of x."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return y.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    maps = _channels_last(x)
    y = np.empty((batch, height, width, weight.shape[2]), np.float32)
    # Per image: the order of summation depends on a product's size, and results must not depend on the batch.
    for tiles in _tiles(x):
        v = torch.empty(len(weight), tiles.size, channels)
        tiles.run(_transform_tiles, maps, v.numpy())
        m = torch.bmm(v, weight)
        tiles.run(_transform_back, m.numpy(), bias.numpy(), y)
    return torch.from_numpy(y).permute(0, 3, 1, 2)


def _weight_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    maps, gradients = _channels_last(x), _channels_last(gradient)
    c, o = x.shape[1], gradient.shape[1]
    du = torch.zeros(TILE**2, c, o)
    for tiles in _tiles(x):
        v, dm = torch.empty(TILE**2, tiles.size, c), torch.empty(TILE**2, tiles.size, o)
        tiles.run(_transform_tiles, maps, v.numpy())
        tiles.run(_transform_gradient, gradients, dm.numpy())
        du.baddbmm_(v.transpose(1, 2), dm)
    return (_GG.T.float() @ du.flatten(1)).view(3, 3, c, o).permute(3, 2, 0, 1).contiguous()


def _channels_last(x: Tensor) -> np.ndarray:
    return x.detach().permute(0, 2, 3, 1).contiguous().numpy()


class _Tiles(NamedTuple):
    """Consecutive tiles of an image that share one matrix product."""

    rows: int
    columns: int
    first: int
    """Index of the first tile, counted over all images."""
    size: int

    def run(self, kernel, *arguments) -> None:
        """Run a kernel on the tiles, in threads."""
        in_threads(self.size, lambda first, last: kernel(*arguments, *self[:3], first, last))


def _tiles(x: Tensor) -> Iterator[_Tiles]:
    rows, columns = -(-x.shape[2] // CELLS), -(-x.shape[3] // CELLS)
    tiles = rows * columns
    for image, start in product(range(len(x)), range(0, tiles, TILES_PER_PRODUCT)):
        yield _Tiles(rows, columns, image * tiles + start, min(TILES_PER_PRODUCT, tiles - start))


@numba.njit(inline="always")
def _position(tile, rows, columns):
    """Return the image of a tile, and its upper left output cell."""
    image, rest = tile // (rows * columns), tile % (rows * columns)
    return image, rest // columns * CELLS, rest % columns * CELLS


@numba.njit(cache=True, nogil=True, fastmath={"contract"})
def _transform_tiles(maps, v, rows, columns, start, first, last):
    """Fill `v[:, first:last]` with Bᵀ d B; d begins one cell before the tile's output and is 0 outside of the map."""
    _, height, width, channels = maps.shape
    half = np.empty((TILE, TILE, channels), np.float32)
    zeros = np.zeros(channels, np.float32)
    for t in range(first, last):
        image, top, left = _position(start + t, rows, columns)
        for j in range(TILE):
            column = left + j - 1
            inside = 0 <= column < width
            d0 = maps[image, top - 1, column] if inside and top > 0 else zeros
            d1 = maps[image, top, column] if inside else zeros
            d2 = maps[image, top + 1, column] if inside and top + 1 < height else zeros
            d3 = maps[image, top + 2, column] if inside and top + 2 < height else zeros
            d4 = maps[image, top + 3, column] if inside and top + 3 < height else zeros
            d5 = maps[image, top + 4, column] if inside and top + 4 < height else zeros
            _bt(d0, d1, d2, d3, d4, d5, half[0, j], half[1, j], half[2, j], half[3, j], half[4, j], half[5, j])
        for i in range(TILE):
            d, k = half[i], TILE * i
            _bt(
                d[0],
                d[1],
                d[2],
                d[3],
                d[4],
                d[5],
                v[k, t],
                v[k + 1, t],
                v[k + 2, t],
                v[k + 3, t],
                v[k + 4, t],
                v[k + 5, t],
            )


@numba.njit(cache=True, nogil=True, fastmath={"contract"})
def _transform_back(m, bias, y, rows, columns, start, first, last):
    """Write Aᵀ M A + bias of the tiles `first:last` to y, except for cells outside of the map."""
    _, height, width, channels = y.shape
    half = np.empty((CELLS, TILE, channels), np.float32)
    cells = np.empty((CELLS, channels), np.float32)
    zeros = np.zeros(channels, np.float32)
    for t in range(first, last):
        image, top, left = _position(start + t, rows, columns)
        for j in range(TILE):
            m0, m1, m2, m3, m4, m5 = m[j, t], m[6 + j, t], m[12 + j, t], m[18 + j, t], m[24 + j, t], m[30 + j, t]
            _at(m0, m1, m2, m3, m4, m5, zeros, half[0, j], half[1, j], half[2, j], half[3, j])
        for i in range(min(CELLS, height - top)):
            h = half[i]
            _at(h[0], h[1], h[2], h[3], h[4], h[5], bias, cells[0], cells[1], cells[2], cells[3])
            for j in range(min(CELLS, width - left)):
                y[image, top + i, left + j] = cells[j]


@numba.njit(cache=True, nogil=True, fastmath={"contract"})
def _transform_gradient(gradients, m, rows, columns, start, first, last):
    """Fill `m[:, first:last]` with A dy Aᵀ; dy are the output cells of a tile, 0 outside of the map."""
    _, height, width, channels = gradients.shape
    half = np.empty((TILE, CELLS, channels), np.float32)
    zeros = np.zeros(channels, np.float32)
    for t in range(first, last):
        image, top, left = _position(start + t, rows, columns)
        for j in range(CELLS):
            column = left + j
            inside = column < width
            y0 = gradients[image, top, column] if inside else zeros
            y1 = gradients[image, top + 1, column] if inside and top + 1 < height else zeros
            y2 = gradients[image, top + 2, column] if inside and top + 2 < height else zeros
            y3 = gradients[image, top + 3, column] if inside and top + 3 < height else zeros
            _a(y0, y1, y2, y3, half[0, j], half[1, j], half[2, j], half[3, j], half[4, j], half[5, j])
        for i in range(TILE):
            h, k = half[i], TILE * i
            _a(h[0], h[1], h[2], h[3], m[k, t], m[k + 1, t], m[k + 2, t], m[k + 3, t], m[k + 4, t], m[k + 5, t])


@numba.njit(cache=True, nogil=True, fastmath={"contract"})
def _bt(d0, d1, d2, d3, d4, d5, v0, v1, v2, v3, v4, v5):
    """Apply Bᵀ along one side of a tile, for every channel."""
    two, four, five = np.float32(2), np.float32(4), np.float32(5)
    for c in range(d0.size):
        even, odd = d4[c] - four * d2[c], d3[c] - four * d1[c]
        inner, outer = d4[c] - d2[c], two * (d3[c] - d1[c])
        v0[c] = four * d0[c] - five * d2[c] + d4[c]
        v1[c], v2[c] = even + odd, even - odd
        v3[c], v4[c] = inner + outer, inner - outer
        v5[c] = four * d1[c] - five * d3[c] + d5[c]


@numba.njit(cache=True, nogil=True, fastmath={"contract"})
def _at(m0, m1, m2, m3, m4, m5, bias, y0, y1, y2, y3):
    """Apply Aᵀ along one side of a tile and add the bias, for every channel."""
    two, four, eight = np.float32(2), np.float32(4), np.float32(8)
    for c in range(m0.size):
        sum_1, difference_1 = m1[c] + m2[c], m1[c] - m2[c]
        sum_2, difference_2 = m3[c] + m4[c], m3[c] - m4[c]
        y0[c] = m0[c] + sum_1 + sum_2 + bias[c]
        y1[c] = difference_1 + two * difference_2 + bias[c]
        y2[c] = sum_1 + four * sum_2 + bias[c]
        y3[c] = difference_1 + eight * difference_2 + m5[c] + bias[c]


@numba.njit(cache=True, nogil=True, fastmath={"contract"})
def _a(y0, y1, y2, y3, m0, m1, m2, m3, m4, m5):
    """Apply A along one side of a tile, for every channel."""
    two, four, eight = np.float32(2), np.float32(4), np.float32(8)
    for c in range(y0.size):
        even, odd = y0[c] + y2[c], y1[c] + y3[c]
        inner, outer = y0[c] + four * y2[c], two * y1[c] + eight * y3[c]
        m0[c] = y0[c]
        m1[c], m2[c] = even + odd, even - odd
        m3[c], m4[c] = inner + outer, inner - outer
        m5[c] = y3[c]
