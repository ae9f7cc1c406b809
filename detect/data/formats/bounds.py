"""Boxes, xyxy in the unit of the file, of the shapes that annotation tools draw."""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, hypot, sin

import numpy as np
from jaxtyping import Float64

Box = tuple[float, float, float, float]


def from_corner(x: float, y: float, width: float, height: float) -> Box:
    """Return the box with this upper left corner and size."""
    return x, y, x + width, y + height


def from_centre(x: float, y: float, half_width: float, half_height: float) -> Box:
    """Return the box around this centre."""
    return x - half_width, y - half_height, x + half_width, y + half_height


def of_points(points: Float64[np.ndarray, "n 2"]) -> Box:
    """Return the smallest box with all points."""
    (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    return left, top, right, bottom


def of_polygon(xs: Sequence[float], ys: Sequence[float]) -> Box:
    """Return the bounds of a polygon. Raise `ValueError` if it has fewer than three corners."""
    if len(xs) < 3 or len(xs) != len(ys):
        raise ValueError("it is not a polygon")
    return min(xs), min(ys), max(xs), max(ys)


def of_ellipse(x: float, y: float, rx: float, ry: float, angle: float = 0.0) -> Box:
    """Return the bounds of an ellipse with centre and radii, rotated by an angle in radians."""
    return from_centre(x, y, hypot(rx * cos(angle), ry * sin(angle)), hypot(rx * sin(angle), ry * cos(angle)))


def of_rotated_box(box: Box, angle: float) -> Box:
    """Return the bounds of a box that is rotated about its centre by an angle in radians."""
    if not angle:
        return box  # exactly, and with its defects, which the caller reports
    left, top, right, bottom = box
    half_width, half_height = (right - left) / 2, (bottom - top) / 2
    c, s = abs(cos(angle)), abs(sin(angle))
    centre = (left + right) / 2, (top + bottom) / 2
    return from_centre(*centre, half_width * c + half_height * s, half_width * s + half_height * c)
