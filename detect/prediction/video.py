"""An annotated video as it grows, and the end of a camera's."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, current_thread, main_thread

import cv2
import numpy as np
from jaxtyping import UInt8

from detect.errors import UserError
from detect.prediction.sources import video_info

FPS = 25.0
"""Frames a second of the video of a camera, and of one that does not tell."""


class SizeError(UserError):
    """No video of such a size can be written."""


@contextmanager
def film(path: Path, fps: float | None) -> Iterator[Callable[[UInt8[np.ndarray, "H W 3"]], None]]:
    """What appends an RGB picture to a new video, MPEG-4 in an .mp4, that is complete once the context is left.

    It has the size of its first picture, but an odd row or column at the end, which MPEG-4 has not; others are resized.

    Args:
        path: the file, made with the first picture.
        fps: pictures a second; None for a camera's, where each is shown as long as the next one was waited for.

    Raises:
        SizeError: pictures of this size make no video; there is no file then.
        UserError: it cannot be written; for OpenCV does not tell, it is opened again and its frames are counted.
    """
    writer, written, start, size = cv2.VideoWriter(), 0, 0.0, (0, 0)

    def write(picture: UInt8[np.ndarray, "H W 3"]) -> None:
        nonlocal written, start, size
        if not written:
            start, size = time.monotonic(), (picture.shape[1], picture.shape[0])
            if not writer.open(str(path.absolute()), cv2.VideoWriter.fourcc(*"mp4v"), fps or FPS, size):
                path.unlink(missing_ok=True)
                raise SizeError(f"no video of {size[0]} × {size[1]} pixels can be written")
        frame = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
        if (picture.shape[1], picture.shape[0]) != size:
            frame = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
        due = 1 if fps else int((time.monotonic() - start) * FPS) + 1 - written
        for _ in range(due):
            writer.write(frame)
            written += 1

    try:
        yield write
    finally:
        writer.release()
    if written and _length(path) != written:
        raise UserError(f"{path}: the video could not be written whole; free some space, and the same command goes on")


@contextmanager
def stopped_by_interrupt() -> Iterator[Event]:
    """Ctrl-C sets the event, so that a frame is done with before the files are closed; a second one interrupts."""
    stopped = Event()
    if current_thread() is not main_thread():  # signals are for the main thread alone
        yield stopped
        return
    before = signal.getsignal(signal.SIGINT)

    def stop(*_: object) -> None:
        stopped.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)


def _length(path: Path) -> int | None:
    try:
        return video_info(path).frames
    except UserError:
        return None
