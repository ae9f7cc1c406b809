"""Decoding of image files to RGB, with one function for training and prediction, so that both get the same pixels.

Pillow reads the header first, and truncated or too large images are refused before any pixel is decoded. OpenCV, the
faster library, then decodes JPEG and PNG; Pillow decodes the other formats.
"""

from __future__ import annotations

import io
import re
import warnings
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from detect.errors import UserError, reason

MAX_PIXELS = 2**27
"""Maximum width × height: 134 million pixels, 400 MB as RGB."""

MAX_BYTES, MAX_BYTES_PER_PIXEL = 2**28, 16
"""Maximum size of an image file, which is read whole: the first number, plus the second for each pixel."""

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Suffixes of image files, in lower case."""

_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
_REMEDY = "restore the file or leave it out"
_ORIENTATION = 0x0112
_EOI = b"\xff\xd9"
_IEND = b"\0\0\0\0IEND\xae\x42\x60\x82"
# In entropy-coded data FF is followed by 00 or a restart marker; every other FF starts a segment.
_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)

# Pillow warns from 90 million pixels on; MAX_PIXELS replaces this.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def decode(source: Path | bytes, *, max_pixels: int = MAX_PIXELS) -> UInt8[np.ndarray, "H W 3"]:
    """Decode an image file, or its bytes, to RGB pixels.

    The EXIF orientation is applied, greyscale and palette images become RGB, alpha is dropped, and 16-bit values keep
    their upper 8 bits. Colour profiles are ignored, like EXIF data behind the pixels of a PNG. An animation is decoded
    to its first frame.

    Raises:
        UserError: the file is missing, not an image, truncated, damaged, or larger than `max_pixels`.
    """
    with _open(source) as file:
        name = _name(source)
        image = _header(file, name, max_pixels)
        _refuse_truncated(file, image.format, name)
        try:
            pixels = _pixels(file, image)
        except Exception as error:  # decoders raise many kinds of exceptions on hostile bytes, all with this meaning
            raise UserError(f"{name}: the image is damaged ({reason(error, 120)}); {_REMEDY}") from None
    height, width = pixels.shape[:2]
    if (width, height) != image.size:
        raise UserError(f"{name}: the image is damaged (its header says {image.size}); {_REMEDY}")
    return np.ascontiguousarray(_upright(pixels, _orientation(image)))


def image_size(source: Path | bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Return the width and height of the image that `decode` returns, from the header alone.

    Raises:
        UserError: the file is missing, not an image, or larger than `max_pixels`.
    """
    with _open(source) as file:
        return _upright_size(_header(file, _name(source), max_pixels))


def orientation(path: Path) -> int:
    """Return the EXIF orientation, 1 … 8, that `decode` applies; 5 … 8 swap width and height."""
    with _open(path) as file:
        return _orientation(_header(file, str(path), MAX_PIXELS))


def check_image(path: Path) -> tuple[int, int]:
    """Return the width and height of the image that `decode` returns, after checking that the file is complete.

    A JPEG, PNG or WebP is not decoded: its structure shows whether it is complete. Other, rare formats are decoded.

    Raises:
        UserError: the file is missing, not an image, truncated or larger than `MAX_PIXELS`.
    """
    with _open(path) as file:
        image = _header(file, str(path), MAX_PIXELS)
        _refuse_truncated(file, image.format, str(path))
        size = _upright_size(image)
    if image.format not in _IS_COMPLETE:
        decode(path)
    return size


def _name(source: Path | bytes) -> str:
    return f"image of {len(source)} bytes" if isinstance(source, bytes) else str(source)


def _open(source: Path | bytes) -> BinaryIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    try:
        if not Path(source).is_file():  # checked first, because opening a pipe would block forever
            raise UserError(f"{source}: there is no such image file; check the path")
        return Path(source).open("rb")
    except OSError as error:
        raise UserError(f"{source}: the file cannot be read ({error.strerror}); check its permissions") from None


def _header(file: BinaryIO, name: str, max_pixels: int) -> Image.Image:
    """Return Pillow's image, whose header is read and whose pixels are not loaded yet."""
    length = file.seek(0, io.SEEK_END)
    file.seek(0)
    try:
        image = Image.open(file, formats=_FORMATS)
    except Image.DecompressionBombError:
        raise UserError(f"{name}: the image has more than {max_pixels} pixels; make it smaller") from None
    except MemoryError:
        raise
    except Exception:  # a hostile header can raise nearly any exception
        raise UserError(f"{name}: this is not an image, or its header is damaged; {_REMEDY}") from None
    width, height = image.size
    if width * height > max_pixels:
        raise UserError(f"{name}: the image has {width} × {height} pixels, more than {max_pixels}; make it smaller")
    if length > MAX_BYTES + MAX_BYTES_PER_PIXEL * width * height:
        raise UserError(f"{name}: {length >> 20} MiB are too many for {width} × {height} pixels; save it again")
    if min(width, height) < 1:
        raise UserError(f"{name}: the image has {width} × {height} pixels; leave it out")
    return image


def _orientation(image: Image.Image) -> int:
    if image.format == "TIFF":  # Pillow applies it itself
        return 1
    try:
        # Not `image.getexif`, which decodes the pixels of a PNG to read the chunks behind them.
        value = Image.Image.getexif(image).get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF data is common, and the image is usable without it
        return 1
    return value if value in range(1, 9) else 1


def _upright_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    return (height, width) if _orientation(image) >= 5 else (width, height)


def _upright(pixels: UInt8[np.ndarray, "H W 3"], orientation: int) -> UInt8[np.ndarray, "H2 W2 3"]:
    """Apply the EXIF orientation (CIPA DC-008, table 6), which names the sides of the scene at row 0 and column 0."""
    if orientation >= 5:  # row 0 is the left or right side of the scene
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _pixels(file: BinaryIO, image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    """Decode the pixels as stored, without the EXIF orientation."""
    if image.format in ("JPEG", "MPO", "PNG"):  # MPO: a JPEG with several pictures, as phones write it
        file.seek(0)
        data = np.frombuffer(file.read(), dtype=np.uint8)
        pixels = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
        if pixels is None:
            raise ValueError("it cannot be decoded")
        return pixels
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.stack([grey] * 3, axis=-1)
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no known range; save them with 8 or 16 bits")
    return np.asarray(image.convert("RGBA" if image.mode == "P" else "RGB"))[..., :3]


def _refuse_truncated(file: BinaryIO, format: str | None, name: str) -> None:
    is_complete = _IS_COMPLETE.get(format or "")
    if is_complete and not is_complete(file):
        raise UserError(f"{name}: the image is truncated; {_REMEDY}")


def _ends_with(file: BinaryIO, ending: bytes) -> bool:
    length = file.seek(0, io.SEEK_END)
    file.seek(max(0, length - len(ending)))
    return file.read() == ending


def _jpeg_is_complete(file: BinaryIO) -> bool:
    """Return whether an end-of-image marker follows the scans; markers inside segments (thumbnails) are ignored."""
    if _ends_with(file, _EOI):  # true for nearly all files, of which no more is read
        return True
    file.seek(0)
    data = file.read()
    position = 2
    while match := _JPEG_MARKER.search(data, position):
        if match[1] == _EOI[1:]:
            return True
        position = match.end() + int.from_bytes(data[match.end() : match.end() + 2], "big")
    return False


def _png_is_complete(file: BinaryIO) -> bool:
    """Return whether the chunks end with IEND; further data may follow."""
    if _ends_with(file, _IEND):
        return True
    file.seek(8)
    while len(head := file.read(8)) == 8:
        if head[4:] == b"IEND":
            return len(file.read(4)) == 4
        file.seek(int.from_bytes(head[:4], "big") + 4, io.SEEK_CUR)
    return False


def _webp_is_complete(file: BinaryIO) -> bool:
    """Return whether the file has the length in its RIFF header."""
    file.seek(4)
    return int.from_bytes(file.read(4), "little") + 8 <= file.seek(0, io.SEEK_END)


_IS_COMPLETE = {"JPEG": _jpeg_is_complete, "MPO": _jpeg_is_complete, "PNG": _png_is_complete, "WEBP": _webp_is_complete}
