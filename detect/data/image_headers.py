"""Looking at the headers of many image files, with a progress bar."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import track

from detect.data.decode import check_image
from detect.data.defects import is_file
from detect.errors import UserError
from detect.files.fence import Fence, OutsideError

_BAR_FROM = 200
"""Images from which on the checks take long enough for a progress bar."""

Look = tuple[tuple[int, int] | None, str, str]
"""Width and height of an image; None where it cannot be read, with the rule that it falls under and the reason."""


def check_images(paths: Sequence[Path], progress: bool = True, fence: Fence | None = None) -> Iterator[Look]:
    """What there is to say of each image, in their order; one outside of a fence is not opened."""
    console = Console(stderr=True)
    shown = progress and console.is_terminal and len(paths) > _BAR_FROM
    # Closing the generator cancels what is not begun, so that an interrupt does not wait for all the images.
    with ThreadPoolExecutor() as pool, closing(pool.map(partial(_look_at, fence), paths)) as results:  # type: ignore[type-var]
        yield from track(results, "Checking images", total=len(paths), console=console, disable=not shown)


def _look_at(fence: Fence | None, path: Path) -> Look:
    if fence is not None and not fence.admits(path):
        return None, "path-outside-root", str(OutsideError())
    if not is_file(path):
        return None, "missing-image", "there is no such file"
    try:
        return check_image(path), "", ""
    except UserError as error:
        # Without its remedy: the rule has one for all of them.
        return None, "unreadable-image", str(error).removeprefix(f"{path}: ").rpartition("; ")[0]
