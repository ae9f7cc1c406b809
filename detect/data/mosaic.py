"""Mosaic and mixup: training images that are combined from several images (Ge et al. 2021, "YOLOX", §2.1).

Mosaic puts four images around a point, then rotates, scales, shears and shifts them together. Mixup is the mean of two
images. A combined image fills the canvas of its batch, and has the ground truths of all images that it was made of.

Matrices map coordinates in an image file to coordinates in the combined image. Coordinates are continuous, like those
of boxes: the centre of the first pixel is at (0.5, 0.5).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64, UInt8

from detect.data.masks import Bitmaps, bounds, refit
from detect.data.options import MixupOptions, MosaicOptions
from detect.data.transforms import resize

FILL = 114
"""Value of pixels without an image."""
MIN_SIDE = 1.0
"""Boxes with a side of at most so many pixels are dropped."""

Matrix = Float64[np.ndarray, "3 3"]
Canvas = tuple[int, int]
"""Height and width of the combined image."""


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """An image with its ground truths."""

    image: UInt8[np.ndarray, "h w 3"]
    boxes: Float[np.ndarray, "n 4"]
    labels: Int64[np.ndarray, " n"]
    crowd: Bool[np.ndarray, " n"]
    masks: UInt8[np.ndarray, "n h w"] | Bitmaps | None
    """Bitmap of each object, empty for one without a mask; None if masks are not wanted."""


@dataclass(frozen=True, slots=True)
class Combination:
    """Random mosaics and mixtures of the images of a split. Null options switch either off."""

    mosaic: MosaicOptions | None
    mixup: MixupOptions | None

    @property
    def most(self) -> int:
        """Maximum number of images in a combined image."""
        return (4 if self.mosaic else 1) + (1 if self.mixup else 0)

    def __call__(
        self, index: int, load: Callable[[int], Picture], count: int, canvas: Canvas, seed: int
    ) -> Picture | None:
        """Return an image combined with randomly drawn other ones, or None if it is to be used as it is.

        Args:
            index: number of the image.
            load: function that reads the image of a number.
            count: number of images to draw from.
            canvas: height and width of the combined image.
            seed: determines all random numbers.
        """
        rng = np.random.default_rng([seed, 1])  # other numbers than those of the augmentation with the same seed
        draws, others = rng.random(2), rng.integers(count, size=4).tolist()
        is_mosaic = self.mosaic is not None and draws[0] < self.mosaic.probability
        is_mixed = self.mixup is not None and draws[1] < self.mixup.probability
        if not (is_mosaic or is_mixed):
            return None
        first = load(index)
        if self.mosaic is not None and is_mosaic:
            picture = make_mosaic([first, *map(load, others[:3])], canvas, self.mosaic, rng)
        else:
            picture = draw(first, fit(first, canvas), _blank(canvas))
        if self.mixup is not None and is_mixed:
            picture = mix(picture, load(others[3]), self.mixup, rng)
        return picture


# ---- mosaic and mixup ------------------------------------------------------------------------------------------------


def make_mosaic(
    pictures: Sequence[Picture], canvas: Canvas, options: MosaicOptions, rng: np.random.Generator
) -> Picture:
    """Return four images around a random point, under one random affine transform about the centre of the mosaic.

    The mosaic is twice as high and as wide as the canvas, which shows its centre.
    """
    height, width = canvas
    x, y = rng.uniform(0.5, 1.5, 2) * (width, height)
    transform = random_affine(canvas, options, rng)
    image, parts = _blank(canvas), []
    for place, picture in enumerate(pictures):
        tile = fit(picture, canvas)
        # The point is the lower right corner of the first image, the lower left one of the second, and so on.
        right, lower = place % 2, place // 2
        h, w = picture.image.shape[:2] * np.diag(tile)[1::-1]
        parts.append(draw(picture, transform @ _shift(x - w * (not right), y - h * (not lower)) @ tile, image))
    return join(parts)


def random_affine(canvas: Canvas, options: MosaicOptions, rng: np.random.Generator) -> Matrix:
    """Return a random transform from the mosaic, twice as high and wide as the canvas, to the canvas."""
    height, width = canvas
    scale = rng.uniform(*options.scale)
    angle = np.deg2rad(rng.uniform(-options.degrees, options.degrees))
    shear_x, shear_y = np.tan(np.deg2rad(rng.uniform(-options.shear, options.shear, 2)))
    shift_x, shift_y = rng.uniform(-options.translate, options.translate, 2)
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    rotation = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
    shear = np.array([[1, shear_x, 0], [shear_y, 1, 0], [0, 0, 1]])
    return _shift((0.5 + shift_x) * width, (0.5 + shift_y) * height) @ shear @ rotation @ _shift(-width, -height)


def mix(picture: Picture, other: Picture, options: MixupOptions, rng: np.random.Generator) -> Picture:
    """Return the mean of an image and another one, which is scaled, flipped and moved at random, with all objects."""
    height, width = canvas = picture.image.shape[:2]
    matrix = np.diag([*[rng.uniform(*options.scale)] * 2, 1]) @ fit(other, canvas)
    h, w = other.image.shape[:2] * np.diag(matrix)[1::-1]
    if rng.random() < 0.5:
        matrix = np.array([[-1, 0, w], [0, 1, 0], [0, 0, 1]]) @ matrix
    # A larger image covers the canvas, a smaller one is within it.
    x, y = np.round(rng.random(2) * (width - w, height - h))
    second = draw(other, _shift(x, y) @ matrix, _blank(canvas))
    return replace(join([picture, second]), image=cv2.addWeighted(picture.image, 0.5, second.image, 0.5, 0))


def join(parts: Sequence[Picture]) -> Picture:
    """Return the image of the last part with the ground truths of all parts, which have been drawn."""
    masks = [part.masks for part in parts if isinstance(part.masks, np.ndarray)]
    return Picture(
        image=parts[-1].image,
        boxes=np.concatenate([part.boxes for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        crowd=np.concatenate([part.crowd for part in parts]),
        masks=np.concatenate(masks) if masks else None,
    )


# ---- drawing ---------------------------------------------------------------------------------------------------------


def fit(picture: Picture, canvas: Canvas) -> Matrix:
    """Return the transform that scales an image to the largest size within a canvas."""
    scale = min(np.divide(canvas, picture.image.shape[:2]))
    return np.diag([scale, scale, 1.0])


def draw(picture: Picture, matrix: Matrix, onto: UInt8[np.ndarray, "H W 3"]) -> Picture:
    """Draw a transformed image onto another one, in place; return that one with the ground truths of the drawn one.

    A box becomes the smallest box that holds it, and a box with a mask fits the mask as closely as before.
    """
    _draw_image(picture.image, matrix, onto)
    boxes = move(picture.boxes, matrix, onto.shape[:2])
    kept = np.flatnonzero(_is_large(boxes))
    boxes, masks = boxes[kept], None
    if picture.masks is not None:
        masks = np.zeros((len(kept), *onto.shape[:2]), np.uint8)
        for row, out in zip(kept.tolist(), masks, strict=True):
            _draw_bitmap(picture.masks[row], matrix, out)
        before = (picture.masks[row] for row in kept.tolist())
        boxes, remains = refit(picture.boxes[kept], before, boxes, masks)
        remains &= _is_large(boxes)
        boxes, kept, masks = boxes[remains], kept[remains], masks[remains]
    return Picture(onto, boxes, picture.labels[kept], picture.crowd[kept], masks)


def move(boxes: Float[np.ndarray, "n 4"], matrix: Matrix, canvas: Canvas) -> Float32[np.ndarray, "n 4"]:
    """Return the smallest boxes that hold transformed boxes, clipped to a canvas."""
    corners = boxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]] @ matrix[:2, :2].T + matrix[:2, 2]
    moved = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    return moved.clip(0, canvas[::-1] * 2).astype(np.float32)


def _draw_image(image: UInt8[np.ndarray, "h w 3"], matrix: Matrix, onto: UInt8[np.ndarray, "H W 3"]) -> None:
    height, width = image.shape[:2]
    # Area averaging shrinks without aliasing, then the transform only turns and moves.
    zoom = min(1.0, np.sqrt(abs(np.linalg.det(matrix))))
    size = max(1, round(height * zoom)), max(1, round(width * zoom))
    rows, columns = _window((0, 0, width, height), matrix, onto.shape[:2])
    if onto[rows, columns].size == 0:
        return
    matrix = _shift(-columns.start, -rows.start) @ matrix @ np.diag([width / size[1], height / size[0], 1])
    part = onto[rows, columns]
    inside = _warp(np.ones(size, np.uint8), matrix, part.shape[:2], cv2.INTER_NEAREST)
    pixels = _warp(resize(image, size), matrix, part.shape[:2], cv2.INTER_LINEAR, cv2.BORDER_REPLICATE)
    np.copyto(part, pixels, where=inside[..., None].view(bool))


def _draw_bitmap(bitmap: UInt8[np.ndarray, "h w"], matrix: Matrix, onto: UInt8[np.ndarray, "H W"]) -> None:
    extent = bounds(bitmap)
    if extent is None:
        return
    left, top, right, bottom = extent
    rows, columns = _window(extent, matrix, onto.shape)
    if onto[rows, columns].size:
        matrix = _shift(-columns.start, -rows.start) @ matrix @ _shift(left, top)
        part = bitmap[top:bottom, left:right]
        onto[rows, columns] = _warp(part, matrix, onto[rows, columns].shape, cv2.INTER_NEAREST)


def _window(box: Sequence[float], matrix: Matrix, canvas: Canvas) -> tuple[slice, slice]:
    """Return the rows and columns of the canvas that hold a transformed box."""
    x1, y1, x2, y2 = move(np.array([box], np.float64), matrix, canvas)[0].tolist()
    return slice(int(y1), int(np.ceil(y2))), slice(int(x1), int(np.ceil(x2)))


def _warp(
    pixels: UInt8[np.ndarray, "h w *c"],
    matrix: Matrix,
    size: Canvas,
    interpolation: int,
    border: int = cv2.BORDER_CONSTANT,
) -> UInt8[np.ndarray, "H W *c"]:
    """Return transformed pixels. OpenCV's coordinates are (0, 0) at the centre of the first pixel."""
    indices = _shift(-0.5, -0.5) @ matrix @ _shift(0.5, 0.5)
    return cv2.warpAffine(pixels, indices[:2], size[::-1], flags=interpolation, borderMode=border)


def _is_large(boxes: Float32[np.ndarray, "n 4"]) -> Bool[np.ndarray, " n"]:
    return (boxes[:, 2:] - boxes[:, :2] > MIN_SIDE).all(axis=1)


def _shift(x: float, y: float) -> Matrix:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], np.float64)


def _blank(canvas: Canvas) -> UInt8[np.ndarray, "H W 3"]:
    return np.full((*canvas, 3), FILL, np.uint8)
