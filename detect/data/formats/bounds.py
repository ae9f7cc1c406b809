"""Bounds of shapes other than upright boxes: xyxy in the unit of the shape."""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, hypot, sin


def of_points(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, ...]:
    """Return the bounds of the corners of a polygon. Raise `ValueError` if there are fewer than three."""
    if len(xs) < 3 or len(xs) != len(ys):
        raise ValueError("it is not a polygon")
    return min(xs), min(ys), max(xs), max(ys)


def of_ellipse(x: float, y: float, rx: float, ry: float, angle: float = 0.0) -> tuple[float, ...]:
    """Return the bounds of an ellipse with centre and radii, turned by an angle in radians."""
    half_width = hypot(rx * cos(angle), ry * sin(angle))
    half_height = hypot(rx * sin(angle), ry * cos(angle))
    return x - half_width, y - half_height, x + half_width, y + half_height


def of_turned_box(box: Sequence[float], angle: float) -> tuple[float, ...]:
    """Return the bounds of a box turned about its centre by an angle in radians; without angle, the box itself."""
    if not angle:
        return tuple(box)
    x, y, half_width, half_height = (
        *((box[0] + box[2]) / 2, (box[1] + box[3]) / 2),
        *((box[2] - box[0]) / 2, (box[3] - box[1]) / 2),
    )
    c, s = abs(cos(angle)), abs(sin(angle))
    width, height = half_width * c + half_height * s, half_width * s + half_height * c
    return x - width, y - height, x + width, y + height
