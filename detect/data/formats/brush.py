"""Masks painted with Label Studio's brush: runs of equal values, as the library rle-pack writes them in bits.

    32 bits   number of values: four for each pixel, row by row; the last is not 0 in the object
     5 bits   size of a value in bits, minus 1
    4 × 4     the four sizes of a run's length in bits, each minus 1
    then, for each run: 1 bit, whether all values are equal; 2 bits, which size its length has; its length minus 1;
    one value, or as many as the run is long

Format: https://github.com/thi-ng/umbrella/tree/develop/packages/rle-pack
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int64

from detect.data.formats.bounds import Box

_CHANNELS = 4


def runs_of_brush(content: Sequence[object], width: int, height: int) -> Int64[np.ndarray, " r"]:
    """Return the runs of pixels outside and inside of the object in turn, row by row.

    Only the runs take memory, so that the size of a hostile mask costs nothing.

    Args:
        content: bytes of the mask as whole numbers.
        width: width of the image.
        height: height of the image.

    Raises:
        ValueError: the content is damaged, or not of this size.
    """
    if not all(type(byte) is int and 0 <= byte < 256 for byte in content):
        raise ValueError("it does not consist of bytes")
    edges: list[int] = [0]
    """First pixel of each run."""
    for start, end in _painted(bytes(content), width * height * _CHANNELS):  # type: ignore[arg-type]
        # The last value of pixel p is number 4 p + 3.
        first, last = start // _CHANNELS, end // _CHANNELS
        if first == last:
            continue
        if len(edges) > 1 and edges[-1] == first:
            edges[-1] = last
        else:
            edges += [first, last]
    return np.diff(np.array([*edges, width * height], np.int64))


def box_of_runs(runs: Int64[np.ndarray, " r"], width: int) -> Box:
    """Return the smallest box with all pixels inside, xyxy in pixels, or one without area if there are none."""
    ends = np.cumsum(runs)
    inside = runs[1::2] > 0
    first, last = (ends[:-1][::2])[: len(inside)][inside], ends[1::2][inside] - 1
    if not len(first):
        return 0.0, 0.0, 0.0, 0.0
    one_row = first // width == last // width
    left, right = np.where(one_row, first % width, 0), np.where(one_row, last % width, width - 1)
    return float(left.min()), float(first[0] // width), float(right.max() + 1), float(last[-1] // width + 1)


def _painted(content: bytes, count: int) -> Iterator[tuple[int, int]]:
    """Yield start and end of each run of values that are not 0."""
    bits = _Bits(content)
    if bits.read(32) != count:
        raise ValueError("it has another number of values")
    word = bits.read(5) + 1
    sizes = [bits.read(4) + 1 for _ in range(4)]
    position = 0
    while position < count:
        is_equal = bits.read(1)
        end = position + 1 + bits.read(sizes[bits.read(2)])
        if end > count:
            raise ValueError("its last run is too long")
        if is_equal:
            if bits.read(word):
                yield position, end
        else:
            yield from ((place, place + 1) for place in range(position, end) if bits.read(word))
        position = end


class _Bits:
    """Reader of numbers of any size in bits, the highest bit first."""

    def __init__(self, content: bytes) -> None:
        self._content, self._position = content, 0

    def read(self, size: int) -> int:
        """Return the next number. Raise `ValueError` at the end."""
        start, end = self._position, self._position + size
        if end > 8 * len(self._content):
            raise ValueError("it ends too early")
        self._position = end
        last = -(-end // 8)
        number = int.from_bytes(self._content[start // 8 : last], "big") >> (8 * last - end)
        return number & ((1 << size) - 1)
