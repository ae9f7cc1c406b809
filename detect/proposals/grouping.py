"""Hierarchical grouping: merge the most similar neighbours until one region is left (Uijlings et al. 2013, §3).

    Regions [N] → hierarchy [2 N - 1, 4]: boxes of the N initial regions, then of the merged regions in order of merging

The similarity of two regions is a sum of up to four terms, each in 0 … 1 (§3.2):

    colour   Σ min of their colour histograms        size   1 - (|a| + |b|) / |image|
    texture  Σ min of their texture histograms       fill   1 - (|box around both| - |a| - |b|) / |image|

Ties are broken by the label of the younger region, then by that of the older one; lower labels come first.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
from jaxtyping import Float32, Int32, UInt8, UInt16, UInt32

_MIX = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: spreads the keys of a hash table

_kernel = numba.njit(cache=True, nogil=True)


class Regions(NamedTuple):
    """Initial regions and their features, shared by all strategies of a segmentation."""

    sizes: Int32[np.ndarray, " n"]
    """Pixels."""
    boxes: Int32[np.ndarray, "n 4"]
    """xyxy, the right and lower borders excluded."""
    histograms: Float32[np.ndarray, "n d"]
    """Colour histogram with sum 1, then texture histogram with sum 1."""
    colours: int
    """Number of colour bins among the d bins."""
    pairs: Int32[np.ndarray, "e 2"]
    """Neighbours: pairs of regions that share the side of a pixel, the lower label first, sorted."""
    pixels: int
    """Pixels of the whole image."""


def describe(
    labels: UInt32[np.ndarray, "H W"],
    n: int,
    channels: UInt8[np.ndarray, "C H W"],
    colour_bins: int,
    slopes: tuple[UInt32[np.ndarray, " m"], UInt16[np.ndarray, " m"]],
    texture_bins: int,
) -> Regions:
    """Compute the features of the `n` regions of a segmentation; `slopes` are steep pixels and their texture bins."""
    sizes, boxes = _extents(labels, n)
    colours = len(channels) * colour_bins
    histograms = _histograms(labels.ravel(), sizes, channels, colour_bins, *slopes, texture_bins)
    return Regions(sizes, boxes, histograms, colours, _neighbours(labels, n), labels.size)


def group(regions: Regions, similarity: str) -> Int32[np.ndarray, "nodes 4"]:
    """Return the boxes of a hierarchy; `similarity` has a letter for each term: C, T, S or F."""
    first = 0 if "C" in similarity else regions.colours
    end = regions.histograms.shape[1] if "T" in similarity else regions.colours
    histograms = (
        regions.histograms[:, first:end].copy() if first < end else np.empty((len(regions.sizes), 0), np.float32)
    )
    return _group(
        regions.sizes,
        regions.boxes,
        histograms,
        regions.pairs,
        np.float32(regions.pixels),
        "S" in similarity,
        "F" in similarity,
    )


# ---- regions ---------------------------------------------------------------------------------------------------------


@_kernel
def slope_codes(dx, dy, bins, first, pixels, codes):
    """Write the texture bins of the steep pixels of a channel to `pixels` and `codes`; return their number.

    `dx` and `dy` are the derivatives in bins, float32 [H · W]. In most orientations most pixels of an image fall into
    the first bin, the flat one. Only the other bins are written, so that only steep pixels have to be counted.
    """
    diagonal = np.float32(np.sqrt(0.5))
    m = 0
    for p in range(len(dx)):
        x, y = dx[p], dy[p]
        if x * x + y * y >= 1:
            for direction, slope in enumerate((x, (x + y) * diagonal, y, (y - x) * diagonal)):
                bin_ = min(int(abs(slope)), bins - 1)
                if bin_:
                    pixels[m] = p
                    codes[m] = first + (2 * direction + (slope < 0)) * bins + bin_
                    m += 1
    return m


@_kernel
def _extents(labels, n):
    height, width = labels.shape
    sizes, boxes = np.zeros(n, np.int32), np.zeros((n, 4), np.int32)
    boxes[:, 0] = width
    for y in range(height):
        row = labels[y]
        x = 0
        while x < width:
            region, first = row[x], x
            while x < width and row[x] == region:
                x += 1
            if sizes[region] == 0:
                boxes[region, 1] = y
            sizes[region] += x - first
            boxes[region, 0] = min(boxes[region, 0], first)
            boxes[region, 2] = max(boxes[region, 2], x)
            boxes[region, 3] = y + 1
    return sizes, boxes


@_kernel
def _histograms(labels, sizes, channels, colour_bins, steep, codes, texture_bins):
    n = len(channels)
    colours = n * colour_bins
    # Counted in integers, which stay exact beyond 2^24 pixels; the histograms then reuse their memory.
    counts = np.zeros((len(sizes), colours + n * 8 * texture_bins), np.int32)
    for c in range(n):
        plane = channels[c].ravel()
        for p in range(len(labels)):
            counts[labels[p], c * colour_bins + (np.int32(plane[p]) * colour_bins >> 8)] += 1
    for i in range(len(steep)):
        counts[labels[steep[i]], colours + codes[i]] += 1
    histograms = counts.view(np.float32)
    for region in range(len(sizes)):
        for flat in range(colours, counts.shape[1], texture_bins):
            counts[region, flat] = sizes[region] - counts[region, flat + 1 : flat + texture_bins].sum()
        pixels = np.float64(sizes[region]) * n
        of_colour, of_texture = np.float32(1 / pixels), np.float32(1 / (8 * pixels))
        for i in range(counts.shape[1]):
            histograms[region, i] = np.float32(counts[region, i]) * (of_colour if i < colours else of_texture)
    return histograms


@_kernel
def _neighbours(labels, n):
    height, width = labels.shape
    table = np.full(4096, -1, np.int64)
    count = 0
    for y in range(height):
        # A row adds at most 2 · width pairs; the table stays half empty.
        if 2 * (count + 2 * width) > len(table):
            old = table
            table = np.full(2 * len(old) + 8 * width, -1, np.int64)
            for key in old:
                if key >= 0:
                    _insert(table, key)
        row, below = labels[y], labels[min(y + 1, height - 1)]
        last = np.int64(-1)
        for x in range(width):
            a, right, under = np.int64(row[x]), np.int64(row[min(x + 1, width - 1)]), np.int64(below[x])
            if a != right:
                count += _insert(table, min(a, right) * n + max(a, right))
            if a != under:
                key = min(a, under) * n + max(a, under)
                if key != last:
                    count += _insert(table, key)
                    last = key
    keys = np.sort(table[table >= 0])
    pairs = np.empty((len(keys), 2), np.int32)
    for i in range(len(keys)):
        pairs[i, 0], pairs[i, 1] = keys[i] // n, keys[i] % n
    return pairs


@_kernel
def _insert(table, key):
    """Insert a key into a hash table; return 1 if it is new, else 0."""
    slot = np.int64((np.uint64(key) * _MIX >> np.uint64(33)) % np.uint64(len(table)))
    while table[slot] != key:
        if table[slot] < 0:
            table[slot] = key
            return 1
        slot = (slot + np.int64(1)) % np.int64(len(table))
    return 0


# ---- merging ---------------------------------------------------------------------------------------------------------


@_kernel
def _group(first_sizes, first_boxes, histograms, neighbours, pixels, with_size, with_fill):
    """Return the boxes of the hierarchy; overwrite `histograms`, where a merged region reuses the row of a part."""
    n = len(first_sizes)
    nodes = 2 * n - 1
    sizes, boxes = np.zeros(nodes, np.int32), np.zeros((nodes, 4), np.int32)
    sizes[:n], boxes[:n] = first_sizes, first_boxes
    rows = np.arange(nodes).astype(np.int32)
    alive, met = np.zeros(nodes, np.bool_), np.full(nodes, -1, np.int32)
    alive[:n] = True
    # Each region has a linked list of neighbours, including merged ones, that begins at `heads`.
    capacity = 4 * len(neighbours) + 16
    heads, links = np.full(nodes, -1, np.int32), 0
    following, members = np.empty(capacity, np.int32), np.empty(capacity, np.int32)
    # The heap of pairs (younger · nodes + older); a pair with a merged region is skipped when it comes to the top.
    scores, pairs, waiting = np.empty(capacity, np.float32), np.empty(capacity, np.int64), 0
    for i in range(len(neighbours)):
        a, b = neighbours[i]
        links = _link(heads, following, members, links, a, b)
        score = _similarity(a, b, histograms, rows, sizes, boxes, pixels, with_size, with_fill)
        _push(scores, pairs, waiting, score, np.int64(b) * nodes + a)
        waiting += 1
    for new in range(n, nodes):
        a, b = pairs[0] % nodes, pairs[0] // nodes
        while not (alive[a] and alive[b]):
            _drop_first(scores, pairs, waiting)
            waiting -= 1
            a, b = pairs[0] % nodes, pairs[0] // nodes
        alive[a] = alive[b] = False
        alive[new] = True
        _merge(a, b, new, sizes, boxes, histograms, rows)
        if links + 2 * n > len(following):
            following = np.concatenate((following, np.empty(len(following) + 2 * n, np.int32)))
            members = np.concatenate((members, np.empty(len(members) + 2 * n, np.int32)))
        if waiting + n > len(scores):
            scores = np.concatenate((scores, np.empty(len(scores) + n, np.float32)))
            pairs = np.concatenate((pairs, np.empty(len(pairs) + n, np.int64)))
        for merged in (a, b):
            link = heads[merged]
            while link >= 0:
                neighbour = members[link]
                link = following[link]
                if alive[neighbour] and met[neighbour] != new:
                    met[neighbour] = new
                    links = _link(heads, following, members, links, new, neighbour)
                    score = _similarity(neighbour, new, histograms, rows, sizes, boxes, pixels, with_size, with_fill)
                    _push(scores, pairs, waiting, score, np.int64(new) * nodes + neighbour)
                    waiting += 1
    return boxes


@_kernel
def _merge(a, b, new, sizes, boxes, histograms, rows):
    """Compute size, box and histogram of region `new`, the union of a and b."""
    sizes[new] = sizes[a] + sizes[b]
    boxes[new, 0], boxes[new, 1] = min(boxes[a, 0], boxes[b, 0]), min(boxes[a, 1], boxes[b, 1])
    boxes[new, 2], boxes[new, 3] = max(boxes[a, 2], boxes[b, 2]), max(boxes[a, 3], boxes[b, 3])
    share, rest = np.float32(sizes[a]) / np.float32(sizes[new]), np.float32(sizes[b]) / np.float32(sizes[new])
    row, other = histograms[rows[a]], histograms[rows[b]]
    for i in range(len(row)):
        row[i] = share * row[i] + rest * other[i]
    rows[new] = rows[a]


@_kernel
def _link(heads, following, members, links, a, b):
    """Add two regions to each other's list of neighbours; return the new number of links."""
    following[links], members[links], heads[a] = heads[a], b, links
    following[links + 1], members[links + 1], heads[b] = heads[b], a, links + 1
    return links + 2


@_kernel
def _similarity(a, b, histograms, rows, sizes, boxes, pixels, with_size, with_fill):
    total = _intersection(histograms[rows[a]], histograms[rows[b]])
    both = np.float32(sizes[a] + sizes[b])
    if with_size:
        total += np.float32(1) - both / pixels
    if with_fill:
        width = np.int64(max(boxes[a, 2], boxes[b, 2]) - min(boxes[a, 0], boxes[b, 0]))
        height = np.int64(max(boxes[a, 3], boxes[b, 3]) - min(boxes[a, 1], boxes[b, 1]))
        total += np.float32(1) - (np.float32(width * height) - both) / pixels
    return total


# The order of summation is left to the compiler, which can then vectorise.
@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "nnan", "nsz", "contract"})
def _intersection(a, b):
    total = np.float32(0)
    for i in range(len(a)):
        total += min(a[i], b[i])
    return total


@_kernel
def _before(score, pair, other_score, other_pair):
    return score > other_score or (score == other_score and pair < other_pair)


@_kernel
def _push(scores, pairs, size, score, pair):
    """Push an entry onto a heap of `size` entries."""
    i = size
    while i > 0 and _before(score, pair, scores[(i - 1) >> 1], pairs[(i - 1) >> 1]):
        scores[i], pairs[i] = scores[(i - 1) >> 1], pairs[(i - 1) >> 1]
        i = (i - 1) >> 1
    scores[i], pairs[i] = score, pair


@_kernel
def _drop_first(scores, pairs, size):
    """Remove the first entry of a heap of `size` entries."""
    score, pair = scores[size - 1], pairs[size - 1]
    i, child = 0, 1
    while child < size - 1:
        if child + 1 < size - 1 and _before(scores[child + 1], pairs[child + 1], scores[child], pairs[child]):
            child += 1
        if not _before(scores[child], pairs[child], score, pair):
            break
        scores[i], pairs[i] = scores[child], pairs[child]
        i, child = child, 2 * child + 1
    scores[i], pairs[i] = score, pair
