"""3×3 convolutions of stride 1 with a quarter of the multiplications (Winograd's F(4×4, 3×3); Lavin & Gray 2016).

map [B, C, H, W]
    │ tiles of 6×6 that overlap by two, each transformed:        V = Bᵀ d B        [36, T, C]    T = ⌈H/4⌉ · ⌈W/4⌉
    │ one matrix product for each of the 36 places in a tile:    M = V U           [36, T, O]    U = G g Gᵀ, once
    └ transformed back, which gives 4×4 cells of a tile:         y = Aᵀ M A + bias [B, O, H, W]

For prediction on the CPU in float32: on 256 channels it is three times as fast as the convolution of oneDNN. What it
computes differs from the sum in float64 by some 1e-6 of the output's deviation, five times as much as a plain sum does.
"""

from __future__ import annotations

from itertools import product
from typing import Self

import numba
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from detect.ops.threads import in_threads

CELLS = 4
"""Cells of the output along each side of a tile."""
TILE = CELLS + 2
LEAST_CHANNELS = 64
"""With fewer channels the transforms cost more than the products save."""
TILES_AT_ONCE = 1024
"""V and M then take 38 MB each at 256 channels; larger products are no faster."""

# The interpolation points are 0, ±1, ±2 and infinity (Lavin & Gray 2016, §4.3).
_G = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)


class WinogradConv2d(nn.Module):
    """What `nn.Conv2d` with a 3×3 kernel, stride 1 and padding 1 computes, without gradients."""

    weight: Float[Tensor, "36 C O"]
    bias: Float[Tensor, " O"]

    def __init__(self, weight: Float[Tensor, "36 C O"], bias: Float[Tensor, " O"]) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    @classmethod
    def of(cls, convolution: nn.Conv2d) -> Self:
        """The same convolution; see `is_winograd` for those that there are."""
        bias = convolution.bias
        zeros = convolution.weight.new_zeros(convolution.out_channels)
        return cls(transform_weight(convolution.weight.detach()), zeros if bias is None else bias.detach())

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B O H W"]:
        """The convolution, with channels last in memory."""
        return _winograd_cpu(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        """The arguments, for `print`."""
        return f"{self.weight.shape[1]}, {self.weight.shape[2]}"


def is_winograd(convolution: nn.Conv2d) -> bool:
    """Whether `WinogradConv2d` computes it, and faster."""
    shape = convolution.kernel_size, convolution.stride, convolution.padding, convolution.dilation, convolution.groups
    return (
        shape == ((3, 3), (1, 1), (1, 1), (1, 1), 1)
        and convolution.padding_mode == "zeros"
        and min(convolution.in_channels, convolution.out_channels) >= LEAST_CHANNELS
        and convolution.weight.device.type == "cpu"
        and convolution.weight.dtype == torch.float32
    )


def transform_weight(weight: Float[Tensor, "O C 3 3"]) -> Float[Tensor, "36 C O"]:
    """U = G g Gᵀ of every pair of channels, computed in float64."""
    g = torch.tensor(_G, dtype=torch.float64)
    return torch.einsum("ai,ocij,bj->abco", g, weight.double(), g).flatten(0, 1).to(weight.dtype).contiguous()


@torch.library.custom_op("detect::winograd_cpu", mutates_args=(), device_types="cpu")
def _winograd_cpu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    rows, columns = -(-height // CELLS), -(-width // CELLS)
    maps = x.detach().permute(0, 2, 3, 1).contiguous().numpy()
    y = np.empty((batch, height, width, weight.shape[2]), np.float32)
    tiles = rows * columns
    # Image by image: how a product is summed depends on its size, and nothing shall depend on what else is in a batch.
    for image, start in product(range(batch), range(0, tiles, TILES_AT_ONCE)):
        count, first = min(TILES_AT_ONCE, tiles - start), image * tiles + start
        v = torch.empty(len(weight), count, channels)
        _each_tile(count, _transform_tiles, maps, rows, columns, first, v.numpy())
        m = torch.bmm(v, weight)
        _each_tile(count, _transform_back, m.numpy(), bias.numpy(), rows, columns, first, y)
    return torch.from_numpy(y).permute(0, 3, 1, 2)


@_winograd_cpu.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(len(x), *x.shape[2:], weight.shape[2]).permute(0, 3, 1, 2)


def _each_tile(count: int, kernel, *arguments) -> None:
    in_threads(count, lambda first, last: kernel(*arguments, first, last))


@numba.njit(inline="always")
def _place(tile, rows, columns):
    """Image, and the upper left cell of the output, of a tile."""
    image, rest = tile // (rows * columns), tile % (rows * columns)
    return image, rest // columns * CELLS, rest % columns * CELLS


@numba.njit(cache=True, nogil=True, fastmath={"contract"})
def _transform_tiles(maps, rows, columns, start, v, first, last):
    """Fills `v[:, first:last]` with Bᵀ d B; d begins one cell before the tile's output and is 0 beyond the map."""
    _, height, width, channels = maps.shape
    half = np.empty((TILE, TILE, channels), np.float32)
    zeros = np.zeros(channels, np.float32)
    for t in range(first, last):
        image, top, left = _place(start + t, rows, columns)
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
def _transform_back(m, bias, rows, columns, start, y, first, last):
    """Writes the cells of the tiles `first … last`, Aᵀ M A and the bias, but those beyond the map."""
    _, height, width, channels = y.shape
    half = np.empty((CELLS, TILE, channels), np.float32)
    cells = np.empty((CELLS, channels), np.float32)
    zeros = np.zeros(channels, np.float32)
    for t in range(first, last):
        image, top, left = _place(start + t, rows, columns)
        for j in range(TILE):
            m0, m1, m2, m3, m4, m5 = m[j, t], m[6 + j, t], m[12 + j, t], m[18 + j, t], m[24 + j, t], m[30 + j, t]
            _at(m0, m1, m2, m3, m4, m5, zeros, half[0, j], half[1, j], half[2, j], half[3, j])
        for i in range(min(CELLS, height - top)):
            h = half[i]
            _at(h[0], h[1], h[2], h[3], h[4], h[5], bias, cells[0], cells[1], cells[2], cells[3])
            for j in range(min(CELLS, width - left)):
                y[image, top + i, left + j] = cells[j]


@numba.njit(cache=True, nogil=True, fastmath={"contract"})
def _bt(d0, d1, d2, d3, d4, d5, v0, v1, v2, v3, v4, v5):
    """Bᵀ along one side of a tile, for every channel."""
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
    """Aᵀ along one side of a tile, plus the bias, for every channel."""
    two, four, eight = np.float32(2), np.float32(4), np.float32(8)
    for c in range(m0.size):
        sum_1, difference_1 = m1[c] + m2[c], m1[c] - m2[c]
        sum_2, difference_2 = m3[c] + m4[c], m3[c] - m4[c]
        y0[c] = m0[c] + sum_1 + sum_2 + bias[c]
        y1[c] = difference_1 + two * difference_2 + bias[c]
        y2[c] = sum_1 + four * sum_2 + bias[c]
        y3[c] = difference_1 + eight * difference_2 + m5[c] + bias[c]
