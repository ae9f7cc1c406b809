"""Check of the headers of many image files, in threads and with a progress bar."""

from __future__ import annotations

import time
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


_AT_ONCE = 32
"""Number of images that a thread checks before it takes others."""
_SLOW = 0.01
"""Seconds of a check from which on a disk, or a network, must have been waited for."""


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
    yield from track(_checks(paths, fence), "Checking images", total=len(paths), shown=shown)


def _checks(paths: Sequence[Path], fence: Fence | None) -> Iterator[HeaderCheck]:
    """Yield the checks one after the other while files are read quickly, and from threads once a disk is waited for.

    Threads take turns for Python's lock, and are half as fast on files in memory as no threads.
    """
    done, waited = 0, False
    while done < len(paths) and not waited:
        start = time.perf_counter()
        check = _check(fence, paths[done])
        waited = time.perf_counter() - start > _SLOW
        done += 1
        yield check
    rest = paths[done:]
    parts = [rest[start : start + _AT_ONCE] for start in range(0, len(rest), _AT_ONCE)]
    # Closing the generator cancels pending jobs, so that an interrupt does not wait for all images.
    with ThreadPoolExecutor() as pool, closing(pool.map(partial(_check_all, fence), parts)) as results:  # type: ignore[type-var]
        for part in results:
            yield from part


def _check_all(fence: Fence | None, paths: Sequence[Path]) -> list[HeaderCheck]:
    return [_check(fence, path) for path in paths]


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
