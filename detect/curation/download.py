"""Download of public data sets, in the layouts of the readers.

    download("voc2007", Path("data"))  ->  data/voc2007/{JPEGImages, Annotations, ImageSets/Main}

An archive is stored as `<file>.part` next to the data set until it is unpacked, so that an interrupted transfer can be
resumed. The folder of the data set appears complete or not at all.
"""

from __future__ import annotations

import hashlib
import http.client
import ssl
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from detect.curation.download_sources import SOURCES, Archive, Source
from detect.curation.unpack import DAMAGED, unpack
from detect.errors import UserError
from detect.files.atomic import new_folder

CHUNK = 1 << 20
TIMEOUT = 30.0
"""Maximum number of seconds without data."""
PAUSES = (1, 2, 4, 8)
"""Seconds before each retry. An attempt that received data starts again with the first pause."""
TRANSIENT = {408, 429, 500, 502, 503, 504}
"""HTTP status codes that are retried."""
NETWORK_ERRORS = (URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)


def download(name: str, root: Path, *, sources: Mapping[str, Source] = SOURCES, progress: bool = True) -> Path:
    """Download a data set unless it exists, and return its folder.

    Args:
        name: `voc2007`, `voc2012`, `coco`, `bccd`, or a part: `coco/annotations`, `coco/train2017`, `coco/val2017`.
        root: folder of all data sets. Existing content of `root / name` is not changed.
        sources: source of each data set by name.
        progress: show transferred bytes, speed and remaining time.

    Returns:
        The folder for the reader: `root / name`, or for a part the folder of its data set.

    Raises:
        UserError: the name is unknown; the server cannot be reached, or does not send the expected file; an
            archive is damaged or would write outside of its folder; or the disk is full.
    """
    root = Path(root)
    names = [key for key in sources if key == name or key.startswith(f"{name}/")]
    if not names:
        raise UserError(f"{name}: no data set has this name; choose one of {', '.join(sources)}")
    console = Console(stderr=True, quiet=not progress, markup=False, highlight=False, soft_wrap=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not progress) as bars:
        for key in names:
            folder = root / key
            if folder.is_dir() and any(folder.iterdir()):
                bars.console.print(f"{folder}: exists already; remove it to download it again")
                continue
            try:
                _install(sources[key], folder, root, bars)
            except OSError as error:  # of the disk; network errors are handled where they occur
                path = error.filename or folder
                raise UserError(f"{path}: {error.strerror or error}; fix that or choose another folder") from error
    return root / name.split("/")[0]


def _install(source: Source, folder: Path, root: Path, bars: Progress) -> None:
    """Download the archives of a source and unpack them into `folder`, with a note on their origin."""
    with new_folder(folder) as draft:  # created first, so that no second run writes the same archives
        files = [_obtain(archive, root, source.limit, bars) for archive in source.archives]
        notes, remaining = [], source.limit
        for archive, file in zip(source.archives, files, strict=True):
            sha256 = _verify(archive, file, bars)
            remaining = _unpack(archive, file, draft, remaining, bars)
            notes.append(f"{archive.url}\n{file.stat().st_size} bytes, sha256 {sha256}\n")
        (draft / "SOURCE.txt").write_text("".join(notes) + source.licence + "\n", encoding="utf-8")
    bars.console.print(f"{folder}: {source.licence}")
    for file in files:
        if file.suffix == ".part":  # files of the user are kept
            file.unlink()


# ------------------------------------------------------------------------------------------------------------- transfer


def _obtain(archive: Archive, root: Path, limit: int, bars: Progress) -> Path:
    """Return the complete but unverified archive on disk: a file of the user, or `<file>.part`."""
    provided = root / archive.file
    if provided.is_file():
        return provided
    part = root / f"{archive.file}.part"
    task = bars.add_task(archive.file, total=archive.size)
    best, failures = 0, 0
    while True:
        received = part.stat().st_size if part.exists() else 0
        if received > best:
            best, failures = received, 0
        try:
            _transfer(archive, part, received, limit, bars, task)
            return part
        except NETWORK_ERRORS as error:
            final = isinstance(error, HTTPError) and error.code not in TRANSIENT
            if final or failures == len(PAUSES):
                raise UserError(f"{archive.url}: {_reason(error)}; {_remedy(part)}") from error
        time.sleep(PAUSES[failures])
        failures += 1


def _transfer(archive: Archive, part: Path, received: int, limit: int, bars: Progress, task: TaskID) -> None:
    """Try once to complete `part`, which has `received` bytes. Raise a network error if it stays incomplete."""
    if archive.size is not None and received == archive.size:
        bars.update(task, completed=received)
        return
    headers = {"User-Agent": "detect", **({"Range": f"bytes={received}-"} if received else {})}
    try:
        response = urlopen(Request(archive.url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        error.close()
        if error.code != 416 or not received:
            raise
        part.unlink()  # longer than the file, or as long as a file of unknown size: only starting again is safe
        raise ConnectionError("the server has no more of this file") from error
    with response:
        if response.status != 206 or not response.headers.get("Content-Range", "").startswith(f"bytes {received}-"):
            received = 0  # the server sends the file from its beginning
        total = None if response.length is None else received + response.length
        expected = archive.size or total
        if (total or expected) != expected or (expected or 0) > limit:
            wanted = archive.size or f"at most {limit}"
            raise UserError(f"{archive.url}: {total} bytes are offered where {wanted} were expected; {_remedy(part)}")
        bars.update(task, completed=received, total=expected)
        with part.open("ab" if received else "wb") as file:
            while chunk := response.read(CHUNK):
                received += file.write(chunk)
                bars.update(task, completed=received)
                if received > (expected or limit):
                    raise UserError(f"{archive.url}: sends more than {expected or limit} bytes; {_remedy(part)}")
    if expected is not None and received < expected:
        raise ConnectionError(f"the connection was cut after {received} of {expected} bytes")


def _remedy(part: Path) -> str:
    return f"run this again later, or download the file by other means to {part.with_suffix('')}"


def _reason(error: Exception) -> str:
    if isinstance(error, HTTPError):
        return f"the server answers {error.code} {error.reason}"
    return str(error.reason if isinstance(error, URLError) else error) or type(error).__name__


# -------------------------------------------------------------------------------------------------------------- archive


def _verify(archive: Archive, file: Path, bars: Progress) -> str:
    """Check the size and the publisher's checksum of a file, and return its sha256."""
    algorithm, _, expected = (archive.checksum or "sha256:").partition(":")
    published, sha256 = hashlib.new(algorithm, usedforsecurity=False), hashlib.sha256()
    size = file.stat().st_size
    task = bars.add_task(f"verify {archive.file}", total=size)
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            sha256.update(chunk)
            published.update(chunk)
            bars.advance(task, len(chunk))
    if archive.size not in (None, size):
        raise _refuse(file, f"{size} bytes where {archive.size} were expected")
    if expected and published.hexdigest() != expected:
        raise _refuse(file, f"its {algorithm} is {published.hexdigest()} where {expected} was expected")
    if not expected:
        bars.console.print(f"{archive.file}: the publisher gives no checksum; sha256 {sha256.hexdigest()}")
    return sha256.hexdigest()


def _unpack(archive: Archive, file: Path, into: Path, limit: int, bars: Progress) -> int:
    """Unpack an archive into a folder, and return the remainder of `limit` bytes."""
    task = bars.add_task(f"unpack {archive.file}", total=None)
    try:
        remaining = unpack(archive, file, into, limit, partial(bars.advance, task))
    except DAMAGED as error:
        raise _refuse(file, f"cannot be unpacked: {error}") from error
    bars.update(task, total=bars.tasks[task].completed)
    return remaining


def _refuse(file: Path, problem: str) -> UserError:
    """Return the error for a bad archive. A downloaded one is removed, a user's is kept."""
    if file.suffix == ".part":
        file.unlink()
        return UserError(f"{file}: {problem}; the file was removed, run this again to download it")
    return UserError(f"{file}: {problem}; remove it or replace it with a good one")
