"""Check of the headers of many image files, in threads and with a progress bar."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

from detect.data.decode import check_image
from detect.errors import UserError
from detect.files.fence import Fence, OutsideError, is_file
from detect.terminal import track

_BAR_FROM = 200
"""Number of images above which a progress bar is shown."""


class HeaderCheck(NamedTuple):
    """Result of the check of one image file."""

    size: tuple[int, int] | None
    """Width and height, or None if the image cannot be read."""
    rule: str = ""
    """Key of `defects.RULES` if the image cannot be read."""
    detail: str = ""
    """Reason why the image cannot be read."""


def check_images(paths: Sequence[Path], progress: bool = True, fence: Fence | None = None) -> Iterator[HeaderCheck]:
    """Yield the check of each image, in the given order. Images outside of the fence are not opened."""
    shown = progress and len(paths) > _BAR_FROM
    # Closing the generator cancels pending jobs, so that an interrupt does not wait for all images.
    with ThreadPoolExecutor() as pool, closing(pool.map(partial(_check, fence), paths)) as results:  # type: ignore[type-var]
        yield from track(results, "Checking images", total=len(paths), shown=shown)


def _check(fence: Fence | None, path: Path) -> HeaderCheck:
    if fence is not None and not fence.admits(path):
        return HeaderCheck(None, "path-outside-root", str(OutsideError()))
    if not is_file(path):
        return HeaderCheck(None, "missing-image", "there is no such file")
    try:
        return HeaderCheck(check_image(path))
    except UserError as error:
        # Without the remedy: the rule has its own.
        return HeaderCheck(None, "unreadable-image", str(error).removeprefix(f"{path}: ").rpartition("; ")[0])
