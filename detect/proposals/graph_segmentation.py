"""Regions of an image by its graph of pixels (Felzenszwalb and Huttenlocher, IJCV 2004).

Every pixel is joined with its eight neighbours by edges, whose weight is the distance of the two colours. The edges are
taken by rising weight, and each merges the two regions it joins if it is not much heavier than what holds either
region together: at most Int(R) + k / |R|, where Int(R) is the heaviest edge that was merged inside of R. At last every
region of fewer than `min_size` pixels is merged along its lightest edges.

The result is exactly that of going through all edges one by one, but most of them are never sorted. Edges come in
classes of rising weight; before a class is sorted, the edges within a region and those at a region that has stopped
growing are left out, and the regions, not the pixels, become the nodes of the forest, which then fits into the cache.

    weights [4, H, W] → Edges, once a colour space → labels [H, W], once a k

Weights are rounded to 1/128 of a grey level, so that they can be sorted by counting. Of equal weights the upper row
comes first, then the direction (right, down, down right, down left), then the left column.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numba
import numpy as np
from jaxtyping import Float32, Int64, UInt16, UInt32

UNIT = 128
"""Steps of weight a grey level: the largest weight, 255 √3, is 56,533 steps."""

_OUTSIDE = np.iinfo(np.uint16).max  # the weight of an edge that leaves the image
_NONE = np.iinfo(np.uint32).max
_CLASSES = 12  # measured: more, and going over the labels costs what is saved in sorting; fewer, the other way round

_kernel = numba.njit(cache=True, nogil=True)


class Edges(NamedTuple):
    """The edges of an image by class of weight, within a class in the order of the rows."""

    weights: UInt16[np.ndarray, "4 H W"]
    """Of the edges to the right, down, down right and down left, in steps of 1/128; 65535 where there is no pixel."""
    ends: UInt32[np.ndarray, " e"]
    """4 · pixel + direction."""
    sorted_weights: UInt16[np.ndarray, " e"]
    """The weight of each of `ends`."""
    first_weights: Int64[np.ndarray, " classes+1"]
    """The least weight that falls into each class, and an end."""
    places: Int64[np.ndarray, " classes+1"]
    """Where each class begins in `ends`, and an end."""


def edges_of(planes: Float32[np.ndarray, "C H W"]) -> Edges:
    """The edges of an image of one or three channels, 0 … 255; one channel weighs as much as three equal ones."""
    weights = _weigh(planes, np.float32(UNIT if len(planes) == 3 else UNIT * math.sqrt(3)))
    return Edges(weights, *_partition(weights, _CLASSES))


def segment(edges: Edges, k: float, min_size: int) -> tuple[UInt32[np.ndarray, "H W"], int]:
    """The regions, numbered in the order of the rows, and how many they are.

    Args:
        edges: of the smoothed image.
        k: in grey levels times pixels; a larger one makes larger regions.
        min_size: regions have at least so many pixels.
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
            # Two loops instead of one over channels: this way the compiler makes vector instructions of them.
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
def _partition(weights, classes):
    """Puts edges into classes of about the same number."""
    directions, height, width = weights.shape
    counts = np.zeros(_OUTSIDE + 1, np.int64)
    for weight in weights.ravel():
        counts[weight] += 1
    total = weights.size - counts[_OUTSIDE]
    class_of = np.zeros(_OUTSIDE + 1, np.uint8)
    first_weights, places = np.zeros(classes + 1, np.int64), np.zeros(classes + 1, np.int64)
    seen, c = 0, 0
    for weight in range(_OUTSIDE):
        if c + 1 < classes and seen * classes >= (c + 1) * total:
            c += 1
            first_weights[c], places[c] = weight, seen
        class_of[weight] = c
        seen += counts[weight]
    first_weights[c + 1], places[c + 1] = _OUTSIDE, total
    free = places.copy()
    ends, sorted_weights = np.empty(total, np.uint32), np.empty(total, np.uint16)
    for y in range(height):
        for direction in range(directions):
            for x in range(width):
                weight = weights[direction, y, x]
                if weight != _OUTSIDE:
                    place = free[class_of[weight]]
                    free[class_of[weight]] = place + 1
                    ends[place] = ((y * width + x) << 2) | direction
                    sorted_weights[place] = weight
    return ends, sorted_weights, first_weights[: c + 2], places[: c + 2]


# Indices are unsigned below: numba then leaves out what it does for negative ones.


@_kernel
def _segment(weights, ends, sorted_weights, first_weights, places, k, min_size):
    _, height, width = weights.shape
    steps = np.array([1, width, width + 1, width - 1], np.uint32)
    labels = np.arange(height * width).astype(np.uint32)
    sizes = np.ones(len(labels), np.int32)
    limits = np.full(len(labels), k, np.float32)  # Int(R) + k / |R|
    room = (places[1:] - places[:-1]).max() + 1
    left, right, heavy = np.empty(room, np.uint32), np.empty(room, np.uint32), np.empty(room, np.uint16)
    for c in range(len(places) - 1):
        m = np.int64(0)
        for i in range(places[c], places[c + 1]):
            pixel = ends[i] >> np.uint32(2)
            a, b = labels[pixel], labels[pixel + steps[ends[i] & np.uint32(3)]]
            left[m], right[m], heavy[m] = a, b, sorted_weights[i]
            # A region whose limit is lower than all edges to come has stopped growing. Written without a branch, which
            # would be guessed wrong half of the time.
            m += np.int64((a != b) & (limits[a] >= first_weights[c]) & (limits[b] >= first_weights[c]))
        if m:
            pairs, order = _by_weight(left[:m], right[:m], heavy[:m], first_weights[c], first_weights[c + 1])
            parents = _merge(pairs, order, sizes, limits, k)
            sizes, limits = _contract(labels, parents, sizes, limits)
    left, right, heavy = _borders(labels, sizes, weights, min_size)
    pairs, order = _by_weight(left, right, heavy, 0, _OUTSIDE)
    sizes, limits = _contract(labels, _merge_small(pairs, sizes, min_size), sizes, limits)
    return labels.reshape(height, width), len(sizes)


@_kernel
def _by_weight(left, right, weights, first, end):
    """The pairs and their weights, which lie in first … end-1, by rising weight; equal ones stay as they come."""
    starts = np.zeros(end - first + 1, np.uint32)
    for weight in weights:
        starts[weight - first + 1] += 1
    for weight in range(end - first):
        starts[weight + 1] += starts[weight]
    pairs, order = np.empty((len(left), 2), np.uint32), np.empty_like(weights)
    for i in range(len(left)):
        place = starts[np.uint32(weights[i] - first)]
        starts[np.uint32(weights[i] - first)] = place + np.uint32(1)
        pairs[place, 0], pairs[place, 1], order[place] = left[i], right[i], weights[i]
    return pairs, order


@_kernel
def _root(parents, i):
    while parents[i] != i:
        parents[i] = parents[parents[i]]
        i = parents[i]
    return i


@_kernel
def _merge(pairs, weights, sizes, limits, k):
    """Merges pairs as far as both limits allow; changes sizes and limits, returns the forest."""
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
    """Merges pairs of which one at least is too small; changes sizes, returns the forest."""
    parents = np.arange(len(sizes)).astype(np.uint32)
    for i in range(len(pairs)):
        a, b = _root(parents, pairs[i, 0]), _root(parents, pairs[i, 1])
        if a != b and min(sizes[a], sizes[b]) < min_size:
            parents[b] = a
            sizes[a] += sizes[b]
    return parents


@_kernel
def _contract(labels, parents, sizes, limits):
    """Makes every tree one node, numbered in the order of the rows; changes labels, returns sizes and limits."""
    names = np.full(len(parents), _NONE, np.uint32)
    new_sizes, new_limits = np.empty_like(sizes), np.empty_like(limits)
    n = 0
    for i in range(len(parents)):
        root = _root(parents, np.uint32(i))
        if names[root] == _NONE:
            names[root] = n
            new_sizes[n], new_limits[n] = sizes[root], limits[root]
            n += 1
        names[i] = names[root]
    for i in range(len(labels)):
        labels[i] = names[labels[i]]
    return new_sizes[:n].copy(), new_limits[:n].copy()


@_kernel
def _borders(labels, sizes, weights, min_size):
    """The edges between two regions of which one at least is too small, in the order of the rows."""
    directions, height, width = weights.shape
    room = 4 * width + 4096
    left, right, heavy = np.empty(room, np.uint32), np.empty(room, np.uint32), np.empty(room, np.uint16)
    m = 0
    for y in range(height):
        if m + 4 * width > len(left):
            more = len(left) + 4 * width
            left = np.concatenate((left, np.empty(more, np.uint32)))
            right = np.concatenate((right, np.empty(more, np.uint32)))
            heavy = np.concatenate((heavy, np.empty(more, np.uint16)))
        for direction in range(directions):
            step = (1, 0, 1, -1)[direction]
            low = min(y + (0, 1, 1, 1)[direction], height - 1)
            row, other = labels[y * width : (y + 1) * width], labels[low * width : (low + 1) * width]
            for x in range(max(0, -step), width - max(0, step)):
                a, b, weight = row[x], other[x + step], weights[direction, y, x]
                if a != b and min(sizes[a], sizes[b]) < min_size and weight != _OUTSIDE:
                    left[m], right[m], heavy[m] = a, b, weight
                    m += 1
    return left[:m], right[:m], heavy[:m]
