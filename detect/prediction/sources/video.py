"""Frames of videos and cameras, decoded by OpenCV."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2

from detect.errors import UserError
from detect.prediction.sources.items import Frame, StreamItem

_EXACT_COUNT = (".avi", ".mov", ".mp4")
"""Suffixes of containers whose headers have an exact number of frames; others have an estimate."""
_COMPLETE = 0.9
"""Minimum fraction of the counted frames in a complete video."""


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """Properties of a video from its header."""

    fps: float
    """Frames per second."""
    width: int
    height: int
    frames: int | None
    """Number of frames in the header, in some formats an estimate; None if the header has none."""


def video_info(path: str | Path) -> VideoInfo:
    """Return frame rate, size and length of a video.

    Raises:
        UserError: the video cannot be opened, or its header has no frame rate.
    """
    with closing(_Capture(str(path))) as capture:
        fps, frames = capture.get(cv2.CAP_PROP_FPS), capture.frames
        width, height = capture.get(cv2.CAP_PROP_FRAME_WIDTH), capture.get(cv2.CAP_PROP_FRAME_HEIGHT)
    if not (math.isfinite(fps) and fps > 0):
        raise UserError(f"{path}: the video has no frame rate; convert it, for example with `ffmpeg -i {path} new.mp4`")
    return VideoInfo(fps, int(width), int(height), frames)


def video_item(path: Path) -> StreamItem:
    """Return the item of a video file."""
    return StreamItem(str(path), partial(_read_frames, str(path)), partial(_video_length, path), prefetch=True)


def camera_item(number: int) -> StreamItem:
    """Return the item of a camera with this number in the system."""
    return StreamItem(f"camera:{number}", partial(_read_frames, number), lambda: None, prefetch=False)


def _video_length(path: Path) -> int | None:
    try:
        return video_info(path).frames
    except UserError:  # counts as one unreadable file
        return 1


def _read_frames(source: str | int) -> Generator[Frame, None, None]:
    """Yield the frames of a video or camera that OpenCV can decode, with the video's rotation applied.

    Raises:
        UserError: the video cannot be opened, has no frames or, after the last one, fewer than its header counts.
    """
    with closing(_Capture(source)) as video:
        expected = video.frames if video.name.lower().endswith(_EXACT_COUNT) else None
        index = 0
        while True:
            success, pixels = video.capture.read()
            if not success:
                break
            yield Frame(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), video.name, index)
            index += 1
    if index == 0:
        raise UserError(f"{video.name}: no frame can be read; restore it or leave it out")
    if expected and index < _COMPLETE * expected:
        raise UserError(f"{video.name}: only {index} of {expected} frames can be read; restore it or leave it out")


class _Capture:
    """Open `cv2.VideoCapture` of a video file or a camera.

    Raises:
        UserError: it cannot be opened.
    """

    def __init__(self, source: str | int) -> None:
        self.name = source if isinstance(source, str) else f"camera:{source}"
        if isinstance(source, str) and not Path(source).is_file():  # opening a pipe would block
            raise UserError(f"{source}: there is no such video file; check the path")
        # An absolute path: in a relative one FFmpeg takes text before a colon for a protocol, http included.
        self.capture = cv2.VideoCapture(str(Path(source).absolute()) if isinstance(source, str) else source)
        if not self.capture.isOpened():
            self.close()
            if isinstance(source, int):
                raise UserError(f"{self.name}: the camera cannot be opened; check that it is plugged in")
            raise UserError(
                f"{self.name}: the video is damaged or of an unknown format; restore the file or leave it out"
            )

    @property
    def frames(self) -> int | None:
        """Number of frames in the header, or None."""
        count = self.get(cv2.CAP_PROP_FRAME_COUNT)
        # Containers without a length give negative or impossibly large numbers.
        return int(count) if 0 < count < 2**31 else None

    def get(self, property: int) -> float:
        """Return a property of the capture, one of `cv2.CAP_PROP_*`."""
        return self.capture.get(property)

    def close(self) -> None:
        """Release the file or camera."""
        self.capture.release()
