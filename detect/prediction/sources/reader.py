"""Reader of the frames of a source."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sized
from contextlib import closing

from detect.errors import UserError
from detect.prediction.sources.expand import expand_source, is_collection
from detect.prediction.sources.items import Frame, StreamItem
from detect.prediction.sources.prefetch import prefetch


def frames(
    source: object,
    *,
    download: bool = False,
    workers: int = 0,
    on_error: Callable[[str, UserError], None] | None = None,
) -> Generator[Frame, None, None]:
    """Yield the images of a source as RGB frames.

    A source is one of these, or a list or iterator of them:

    - a path, `str` or `Path`: an image, a video, or a folder with all images and videos below it except hidden ones;
      or a pattern such as `photos/**/*.jpg`. A link that leads out of the folder, or out of the pattern's first folder,
      is an unreadable image
    - `http://…`, `https://…`: an image of at most `MAX_DOWNLOAD` bytes, only with `download=True`
    - `bytes` of an image file; a `PIL.Image`, whose EXIF, palette and 16 bits are handled as in a file
    - numpy: uint8 RGB [H, W, 3], or a batch [B, H, W, 3]; grey [H, W]; a fourth channel, alpha, is dropped
    - torch: RGB [3, H, W], grey [1, H, W], or a batch [B, C, H, W]; uint8 in 0 … 255, or floats in 0 … 1 as from
      ToTensor
    - a number, or `camera:0`: a camera, until it is unplugged or the caller stops
    - a `Frame`, which is yielded unchanged

    Args:
        source: see above.
        download: allow web addresses to be downloaded.
        workers: number of threads that decode and download ahead, at most twice as many images; of a video, only
            the next frame is decoded ahead. Cameras and pixels in memory are not read ahead.
        on_error: called with the name and the error of each file, list element or image that cannot be read, after
            which the next one is read. By default the error is raised.

    Raises:
        UserError: an image cannot be read and `on_error` is None; or, when the first frame is requested and even with
            `on_error`, a source other than a list is of an unknown kind, does not exist or has no images.
    """
    with (
        closing(expand_source(source, download)) as items,
        closing(prefetch(items, workers) if workers else items) as ready,
    ):
        for item in ready:
            try:
                if isinstance(item, StreamItem):
                    yield from item.open()
                else:
                    yield item.load()
            except UserError as error:
                if on_error is None:
                    raise
                on_error(item.name, error)


def count_frames(source: object) -> int | None:
    """Return the number of images that `frames` yields, unreadable ones included, without decoding any.

    It is None if the number is unknown before reading: for iterators, cameras and videos without a frame count. In some
    formats the frame count of a video is an estimate.

    Raises:
        UserError: a source other than a list is of an unknown kind, does not exist or has no images.
    """
    if is_collection(source) and not isinstance(source, Sized):
        return None
    total = 0
    for item in expand_source(source, download=True):  # nothing is loaded, so no permission is needed
        number = item.count() if isinstance(item, StreamItem) else 1
        if number is None:
            return None
        total += number
    return total
