"""Frames from pixels in memory: numpy arrays, torch tensors and PIL images."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from detect.data.decode import MAX_PIXELS
from detect.errors import UserError
from detect.prediction.sources.items import Frame


def is_tensor(source: object) -> bool:
    """Return whether `source` is a torch tensor, without importing torch."""
    return "torch" in sys.modules and isinstance(source, sys.modules["torch"].Tensor)


def frame_of_array(array: np.ndarray, name: str) -> Frame:
    """Return a frame with a copy of uint8 RGB [H, W, 3], RGBA [H, W, 4] or grey [H, W]; errors contain `name`."""
    if array.dtype != np.uint8:
        remedy = "give uint8 in 0 … 255, for example (array * 255).round().astype(np.uint8)"
        raise UserError(f"{name}: the array has dtype {array.dtype}; {remedy}")
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        remedy = " with array.transpose(1, 2, 0)" if array.ndim == 3 and array.shape[0] in (1, 3) else ""
        raise UserError(f"{name}: the array has shape {list(array.shape)}; give RGB [H, W, 3] or grey [H, W]{remedy}")
    _check_size(array.shape[0], array.shape[1], name)
    # Always a copy: the caller may overwrite the array, for example with the next camera image, before it is used.
    return Frame(np.array(np.broadcast_to(array[..., :3], (*array.shape[:2], 3)), order="C"))


def frame_of_tensor(tensor: Any, name: str) -> Frame:
    """Return a frame with a copy of RGB [3, H, W] or grey [1, H, W], uint8 in 0 … 255 or floats in 0 … 1."""
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3):
        remedy = " with tensor.permute(2, 0, 1)" if tensor.ndim == 3 and tensor.shape[2] in (1, 3) else ""
        shape = list(tensor.shape)
        raise UserError(f"{name}: the tensor has shape {shape}; give RGB [3, H, W] or grey [1, H, W]{remedy}")
    if tensor.is_floating_point():
        values = tensor.detach().float()
        if values.numel() and not bool(((values >= 0) & (values <= 1)).all()):
            raise UserError(f"{name}: the tensor has values outside 0 … 1; give it before normalisation, or as uint8")
        tensor = (values * 255).round().byte()
    return frame_of_array(tensor.cpu().permute(1, 2, 0).numpy(), name)


def frame_of_pil(image: Image.Image, name: str) -> Frame:
    """Return a frame with the same pixels as `decode` gives for the image's file."""
    _check_size(image.height, image.width, name)
    try:
        image.load()
        with suppress(Exception):  # damaged EXIF data is common, and the image is usable without it
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):
            return frame_of_array((np.asarray(image) >> 8).astype(np.uint8), name)
        if image.mode in ("I", "F"):
            raise ValueError(f"pixels of mode {image.mode} have no known range: give 8 or 16 bits")
        return frame_of_array(np.asarray(image.convert("RGBA" if image.mode == "P" else "RGB")), name)
    except MemoryError:
        raise
    except Exception as error:  # Pillow loads only now, and raises many kinds of errors for damaged files
        raise UserError(f"{name}: the PIL image cannot be read ({error}); leave it out") from None


def _check_size(height: int, width: int, name: str) -> None:
    if not 1 <= height * width <= MAX_PIXELS:
        raise UserError(f"{name}: the image has {width} × {height} pixels; give 1 to {MAX_PIXELS} pixels")
