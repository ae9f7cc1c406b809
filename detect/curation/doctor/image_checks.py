"""Decoding of every image file: readability, pixel format, and features to find duplicates."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from detect.data.decode import decode, image_size, orientation
from detect.errors import UserError, reason
from detect.terminal import progress_bar

SIDE = 32
"""Side in pixels of the grey thumbnail for finding duplicates."""
MAX_BYTES = 2**30
"""Maximum size of a file. An image of `decode.MAX_PIXELS` is not larger, even uncompressed with 16 bits."""
_LARGE = 2**25  # pixels: larger images are decoded one at a time, so that decompression bombs do not add up
_ONE_AT_A_TIME = threading.Lock()
_PLAIN_MODES = ("RGB", "L")
_MODE_NAMES = {"CMYK": "CMYK", "P": "a palette", "RGBA": "alpha", "LA": "alpha", "1": "1 bit", "YCbCr": "YCbCr"}


@dataclass(frozen=True, slots=True)
class ImageCheck:
    """Result of the check of one image file."""

    path: Path
    size: tuple[int, int] = (0, 0)
    """Width and height of the decoded image; zeros if it cannot be read."""
    rule: str = ""
    """Key of `CHECKS` if the image cannot be read."""
    detail: str = ""
    """Reason why the image cannot be read."""
    orientation: int = 1
    """EXIF orientation, 1 … 8."""
    mode: str = ""
    """Pixel format, if it is not RGB or grey with 8 bits."""
    digest: bytes = b""
    """Digest of the decoded pixels and their shape."""
    grey: UInt8[np.ndarray, "32 32"] | None = None
    """Grey thumbnail."""


def inspect_images(paths: Sequence[Path], workers: int | None = None, progress: bool = True) -> dict[Path, ImageCheck]:
    """Decode every image once in `workers` threads (default: as `ThreadPoolExecutor`), with a progress bar."""
    images: dict[Path, ImageCheck] = {}
    with progress_bar(shown=progress) as bar:
        task = bar.add_task("Decoding images", total=len(paths))
        for image in _in_threads(paths, workers):
            images[image.path] = image
            bar.advance(task)
    return images


def _in_threads(paths: Sequence[Path], workers: int | None) -> Iterator[ImageCheck]:
    # Closing the generator cancels pending jobs, so that an interrupt does not wait for all images.
    with ThreadPoolExecutor(workers) as pool, closing(pool.map(inspect_image, paths)) as results:  # type: ignore[type-var]
        yield from results


def inspect_image(path: Path) -> ImageCheck:
    """Decode one image file. Never raise: the result has the rule and the reason of a problem."""
    try:
        if not path.is_file():
            return ImageCheck(path, rule="missing-image", detail="there is no such file")
        if refused := _refused_by_length(path):
            return refused
        width, height = image_size(path)
        if width * height > _LARGE:
            with _ONE_AT_A_TIME:
                pixels = decode(path)
        else:
            pixels = decode(path)
        return _measure(path, pixels)
    except UserError as error:
        # Without the remedy: the rule has its own.
        detail = str(error).removeprefix(f"{path}: ").rpartition("; ")[0]
        return ImageCheck(path, rule=_rule(detail), detail=detail)
    except Exception as error:  # the check must continue after any failure of a decoder
        detail = f"it cannot be read ({type(error).__name__}: {reason(error, 120)})"
        return ImageCheck(path, rule="unreadable-image", detail=detail)


def _refused_by_length(path: Path) -> ImageCheck | None:
    length = path.stat().st_size
    if not length:
        return ImageCheck(path, rule="empty-image", detail="the file is empty")
    if length > MAX_BYTES:
        return ImageCheck(path, rule="huge-image", detail=f"the file has {length / 2**30:.1f} GiB")
    return None


def _rule(detail: str) -> str:
    """Return the rule for an error message of `decode`."""
    if "truncated" in detail:
        return "truncated-image"
    return "huge-image" if " pixels" in detail and "more than" in detail else "unreadable-image"


def _measure(path: Path, pixels: UInt8[np.ndarray, "H W 3"]) -> ImageCheck:
    height, width = pixels.shape[:2]
    digest = hashlib.blake2b(f"{width} {height} ".encode(), digest_size=16)
    digest.update(pixels)  # type: ignore[arg-type]
    # OpenCV averages whole pixels much faster than fractions: halve as long as this loses nothing.
    while min(pixels.shape[:2]) >= 8 * SIDE:
        pixels = cv2.resize(pixels, (pixels.shape[1] // 2, pixels.shape[0] // 2), interpolation=cv2.INTER_AREA)
    grey = cv2.resize(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return ImageCheck(
        path,
        size=(width, height),
        orientation=orientation(path),
        mode=_mode(path),
        digest=digest.digest(),
        grey=np.asarray(grey, dtype=np.uint8),
    )


def _mode(path: Path) -> str:
    with Image.open(path) as image:
        mode = image.mode
    if mode in _PLAIN_MODES:
        return ""
    return _MODE_NAMES.get(mode, "16 bits" if mode.startswith("I;16") else f"mode {mode}")
