"""Safe unpacking of downloaded archives.

The content of an archive is not trusted: names must stay inside the folder, only files and folders are allowed, and the
bytes are counted while they are written.
"""

from __future__ import annotations

import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from detect.curation.download_sources import Archive

CHUNK = 1 << 20
BLOCK = 4096
"""Bytes counted for every file, the minimum on disk, so that archives of many empty files are also limited."""
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError)
"""Errors of an archive that is damaged or not allowed."""


def unpack(archive: Archive, file: Path, into: Path, limit: int, advance: Callable[[int], object]) -> int:
    """Write the files below `archive.inside` to a folder.

    Args:
        archive: description of the archive.
        file: the archive on disk.
        into: target folder.
        limit: maximum number of bytes.
        advance: called with the number of bytes of each written chunk.

    Returns:
        The remainder of `limit`.

    Raises:
        ValueError: the archive has no folder `inside`, has forbidden entries or unpacks to more than `limit`. Like the
            errors of the archive modules for damaged files, it is in `DAMAGED`.
    """
    is_empty = True
    for name, content in _files(file, zipped=archive.file.endswith(".zip")):
        path = PurePosixPath(name)
        if not path.is_relative_to(archive.inside):
            continue
        is_empty = False
        target = into / path.relative_to(archive.inside)
        target.parent.mkdir(parents=True, exist_ok=True)
        limit -= BLOCK
        with content() as stream, target.open("wb") as out:
            while limit >= 0 and (chunk := stream.read(CHUNK)):
                limit -= len(chunk)
                out.write(chunk)
                advance(len(chunk))
        if limit < 0:
            raise ValueError("it unpacks to more than expected")
    if is_empty:
        raise ValueError(f"it has no folder {archive.inside}")
    return limit


def _files(file: Path, *, zipped: bool) -> Iterator[tuple[str, Callable[[], IO[bytes]]]]:
    """Yield name and content of each regular file of a zip or tar archive."""
    if zipped:
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                kind = stat.S_IFMT(info.external_attr >> 16)  # 0 if the zip was made on Windows
                _check(info.filename, plain=kind in (0, stat.S_IFREG, stat.S_IFDIR) and not info.flag_bits & 1)
                if not info.is_dir():
                    yield info.filename, partial(archive.open, info)
        return
    with tarfile.open(file, "r:") as archive:
        for member in archive:
            _check(member.name, plain=member.isreg() or member.isdir())
            if member.isreg():
                yield member.name, partial(archive.extractfile, member)  # type: ignore[misc]  # None for folders only


def _check(name: str, *, plain: bool) -> None:
    """Raise `ValueError` for names that lead out of the folder on any system, and for entries other than files."""
    if name.startswith("/") or "\\" in name or ":" in name or "\0" in name or ".." in name.split("/"):
        raise ValueError(f"{name!r} would be written outside of its folder")
    if not plain:
        raise ValueError(f"{name!r} is a link, a device or encrypted")
