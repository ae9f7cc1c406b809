"""Graph-based image segmentation (Felzenszwalb and Huttenlocher, IJCV 2004).

Edges connect each pixel with its eight neighbours; their weight is the distance of the two colours. Edges are processed
in ascending order of weight. An edge merges the two regions that it connects if its weight is at most Int(R) + k / |R|
for both of them, where Int(R) is the heaviest edge merged within R. Finally each region of fewer than `min_size` pixels
is merged along its lightest edges.

The result is the same as if all edges were processed one by one, but most edges are never sorted. Edges are partitioned
into buckets of ascending weight. Before a bucket is sorted, edges within a region and edges at a region that has
stopped growing are dropped, and regions instead of pixels become the nodes of the forest, which then fits into the
cache.

    weights [4, H, W] → Edges, once per colour space → labels [H, W], once per k

Weights are rounded to 1/128 of a grey level, so that counting sort applies. Edges of equal weight are ordered by row,
then by direction (right, down, down right, down left), then by column.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numba
import numpy as np
from jaxtyping import Float32, Int64, UInt16, UInt32

UNIT = 128
"""Weight steps per grey level: the largest weight, 255 √3, is 56,533 steps."""

_OUTSIDE = np.iinfo(np.uint16).max  # the weight of an edge that leaves the image
_NONE = np.iinfo(np.uint32).max
_BUCKETS = 12  # the fastest: more buckets save sorting but cost relabelling

_kernel = numba.njit(cache=True, nogil=True)


class Edges(NamedTuple):
    """Edges of an image, grouped into buckets of ascending weight, in row order within a bucket."""

    weights: UInt16[np.ndarray, "4 H W"]
    """Weights to the right, down, down right and down left neighbour, in steps of 1/128; 65535 outside of the image."""
    edges: UInt32[np.ndarray, " e"]
    """4 · pixel + direction."""
    edge_weights: UInt16[np.ndarray, " e"]
    """The weight of each of `edges`."""
    bucket_weights: Int64[np.ndarray, " buckets+1"]
    """The lowest weight of each bucket, and the end of the last one."""
    bucket_starts: Int64[np.ndarray, " buckets+1"]
    """The start of each bucket in `edges`, and the end of the last one."""


def compute_edges(planes: Float32[np.ndarray, "C H W"]) -> Edges:
    """Compute the edges of an image with one or three channels, 0 … 255; one channel counts as three equal ones."""
    weights = _weigh(planes, np.float32(UNIT if len(planes) == 3 else UNIT * math.sqrt(3)))
    return Edges(weights, *_partition(weights, _BUCKETS))


def segment(edges: Edges, k: float, min_size: int) -> tuple[UInt32[np.ndarray, "H W"], int]:
    """Segment an image into regions; return their labels in row order, and the number of regions.

    Args:
        edges: edges of the smoothed image.
        k: scale, in grey levels times pixels; a larger k makes larger regions.
        min_size: minimum number of pixels of a region.
    """
    return _segment(*edges, np.float32(k * UNIT), min_size)


@_kernel
def _weigh(planes, unit):
    channels, height, width = planes.shape
    weights = np.full((4, height, width), _OUTSIDE, np.uint16)
    half = np.float32(0.5)
    for direction, (down, right) in enumerate(((0, 1), (1, 0), (1, 1), (1, -1))):
        first, end = max(0, -right), width - max(0, right)
        for y in range(height - down):
            # Two loops instead of one loop over channels, which the compiler would not vectorise.
            if channels == 3:
                for x in range(first, end):
                    a = planes[0, y, x] - planes[0, y + down, x + right]
                    b = planes[1, y, x] - planes[1, y + down, x + right]
                    c = planes[2, y, x] - planes[2, y + down, x + right]
                    weights[direction, y, x] = np.uint16(math.sqrt(a * a + b * b + c * c) * unit + half)
            else:
                for x in range(first, end):
                    a = planes[0, y, x] - planes[0, y + down, x + right]
                    weights[direction, y, x] = np.uint16(abs(a) * unit + half)
    return weights


@_kernel
def _partition(weights, buckets):
    """Partition the edges into buckets of about equal size."""
    directions, height, width = weights.shape
    counts = np.zeros(_OUTSIDE + 1, np.int64)
    for weight in weights.ravel():
        counts[weight] += 1
    total = weights.size - counts[_OUTSIDE]
    bucket_of = np.zeros(_OUTSIDE + 1, np.uint8)
    bucket_weights, bucket_starts = np.zeros(buckets + 1, np.int64), np.zeros(buckets + 1, np.int64)
    seen, bucket = 0, 0
    for weight in range(_OUTSIDE):
        if bucket + 1 < buckets and seen * buckets >= (bucket + 1) * total:
            bucket += 1
            bucket_weights[bucket], bucket_starts[bucket] = weight, seen
        bucket_of[weight] = bucket
        seen += counts[weight]
    bucket_weights[bucket + 1], bucket_starts[bucket + 1] = _OUTSIDE, total
    free = bucket_starts.copy()
    edges, edge_weights = np.empty(total, np.uint32), np.empty(total, np.uint16)
    for y in range(height):
        for direction in range(directions):
            for x in range(width):
                weight = weights[direction, y, x]
                if weight != _OUTSIDE:
                    position = free[bucket_of[weight]]
                    free[bucket_of[weight]] = position + 1
                    edges[position] = ((y * width + x) << 2) | direction
                    edge_weights[position] = weight
    return edges, edge_weights, bucket_weights[: bucket + 2], bucket_starts[: bucket + 2]


# Indices are unsigned below, so that numba omits the handling of negative indices.


@_kernel
def _segment(weights, edges, edge_weights, bucket_weights, bucket_starts, k, min_size):
    _, height, width = weights.shape
    steps = np.array([1, width, width + 1, width - 1], np.uint32)
    labels = np.arange(height * width).astype(np.uint32)
    sizes = np.ones(len(labels), np.int32)
    limits = np.full(len(labels), k, np.float32)  # Int(R) + k / |R|
    capacity = (bucket_starts[1:] - bucket_starts[:-1]).max() + 1
    left, right, pair_weights = _empty_pairs(capacity)
    for bucket in range(len(bucket_starts) - 1):
        lowest, end = bucket_weights[bucket], bucket_weights[bucket + 1]
        m = np.int64(0)
        for i in range(bucket_starts[bucket], bucket_starts[bucket + 1]):
            pixel = edges[i] >> np.uint32(2)
            a, b = labels[pixel], labels[pixel + steps[edges[i] & np.uint32(3)]]
            left[m], right[m], pair_weights[m] = a, b, edge_weights[i]
            # A region with a limit below all remaining edges has stopped growing. Written without a branch, which would
            # be mispredicted half of the time.
            m += np.int64((a != b) & (limits[a] >= lowest) & (limits[b] >= lowest))
        if m:
            pairs, weights_of_pairs = _sort_by_weight(left[:m], right[:m], pair_weights[:m], lowest, end)
            parents = _merge(pairs, weights_of_pairs, sizes, limits, k)
            sizes, limits = _contract(labels, parents, sizes, limits)
    left, right, pair_weights = _borders(labels, sizes, weights, min_size)
    pairs, _ = _sort_by_weight(left, right, pair_weights, 0, _OUTSIDE)
    sizes, limits = _contract(labels, _merge_small(pairs, sizes, min_size), sizes, limits)
    return labels.reshape(height, width), len(sizes)


@_kernel
def _empty_pairs(capacity):
    return np.empty(capacity, np.uint32), np.empty(capacity, np.uint32), np.empty(capacity, np.uint16)


@_kernel
def _sort_by_weight(left, right, weights, lowest, end):
    """Return the pairs and their weights, all in lowest … end-1, in ascending order of weight by a stable sort."""
    starts = np.zeros(end - lowest + 1, np.uint32)
    for weight in weights:
        starts[weight - lowest + 1] += 1
    for weight in range(end - lowest):
        starts[weight + 1] += starts[weight]
    pairs, sorted_weights = np.empty((len(left), 2), np.uint32), np.empty_like(weights)
    for i in range(len(left)):
        position = starts[np.uint32(weights[i] - lowest)]
        starts[np.uint32(weights[i] - lowest)] = position + np.uint32(1)
        pairs[position, 0], pairs[position, 1], sorted_weights[position] = left[i], right[i], weights[i]
    return pairs, sorted_weights


@_kernel
def _root(parents, i):
    while parents[i] != i:
        parents[i] = parents[parents[i]]
        i = parents[i]
    return i


@_kernel
def _merge(pairs, weights, sizes, limits, k):
    """Merge pairs as far as both limits allow; update sizes and limits in place, return the forest."""
    parents = np.arange(len(sizes)).astype(np.uint32)
    for i in range(len(pairs)):
        a, b, weight = _root(parents, pairs[i, 0]), _root(parents, pairs[i, 1]), np.float32(weights[i])
        if a != b and weight <= limits[a] and weight <= limits[b]:
            parents[b] = a
            sizes[a] += sizes[b]
            limits[a] = weight + k / np.float32(sizes[a])
    return parents


@_kernel
def _merge_small(pairs, sizes, min_size):
    """Merge pairs with a region of fewer than `min_size` pixels; update sizes in place, return the forest."""
    parents = np.arange(len(sizes)).astype(np.uint32)
    for i in range(len(pairs)):
        a, b = _root(parents, pairs[i, 0]), _root(parents, pairs[i, 1])
        if a != b and min(sizes[a], sizes[b]) < min_size:
            parents[b] = a
            sizes[a] += sizes[b]
    return parents


@_kernel
def _contract(labels, parents, sizes, limits):
    """Contract each tree to one node, numbered in row order; update labels in place, return sizes and limits."""
    new_labels = np.full(len(parents), _NONE, np.uint32)
    new_sizes, new_limits = np.empty_like(sizes), np.empty_like(limits)
    n = 0
    for i in range(len(parents)):
        root = _root(parents, np.uint32(i))
        if new_labels[root] == _NONE:
            new_labels[root] = n
            new_sizes[n], new_limits[n] = sizes[root], limits[root]
            n += 1
        new_labels[i] = new_labels[root]
    for i in range(len(labels)):
        labels[i] = new_labels[labels[i]]
    return new_sizes[:n].copy(), new_limits[:n].copy()


@_kernel
def _borders(labels, sizes, weights, min_size):
    """Return the edges between regions if one of them has fewer than `min_size` pixels, in row order."""
    directions, height, width = weights.shape
    left, right, pair_weights = _empty_pairs(4 * width + 4096)
    m = 0
    for y in range(height):
        if m + 4 * width > len(left):
            growth = len(left) + 4 * width
            left = np.concatenate((left, np.empty(growth, np.uint32)))
            right = np.concatenate((right, np.empty(growth, np.uint32)))
            pair_weights = np.concatenate((pair_weights, np.empty(growth, np.uint16)))
        for direction in range(directions):
            step = (1, 0, 1, -1)[direction]
            low = min(y + (0, 1, 1, 1)[direction], height - 1)
            row, other = labels[y * width : (y + 1) * width], labels[low * width : (low + 1) * width]
            for x in range(max(0, -step), width - max(0, step)):
                a, b, weight = row[x], other[x + step], weights[direction, y, x]
                if a != b and min(sizes[a], sizes[b]) < min_size and weight != _OUTSIDE:
                    left[m], right[m], pair_weights[m] = a, b, weight
                    m += 1
    return left[:m], right[:m], pair_weights[:m]
