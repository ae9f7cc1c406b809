"""Synthetic detection data set: coloured shapes on a textured background, in COCO layout, without a download.

    make_shapes(Path("data/shapes"))  ->  data/shapes/{annotations/instances_<split>.json, images/<split>/*.jpg}

Ground truths describe the visible part of a shape, as in annotated photographs: the box is the bounding box of the
pixels that neither another shape nor the border hides, the mask (RLE) has exactly these pixels, and the area counts
them. At least `VISIBLE` of each shape is visible: a shape for which this does not hold, or that hides too much of
another one, is drawn again elsewhere. Shadows, lines and specks are not objects.
"""

from __future__ import annotations

import colorsys
import json
import re
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from detect.data.masks import encode
from detect.errors import UserError
from detect.files.atomic import new_folder
from detect.terminal import track

SHAPES = ("circle", "square", "triangle", "ring")
VISIBLE = 0.75
"""Minimum visible fraction of a shape; with less, its class is ambiguous."""
EMPTY = 0.06
"""Fraction of images without shapes."""
MAX_SHAPES = 6
"""Maximum number of shapes in an image."""
DIAMETERS = (0.22, 0.6)
"""Range relative to the shorter side; at 192 pixels 42 … 115, COCO's medium and large, with some small."""
TILT = np.pi / 9
"""Maximum rotation to either side, in radians."""
TRIES = 30
"""Maximum number of attempts to place a shape."""
QUALITY = 92
"""JPEG quality."""


def make_shapes(
    out: Path,
    *,
    images: int | dict[str, int] = 300,
    size: tuple[int, int] = (192, 256),
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Make a data set of drawn shapes and return its folder.

    Args:
        out: new folder; it appears complete or not at all.
        images: number of images by split. A single number is for `train`; `val` then has a fifth of it.
        size: minimum and maximum side in pixels; each height and width is drawn from this range.
        seed: an image depends only on the seed, its split and its index, not on the number of images. The same versions
            of NumPy and OpenCV give the same bytes.
        progress: show a progress bar.

    Raises:
        UserError: `out` is not empty or cannot be written, or a count, split name, size or the seed is invalid.
    """
    out = Path(out)
    if isinstance(images, int) and images < 1:
        raise UserError(f"images={images}: make at least 1")
    splits = {"train": images, "val": -(-images // 5)} if isinstance(images, int) else images
    _check(splits, size, seed)
    try:
        with new_folder(out) as draft:
            (draft / "annotations").mkdir()
            for split, count in splits.items():
                document = _make_split(draft / "images" / split, split, count, size, seed, progress)
                text = json.dumps(document, separators=(",", ":"))
                (draft / "annotations" / f"instances_{split}.json").write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{error.filename or out}: {error.strerror}; fix that or choose another folder") from error
    return out


def _check(splits: dict[str, int], size: tuple[int, int], seed: int) -> None:
    if not splits or any(count < 0 for count in splits.values()):
        raise UserError(f"images={splits}: give at least one split, and no negative number")
    for split in splits:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", split):
            raise UserError(f"images: the split name {split!r} becomes a file name; use letters, digits, - and _")
    if not 64 <= size[0] <= size[1] <= 4096:
        raise UserError(f"size={size}: give the smallest and the largest side, within 64 … 4096 pixels")
    if seed < 0:
        raise UserError(f"seed={seed}: give a number that is not negative")


def _make_split(folder: Path, split: str, count: int, size: tuple[int, int], seed: int, progress: bool) -> dict:
    """Write the images of a split and return its COCO document."""
    folder.mkdir(parents=True)
    images: list[dict] = []
    annotations: list[dict] = []
    pool = ThreadPoolExecutor()
    try:
        made = pool.map(lambda index: _make_image(folder, split, index, size, seed), range(count))
        bar = track(made, f"shapes {split}", count, shown=progress)
        for number, (image, objects) in enumerate(bar, start=1):
            images.append({"id": number, **image})
            for entry in objects:
                annotations.append({"id": len(annotations) + 1, "image_id": number, **entry})
    finally:
        pool.shutdown(cancel_futures=True)
    return {
        "info": {"description": f"drawn shapes, split {split}, seed {seed}, sides {size[0]} to {size[1]} px"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": label + 1, "name": name} for label, name in enumerate(SHAPES)],
    }


def _make_image(folder: Path, split: str, index: int, size: tuple[int, int], seed: int) -> tuple[dict, list[dict]]:
    """Write an image, and return the COCO entries of the image and its objects, without ids."""
    rng = np.random.default_rng([seed, zlib.crc32(split.encode()), index])
    pixels, labels, masks = draw_scene(rng, size)
    file = folder / f"{index:06}.jpg"
    _, jpeg = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    file.write_bytes(jpeg.tobytes())
    height, width = pixels.shape[:2]
    objects = [
        {
            "category_id": label + 1,
            "bbox": list(cv2.boundingRect(mask.astype(np.uint8))),
            "area": int(mask.sum()),
            "iscrowd": 0,
            "segmentation": encode(mask.astype(np.uint8)).segmentation(),
        }
        for label, mask in zip(labels, masks, strict=True)
    ]
    return {"file_name": file.name, "height": height, "width": width}, objects


# ---------------------------------------------------------------------------------------------------------------- scene


def draw_scene(
    rng: np.random.Generator, size: tuple[int, int]
) -> tuple[UInt8[np.ndarray, "H W 3"], list[int], list[Bool[np.ndarray, "H W"]]]:
    """Draw one RGB image, and return it with the label and the visible pixels of each shape."""
    height, width = (int(side) for side in rng.integers(size[0], size[1], 2, endpoint=True))
    canvas = _background(rng, height, width)
    _draw_clutter(rng, canvas)
    labels: list[int] = []
    masks: list[Bool[np.ndarray, "H W"]] = []
    areas: list[float] = []
    count = 0 if rng.random() < EMPTY else rng.integers(1, MAX_SHAPES, endpoint=True)
    for _ in range(count):
        for _ in range(TRIES):
            label = int(rng.integers(len(SHAPES)))
            alpha, area = _random_shape(rng, label, height, width)
            mask = alpha >= 0.5
            visible = [*(below & ~mask for below in masks), mask]
            if all(part.sum() >= VISIBLE * full for part, full in zip(visible, [*areas, area], strict=True)):
                _paint(rng, canvas, alpha)
                labels, masks, areas = [*labels, label], visible, [*areas, area]
                break
    canvas += rng.normal(0, 0.012, canvas.shape).astype(np.float32)  # sensor noise
    return (canvas.clip(0, 1) * 255).round().astype(np.uint8), labels, masks


def _random_shape(
    rng: np.random.Generator, label: int, height: int, width: int
) -> tuple[Float32[np.ndarray, "H W"], float]:
    """Return a shape of random position, size and rotation as its coverage of each pixel (0 … 1), and its full area."""
    shorter = min(height, width)
    radius = shorter * np.exp(rng.uniform(*np.log(DIAMETERS))) / 2
    angle = rng.uniform(-TILT, TILT)
    centre = rng.uniform((0, 0), (width, height))
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    contours = [outline @ rotation * radius + centre for outline in outlines(SHAPES[label])]
    area = abs(sum(cv2.contourArea(contour.astype(np.float32), oriented=True) for contour in contours))
    # Drawn four times as large and averaged: OpenCV enlarges filled shapes by half a pixel, here thus by an eighth.
    fixed = [np.round((contour * 4 - 0.5) * 16).astype(np.int32) for contour in contours]  # 4 fractional bits
    large = np.zeros((4 * height, 4 * width), np.uint8)
    cv2.fillPoly(large, fixed, 255, shift=4)
    alpha = cv2.resize(large, (width, height), interpolation=cv2.INTER_AREA)
    return alpha.astype(np.float32) / 255, area


def outlines(shape: str) -> list[Float[np.ndarray, "n 2"]]:
    """Return the contours of a shape within the unit circle around the origin; a second, reversed contour is a hole."""
    match shape:
        case "circle":
            return [_polygon(64)]
        case "square":
            return [_polygon(4, first=np.pi / 4)]
        case "triangle":
            return [_polygon(3)]
        case "ring":
            return [_polygon(64), _polygon(64)[::-1] * 0.55]
    raise ValueError(shape)


def _polygon(corners: int, first: float = -np.pi / 2) -> Float[np.ndarray, "n 2"]:
    """Return corners on the unit circle; the first one is at the angle `first`, by default at the top."""
    angles = first + 2 * np.pi * np.arange(corners) / corners
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


# ---------------------------------------------------------------------------------------------------------------- paint


def _background(rng: np.random.Generator, height: int, width: int) -> Float32[np.ndarray, "H W 3"]:
    """Return a background of two dull colours, mixed by a texture, with a gradient of light."""
    hue, value = rng.random(), rng.uniform(0.35, 0.85)
    first = _colour(hue, rng.uniform(0.05, 0.3), value)
    second = _colour(hue + rng.uniform(-0.2, 0.2), rng.uniform(0.05, 0.3), value + rng.uniform(-0.25, 0.25))
    mix = _texture(rng, height, width, scale=rng.uniform(0.1, 0.4) * min(height, width))[..., None]
    light = 1 + 0.15 * (2 * _ramp(rng, height, width) - 1)[..., None]
    grain = 1 + 0.10 * (2 * _clouds(rng, height, width, scale=8.0) - 1)[..., None]
    return ((first * (1 - mix) + second * mix) * light * grain).astype(np.float32)


def _draw_clutter(rng: np.random.Generator, canvas: Float32[np.ndarray, "H W 3"]) -> None:
    """Draw lines and specks, thinner than any shape."""
    height, width = canvas.shape[:2]
    shorter = min(height, width)
    for _ in range(rng.integers(0, 5)):
        colour = _colour(rng.random(), rng.uniform(0, 0.8), rng.uniform(0.1, 1)).tolist()
        start, bend, end = (rng.uniform((0, 0), (width, height)) for _ in range(3))
        t = np.linspace(0, 1, 24)[:, None]
        curve = start * (1 - t) ** 2 + bend * 2 * t * (1 - t) + end * t**2
        cv2.polylines(canvas, [curve.round().astype(np.int32)], False, colour, int(rng.integers(1, 3)), cv2.LINE_AA)
    for _ in range(rng.integers(0, 12)):
        colour = _colour(rng.random(), rng.uniform(0, 0.8), rng.uniform(0.1, 1)).tolist()
        centre = rng.integers((0, 0), (width, height)).tolist()
        axes = rng.integers(1, max(2, shorter // 64), 2, endpoint=True).tolist()
        cv2.ellipse(canvas, centre, axes, rng.uniform(0, 180), 0, 360, colour, -1, cv2.LINE_AA)


def _paint(rng: np.random.Generator, canvas: Float32[np.ndarray, "H W 3"], alpha: Float32[np.ndarray, "H W"]) -> None:
    """Paint a shape on the canvas: a shadow, a texture in one bright colour, and a darker rim."""
    height, width = alpha.shape
    blur = max(1.0, min(height, width) / 80)
    shadow = cv2.GaussianBlur(alpha, (0, 0), blur)
    shadow = cv2.warpAffine(shadow, np.array([[1, 0, blur], [0, 1, 1.5 * blur]]), (width, height))
    rim = alpha - cv2.erode(alpha, np.ones((3, 3)))
    # Only the pixels of the shape and its shadow change.
    x, y, w, h = cv2.boundingRect(((alpha > 0) | (shadow > 0)).astype(np.uint8))
    part = np.s_[y : y + h, x : x + w]
    canvas, alpha = canvas[part], alpha[part]
    canvas *= 1 - 0.45 * shadow[part][..., None]

    around = canvas[alpha > 0].mean(axis=0)
    colour = _contrasting(rng, around)
    texture = _texture(rng, height, width, scale=rng.uniform(0.04, 0.12) * min(height, width))[part]
    fill = colour * (1 - 0.4 * texture)[..., None]
    fill = fill * (1 - 0.55 * rim[part][..., None])
    canvas += alpha[..., None] * (fill - canvas)


def _contrasting(rng: np.random.Generator, around: Float32[np.ndarray, "rgb=3"]) -> Float32[np.ndarray, "rgb=3"]:
    """Return a bright colour far from `around`, or the farthest of a few if none is far enough."""
    colours = [_colour(rng.random(), rng.uniform(0.65, 1), rng.uniform(0.6, 1)) for _ in range(6)]
    return next(
        (colour for colour in colours if np.linalg.norm(colour - around) > 0.5),
        max(colours, key=lambda colour: float(np.linalg.norm(colour - around))),
    )


def _colour(hue: float, saturation: float, value: float) -> Float32[np.ndarray, "rgb=3"]:
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, min(max(value, 0.0), 1.0)), np.float32)


def _texture(rng: np.random.Generator, height: int, width: int, scale: float) -> Float32[np.ndarray, "H W"]:
    """Return a random pattern in 0 … 1 with features of about `scale` pixels."""
    kind = rng.integers(4)
    if kind == 0:
        return _ramp(rng, height, width)
    if kind == 1:
        return _clouds(rng, height, width, scale)
    warp = 2 * _clouds(rng, height, width, 2 * scale)
    stripes = np.sin(_along(rng, height, width) * np.pi / scale + warp)
    if kind == 3:
        stripes *= np.sin(_along(rng, height, width) * np.pi / scale)
    return (0.5 + 0.5 * np.tanh(3 * stripes)).astype(np.float32)


def _along(rng: np.random.Generator, height: int, width: int) -> Float32[np.ndarray, "H W"]:
    """Return the coordinate of each pixel along a random direction, in pixels."""
    angle = rng.uniform(0, 2 * np.pi)
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
    return np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y[:, None]


def _ramp(rng: np.random.Generator, height: int, width: int) -> Float32[np.ndarray, "H W"]:
    along = _along(rng, height, width)
    return (along - along.min()) / np.ptp(along)


def _clouds(rng: np.random.Generator, height: int, width: int, scale: float) -> Float32[np.ndarray, "H W"]:
    """Return noise of three octaves in 0 … 1, the coarsest with a period of `scale` pixels."""
    total = np.zeros((height, width), np.float32)
    for octave in range(3):
        step = max(scale / 2**octave, 1.0)
        coarse = rng.random((int(height / step) + 2, int(width / step) + 2), np.float32)
        total += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) / 2**octave
    return (total - total.min()) / np.ptp(total)
