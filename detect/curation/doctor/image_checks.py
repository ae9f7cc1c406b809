"""One full look at every image file: can it be decoded, how is it stored, and what is needed to find its duplicates."""

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
from detect.errors import UserError
from detect.terminal import progress_bar

SIDE = 32
"""Pixels. The side of the grey picture that duplicates are compared by."""
MAX_BYTES = 2**30
"""No file of `decode.MAX_PIXELS` needs more, even uncompressed with 16 bits."""
_LARGE = 2**25  # pixels: of such images one is decoded at a time, so that bombs do not add up
_ONE_AT_A_TIME = threading.Lock()
_PLAIN_MODES = ("RGB", "L")
_MODE_NAMES = {"CMYK": "CMYK", "P": "a palette", "RGBA": "alpha", "LA": "alpha", "1": "1 bit", "YCbCr": "YCbCr"}


@dataclass(frozen=True, slots=True)
class Look:
    """What there is to say of one image file."""

    path: Path
    size: tuple[int, int] = (0, 0)
    """Width and height as `decode` gives it; zeros where it cannot be read."""
    rule: str = ""
    """Where it cannot be read: the rule that it falls under."""
    detail: str = ""
    orientation: int = 1
    """EXIF's, 1 … 8."""
    mode: str = ""
    """Where it is not RGB or grey of 8 bits: what it is."""
    digest: bytes = b""
    """Of the decoded pixels and their shape."""
    grey: UInt8[np.ndarray, "32 32"] | None = None


def look_at_images(paths: Sequence[Path], workers: int | None = None, progress: bool = True) -> dict[Path, Look]:
    """Decodes every image once, with a progress bar; `workers` threads, by default as many as Python thinks fit."""
    looks: dict[Path, Look] = {}
    with progress_bar(shown=progress) as bar:
        task = bar.add_task("Decoding images", total=len(paths))
        for look in _in_threads(paths, workers):
            looks[look.path] = look
            bar.advance(task)
    return looks


def _in_threads(paths: Sequence[Path], workers: int | None) -> Iterator[Look]:
    # Closing the generator cancels what is not begun, so that an interrupt does not wait for all the images.
    with ThreadPoolExecutor(workers) as pool, closing(pool.map(look_at, paths)) as results:  # type: ignore[type-var]
        yield from results


def look_at(path: Path) -> Look:
    """Decodes one image file. Raises nothing: whatever is wrong with it becomes a rule and a few words."""
    try:
        if not path.is_file():
            return Look(path, rule="missing-image", detail="there is no such file")
        if refused := _refused_by_length(path):
            return refused
        width, height = image_size(path)
        if width * height > _LARGE:
            with _ONE_AT_A_TIME:
                pixels = decode(path)
        else:
            pixels = decode(path)
        return _good(path, pixels)
    except UserError as error:
        # Without its remedy: the rule has one for all of them.
        detail = str(error).removeprefix(f"{path}: ").rpartition("; ")[0]
        return Look(path, rule=_rule(detail), detail=detail)
    except Exception as error:  # the doctor goes on whatever a file does to a decoder
        detail = f"it cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:120]})"
        return Look(path, rule="unreadable-image", detail=detail)


def _refused_by_length(path: Path) -> Look | None:
    length = path.stat().st_size
    if not length:
        return Look(path, rule="empty-image", detail="the file is empty")
    if length > MAX_BYTES:
        return Look(path, rule="huge-image", detail=f"the file has {length / 2**30:.1f} GiB")
    return None


def _rule(detail: str) -> str:
    """Which of the doctor's rules the words of `decode` fall under."""
    if "truncated" in detail:
        return "truncated-image"
    return "huge-image" if " pixels" in detail and "more than" in detail else "unreadable-image"


def _good(path: Path, pixels: UInt8[np.ndarray, "H W 3"]) -> Look:
    height, width = pixels.shape[:2]
    digest = hashlib.blake2b(f"{width} {height} ".encode(), digest_size=16)
    digest.update(pixels)  # type: ignore[arg-type]
    # OpenCV averages whole pixels much faster than fractions of them: halved first, where that loses nothing.
    while min(pixels.shape[:2]) >= 8 * SIDE:
        pixels = cv2.resize(pixels, (pixels.shape[1] // 2, pixels.shape[0] // 2), interpolation=cv2.INTER_AREA)
    grey = cv2.resize(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return Look(
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
