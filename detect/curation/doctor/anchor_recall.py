"""Recall ceiling of a network's anchors on a data set, and anchors that fit the data better.

A detector does not learn ground truths that no anchor overlaps well, so anchors limit the recall. For an anchor of a
given shape, the IoU with a ground truth falls with the distance of the centres along either axis. The best anchor of
that shape is therefore in the nearest usable cell, and only one cell per level and shape must be considered. The result
is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from jaxtyping import Bool, Float64, Int64

from detect.curation.objects import AREAS
from detect.data.canvases import assign_canvases, plan_canvases
from detect.data.records import Record
from detect.data.transforms import Resize

THRESHOLDS = (0.5, 0.7)
SIZES = dict(zip(("small, up to 32²", "medium", "large, from 96²"), AREAS.values(), strict=True))
"""COCO's size ranges, by the area of the box in pixels of the file."""
SHAPES = {
    "wider than 3 : 1": (0.0, 1 / 3),
    "wide, 3 : 2 to 3 : 1": (1 / 3, 2 / 3),
    "square": (2 / 3, 3 / 2),
    "tall, 2 : 3 to 1 : 3": (3 / 2, 3.0),
    "taller than 1 : 3": (3.0, np.inf),
}
"""Ranges of height over width."""
_MAX_BOXES = 2000  # boxes to fit anchors to; larger random samples give the same result


@dataclass(frozen=True, slots=True)
class Anchors:
    """Anchors of a network and their placement on a canvas, as in its anchor generator."""

    sizes: tuple[tuple[float, ...], ...]
    """Square roots of the areas, in pixels of the canvas, per level."""
    ratios: tuple[float, ...]
    """Height over width, the same on every level."""
    strides: tuple[int, ...]
    """Stride of each level, in pixels."""
    offset: float = 0.0
    """Centre of an anchor in its cell: 0 for the corner, 0.5 for the middle."""
    rounded: bool = True
    """True if the corners of a shape around the origin are rounded to whole pixels."""
    fitted: bool = False
    """True if the cells are ⌊side of the canvas / number of cells⌋ pixels apart instead of one stride."""
    border: float | None = None
    """Number of pixels by which an anchor may exceed the image in training; None for no limit."""

    def shapes(self, level: int) -> Float64[np.ndarray, "k 4"]:
        """Return the anchors of a level around the origin, xyxy: all sizes for each ratio."""
        ratios, sizes = np.repeat(self.ratios, len(self.sizes[level])), np.tile(self.sizes[level], len(self.ratios))
        height, width = sizes * np.sqrt(ratios), sizes / np.sqrt(ratios)
        shapes = np.stack([-width, -height, width, height], axis=1) / 2
        return shapes.astype(np.float32).round().astype(np.float64) if self.rounded else shapes


@dataclass(frozen=True, slots=True)
class GroundTruths:
    """Boxes of a data set in the network's coordinates: `n` boxes, with the sizes of their images."""

    boxes: Float64[np.ndarray, "n 4"]
    """xyxy in pixels of the canvas."""
    images: Float64[np.ndarray, "n 2"]
    """Height and width of each box's image on the canvas."""
    canvases: Int64[np.ndarray, "n 2"]
    """Height and width of the canvas."""
    areas: Float64[np.ndarray, " n"]
    """Area in pixels of the file."""


def ground_truths(records: Sequence[Record], resize: Resize, canvases: int) -> GroundTruths:
    """Return the boxes of records, without crowds, resized and placed on canvases like in evaluation."""
    if not records:
        return GroundTruths(np.empty((0, 4)), np.empty((0, 2)), np.empty((0, 2), dtype=np.int64), np.empty(0))
    resized = np.array([resize.size(record.height, record.width) for record in records], dtype=np.int64)
    planned = plan_canvases(resized, canvases)
    assigned = np.array(planned, dtype=np.int64)[assign_canvases(resized, planned)]
    image = np.repeat(np.arange(len(records)), [int((~record.crowd).sum()) for record in records])
    boxes = np.concatenate([np.empty((0, 4)), *(record.boxes[~record.crowd] for record in records)])
    files = np.array([(record.height, record.width) for record in records], dtype=np.float64).reshape(-1, 2)
    scale = np.tile((resized / files)[image, ::-1], 2)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return GroundTruths(boxes * scale, resized[image].astype(np.float64), assigned[image], areas)


def best_overlaps(gt: GroundTruths, anchors: Anchors) -> Float64[np.ndarray, " n"]:
    """Return the IoU of each ground truth with its best anchor; 0 if no anchor is usable."""
    best = np.zeros(len(gt.boxes))
    area = (gt.boxes[:, 2:] - gt.boxes[:, :2]).prod(axis=1)
    for level, stride in enumerate(anchors.strides):
        cells = -(-gt.canvases // stride)
        # As in the generator, the canvas is the area covered by the cells of the first level.
        spans = -(-gt.canvases // anchors.strides[0]) * anchors.strides[0]
        steps = (spans // cells if anchors.fitted else np.full_like(cells, stride)).astype(np.float64)
        for shape in anchors.shapes(level):
            x, fits_x = _nearest(gt, anchors, shape, cells, steps, axis=0)
            y, fits_y = _nearest(gt, anchors, shape, cells, steps, axis=1)
            boxes = np.stack([x, y, x, y], axis=1) + shape
            sides = np.minimum(boxes[:, 2:], gt.boxes[:, 2:]) - np.maximum(boxes[:, :2], gt.boxes[:, :2])
            shared = sides.clip(0).prod(axis=1)
            union = area + (shape[2:] - shape[:2]).prod() - shared
            best = np.maximum(best, np.where(fits_x & fits_y, shared / union, 0.0))
    return best


def _nearest(
    gt: GroundTruths,
    anchors: Anchors,
    shape: Float64[np.ndarray, " 4"],
    cells: Int64[np.ndarray, "n 2"],
    steps: Float64[np.ndarray, "n 2"],
    axis: int,
) -> tuple[Float64[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Return the usable anchor centre nearest to each ground truth along an axis (0 is x), and where there is one."""
    side = 1 - axis  # sizes are height, width
    step, first, last = steps[:, side], np.zeros(len(steps)), cells[:, side] - 1.0
    if anchors.border is not None:
        lowest = -anchors.border - shape[axis]
        highest = gt.images[:, side] + anchors.border - shape[axis + 2]
        first = np.maximum(first, np.ceil(lowest / step - anchors.offset))
        last = np.minimum(last, np.floor(highest / step - anchors.offset))
    middle = gt.boxes[:, [axis, axis + 2]].mean(axis=1)
    cell = np.clip(np.rint(middle / step - anchors.offset), first, np.maximum(first, last))
    return (cell + anchors.offset) * step, first <= last


def ceiling(gt: GroundTruths, anchors: Anchors) -> dict[str, dict[str, float]]:
    """Return the share of ground truths that an anchor overlaps with IoU ≥ 0.5 and ≥ 0.7, also by size and shape.

    Returns:
        One entry per non-empty group: `truths` is the number of ground truths, `0.5` and `0.7` are the shares, and
        `mean` is the mean best IoU.
    """
    best = best_overlaps(gt, anchors)
    sides = gt.boxes[:, 2:] - gt.boxes[:, :2]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = sides[:, 1] / sides[:, 0]
    rows = {"all": np.ones(len(best), dtype=bool)}
    rows |= {name: (low <= gt.areas) & (gt.areas < high) for name, (low, high) in SIZES.items()}
    rows |= {name: (low <= ratio) & (ratio < high) for name, (low, high) in SHAPES.items()}
    return {name: _shares(best[chosen]) for name, chosen in rows.items() if chosen.any()}


def _shares(best: Float64[np.ndarray, " n"]) -> dict[str, float]:
    shares = {f"{threshold:g}": float((best >= threshold).mean()) for threshold in THRESHOLDS}
    return {"truths": float(len(best)), **shares, "mean": float(best.mean())}


# ------------------------------------------------------------------------------------------------------------- proposal


def propose(gt: GroundTruths, anchors: Anchors, seed: int = 0) -> Anchors:
    """Return anchors that match more ground truths, with the same numbers of sizes and ratios; else `anchors`.

    The anchors have the generator's form, sizes × ratios. Several starts are fitted by Lloyd's algorithm with the
    distance 1 - IoU (Redmon and Farhadi 2017, YOLO9000, §2), applied to a product of two sets: each ground truth is
    assigned to the shape with the highest IoU, then each size and ratio becomes the geometric mean of its boxes. The
    best start, which may be `anchors`, is improved by scaling single sizes and ratios up and down while the shares of
    ground truths matched with IoU 0.5 and 0.7 grow, on the grid and within the border.

    The result is an upper bound of recall, not a prediction of AP: anchors also determine which features detect an
    object, and how many examples the network learns from.
    """
    sample = _sample(gt, seed)
    sides = sample.boxes[:, 2:] - sample.boxes[:, :2]
    if not len(sides):
        return anchors
    sizes, ratios = np.sqrt(sides.prod(axis=1)), sides[:, 1] / sides[:, 0]
    count = sum(map(len, anchors.sizes))
    size_levels = [(k + 0.5) / count for k in range(count)]
    ratio_levels = [(k + 0.5) / len(anchors.ratios) for k in range(len(anchors.ratios))]
    given = np.concatenate(anchors.sizes), np.array(anchors.ratios)
    spaced = np.geomspace(np.quantile(sizes, 0.02), np.quantile(sizes, 0.98), count)
    starts = [
        given,
        _fit(sides, *given),
        _fit(sides, np.quantile(sizes, size_levels), np.quantile(ratios, ratio_levels)),
        _fit(sides, spaced, np.quantile(ratios, ratio_levels)),
    ]
    start = max((_with_shapes(anchors, *start) for start in starts), key=lambda fitted: _matched(sample, fitted))
    # Of equally good ones max returns the first, `anchors`.
    return max(anchors, _climb(sample, start), key=lambda candidate: _matched(gt, candidate))


def _matched(gt: GroundTruths, anchors: Anchors) -> float:
    best = best_overlaps(gt, anchors)
    return sum(float((best >= threshold).mean()) for threshold in THRESHOLDS)


def _climb(gt: GroundTruths, anchors: Anchors) -> Anchors:
    """Change one size or ratio at a time, in decreasing steps, as long as more ground truths are matched."""
    best = _matched(gt, anchors)
    for step in (1.3, 1.12, 1.05):
        for _ in range(4):
            before = best
            sizes, ratios = np.concatenate(anchors.sizes), np.array(anchors.ratios)
            for values in (sizes, ratios):
                for index, factor in product(range(len(values)), (step, 1 / step)):
                    old, values[index] = values[index], values[index] * factor
                    changed = _with_shapes(anchors, np.sort(sizes), np.sort(ratios))
                    matched = _matched(gt, changed)
                    if matched > best:
                        best, anchors = matched, changed
                    else:
                        values[index] = old
            if best == before:
                break
    return anchors


def _sample(gt: GroundTruths, seed: int) -> GroundTruths:
    """Return the ground truths of positive size, or a random sample of at most `_MAX_BOXES`."""
    rows = np.flatnonzero((gt.boxes[:, 2:] > gt.boxes[:, :2]).all(axis=1))
    if len(rows) > _MAX_BOXES:
        rows = np.sort(np.random.default_rng(seed).choice(rows, _MAX_BOXES, replace=False))
    return GroundTruths(gt.boxes[rows], gt.images[rows], gt.canvases[rows], gt.areas[rows])


def _fit(sides: Float64[np.ndarray, "n 2"], sizes: np.ndarray, ratios: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit sizes and ratios to boxes by Lloyd's algorithm."""
    own_size, own_ratio = np.log(sides.prod(axis=1)) / 2, np.log(sides[:, 1] / sides[:, 0])
    sizes, ratios = sizes.astype(np.float64), ratios.astype(np.float64)
    for _ in range(50):
        roots = np.sqrt(ratios)[:, None]
        shapes = np.stack([sizes / roots, sizes * roots], axis=-1).reshape(-1, 2)
        nearest = shape_iou(sides, shapes).argmax(axis=1)
        before = sizes.copy(), ratios.copy()
        _move(sizes, own_size, nearest % len(sizes))
        _move(ratios, own_ratio, nearest // len(sizes))
        if np.allclose(sizes, before[0], rtol=1e-3) and np.allclose(ratios, before[1], rtol=1e-3):
            break
    return np.sort(sizes), np.sort(ratios)


def _move(centres: np.ndarray, logarithms: np.ndarray, nearest: np.ndarray) -> None:
    """Move each centre to the geometric mean of its assigned values; a centre without values stays."""
    for index in np.unique(nearest):
        centres[index] = np.exp(logarithms[nearest == index].mean())


def _with_shapes(anchors: Anchors, sizes: np.ndarray, ratios: np.ndarray) -> Anchors:
    """Return `anchors` with other sizes and ratios, which are rounded."""
    rounded = [float(max(1, round(size))) for size in sizes]
    levels, start = [], 0
    for level in anchors.sizes:
        levels.append(tuple(rounded[start : start + len(level)]))
        start += len(level)
    return replace(anchors, sizes=tuple(levels), ratios=tuple(round(float(ratio), 2) or 0.01 for ratio in ratios))


def kmeans(sides: Float64[np.ndarray, "n 2"], count: int, seed: int = 0) -> tuple[Float64[np.ndarray, "k 2"], float]:
    """Return widths and heights of `count` shapes, by ascending area, and the boxes' mean IoU with their best shape.

    k-means with the distance 1 - IoU of concentric boxes (Redmon and Farhadi 2017, YOLO9000, §2). These shapes need not
    be sizes × ratios, and so show the best result to expect with this number of anchors.
    """
    unique = np.unique(sides, axis=0)
    centres = np.random.default_rng(seed).choice(unique, min(count, len(unique)), replace=False)
    for _ in range(100):
        nearest = shape_iou(sides, centres).argmax(axis=1)
        before = centres.copy()
        for index in np.unique(nearest):
            centres[index] = sides[nearest == index].mean(axis=0)
        if np.allclose(centres, before, rtol=1e-3):
            break
    order = centres.prod(axis=1).argsort()
    return centres[order], float(shape_iou(sides, centres).max(axis=1, initial=0).mean()) if len(sides) else 0.0


def shape_iou(a: Float64[np.ndarray, "n 2"], b: Float64[np.ndarray, "k 2"]) -> Float64[np.ndarray, "n k"]:
    """Return the IoU of concentric boxes of these widths and heights."""
    shared = np.minimum(a[:, None], b[None]).prod(axis=-1)
    return shared / (a.prod(axis=1)[:, None] + b.prod(axis=1)[None] - shared)


def as_yaml(anchors: Anchors) -> str:
    """Return the lines of a config that select these anchors."""
    sizes = ", ".join(f"{size:g}" for level in anchors.sizes for size in level)
    ratios = ", ".join(f"{ratio:g}" for ratio in anchors.ratios)
    return f"model:\n  rpn:\n    anchor_sizes: [{sizes}]\n    anchor_ratios: [{ratios}]\n"
