"""Frames, and the items of a source from which they are read."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import UInt8

from detect.errors import UserError

URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
"""Start of a web address."""


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One image to predict on."""

    pixels: UInt8[np.ndarray, "H W 3"]
    """RGB."""
    path: str | None = None
    """File or web address, `camera:0` for a camera; None for bytes and pixels."""
    index: int | None = None
    """Index of the frame in its video or camera stream, from 0; None for a photograph."""

    @property
    def reloadable(self) -> bool:
        """True if `decode(path)` gives the same pixels, so that they need not be kept."""
        return self.path is not None and self.index is None and not URL.match(self.path)


@dataclass(frozen=True, slots=True)
class ImageItem:
    """An image that has not been read yet."""

    name: str
    load: Callable[[], Frame]
    prefetch: bool = True
    """True if a thread may load it early; False for pixels in memory, which the caller may change or close later."""


@dataclass(frozen=True, slots=True)
class StreamItem:
    """A video or a camera that has not been read yet."""

    name: str
    open: Callable[[], Generator[Frame, None, None]]
    count: Callable[[], int | None]
    """Return the number of frames, or None if it is unknown."""
    prefetch: bool
    """True if a thread may read the next frame early; False for a camera, whose frame would be old."""


Items = Generator[ImageItem | StreamItem, None, None]


def unreadable(name: str, error: UserError) -> ImageItem:
    """Return an item that raises `error` when it is loaded."""
    return ImageItem(name, partial(_raise, error))


def _raise(error: UserError) -> Frame:
    raise error
