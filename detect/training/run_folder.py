"""The folder of a run: one process writes to it, and each of its files is whole or not there."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from detect.errors import UserError

try:
    import fcntl
except ModuleNotFoundError:  # on Windows nothing keeps a second run out
    fcntl = None  # type: ignore[assignment]

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The disk, a user's share of it, or a file is as large as it may be."""


def is_first() -> bool:
    """Whether this process writes, of those of one training."""
    return not getattr(rank_zero_only, "rank", 0)


@contextmanager
def owned(out: Path) -> Iterator[None]:
    """Makes the folder and keeps it to this process, or to the processes of one training, until the end.

    The lock is the system's and ends with its process, whatever kills that; workers do not inherit it. What a process
    that was killed left half-written is removed. Raises `UserError` where another run is at work in the folder.
    """
    if not is_first():  # it keeps the folder for all
        yield
        return
    with told(out):
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / ".lock").open("a")
    with lock:
        if fcntl is not None:
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                raise UserError(f"{out}: another run is at work in this folder; give another --out") from None
            except OSError:  # a file system that knows no locks
                pass
        for draft in out.rglob(".*.part"):
            with suppress(FileNotFoundError):
                draft.unlink()
        yield


def write(file: Path, text: str) -> None:
    """Puts the text in the file's place, whole or not at all. Raises `UserError` where the disk does not take it."""
    draft = file.with_name(f".{file.name}.part")
    with told(file, len(text)), removed(draft):
        with draft.open("w", encoding="utf-8", newline="") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(file)


@contextmanager
def removed(draft: Path) -> Iterator[None]:
    """Leaves no draft behind."""
    try:
        yield
    finally:
        with suppress(FileNotFoundError):
            draft.unlink()


@contextmanager
def told(path: Path, size: int | None = None) -> Iterator[None]:
    """Turns what the system says against writing here into a `UserError`, with the bytes that are needed, if known."""
    try:
        yield
    except OSError as error:
        raise UserError(complaint(path, error.strerror or str(error), size, error.errno in FULL)) from None


def complaint(path: Path, reason: str, size: int | None, full: bool) -> str:
    """A line on a file that could not be written."""
    if not full:
        return f"{path}: {reason}; choose another folder with --out"
    needed = "" if size is None else f" it needs {_amount(size)} and"
    free = _amount(shutil.disk_usage(path.parent).free) if path.parent.exists() else "nothing"
    return f"{path}: {reason};{needed} there are {free} left: free some space, then go on with --resume"


def _amount(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size} bytes"
