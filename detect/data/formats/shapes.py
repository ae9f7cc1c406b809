"""Masks of the shapes that annotation tools draw, in the unit of the file."""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, floor, pi, sin

import numpy as np
from jaxtyping import Float64, Int64

from detect.data.masks import Polygons, Window

_CORNERS = 90
"""Corners of the polygon of an ellipse, whose area is 0.1 % smaller."""


def polygon(points: Float64[np.ndarray, "n 2"], holes: Sequence[Float64[np.ndarray, "_ 2"]] = ()) -> Polygons | None:
    """Return a polygon with holes, or None if it has fewer than three corners.

    A line there and back joins each hole to the first corner; by the even-odd rule it encloses nothing. Holes run in
    the other direction, so that the area of the polygon does not include them.
    """
    if len(points) < 3:
        return None
    parts = [points]
    for hole in holes:
        turned = hole[::-1] if _is_clockwise(hole) == _is_clockwise(points) else hole
        parts += [points[:1], turned, turned[:1]]
    return Polygons((np.concatenate(parts),))


def _is_clockwise(points: Float64[np.ndarray, "n 2"]) -> bool:
    following = np.roll(points, -1, axis=0)
    with np.errstate(over="ignore", invalid="ignore"):  # damaged corners are reported later
        return bool((points[:, 0] * following[:, 1] - points[:, 1] * following[:, 0]).sum() > 0)


def ellipse(x: float, y: float, rx: float, ry: float, angle: float = 0.0, aspect: float = 1.0) -> Polygons:
    """Return an ellipse with centre and radii, rotated by an angle in radians.

    If x and y are fractions of the image's size, `aspect` is the height of the image divided by its width.
    """
    turns = np.arange(_CORNERS) * (2 * pi / _CORNERS)
    with np.errstate(over="ignore", invalid="ignore"):  # damaged radii are reported later
        across, down = rx * np.cos(turns), ry * aspect * np.sin(turns)
        xs, ys = across * cos(angle) - down * sin(angle), (across * sin(angle) + down * cos(angle)) / aspect
        return Polygons((np.stack([x + xs, y + ys], axis=1),))


def window(
    left: float, top: float, width: float, height: float, content: Int64[np.ndarray, " r"] | str
) -> Window | None:
    """Return the pixels in a window of the image, rounded to whole pixels; None if it has none or lies far outside.

    A mask that was moved by hand may have a place between two pixels.
    """
    place = (left, top, width, height)
    if not all(abs(number) < 2**31 for number in place) or min(width, height) < 0.5:  # its box is reported
        return None
    left, top, width, height = (floor(number + 0.5) for number in place)
    return Window(left, top, width, height, content)
