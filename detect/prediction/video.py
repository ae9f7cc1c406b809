"""Writer of annotated videos, and stopping a camera with Ctrl-C."""

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
"""Frames per second of a camera's video, and of a video without a frame rate."""


class VideoSizeError(UserError):
    """Videos of this size cannot be written."""


@contextmanager
def video_writer(path: Path, fps: float | None) -> Iterator[Callable[[UInt8[np.ndarray, "H W 3"]], None]]:
    """Yield a function that appends an RGB picture to a new MPEG-4 video (.mp4), which is complete when the block ends.

    The video has the size of its first picture, without an odd last row or column, which MPEG-4 does not support; other
    pictures are resized.

    Args:
        path: video file, created with the first picture.
        fps: frames per second; None for a camera, whose frames are repeated or dropped to keep real time.

    Raises:
        VideoSizeError: videos of this size are not supported; no file is left.
        UserError: the video is incomplete. OpenCV reports no errors, so its frames are counted afterwards.
    """
    writer, written, start, size = cv2.VideoWriter(), 0, 0.0, (0, 0)

    def write(picture: UInt8[np.ndarray, "H W 3"]) -> None:
        nonlocal written, start, size
        if not written:
            start, size = time.monotonic(), (picture.shape[1], picture.shape[0])
            if not writer.open(str(path.absolute()), cv2.VideoWriter.fourcc(*"mp4v"), fps or FPS, size):
                path.unlink(missing_ok=True)
                raise VideoSizeError(f"no video of {size[0]} × {size[1]} pixels can be written")
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
    if written and _count_frames(path) != written:
        raise UserError(f"{path}: the video could not be written completely; free some space and run the command again")


@contextmanager
def stop_on_interrupt() -> Iterator[Event]:
    """Yield an event that the first Ctrl-C sets, so that the current frame is finished; the second one interrupts."""
    stopped = Event()
    if current_thread() is not main_thread():  # only the main thread can handle signals
        yield stopped
        return
    previous = signal.getsignal(signal.SIGINT)

    def stop(*_: object) -> None:
        stopped.set()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, previous)


def _count_frames(path: Path) -> int | None:
    try:
        return video_info(path).frames
    except UserError:
        return None
