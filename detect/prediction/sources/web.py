"""Frames from web addresses: images over http or https, with limits of size and time."""

from __future__ import annotations

import http.client
import re
import time
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from detect.data.decode import decode
from detect.errors import UserError
from detect.prediction.sources.files import VIDEO_SUFFIXES
from detect.prediction.sources.items import Frame

MAX_DOWNLOAD = 64 * 2**20
"""Maximum size of a downloaded image in bytes."""
TIMEOUT = 30.0
"""Seconds to wait for each response of a server."""
MAX_SECONDS = 120.0
"""Maximum duration of a download in seconds, even if data keeps arriving slowly."""


def frame_of_url(url: str, download: bool) -> Frame:
    """Download an image and return its frame.

    Args:
        url: http or https address of an image.
        download: permission to access the network.

    Raises:
        UserError: the address is invalid or refused, or the download fails or is not an image.
    """
    _check_url(url)
    if not download:
        raise UserError(f"{url}: downloads are disabled; enable them with download=True (--download)")
    data = _fetch(url)
    try:
        return Frame(decode(data), url)
    except UserError as error:
        raise UserError(f"{url}: {error}") from None


def _check_url(url: str) -> None:
    if re.search(r"\s", url):
        raise UserError(f"{url!r}: the address contains white space; write it as %20")
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise UserError(f"{url}: not a valid address ({error}); check it") from None
    if parts.scheme not in ("http", "https"):
        raise UserError(f"{url}: only http and https are supported; download the file and give its path")
    if Path(parts.path).suffix.lower() in VIDEO_SUFFIXES:
        raise UserError(f"{url}: videos are not downloaded; download the file and give its path")


def _fetch(url: str) -> bytes:
    """Return the content of an address within `MAX_SECONDS`.

    A thread fetches it, since only this limits the wait for a server that sends its headers byte by byte.
    """
    too_slow = UserError(f"{url}: the download takes more than {MAX_SECONDS:.0f} s; download it and give its path")
    content: Future[bytes] = Future()

    def fetch() -> None:
        try:
            content.set_result(_receive(url, too_slow))
        except BaseException as error:
            content.set_exception(error)

    Thread(target=fetch, daemon=True).start()
    try:
        return content.result(MAX_SECONDS)
    except TimeoutError:
        raise too_slow from None


def _receive(url: str, too_slow: UserError) -> bytes:
    deadline = time.monotonic() + MAX_SECONDS
    request, data = Request(url, headers={"User-Agent": "detect"}), bytearray()
    try:
        with build_opener(_HttpRedirects).open(request, timeout=TIMEOUT) as response:
            # read1 returns the bytes that have arrived; read would wait until the chunk is complete.
            while chunk := response.read1(2**16):
                data += chunk
                if len(data) > MAX_DOWNLOAD:
                    raise UserError(f"{url}: more than {MAX_DOWNLOAD >> 20} MiB; download it and give its path")
                if time.monotonic() > deadline:
                    raise too_slow
            missing = response.length or 0  # read1 does not report a connection that closes early
    except HTTPError as error:
        error.close()
        reason = " ".join(str(error.reason).split())
        raise UserError(f"{url}: the server answers {error.code} {reason}; check the address") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = " ".join(str(getattr(error, "reason", "") or error or type(error).__name__).split())
        raise UserError(f"{url}: the download failed ({reason}); check the address and the network") from None
    if missing:
        raise UserError(f"{url}: the transfer ended {missing} bytes early; try again")
    return bytes(data)


class _HttpRedirects(HTTPRedirectHandler):
    """Follows redirects to http and https only; urllib also follows redirects to ftp."""

    def redirect_request(self, request, file, code, message, headers, url):
        if urlsplit(url).scheme not in ("http", "https"):
            raise HTTPError(request.full_url, code, f"redirected to {url}, which is not http", headers, file)
        return super().redirect_request(request, file, code, message, headers, url)
