"""How many truths the anchors of a network can meet at all, and which anchors would fit the data better.

A truth that no anchor overlaps well is never learnt well: recall ends there, whatever the training. For an anchor of
a given shape, the overlap with a truth falls with the distance of their centres along either axis, so the best anchor
of that shape is the one in the nearest cell that may be used, and only one cell a level and shape needs to be looked
at. The result is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from jaxtyping import Bool, Float64, Int64

from detect.data.canvases import assign_canvases, plan_canvases
from detect.data.dataset import Record
from detect.data.transforms import Resize

THRESHOLDS = (0.5, 0.7)
SIZES = {"small, up to 32²": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large, from 96²": (96.0**2, np.inf)}
"""COCO's, by the area of the box in pixels of the file."""
SHAPES = {
    "wider than 3 : 1": (0.0, 1 / 3),
    "wide, 3 : 2 to 3 : 1": (1 / 3, 2 / 3),
    "square": (2 / 3, 3 / 2),
    "tall, 2 : 3 to 1 : 3": (3 / 2, 3.0),
    "taller than 1 : 3": (3.0, np.inf),
}
"""By height over width."""
_MOST = 2000  # boxes that anchors are fitted to; of more, a sample tells the same


@dataclass(frozen=True, slots=True)
class Anchors:
    """The anchors of a network, as its generator lays them out on a canvas."""

    sizes: tuple[tuple[float, ...], ...]
    """Square roots of the areas in pixels of the canvas, of each level."""
    ratios: tuple[float, ...]
    """Height over width, the same on every level."""
    strides: tuple[int, ...]
    """Pixels a cell, of each level."""
    offset: float = 0.0
    """Where in its cell an anchor is centred: 0 its corner, 0.5 its middle."""
    rounded: bool = True
    """Whether the corners of a shape around the origin are rounded to whole pixels."""
    fitted: bool = False
    """Whether cells are ⌊side of the canvas / cells⌋ apart and not a stride."""
    border: float | None = None
    """Pixels by which an anchor may reach out of the image to be trained on; None for any."""

    def shapes(self, level: int) -> Float64[np.ndarray, "k 4"]:
        """The anchors of a level around the origin, xyxy: for each ratio every size."""
        ratios, sizes = np.repeat(self.ratios, len(self.sizes[level])), np.tile(self.sizes[level], len(self.ratios))
        height, width = sizes * np.sqrt(ratios), sizes / np.sqrt(ratios)
        shapes = np.stack([-width, -height, width, height], axis=1) / 2
        return shapes.astype(np.float32).round().astype(np.float64) if self.rounded else shapes


@dataclass(frozen=True, slots=True)
class Truths:
    """The boxes of a data set as the network sees them: `n` of them, each with the sizes of its image."""

    boxes: Float64[np.ndarray, "n 4"]
    """xyxy in pixels of the canvas."""
    images: Float64[np.ndarray, "n 2"]
    """Height and width of each box's image there."""
    canvases: Int64[np.ndarray, "n 2"]
    """Height and width of the canvas."""
    areas: Float64[np.ndarray, " n"]
    """In pixels of the file."""


def truths(records: Sequence[Record], resize: Resize, canvases: int) -> Truths:
    """The boxes of records, without crowds, resized and laid on canvases as in evaluation."""
    if not records:
        return Truths(np.empty((0, 4)), np.empty((0, 2)), np.empty((0, 2), dtype=np.int64), np.empty(0))
    resized = np.array([resize.size(record.height, record.width) for record in records], dtype=np.int64)
    planned = plan_canvases(resized, canvases)
    laid = np.array(planned, dtype=np.int64)[assign_canvases(resized, planned)]
    numbers = np.repeat(np.arange(len(records)), [int((~record.crowd).sum()) for record in records])
    boxes = np.concatenate([np.empty((0, 4)), *(record.boxes[~record.crowd] for record in records)])
    files = np.array([(record.height, record.width) for record in records], dtype=np.float64).reshape(-1, 2)
    scale = np.tile((resized / files)[numbers, ::-1], 2)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return Truths(boxes * scale, resized[numbers].astype(np.float64), laid[numbers], areas)


def best_overlaps(truths: Truths, anchors: Anchors) -> Float64[np.ndarray, " n"]:
    """The IoU of each truth with the anchor that fits it best; 0 where no anchor may be used."""
    best = np.zeros(len(truths.boxes))
    area = (truths.boxes[:, 2:] - truths.boxes[:, :2]).prod(axis=1)
    for level, stride in enumerate(anchors.strides):
        cells = -(-truths.canvases // stride)
        # As the generator has it, the canvas is what the first level's cells span.
        spans = -(-truths.canvases // anchors.strides[0]) * anchors.strides[0]
        steps = (spans // cells if anchors.fitted else np.full_like(cells, stride)).astype(np.float64)
        for shape in anchors.shapes(level):
            x, fits_x = _nearest(truths, anchors, shape, cells, steps, axis=0)
            y, fits_y = _nearest(truths, anchors, shape, cells, steps, axis=1)
            boxes = np.stack([x, y, x, y], axis=1) + shape
            sides = np.minimum(boxes[:, 2:], truths.boxes[:, 2:]) - np.maximum(boxes[:, :2], truths.boxes[:, :2])
            shared = sides.clip(0).prod(axis=1)
            union = area + (shape[2:] - shape[:2]).prod() - shared
            best = np.maximum(best, np.where(fits_x & fits_y, shared / union, 0.0))
    return best


def _nearest(
    truths: Truths,
    anchors: Anchors,
    shape: Float64[np.ndarray, " 4"],
    cells: Int64[np.ndarray, "n 2"],
    steps: Float64[np.ndarray, "n 2"],
    axis: int,
) -> tuple[Float64[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Along an axis (0 is x), the centre nearest to each truth's where an anchor may be, and whether there is any."""
    side = 1 - axis  # heights come before widths
    step, first, last = steps[:, side], np.zeros(len(steps)), cells[:, side] - 1.0
    if anchors.border is not None:
        lowest = -anchors.border - shape[axis]
        highest = truths.images[:, side] + anchors.border - shape[axis + 2]
        first = np.maximum(first, np.ceil(lowest / step - anchors.offset))
        last = np.minimum(last, np.floor(highest / step - anchors.offset))
    middle = truths.boxes[:, [axis, axis + 2]].mean(axis=1)
    cell = np.clip(np.rint(middle / step - anchors.offset), first, np.maximum(first, last))
    return (cell + anchors.offset) * step, first <= last


def ceiling(truths: Truths, anchors: Anchors) -> dict[str, dict[str, float]]:
    """The share of truths that some anchor overlaps with IoU ≥ 0.5 and ≥ 0.7, of all and by size and shape.

    A row for each kind that there is: `truths` their number, `0.5` and `0.7` the shares, `mean` the mean best IoU.
    """
    best = best_overlaps(truths, anchors)
    sides = truths.boxes[:, 2:] - truths.boxes[:, :2]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = sides[:, 1] / sides[:, 0]
    rows = {"all": np.ones(len(best), dtype=bool)}
    rows |= {name: (low <= truths.areas) & (truths.areas < high) for name, (low, high) in SIZES.items()}
    rows |= {name: (low <= ratio) & (ratio < high) for name, (low, high) in SHAPES.items()}
    return {name: _shares(best[chosen]) for name, chosen in rows.items() if chosen.any()}


def _shares(best: Float64[np.ndarray, " n"]) -> dict[str, float]:
    shares = {f"{threshold:g}": float((best >= threshold).mean()) for threshold in THRESHOLDS}
    return {"truths": float(len(best)), **shares, "mean": float(best.mean())}


# ------------------------------------------------------------------------------------------------------------- proposal


def propose(truths: Truths, anchors: Anchors, seed: int = 0) -> Anchors:
    """Anchors with as many sizes and ratios that meet more of the truths, or the given ones where none are found.

    The form is that of the generator, sizes × ratios. In turn each truth is given to the shape with the highest IoU,
    and each size and each ratio becomes the geometric mean of its truths': Lloyd's algorithm with the distance
    1 - IoU of Redmon and Farhadi (2017, YOLO9000, §2), for a product of two sets. From the best of such starts and the
    given anchors, single sizes and ratios are made larger and smaller for as long as the shares of truths that are met
    with IoU 0.5 and 0.7 grow, on the grid and within the border.

    This is a ceiling and no forecast: anchors also decide which features see an object, and how many examples the
    network learns from.
    """
    few = _sample(truths, seed)
    sides = few.boxes[:, 2:] - few.boxes[:, :2]
    if not len(sides):
        return anchors
    sizes, ratios = np.sqrt(sides.prod(axis=1)), sides[:, 1] / sides[:, 0]
    count = sum(map(len, anchors.sizes))
    middle = [(place + 0.5) / count for place in range(count)]
    spread = [(place + 0.5) / len(anchors.ratios) for place in range(len(anchors.ratios))]
    given = np.concatenate(anchors.sizes), np.array(anchors.ratios)
    starts = [
        given,
        _fit(sides, *given),
        _fit(sides, np.quantile(sizes, middle), np.quantile(ratios, spread)),
        _fit(
            sides, np.geomspace(np.quantile(sizes, 0.02), np.quantile(sizes, 0.98), count), np.quantile(ratios, spread)
        ),
    ]
    start = max((_in_form(anchors, *start) for start in starts), key=lambda one: _met(few, one))
    return max(anchors, _climb(few, start), key=lambda one: _met(truths, one))  # the given ones where they are as good


def _met(truths: Truths, anchors: Anchors) -> float:
    best = best_overlaps(truths, anchors)
    return sum(float((best >= threshold).mean()) for threshold in THRESHOLDS)


def _climb(truths: Truths, anchors: Anchors) -> Anchors:
    """Changes one size or ratio at a time, in ever smaller steps, for as long as more truths are met."""
    best = _met(truths, anchors)
    for step in (1.3, 1.12, 1.05):
        for _ in range(4):
            before = best
            sizes, ratios = np.concatenate(anchors.sizes), np.array(anchors.ratios)
            for values in (sizes, ratios):
                for place, factor in product(range(len(values)), (step, 1 / step)):
                    old, values[place] = values[place], values[place] * factor
                    changed = _in_form(anchors, np.sort(sizes), np.sort(ratios))
                    met = _met(truths, changed)
                    if met > best:
                        best, anchors = met, changed
                    else:
                        values[place] = old
            if best == before:
                break
    return anchors


def _sample(truths: Truths, seed: int) -> Truths:
    """The truths of positive size; of many, some."""
    places = np.flatnonzero((truths.boxes[:, 2:] > truths.boxes[:, :2]).all(axis=1))
    if len(places) > _MOST:
        places = np.sort(np.random.default_rng(seed).choice(places, _MOST, replace=False))
    return Truths(truths.boxes[places], truths.images[places], truths.canvases[places], truths.areas[places])


def _fit(sides: Float64[np.ndarray, "n 2"], sizes: np.ndarray, ratios: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    own_size, own_ratio = np.log(sides.prod(axis=1)) / 2, np.log(sides[:, 1] / sides[:, 0])
    sizes, ratios = sizes.astype(np.float64), ratios.astype(np.float64)
    for _ in range(50):
        stretch = np.sqrt(ratios)[:, None]
        shapes = np.stack([sizes / stretch, sizes * stretch], axis=-1).reshape(-1, 2)
        nearest = shape_iou(sides, shapes).argmax(axis=1)
        before = sizes.copy(), ratios.copy()
        _move(sizes, own_size, nearest % len(sizes))
        _move(ratios, own_ratio, nearest // len(sizes))
        if np.allclose(sizes, before[0], rtol=1e-3) and np.allclose(ratios, before[1], rtol=1e-3):
            break
    return np.sort(sizes), np.sort(ratios)


def _move(centres: np.ndarray, logarithms: np.ndarray, nearest: np.ndarray) -> None:
    """Each centre becomes the geometric mean of what is nearest to it; one that nothing is nearest to stays."""
    for place in np.unique(nearest):
        centres[place] = np.exp(logarithms[nearest == place].mean())


def _in_form(anchors: Anchors, sizes: np.ndarray, ratios: np.ndarray) -> Anchors:
    rounded = [float(max(1, round(size))) for size in sizes]
    levels, start = [], 0
    for level in anchors.sizes:
        levels.append(tuple(rounded[start : start + len(level)]))
        start += len(level)
    return replace(anchors, sizes=tuple(levels), ratios=tuple(round(float(ratio), 2) or 0.01 for ratio in ratios))


def kmeans(sides: Float64[np.ndarray, "n 2"], count: int, seed: int = 0) -> tuple[Float64[np.ndarray, "k 2"], float]:
    """Widths and heights of `count` free shapes, the smallest first, and the mean IoU with them.

    k-means with the distance 1 - IoU of boxes laid upon each other (Redmon and Farhadi 2017, YOLO9000, §2). What no
    form binds shows how far sizes × ratios is from the best that as many anchors can do.
    """
    unique = np.unique(sides, axis=0)
    centres = np.random.default_rng(seed).choice(unique, min(count, len(unique)), replace=False)
    for _ in range(100):
        nearest = shape_iou(sides, centres).argmax(axis=1)
        before = centres.copy()
        for place in np.unique(nearest):
            centres[place] = sides[nearest == place].mean(axis=0)
        if np.allclose(centres, before, rtol=1e-3):
            break
    order = centres.prod(axis=1).argsort()
    return centres[order], float(shape_iou(sides, centres).max(axis=1, initial=0).mean()) if len(sides) else 0.0


def shape_iou(a: Float64[np.ndarray, "n 2"], b: Float64[np.ndarray, "k 2"]) -> Float64[np.ndarray, "n k"]:
    """The IoU of boxes of these widths and heights with the same centre."""
    shared = np.minimum(a[:, None], b[None]).prod(axis=-1)
    return shared / (a.prod(axis=1)[:, None] + b.prod(axis=1)[None] - shared)


def as_yaml(anchors: Anchors) -> str:
    """The lines of a config that choose these anchors."""
    sizes = ", ".join(f"{size:g}" for level in anchors.sizes for size in level)
    ratios = ", ".join(f"{ratio:g}" for ratio in anchors.ratios)
    return f"model:\n  rpn:\n    anchor_sizes: [{sizes}]\n    anchor_ratios: [{ratios}]\n"
