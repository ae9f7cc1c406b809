"""Outline of a mask as one polygon, for formats with one polygon per object, such as YOLO's.

Several pieces, and holes, are joined by lines there and back, as in Ultralytics' converter from COCO. By the even-odd
rule, which pycocotools and OpenCV apply to one polygon, the lines enclose nothing and holes stay holes.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Float64

from detect.data.masks import Bitmap, Mask, Polygons, bounds


def outline_of(mask: Mask, height: int, width: int) -> Float64[np.ndarray, "k 2"] | None:
    """Return the corners x, y of one polygon with the pixels of a mask, within the image; None if it has no pixel.

    The corners of polygons are kept, unless some overlap, or lie so far outside of the image that other pixels would
    be enclosed: then, and for bitmaps, the outline of the pixels is traced.
    """
    joined = _joined_polygons(mask, height, width) if isinstance(mask, Polygons) else None
    if joined is None:
        joined = _join(trace(mask.bitmap(height, width)))
    return joined if joined is not None and (np.ptp(joined, axis=0) > 0).all() else None


def _joined_polygons(mask: Polygons, height: int, width: int) -> Float64[np.ndarray, "k 2"] | None:
    """Return one polygon with the corners of a mask, moved into the image, or None if it encloses other pixels."""
    pieces = _separate(mask, height, width)
    if pieces is None:
        return None
    inside = [piece.clip(0, (width, height)) for piece in pieces]
    joined = _join(inside)
    is_moved = any((one != other).any() for one, other in zip(pieces, inside, strict=True))
    if joined is not None and is_moved and Polygons((joined,)).rle(height, width) != mask.rle(height, width):
        return None
    return joined


def _separate(mask: Polygons, height: int, width: int) -> Sequence[Float64[np.ndarray, "_ 2"]] | None:
    """Return the polygons of a mask, all with the same direction, or None if some overlap."""
    outlines = mask.outlines
    if len(outlines) == 1:
        return outlines
    area = sum(Polygons((outline,)).rle(height, width).area() for outline in outlines)
    if area != mask.rle(height, width).area():
        return None
    # Otherwise the area of the joined polygon would be a difference.
    reverse = (cv2.contourArea(outline.astype(np.float32), oriented=True) < 0 for outline in outlines)
    return [outline[::-1] if turned else outline for outline, turned in zip(outlines, reverse, strict=True)]


def trace(bitmap: Bitmap, left: int = 0, top: int = 0) -> list[Float64[np.ndarray, "_ 2"]]:
    """Return the outlines of the pieces and holes of a bitmap, exactly along the edges of its pixels.

    Args:
        bitmap: the mask, or a window of it.
        left: left of the window in the image.
        top: top of the window in the image.
    """
    extent = bounds(bitmap) if bitmap.size else None
    if extent is None:
        return []
    x1, y1, x2, y2 = extent
    # A contour of OpenCV joins the centres of pixels. In a bitmap of twice the size, each of them lies beside an edge.
    halves = cv2.resize(bitmap[y1:y2, x1:x2], None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(halves, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    corners = [(contour[:, 0] + 1) // 2 + (left + x1, top + y1) for contour in contours]
    return [outline[(outline != np.roll(outline, 1, axis=0)).any(axis=1)].astype(np.float64) for outline in corners]


def _join(outlines: Sequence[Float64[np.ndarray, "_ 2"]]) -> Float64[np.ndarray, "k 2"] | None:
    """Return one polygon: at each step the nearest outline is inserted at the nearest corner, and left there again."""
    if not outlines:
        return None
    first, *rest = sorted(outlines, key=len, reverse=True)
    joined, added, start = first, first, 0
    corners = np.concatenate([np.zeros((0, 2)), *rest])
    piece = np.repeat(np.arange(len(rest)), [len(outline) for outline in rest])
    distance, place = np.full(len(corners), np.inf), np.zeros(len(corners), np.int64)
    for _ in rest:
        # The nearest corner of the joined polygon to each corner that is left; only new corners can be nearer.
        distances = ((added[:, None] - corners) ** 2).sum(axis=2)
        nearest = distances.argmin(axis=0)
        is_nearer = distances.min(axis=0) < distance
        distance = np.where(is_nearer, distances.min(axis=0), distance)
        place = np.where(is_nearer, start + nearest, place)

        chosen = int(distance.argmin())
        outline, at = rest[piece[chosen]], int(place[chosen])
        turned = np.roll(outline, np.argmax(piece == piece[chosen]) - chosen, axis=0)
        added, start = np.vstack([turned, turned[:1]]), at + 1
        joined = np.vstack([joined[: at + 1], added, joined[at:]])
        place = place + (place > at) * (len(added) + 1)
        left = piece != piece[chosen]
        corners, piece, distance, place = corners[left], piece[left], distance[left], place[left]
    return joined
