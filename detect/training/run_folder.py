"""The folder of a run: only one process writes to it, and each of its files is complete or absent."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from detect.errors import UserError
from detect.files.atomic import DISK_FULL, remove_drafts, write_text

try:
    import fcntl
except ModuleNotFoundError:  # Windows, which has no lock against a second run
    fcntl = None  # type: ignore[assignment]


def is_first() -> bool:
    """Return whether this is the first process of a training run, which writes the files."""
    return not getattr(rank_zero_only, "rank", 0)


@contextmanager
def owned(out: Path) -> Iterator[None]:
    """Create the folder and lock it for this training run until the block ends.

    The operating system releases the lock when the process ends, even if it is killed; workers do not inherit it.
    Drafts of a killed process are removed.

    Raises:
        UserError: another run is using the folder.
    """
    if not is_first():  # the first process holds the lock for all
        yield
        return
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / ".lock").open("a")
    with lock:
        if fcntl is not None:
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                raise UserError(f"{out}: another run is using this folder; give another --out") from None
            except OSError:  # a file system without locks
                pass
        remove_drafts(out)
        yield


def write(file: Path, text: str) -> None:
    """Write a text file atomically. Raise `UserError` if it cannot be written."""
    with disk_errors(file, len(text)):
        write_text(file, text)


@contextmanager
def disk_errors(path: Path, size: int | None = None) -> Iterator[None]:
    """Turn an `OSError` while writing `path` into a `UserError`, which names the number of bytes needed, if known."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in DISK_FULL:
            raise UserError(disk_full_message(path, reason, size)) from None
        raise UserError(f"{path}: {reason}; choose another folder with --out") from None


def disk_full_message(path: Path, reason: str, size: int | None = None) -> str:
    """Return the message for a file that did not fit on the disk."""
    needed = "" if size is None else f"; needed: {_amount(size)}"
    free = f"; free: {_amount(shutil.disk_usage(path.parent).free)}" if path.parent.exists() else ""
    return f"{path}: {reason}{needed}{free}; free some space, then continue with --resume"


def _amount(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size} bytes"
