"""Expansion of a source into images and streams, without reading them."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Set
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from detect.data.decode import decode
from detect.errors import UserError
from detect.prediction.sources.files import path_items
from detect.prediction.sources.items import URL, Frame, ImageItem, Items, unreadable
from detect.prediction.sources.pixels import frame_of_array, frame_of_pil, frame_of_tensor, is_tensor
from detect.prediction.sources.video import camera_item
from detect.prediction.sources.web import frame_of_url

_CAMERA = re.compile(r"camera:(\d+)")
_KINDS = "a path, a pattern, bytes, a PIL image, a uint8 array, a tensor, a camera's number, or a list of these"


def expand_source(source: object, download: bool) -> Items:
    """Yield the images and streams of a source, or of each element of a list.

    An invalid element of a list is one unreadable item.

    Args:
        source: see `frames`.
        download: permission to load web addresses.

    Raises:
        UserError: a source other than a list is of an unknown kind, does not exist or has no images.
    """
    if not is_collection(source):
        yield from _expand_one(source, download, "the image")
        return
    assert isinstance(source, Iterable)
    for index, element in enumerate(source):
        name = str(element) if isinstance(element, str | Path) else f"item {index}"
        try:
            yield from _expand_one(element, download, name)
        except UserError as error:
            yield unreadable(name, error)


def is_collection(source: object) -> bool:
    """Return whether a source is a list or iterator of sources."""
    # Not a file, which would iterate over its lines, and not a set, which has no order.
    single = str | bytes | bytearray | memoryview | np.ndarray | io.IOBase | Mapping | Set
    return isinstance(source, Iterable) and not isinstance(source, single) and not is_tensor(source)


def _expand_one(source: object, download: bool, name: str) -> Items:
    """Yield the items of a single source; errors contain `name` if the source has no path."""
    match source:
        case str() if URL.match(source):
            yield ImageItem(source, partial(frame_of_url, source, download))
        case str() if camera := _CAMERA.fullmatch(source):
            yield camera_item(int(camera[1]))
        case str() | Path():
            yield from path_items(source)
        case bytes() | bytearray() | memoryview():
            yield ImageItem(name, partial(_decode_bytes, bytes(source), name))
        case int() if not isinstance(source, bool) and source >= 0:
            yield camera_item(source)
        case Frame():
            yield ImageItem(name, lambda: source)
        case Image.Image():
            yield ImageItem(name, partial(frame_of_pil, source, name), prefetch=False)
        case np.ndarray():
            batch = source if source.ndim == 4 else [source]
            yield from (ImageItem(name, partial(frame_of_array, image, name), prefetch=False) for image in batch)
        case _ if is_tensor(source):
            tensors: Any = source
            batch = tensors if tensors.ndim == 4 else [tensors]
            yield from (ImageItem(name, partial(frame_of_tensor, image, name), prefetch=False) for image in batch)
        case _:
            remedy = "the bytes that its read() returns" if hasattr(source, "read") else _KINDS
            raise UserError(f"{name}: images cannot be read from {type(source).__name__!r}; give {remedy}")


def _decode_bytes(data: bytes, name: str) -> Frame:
    try:
        return Frame(decode(data))
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
