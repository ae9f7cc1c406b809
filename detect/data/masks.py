"""Instance masks: as files contain them, as training and networks need them, and as COCO's evaluation reads them.

    Polygons, RLE, LabelledPixels   mask of an object in an annotation file, kept as it is
    Window    pixels of a part of the image in an annotation file; `repair` makes RLE of it
    bitmap    uint8 [H, W], 0 or 1  pixels of the image that belong to the object
    crop      uint8 [M, M], 0 … 255 covered part of each cell of a grid over the object's box; for training, M = 56
    probabilities  float [m, m]     a network's output in the box of a detection; m is 28, or 14 without FPN

A crop of 56 × 56 cells has IoU 0.998 with the mask that it stands for, whatever the size of the object, and takes
3 kB; the mask on an image of 800 × 1344 pixels takes 1 MB.
"""

from __future__ import annotations

import io
import zlib
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64, UInt8
from PIL import Image
from pycocotools import mask as coco_mask

MASK_SIZE = 56
"""Cells along each side of a crop for training."""
THRESHOLD = 0.5
"""Minimum probability of a pixel that belongs to the object."""

FITS = 2
"""Maximum distance, in pixels, between the sides of a box and those of the smallest box around its mask."""

_PNG = b"\x89PNG\r\n\x1a\n"

Bitmap: TypeAlias = UInt8[np.ndarray, "h w"]
Box: TypeAlias = Sequence[float] | np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Polygons:
    """Union of polygons."""

    outlines: tuple[Float64[np.ndarray, "k 2"], ...]
    """Corners x, y of each polygon, at least three, in pixels of the image; before `repair` maybe in fractions."""

    def bitmap(self, height: int, width: int) -> Bitmap:
        """Return the pixels of an image of this size, as COCO rasterises polygons."""
        return coco_mask.decode(self.rle(height, width).coco())

    def rle(self, height: int, width: int) -> RLE:
        """Return the run-length encoded bitmap."""
        # Corners far away, in a damaged file, would take any amount of memory.
        near = [outline.clip((-width, -height), (2 * width, 2 * height)) for outline in self.outlines]
        parts = coco_mask.frPyObjects([outline.ravel().tolist() for outline in near], height, width)
        return RLE(height, width, coco_mask.merge(parts)["counts"])

    def area(self) -> float:
        """Return the sum of the areas of the polygons, in square units of the corners; not finite if far too large."""
        following = [np.roll(outline, -1, axis=0) for outline in self.outlines]
        pairs = zip(self.outlines, following, strict=True)
        with np.errstate(over="ignore", invalid="ignore"):
            return sum(abs(float((a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum())) / 2 for a, b in pairs)

    def scaled(self, width: float, height: float) -> Polygons:
        """Return the polygons with x times `width` and y times `height`."""
        return Polygons(tuple(outline * (width, height) for outline in self.outlines))

    def segmentation(self) -> list[list[float]]:
        """Return the `segmentation` of a COCO annotation."""
        return [outline.ravel().tolist() for outline in self.outlines]


@dataclass(frozen=True, slots=True)
class RLE:
    """COCO's run-length encoded bitmap, with compressed counts."""

    height: int
    width: int
    counts: bytes

    def bitmap(self, height: int, width: int) -> Bitmap:
        """Return the pixels. Raise `ValueError` if the bitmap is not of this size."""
        if (self.height, self.width) != (height, width):
            raise ValueError(f"the mask is {self.width} × {self.height}, the image {width} × {height}")
        return coco_mask.decode(self.coco())

    def rle(self, height: int, width: int) -> RLE:
        """Return itself."""
        return self

    def area(self) -> float:
        """Return the number of pixels."""
        return float(coco_mask.area(self.coco()))

    def bounds(self) -> Box:
        """Return the smallest box around the pixels, xyxy."""
        x, y, width, height = coco_mask.toBbox(self.coco()).tolist()
        return x, y, x + width, y + height

    def coco(self) -> dict[str, Any]:
        """Return the encoding as pycocotools takes it."""
        return {"size": [self.height, self.width], "counts": self.counts}

    def segmentation(self) -> dict[str, Any]:
        """Return the `segmentation` of a COCO annotation or result."""
        return {"size": [self.height, self.width], "counts": self.counts.decode()}


@dataclass(frozen=True, slots=True)
class LabelledPixels:
    """Pixels of one value in an image file, such as those in VOC's folder SegmentationObject."""

    path: Path
    value: int

    def bitmap(self, height: int, width: int) -> Bitmap:
        """Return the pixels. Raise `ValueError` if the file is not of this size."""
        values = _values(self.path)
        if values.shape != (height, width):
            raise ValueError(f"{self.path.name} is {values.shape[1]} × {values.shape[0]}, the image {width} × {height}")
        return (values == self.value).astype(np.uint8)

    def rle(self, height: int, width: int) -> RLE:
        """Return the run-length encoded bitmap."""
        return encode(self.bitmap(height, width))

    def area(self) -> float:
        """Return the number of pixels."""
        return float((_values(self.path) == self.value).sum())


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """Pixels in a window of the image, as annotation tools write them. They may be damaged, or of any size."""

    left: int
    top: int
    width: int
    height: int
    content: Int64[np.ndarray, " r"] | str
    """Runs of pixels outside and inside of the object in turn, row by row; or a PNG, maybe compressed, in base64."""

    def bitmap(self, height: int, width: int) -> Bitmap:
        """Return the pixels. Raise `ValueError` if the window is larger than the image, or is damaged."""
        if self.height > height or self.width > width:
            raise ValueError(f"the mask is {self.width} × {self.height}, the image {width} × {height}")
        pixels = self._from_png(self.content) if isinstance(self.content, str) else self._from_runs(self.content)
        left, top = max(0, self.left), max(0, self.top)
        seen = pixels[top - self.top : max(0, height - self.top), left - self.left : max(0, width - self.left)]
        bitmap = np.zeros((height, width), np.uint8)
        bitmap[top : top + seen.shape[0], left : left + seen.shape[1]] = seen
        return bitmap

    def rle(self, height: int, width: int) -> RLE:
        """Return the run-length encoded bitmap. Raise `ValueError` like `bitmap`."""
        return encode(self.bitmap(height, width))

    def area(self) -> float:
        """Return the number of pixels. Raise `ValueError` like `bitmap`."""
        return float(self.bitmap(max(0, self.top) + self.height, max(0, self.left) + self.width).sum())

    def _from_runs(self, runs: Int64[np.ndarray, " r"]) -> Bool[np.ndarray, "h w"]:
        if not ((runs >= 0) & (runs <= self.width * self.height)).all() or runs.sum() != self.width * self.height:
            raise ValueError("its runs do not cover its window")
        return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(self.height, self.width)

    def _from_png(self, text: str) -> Bool[np.ndarray, "h w"]:
        try:
            content = b64decode(text)
            if not content.startswith(_PNG):  # no PNG of this size is longer
                content = zlib.decompressobj().decompress(content, 8 * self.width * self.height + 2**16)
            with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
                if image.size != (self.width, self.height):
                    raise OSError
                if "A" in image.mode or "transparency" in image.info:
                    return np.asarray(image.convert("RGBA"))[..., 3] > 0
                return np.asarray(image if image.mode == "P" else image.convert("L")) > 0
        except Exception as error:  # hostile bytes can raise nearly any exception
            raise ValueError(f"its PNG is damaged or not {self.width} × {self.height}") from error


Mask: TypeAlias = Polygons | RLE | LabelledPixels | Window


@lru_cache(maxsize=2)  # all objects of an image share a file
def _values(path: Path) -> UInt8[np.ndarray, "h w"]:
    return labels_of_pixels(path)


def labels_of_pixels(path: Path) -> UInt8[np.ndarray, "h w"]:
    """Return the values of an image file with a palette, which may be stored as the colours of VOC's palette."""
    with Image.open(path) as image:
        if image.mode in ("P", "L"):
            return np.asarray(image)
        colours = np.asarray(image.convert("RGB"))
    # VOC's palette: the bits 0, 3, 6 of a value are the highest of red, 1, 4, 7 those of green, 2, 5 those of blue.
    bits = [(colours[..., k % 3] >> (7 - k // 3) & 1) << k for k in range(8)]
    return np.bitwise_or.reduce(bits)


def segmentation(mask: Mask, height: int, width: int) -> list[list[float]] | dict[str, Any]:
    """Return the `segmentation` of a COCO annotation: polygons as they are, else a run-length encoding."""
    return mask.segmentation() if isinstance(mask, Polygons) else mask.rle(height, width).segmentation()


def encode(bitmap: Bitmap) -> RLE:
    """Return the run-length encoding of a bitmap."""
    counts = coco_mask.encode(np.asfortranarray(bitmap, dtype=np.uint8))["counts"]
    height, width = bitmap.shape
    return RLE(height, width, counts)


def bounds(bitmap: Bitmap) -> tuple[int, int, int, int] | None:
    """Return x1, y1, x2, y2 of the smallest box that holds all pixels of a mask, or None if it has none."""
    left, top, width, height = cv2.boundingRect(bitmap)
    return (left, top, left + width, top + height) if width else None


def _bounds_within(bitmap: Bitmap, box: Box) -> tuple[int, int, int, int] | None:
    """Return the smallest box that holds the pixels of a mask which lie in a box or up to a pixel beside it."""
    left, top = (max(0, int(np.floor(side)) - 1) for side in box[:2])
    right, bottom = (int(np.ceil(side)) + 1 for side in box[2:])
    inner = bounds(np.ascontiguousarray(bitmap[top:bottom, left:right]))
    return None if inner is None else (left + inner[0], top + inner[1], left + inner[2], top + inner[3])


def refit(
    boxes: Float32[np.ndarray, "n 4"],
    before: UInt8[np.ndarray, "n h w"],
    moved: Float32[np.ndarray, "n 4"],
    after: UInt8[np.ndarray, "n H W"],
) -> tuple[Float32[np.ndarray, "n 4"], Bool[np.ndarray, " n"]]:
    """Fit boxes to their masks after augmentation: the box of a rotated box is larger than the rotated object.

    A side changes only if it is more than a pixel away from the mask, and only if the box fitted its mask before. Only
    the pixels within a box count: transforms that reflect the image at its border make several boxes of an object, and
    its bitmap then has the pixels of all of these copies.

    Args:
        boxes: boxes before augmentation.
        before: bitmaps before augmentation; empty for a box without a mask.
        moved: boxes after augmentation.
        after: bitmaps after augmentation.

    Returns:
        The boxes, and whether each remains: a mask that was moved out of its box takes the box with it.
    """
    fitted, remains = moved.copy(), np.ones(len(moved), bool)
    for row, (old, new) in enumerate(zip(before, after, strict=True)):
        extent = bounds(old)
        if extent is None:
            continue
        now = _bounds_within(new, moved[row])
        remains[row] = now is not None
        if now is not None and np.abs(boxes[row] - extent).max() <= FITS:
            far = np.abs(moved[row] - now) > 1
            fitted[row, far] = np.array(now, np.float32)[far]
    return fitted, remains


def crop(bitmap: Bitmap, box: Box, size: int = MASK_SIZE) -> UInt8[np.ndarray, "M M"]:
    """Return the covered part, 255 for all, of each of `size` × `size` cells of a grid over a box in the bitmap.

    The parts are exact: pixels are squares, and a cell may cover a fraction of a pixel or many pixels.
    """
    x1, y1, x2, y2 = (float(side) for side in box)
    left, top = max(0, int(np.floor(x1))), max(0, int(np.floor(y1)))
    window = bitmap[top : int(np.ceil(y2)), left : int(np.ceil(x2))].astype(np.float32)
    rows = _overlaps(y1 - top, y2 - top, window.shape[0], size)
    columns = _overlaps(x1 - left, x2 - left, window.shape[1], size)
    return np.rint(255 * (rows @ window @ columns.T)).astype(np.uint8)


def crops(bitmaps: UInt8[np.ndarray, "n h w"], boxes: Float32[np.ndarray, "n 4"]) -> UInt8[np.ndarray, "n M M"]:
    """Return the crop of each bitmap in its box."""
    out = np.zeros((len(boxes), MASK_SIZE, MASK_SIZE), np.uint8)
    for row, box in enumerate(boxes):
        out[row] = crop(bitmaps[row], box)
    return out


def _overlaps(start: float, end: float, pixels: int, cells: int) -> Float[np.ndarray, "cells pixels"]:
    """Return the fraction of each cell between `start` and `end` that each pixel covers."""
    edges = np.linspace(start, end, cells + 1, dtype=np.float32)
    pixel = np.arange(pixels, dtype=np.float32)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    return overlap.clip(min=0) / max((end - start) / cells, 1e-6)


def paste(probabilities: Float[np.ndarray, "m m"], box: Box, height: int, width: int) -> tuple[Bitmap, int, int]:
    """Return the bitmap of a detection within the window of its box, and the window's left and top in the image.

    A pixel belongs to the object if the probability at its centre, interpolated between the centres of the cells and
    zero beyond them, is at least 0.5: the formula of detectron2.
    """
    x1, y1, x2, y2 = (float(side) for side in box)
    left, top = max(0, int(np.floor(x1)) - 1), max(0, int(np.floor(y1)) - 1)
    size = max(0, min(width, int(np.ceil(x2)) + 1) - left), max(0, min(height, int(np.ceil(y2)) + 1) - top)
    if not all(size) or x2 <= x1 or y2 <= y1:
        return np.zeros(size[::-1], np.uint8), left, top
    cells_per_pixel = probabilities.shape[1] / (x2 - x1), probabilities.shape[0] / (y2 - y1)
    to_cell = np.array(
        [
            [cells_per_pixel[0], 0, (left + 0.5 - x1) * cells_per_pixel[0] - 0.5],
            [0, cells_per_pixel[1], (top + 0.5 - y1) * cells_per_pixel[1] - 0.5],
        ]
    )
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    pixels = cv2.warpAffine(probabilities.astype(np.float32), to_cell, size, flags=flags, borderValue=0)
    return (pixels >= THRESHOLD).astype(np.uint8), left, top


def paste_whole(probabilities: Float[np.ndarray, "m m"], box: Box, height: int, width: int) -> Bitmap:
    """Return the bitmap of a detection in the whole image."""
    window, left, top = paste(probabilities, box, height, width)
    bitmap = np.zeros((height, width), np.uint8)
    bitmap[top : top + window.shape[0], left : left + window.shape[1]] = window
    return bitmap


def paste_all(
    probabilities: Float[np.ndarray, "n m m"], boxes: Float[np.ndarray, "n 4"], height: int, width: int
) -> tuple[RLE, ...]:
    """Return the mask of each detection in the whole image, run-length encoded."""
    masks = []
    bitmap = np.zeros((height, width), np.uint8, order="F")
    for one, box in zip(probabilities, boxes, strict=True):
        window, left, top = paste(one, box, height, width)
        place = slice(top, top + window.shape[0]), slice(left, left + window.shape[1])
        bitmap[place] = window
        masks.append(encode(bitmap))
        bitmap[place] = 0
    return tuple(masks)
