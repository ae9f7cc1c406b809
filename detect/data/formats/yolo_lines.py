"""Lines of YOLO label files: boxes, polygons, and boxes with keypoints, which look like polygons.

A line with keypoints is `class x y width height` and for each keypoint `x y` or `x y visibility` (0, 1 or 2). Only
`kpt_shape` in the YAML, the number of keypoints and of their numbers, tells such lines from polygons.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64

MIN_LINES = 5
"""Minimum number of lines to recognise keypoints without visibility of 2, which no polygon has."""
ALIKE = 0.9
"""Minimum share of the lines that have the same number of numbers, and of those with keypoints within their box."""
FAR = 0.25
"""Minimum share of lines whose second pair of numbers is far away from all others; a box's size often is."""
SLACK = 0.02
"""Fraction of the image by which a keypoint may lie outside of its box."""
Corners = tuple[float, float, float, float]


def line_box(values: Sequence[float], keypoints: tuple[int, int] | None = None) -> Corners:
    """Return xyxy of a line's numbers after the class: of a box, with keypoints of a shape if given, or of a polygon.

    Raises:
        ValueError: the line has another number of numbers.
    """
    if len(values) == 4 or (keypoints and len(values) == 4 + keypoints[0] * keypoints[1]):
        x, y, width, height = values[:4]
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2
    if keypoints or len(values) < 6 or len(values) % 2:
        raise ValueError
    return min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])


def find_keypoints(lines: Sequence[Sequence[float]]) -> tuple[int, int] | None:
    """Return the shape of the keypoints if a split's lines, the numbers after the class, have any, else None.

    Nearly all lines that are not boxes must have the same number of numbers, and boxes within their image around their
    keypoints. Further evidence that they are no polygons is needed: visibilities of 2, or, in at least `MIN_LINES`
    lines, visibilities, or, in a share of `FAR`, a second pair of numbers far away from all other pairs.
    """
    longer = [line for line in lines if len(line) > 4]
    if not longer:
        return None
    usual = Counter(map(len, longer)).most_common(1)[0][0]
    table = np.array([line for line in longer if len(line) == usual], dtype=np.float64)
    table = table[np.isfinite(table).all(axis=1)]
    if len(table) < max(1, ALIKE * len(longer)):
        return None
    for numbers in (3, 2):
        count, rest = divmod(table.shape[1] - 4, numbers)
        if count and not rest:
            points = table[:, 4:].reshape(len(table), count, numbers)
            if _are_boxes_around(table[:, :4], points) and _are_no_polygons(table, points):
                return count, numbers
    return None


def _are_boxes_around(boxes: Float64[np.ndarray, "n 4"], points: Float64[np.ndarray, "n k d"]) -> bool:
    """Return whether the first four numbers of each line are a box within the image, around its visible points."""
    start, end = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
    visible = points[..., 2] > 0 if points.shape[2] == 3 else (points != 0).any(axis=2)
    xy = points[..., :2]
    within = ((xy >= start[:, None] - SLACK) & (xy <= end[:, None] + SLACK)).all(axis=2)
    inside = ((boxes[:, 2:] > 0) & (start >= -SLACK) & (end <= 1 + SLACK)).all(axis=1)
    fits = inside & (within | ~visible).all(axis=1)
    return bool(fits.mean() >= ALIKE and visible.any())


def _are_no_polygons(table: Float64[np.ndarray, "n m"], points: Float64[np.ndarray, "n k d"]) -> bool:
    if points.shape[2] == 3:
        seen = points[..., 2]
        return bool(np.isin(seen, (0, 1, 2)).all() and ((seen == 2).any() or len(table) >= MIN_LINES))
    return len(table) >= MIN_LINES and float(_has_far_corner(table).mean()) >= FAR


def _has_far_corner(table: Float64[np.ndarray, "n m"]) -> Bool[np.ndarray, " n"]:
    """Return whether the second pair of numbers, a polygon's second corner, is far away from all other corners.

    Far is more than the extent of the others beyond them. In a polygon that would be a spike. Zeros are no corners:
    they stand for invisible keypoints.
    """
    corners = table.reshape(len(table), -1, 2)
    others = np.delete(corners, 1, axis=1)
    hidden = (others == 0).all(axis=2, keepdims=True)
    low = np.where(hidden, np.inf, others).min(axis=1)
    high = np.where(hidden, -np.inf, others).max(axis=1)
    beyond = np.maximum(low - corners[:, 1], corners[:, 1] - high)
    return (beyond > high - low).any(axis=1)
