"""Expansion of files, folders and patterns."""

from __future__ import annotations

import re
from functools import partial
from itertools import chain
from pathlib import Path

from detect.data.decode import SUFFIXES, decode
from detect.errors import UserError
from detect.files.fence import Fence, OutsideError, is_folder
from detect.prediction.sources.items import Frame, ImageItem, Items, StreamItem, unreadable
from detect.prediction.sources.video import video_item

VIDEO_SUFFIXES = (".avi", ".mkv", ".mov", ".mp4", ".webm")
"""Suffixes of video files, in lower case."""


def path_items(source: str | Path) -> Items:
    """Yield the item of a file, or the items of a folder or pattern sorted by path.

    Raises:
        UserError: the path does not exist, or a folder or pattern has no images or videos.
    """
    path, text = Path(source), str(source)
    try:
        is_dir, exists = path.is_dir(), path.exists() and bool(text)
    except (OSError, ValueError) as error:  # not a possible name, for example one that is too long
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{text[:80]}…: not a valid path ({reason}); give a file, a folder or a pattern") from None
    if not exists:
        yield from _pattern_items(path, text)
    elif is_dir:
        items = _folder_items(path, Fence(path), set())
        first = next(items, None)
        if first is None:
            raise UserError(f"{path}: the folder has no images or videos; supported are {_suffixes()}")
        yield from chain([first], items)
    else:
        yield _file_item(path)


def _pattern_items(path: Path, text: str) -> Items:
    if not re.search(r"[*?[]", text):
        raise UserError(f"{text!r}: there is no such file or folder; check the path")
    # Existing folders are not part of the pattern, even with special characters: "photos [2024]/*.jpg".
    base, parts = Path(path.anchor), path.relative_to(path.anchor).parts
    while len(parts) > 1 and (base / parts[0]).is_dir():
        base, parts = base / parts[0], parts[1:]
    try:
        # pathlib's `**` does not follow links between folders, which may form circles.
        matches = sorted(set(base.glob("/".join(parts))))
    except (ValueError, NotImplementedError, OSError) as error:
        raise UserError(f"{text}: not a valid pattern ({error}); give one such as 'photos/**/*.jpg'") from None
    matches = [match for match in matches if _is_supported(match.relative_to(base)) and not is_folder(match)]
    if not matches:
        raise UserError(f"{text}: no image or video matches; check the pattern; supported are {_suffixes()}")
    fence = Fence(base)
    yield from (_file_item(match) if fence.admits(match) else _outside(match) for match in matches)


def _folder_items(folder: Path, fence: Fence, seen: set[tuple[int, int]]) -> Items:
    """Yield the images and videos below a folder, sorted by path.

    Links between folders are followed, but each folder is read once. A folder that cannot be read is one unreadable
    item, and so is a link that leads out of the fence.
    """
    try:
        status = folder.stat()
        children = sorted(folder.iterdir())
    except OSError as error:
        message = f"{folder}: the folder cannot be read ({error.strerror}); check its permissions"
        yield unreadable(str(folder), UserError(message))
        return
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    for child in children:
        is_dir = is_folder(child) and not child.name.startswith(".")
        if (is_dir or _is_supported(Path(child.name))) and not fence.admits(child):
            yield _outside(child)
        elif is_dir:
            yield from _folder_items(child, fence, seen)
        elif _is_supported(Path(child.name)):
            yield _file_item(child)


def _is_supported(path: Path) -> bool:
    """Return whether a path has the suffix of an image or video, and no hidden part."""
    # A hidden ._photo.jpg contains macOS's metadata of photo.jpg instead of pixels.
    return path.suffix.lower() in SUFFIXES + VIDEO_SUFFIXES and not any(part.startswith(".") for part in path.parts)


def _suffixes() -> str:
    return " ".join(SUFFIXES + VIDEO_SUFFIXES)


def _outside(path: Path) -> ImageItem:
    return unreadable(str(path), UserError(f"{path}: {OutsideError()}; give the link's target as a separate source"))


def _file_item(path: Path) -> ImageItem | StreamItem:
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return video_item(path)
    return ImageItem(str(path), partial(_decode_file, path))


def _decode_file(path: Path) -> Frame:
    return Frame(decode(path), str(path))
