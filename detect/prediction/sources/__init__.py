"""Sources of images to predict on: files, folders, patterns, web addresses, arrays, videos and cameras.

    for frame in frames(["photos/", "clip.mp4", array]): ...

Frames are read lazily and in constant memory: only the next ones are decoded, for any number of frames. They keep the
order of the source; folders and patterns are sorted.
"""

from detect.prediction.sources.expand import expand_source
from detect.prediction.sources.files import VIDEO_SUFFIXES
from detect.prediction.sources.items import Frame, StreamItem
from detect.prediction.sources.reader import count_frames, frames
from detect.prediction.sources.video import VideoInfo, video_info

__all__ = [
    "VIDEO_SUFFIXES",
    "Frame",
    "StreamItem",
    "VideoInfo",
    "count_frames",
    "expand_source",
    "frames",
    "video_info",
]
