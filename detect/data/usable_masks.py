"""Check of the masks of a split against its images and boxes, so that those of a record can be used without a check."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from detect.data.image_headers import check_images
from detect.data.masks import RLE, LabelledPixels, Mask, Polygons, Window, encode, labels_of_pixels
from detect.data.records import Masks
from detect.files.fence import Fence

MAX_CORNERS = 2**20
"""Maximum number of corners of a mask, because pycocotools takes 100 bytes for each."""
MAX_PATH = 2**22
"""Maximum length of the outlines of a mask in pixels, because pycocotools takes 100 bytes for each pixel."""
ELSEWHERE = 0.9
"""Minimum share of the masks that are not in their boxes, for a split whose masks have a common mistake."""
MIN_MASKS = 5
"""Minimum number of such masks, so that a few careless masks prove nothing."""
OVERLAP = 0.5
"""Minimum IoU of a box and the bounds of its mask."""
_AT_ONCE = 10_000  # masks whose corners are joined into one array


class Problem(NamedTuple):
    """Reason why a mask cannot be used."""

    rule: str
    """Key of `defects.RULES`."""
    row: int
    """Index of the mask."""
    text: str


def usable_masks(
    masks: Sequence[Mask | None],
    boxes: Float64[np.ndarray, "m 4"],
    sizes: Int64[np.ndarray, "m 2"],
    fence: Fence,
) -> tuple[list[Mask | None], list[Problem]]:
    """Return the masks with None in the place of each one that cannot be used, and the problems of these.

    `LabelledPixels` and `Window` become `RLE`.

    Args:
        masks: mask of each box, polygons in pixels.
        boxes: xyxy in pixels.
        sizes: width and height of the image of each box.
        fence: files outside of it are not read.
    """
    usable, problems = list(masks), []
    for row, result in _read_files(masks, sizes, fence):
        usable[row] = result if isinstance(result, RLE) else None
        problems += [result] if isinstance(result, Problem) else []
    bounds = _bounds_of_polygons(usable)
    for row, mask in enumerate(usable):
        if mask is None:
            continue
        width, height = sizes[row].tolist()
        if isinstance(mask, Window) and mask.width <= width and mask.height <= height:
            try:
                usable[row] = mask = mask.rle(height, width)
            except ValueError as error:
                problems.append(Problem("broken-mask", row, str(error)))
                usable[row] = None
                continue
        problem = _problem(mask, bounds[row], width, height)
        if problem is not None:
            problems.append(Problem(problem[0], row, problem[1]))
            usable[row] = None
        elif isinstance(mask, RLE):
            bounds[row] = mask.bounds()
    if (mistake := _common_mistake(bounds, boxes, sizes)) is not None:
        return [None] * len(usable), [*problems, mistake]
    return usable, problems


def are_usable(masks: Masks, boxes: Float64[np.ndarray, "m 4"], sizes: Int64[np.ndarray, "m 2"]) -> bool:
    """Return whether `usable_masks` would return all these masks, of polygons in pixels, without a problem.

    Args:
        masks: mask of each box.
        boxes: xyxy in pixels.
        sizes: width and height of the image of each box.
    """
    bounds, corners = masks.bounds(), masks.numbers_of_corners()
    is_polygon = corners > 0
    # Only run-length encodings and polygons that may be too long are looked at one by one.
    suspect = masks.given & (~is_polygon | (corners * 3 * sizes.sum(axis=1) > MAX_PATH))
    if not np.isfinite(bounds[is_polygon]).all() or (corners > MAX_CORNERS).any():
        return False
    for row in np.flatnonzero(suspect).tolist():
        mask = masks[row]
        assert mask is not None
        if _problem(mask, bounds[row], *sizes[row].tolist()) is not None:
            return False
        if isinstance(mask, RLE):
            bounds[row] = mask.bounds()
    return _common_mistake(bounds, boxes, sizes) is None


def _problem(mask: Mask, bounds: Float64[np.ndarray, " 4"], width: int, height: int) -> tuple[str, str] | None:
    """Return rule and description of the problem of a mask, or None."""
    if isinstance(mask, (RLE, Window)) and (mask.width, mask.height) != (width, height):
        return "mask-size", f"its mask is {mask.width} × {mask.height}, the image {width} × {height}"
    if isinstance(mask, Polygons):
        if not np.isfinite(bounds).all():
            return "broken-mask", "a corner of its polygon is not finite"
        corners = sum(map(len, mask.outlines))
        # The length is computed only if it can be too large.
        if corners > MAX_CORNERS or (
            corners * 3 * (width + height) > MAX_PATH and _path(mask, width, height) > MAX_PATH
        ):
            return "broken-mask", f"its polygon has {corners} corners on a way too long for an outline"
    elif mask.area() == 0:
        return "broken-mask", "its mask has no pixel"
    return None


def _path(mask: Polygons, width: int, height: int) -> float:
    """Return the length of the outlines as `Polygons.rle` clips them, in pixels along the longer axis of each side."""
    near = [outline.clip((-width, -height), (2 * width, 2 * height)) for outline in mask.outlines]
    return sum(float(np.abs(outline - np.roll(outline, 1, axis=0)).max(axis=1).sum()) for outline in near)


def _bounds_of_polygons(masks: Sequence[Mask | None]) -> Float64[np.ndarray, "m 4"]:
    """Return x1, y1, x2, y2 of the corners of each mask, not finite if one of them is not, and NaN for other masks."""
    bounds = np.full((len(masks), 4), np.nan)
    polygons = [(row, mask.outlines) for row, mask in enumerate(masks) if isinstance(mask, Polygons)]
    for start in range(0, len(polygons), _AT_ONCE):
        part = polygons[start : start + _AT_ONCE]
        corners = np.concatenate([outline for _, outlines in part for outline in outlines])
        counts = [sum(map(len, outlines)) for _, outlines in part]
        starts = np.cumsum([0, *counts[:-1]])
        rows = [row for row, _ in part]
        bounds[rows, :2], bounds[rows, 2:] = np.minimum.reduceat(corners, starts), np.maximum.reduceat(corners, starts)
    return bounds


# ---------------------------------------------------------------------------------------------------------------- files


def _read_files(
    masks: Sequence[Mask | None], sizes: Int64[np.ndarray, "m 2"], fence: Fence
) -> Iterator[tuple[int, RLE | Problem]]:
    """Yield row and result of each mask in an image file."""
    rows: dict[Path, list[int]] = defaultdict(list)
    for row, mask in enumerate(masks):
        if isinstance(mask, LabelledPixels):
            rows[mask.path].append(row)
    jobs: dict[Path, dict[int, int]] = {}
    for path, check in zip(rows, check_images(list(rows), fence=fence), strict=True):
        size = tuple(sizes[rows[path][0]].tolist())
        if check.size == size:
            jobs[path] = {row: mask.value for row in rows[path] if isinstance(mask := masks[row], LabelledPixels)}
            continue
        rule, text = check.rule, f"{path.name}: {check.detail}"
        if check.size is not None:
            text = f"{path.name} is {check.size[0]} × {check.size[1]}, the image {size[0]} × {size[1]}"
        rule = "mask-size" if check.size else rule if rule == "path-outside-root" else "broken-mask"
        yield from ((row, Problem(rule, row, text)) for row in rows[path])
    with ThreadPoolExecutor() as pool:
        for results in pool.map(_encode_labels, jobs, jobs.values()):
            yield from results


def _encode_labels(path: Path, values: Mapping[int, int]) -> list[tuple[int, RLE | Problem]]:
    """Return the mask of each row, given the value of its pixels in an image file."""
    try:
        labels = labels_of_pixels(path)
    except Exception:  # hostile bytes can raise nearly any exception
        return [(row, Problem("broken-mask", row, f"{path.name} is damaged")) for row in values]
    return [(row, encode((labels == value).astype(np.uint8))) for row, value in values.items()]


# ------------------------------------------------------------------------------------------------------ common mistakes


def _common_mistake(
    bounds: Float64[np.ndarray, "m 4"], boxes: Float64[np.ndarray, "m 4"], sizes: Int64[np.ndarray, "m 2"]
) -> Problem | None:
    """Return the mistake of masks nearly all of which are elsewhere than their boxes."""
    rows = np.flatnonzero(np.isfinite(bounds).all(axis=1))
    bounds, boxes, limits = bounds[rows], boxes[rows], np.tile(sizes[rows], 2)
    count, elsewhere = len(rows), int((_iou(bounds, boxes) < OVERLAP).sum())
    if elsewhere < max(MIN_MASKS, ELSEWHERE * count):
        return None
    readings = {
        "they fit as fractions of the image's size": bounds * limits,
        "they fit with x and y exchanged": bounds[:, [1, 0, 3, 2]],
        "they fit as fractions of the image's size with x and y exchanged": bounds[:, [1, 0, 3, 2]] * limits,
    }
    fit = {text: float((_iou(other, boxes) >= OVERLAP).mean()) for text, other in readings.items()}
    best = max(fit, key=fit.__getitem__)
    hint = f"; {best}" if fit[best] >= ELSEWHERE else ""
    return Problem("masks-elsewhere", int(rows[0]), f"{elsewhere} of {count} masks are not in their boxes{hint}")


def _iou(one: Float64[np.ndarray, "m 4"], other: Float64[np.ndarray, "m 4"]) -> Float64[np.ndarray, " m"]:
    """Return the IoU of each pair of boxes."""
    start, end = np.maximum(one[:, :2], other[:, :2]), np.minimum(one[:, 2:], other[:, 2:])
    with np.errstate(over="ignore", invalid="ignore"):
        common = (end - start).clip(min=0).prod(axis=1)
        areas = (one[:, 2:] - one[:, :2]).prod(axis=1) + (other[:, 2:] - other[:, :2]).prod(axis=1)
        return common / np.maximum(areas - common, np.finfo(np.float64).tiny)
