"""Image files to RGB: one function for training and prediction, so that both see the same pixels.

The header is read first, by Pillow, and what is truncated or too large is refused before a pixel is decoded. OpenCV,
the faster of the two, then decodes JPEG and PNG; Pillow decodes the rest.
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

from detect.errors import UserError

MAX_PIXELS = 2**27
"""Width times height of the largest image that is decoded: 134 million, 400 MB as RGB."""

MAX_BYTES, MAX_BYTES_A_PIXEL = 2**28, 16
"""Of an image file, which is read whole: so many, and so many more for each of its pixels."""

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""How the names of image files end, in lower case."""

_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
_REMEDY = "restore the file or leave it out"
_ORIENTATION = 0x0112
_EOI = b"\xff\xd9"
_IEND = b"\0\0\0\0IEND\xae\x42\x60\x82"
# In entropy-coded data FF is followed by 00 or by a restart marker; every other FF begins a segment.
_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)

# Pillow warns of 90 million pixels and more. MAX_PIXELS, which refuses, stands in the place of that warning.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def decode(source: Path | bytes, *, max_pixels: int = MAX_PIXELS) -> UInt8[np.ndarray, "H W 3"]:
    """The pixels of an image file, or of its bytes, as RGB.

    The EXIF orientation is applied, grey and palettes become RGB, alpha is dropped, 16 bits keep their upper 8. Colour
    profiles are not applied, nor is EXIF that a PNG has behind its pixels. Of an animation this is the first frame.

    Raises `UserError` with the file's name for what is missing, no image, truncated, damaged, or larger than
    `max_pixels`.
    """
    with _open(source) as file:
        name = _name(source)
        image = _header(file, name, max_pixels)
        _refuse_truncated(file, image.format, name)
        try:
            pixels = _pixels(file, image)
        except Exception as error:  # decoders raise many kinds on hostile bytes, and each of them means the same
            raise UserError(f"{name}: the image is damaged ({_one_line(error)}); {_REMEDY}") from None
    height, width = pixels.shape[:2]
    if (width, height) != image.size:
        raise UserError(f"{name}: the image is damaged (its header says {image.size}); {_REMEDY}")
    return np.ascontiguousarray(_upright(pixels, _orientation(image)))


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of the image that `decode` gives, from the header alone. Raises `UserError` as `decode` does."""
    with _open(path) as file:
        return _upright_size(_header(file, str(path), MAX_PIXELS))


def orientation(path: Path) -> int:
    """The EXIF orientation, 1 … 8, that `decode` applies: 5 … 8 swap width and height."""
    with _open(path) as file:
        return _orientation(_header(file, str(path), MAX_PIXELS))


def check_image(path: Path) -> tuple[int, int]:
    """Width and height of the image that `decode` gives, once the file is known to be whole.

    No pixel of a JPEG, PNG or WebP is decoded: their structure tells whether they are whole. Other formats, which are
    rare, are decoded. Raises `UserError` for what is missing, no image, truncated or larger than `MAX_PIXELS`.
    """
    with _open(path) as file:
        image = _header(file, str(path), MAX_PIXELS)
        _refuse_truncated(file, image.format, str(path))
        size = _upright_size(image)
    if image.format not in _IS_WHOLE:
        decode(path)
    return size


def _name(source: Path | bytes) -> str:
    return f"image of {len(source)} bytes" if isinstance(source, bytes) else str(source)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


def _open(source: Path | bytes) -> BinaryIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    try:
        if not Path(source).is_file():  # asked first, because opening a pipe would wait for ever
            raise UserError(f"{source}: there is no such image file; check the path")
        return Path(source).open("rb")
    except OSError as error:
        raise UserError(f"{source}: the file cannot be read ({error.strerror}); check its permissions") from None


def _header(file: BinaryIO, name: str, max_pixels: int) -> Image.Image:
    """The image as Pillow knows it before decoding; its pixels are not loaded."""
    length = file.seek(0, io.SEEK_END)
    file.seek(0)
    try:
        image = Image.open(file, formats=_FORMATS)
    except Image.DecompressionBombError:
        raise UserError(f"{name}: the image has more than {max_pixels} pixels; make it smaller") from None
    except MemoryError:
        raise
    except Exception:  # a hostile header raises nearly anything
        raise UserError(f"{name}: this is no image, or its header is damaged; {_REMEDY}") from None
    width, height = image.size
    if width * height > max_pixels:
        raise UserError(f"{name}: the image has {width} × {height} pixels, more than {max_pixels}; make it smaller")
    if length > MAX_BYTES + MAX_BYTES_A_PIXEL * width * height:
        raise UserError(f"{name}: {length >> 20} MiB are too many for {width} × {height} pixels; save it anew")
    if min(width, height) < 1:
        raise UserError(f"{name}: the image has {width} × {height} pixels; leave it out")
    return image


def _orientation(image: Image.Image) -> int:
    if image.format == "TIFF":  # Pillow applies it by itself
        return 1
    try:
        # Not `image.getexif`: that of a PNG decodes its pixels, to see what stands behind them.
        value = Image.Image.getexif(image).get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF is common, and the image is good without it
        return 1
    return value if value in range(1, 9) else 1


def _upright_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    return (height, width) if _orientation(image) >= 5 else (width, height)


def _upright(pixels: UInt8[np.ndarray, "H W 3"], orientation: int) -> UInt8[np.ndarray, "H2 W2 3"]:
    """The pixels turned as EXIF says (CIPA DC-008, table 6): the value names the place of row 0 and of column 0."""
    if orientation >= 5:  # row 0 is a side of the scene
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _pixels(file: BinaryIO, image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    """The decoded pixels as they are stored, before EXIF."""
    if image.format in ("JPEG", "MPO", "PNG"):  # a JPEG of several pictures, as telephones make them, is called MPO
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
        raise ValueError(f"pixels of mode {image.mode} have no known range: save them as 8 or 16 bits")
    return np.asarray(image.convert("RGBA" if image.mode == "P" else "RGB"))[..., :3]


def _refuse_truncated(file: BinaryIO, format: str | None, name: str) -> None:
    is_whole = _IS_WHOLE.get(format or "")
    if is_whole and not is_whole(file):
        raise UserError(f"{name}: the image is truncated; {_REMEDY}")


def _ends_with(file: BinaryIO, ending: bytes) -> bool:
    length = file.seek(0, io.SEEK_END)
    file.seek(max(0, length - len(ending)))
    return file.read() == ending


def _jpeg_is_whole(file: BinaryIO) -> bool:
    """Whether the end-of-image marker follows the scans. A thumbnail's lies within a segment and does not count."""
    if _ends_with(file, _EOI):  # all but a few files, and these need not be read whole
        return True
    file.seek(0)
    data = file.read()
    position = 2
    while match := _JPEG_MARKER.search(data, position):
        if match[1] == _EOI[1:]:
            return True
        position = match.end() + int.from_bytes(data[match.end() : match.end() + 2], "big")
    return False


def _png_is_whole(file: BinaryIO) -> bool:
    """Whether the chunks lead to an IEND; anything may follow it."""
    if _ends_with(file, _IEND):
        return True
    file.seek(8)
    while len(head := file.read(8)) == 8:
        if head[4:] == b"IEND":
            return len(file.read(4)) == 4
        file.seek(int.from_bytes(head[:4], "big") + 4, io.SEEK_CUR)
    return False


def _webp_is_whole(file: BinaryIO) -> bool:
    """Whether the file is as long as its RIFF header says."""
    file.seek(4)
    return int.from_bytes(file.read(4), "little") + 8 <= file.seek(0, io.SEEK_END)


_IS_WHOLE = {"JPEG": _jpeg_is_whole, "MPO": _jpeg_is_whole, "PNG": _png_is_whole, "WEBP": _webp_is_whole}
