"""Downloads that resume after an interruption, and the check of the file against its publisher's checksum.

A file is stored as `<file>.part` until it is verified. An attempt that receives data is followed by another one; the
server may send at most the expected size.
"""

from __future__ import annotations

import hashlib
import http.client
import ssl
import time
from dataclasses import dataclass
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

from detect.errors import UserError

CHUNK = 1 << 20
TIMEOUT = 30.0
"""Maximum number of seconds without data."""
PAUSES = (1, 2, 4, 8)
"""Seconds before each retry. An attempt that received data starts again with the first pause."""
TRANSIENT = {408, 429, 500, 502, 503, 504}
"""HTTP status codes that are retried."""
NETWORK_ERRORS = (URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """One file of a publisher."""

    url: str
    file: str
    """File name on disk, also for a file that the user downloaded by other means."""
    size: int | None = None
    """Size in bytes; None if it is unknown or differs between requests."""
    checksum: str | None = None
    """`md5:…` or `sha256:…`, the whole digest or its first digits; None if the publisher gives none."""


def transfer_bars(shown: bool = True) -> Progress:
    """Return a progress bar on stderr with transferred bytes, speed and remaining time."""
    console = Console(stderr=True, quiet=not shown, markup=False, highlight=False, soft_wrap=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, disable=not shown)


def obtain(remote: RemoteFile, folder: Path, limit: int, bars: Progress) -> Path:
    """Return the complete but unverified file on disk: a file of the user, or `<file>.part`.

    Args:
        remote: the file to download.
        folder: existing folder of the file.
        limit: maximum number of bytes, if the file's size is unknown.
        bars: shows the progress.

    Raises:
        UserError: the server cannot be reached, or offers another size than expected.
    """
    provided = folder / remote.file
    if provided.is_file():
        return provided
    part = folder / f"{remote.file}.part"
    task = bars.add_task(remote.file, total=remote.size)
    best, failures = 0, 0
    while True:
        received = part.stat().st_size if part.exists() else 0
        if received > best:
            best, failures = received, 0
        try:
            _transfer(remote, part, received, limit, bars, task)
            return part
        except NETWORK_ERRORS as error:
            final = isinstance(error, HTTPError) and error.code not in TRANSIENT
            if final or failures == len(PAUSES):
                raise UserError(f"{remote.url}: {_reason(error)}; {_remedy(part)}") from error
        time.sleep(PAUSES[failures])
        failures += 1


def _transfer(remote: RemoteFile, part: Path, received: int, limit: int, bars: Progress, task: TaskID) -> None:
    """Try once to complete `part`, which has `received` bytes. Raise a network error if it stays incomplete."""
    if remote.size is not None and received == remote.size:
        bars.update(task, completed=received)
        return
    headers = {"User-Agent": "detect", **({"Range": f"bytes={received}-"} if received else {})}
    try:
        response = urlopen(Request(remote.url, headers=headers), timeout=TIMEOUT)
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
        expected = remote.size or total
        if (total or expected) != expected or (expected or 0) > limit:
            wanted = remote.size or f"at most {limit}"
            raise UserError(f"{remote.url}: {total} bytes are offered where {wanted} were expected; {_remedy(part)}")
        bars.update(task, completed=received, total=expected)
        with part.open("ab" if received else "wb") as file:
            while chunk := response.read(CHUNK):
                received += file.write(chunk)
                bars.update(task, completed=received)
                if received > (expected or limit):
                    raise UserError(f"{remote.url}: sends more than {expected or limit} bytes; {_remedy(part)}")
    if expected is not None and received < expected:
        raise ConnectionError(f"the connection was cut after {received} of {expected} bytes")


def _remedy(part: Path) -> str:
    return f"run this again later, or download the file by other means to {part.with_suffix('')}"


def _reason(error: Exception) -> str:
    if isinstance(error, HTTPError):
        return f"the server answers {error.code} {error.reason}"
    return str(error.reason if isinstance(error, URLError) else error) or type(error).__name__


def verify(remote: RemoteFile, file: Path, bars: Progress) -> str:
    """Check the size and the publisher's checksum of a file, and return its sha256.

    Raises:
        UserError: they differ; a downloaded file is then removed.
    """
    algorithm, _, expected = (remote.checksum or "sha256:").partition(":")
    published, sha256 = hashlib.new(algorithm, usedforsecurity=False), hashlib.sha256()
    size = file.stat().st_size
    task = bars.add_task(f"verify {remote.file}", total=size)
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            sha256.update(chunk)
            published.update(chunk)
            bars.advance(task, len(chunk))
    if remote.size not in (None, size):
        raise refused(file, f"{size} bytes where {remote.size} were expected")
    if not published.hexdigest().startswith(expected):
        rest = "…" if len(expected) < len(published.hexdigest()) else ""
        raise refused(file, f"its {algorithm} is {published.hexdigest()} where {expected}{rest} was expected")
    if not expected:
        bars.console.print(f"{remote.file}: the publisher gives no checksum; sha256 {sha256.hexdigest()}")
    return sha256.hexdigest()


def refused(file: Path, problem: str) -> UserError:
    """Return the error for a bad file. A downloaded one is removed, a user's is kept."""
    if file.suffix == ".part":
        file.unlink()
        return UserError(f"{file}: {problem}; the file was removed, run this again to download it")
    return UserError(f"{file}: {problem}; remove it or replace it with a good one")
