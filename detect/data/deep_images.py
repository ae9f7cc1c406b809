"""Images with 16 bits per value that hold values of 12 bits, as microscopes and scanners write them.

Decoding keeps the upper 8 of 16 bits, which are nearly 0 in such images.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Int64, UInt16
from PIL import Image

from detect.data.defects import DefectLog

LIMIT = 2**12
"""Values of 12 bits are less."""
FACTOR = 16
"""Factor from 12 to 16 bits."""
_SAMPLE, _DECODED, _MIN_DECODED = 64, 8, 3
_PNG_DEPTH = slice(24, 25)  # in the header: signature, length and name of IHDR, width, height, bit depth


def log_12_bit(paths: Sequence[Path], sizes: Int64[np.ndarray, "i 2"], log: DefectLog) -> None:
    """Log images of 12 bits in files of 16: if all that are looked at, of a sample of the split, are such images.

    Args:
        paths: images of a whole split.
        sizes: width and height of each image; 0 if it cannot be read.
        log: log to which the defect is added.
    """
    readable = [path for path, size in zip(paths, sizes, strict=True) if size.all()]
    chosen = np.unique(np.linspace(0, len(readable) - 1, min(_SAMPLE, len(readable))).astype(int))
    deep = [readable[index] for index in chosen if has_16_bits(readable[index])][:_DECODED]
    largest = [_largest_value(path) for path in deep]
    if deep and len(deep) >= min(_MIN_DECODED, len(paths)) and 0 < max(largest) < LIMIT:
        detail = f"{len(deep)} of {len(deep)} images with 16 bits per value have no value above {max(largest)} of 65535"
        log.add("12-bit-images", deep[0], detail)


def has_16_bits(path: Path) -> bool:
    """Return whether a PNG or TIFF file has 16 bits per value, by its header."""
    with path.open("rb") as file:
        head = file.read(26)
    if head.startswith(b"\x89PNG"):
        return head[_PNG_DEPTH] == b"\x10"
    if head.startswith((b"II", b"MM")):
        with Image.open(path, formats=["TIFF"]) as image:
            return image.mode.startswith("I;16")
    return False


def write_scaled(path: Path, target: Path) -> bool:
    """Write an image of 12 bits with its values times 16. Return False, and write nothing, for any other image."""
    pixels = _colours(path) if has_16_bits(path) else None
    if pixels is None or not 0 < pixels.max() < LIMIT:
        return False
    return bool(cv2.imwrite(str(target), pixels * FACTOR))


def _largest_value(path: Path) -> int:
    pixels = _colours(path)
    return 0 if pixels is None else int(pixels.max())


def _colours(path: Path) -> UInt16[np.ndarray, "H W *C"] | None:
    """Return the values of an image without alpha, or None if it cannot be decoded to 16 bits."""
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16:
        return None
    return pixels if pixels.ndim == 2 else pixels[..., :3]
