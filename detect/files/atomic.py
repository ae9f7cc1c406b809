"""Atomic writes: a file or a folder appears complete or not at all.

Everything is written to a draft beside its target, flushed to the disk, and renamed.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex

from detect.errors import UserError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a full disk, an exhausted quota, and a file at its size limit."""
DRAFTS = (".*.part", ".*.part.*")
"""Glob patterns of the drafts that a killed process leaves behind."""


@contextmanager
def atomic_write(path: Path, drafts: Path | None = None, keep_existing: bool = False) -> Iterator[Path]:
    """Yield a draft to write to; on success flush it and move it to `path`, on failure remove it.

    If the block writes no draft, `path` is left as it is. The file gets the permissions of any new file, whatever those
    of the draft are: some libraries write files that only their owner can read. A `UserError` or `OSError` of the block
    that names the draft is raised with the name of `path` instead.

    Args:
        path: target file. Its folder is created if it is missing.
        drafts: existing folder of the draft, on the same disk; by default the folder of `path`.
        keep_existing: do not overwrite `path` if another process has created it in the meantime.
    """
    # A random name: processes on several machines that share a disk may have the same process id.
    # Only a part of the stem: a name may already have the maximum length.
    draft = (drafts or path.parent) / f".{path.stem[:40]}.{token_hex(8)}.part{path.suffix}"
    if drafts is None:
        draft.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _named(draft, path):
            yield draft
            if draft.exists():
                with draft.open("rb+") as file:
                    os.fsync(file.fileno())
                path.parent.mkdir(parents=True, exist_ok=True)
                with suppress(OSError):  # some network file systems have no permissions
                    draft.chmod(_mode_of_new_files(draft.parent))
                if not (keep_existing and _link(draft, path)):
                    draft.replace(path)
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically, without changing line ends."""
    with atomic_write(path) as draft:
        draft.write_text(text, encoding="utf-8", newline="")


def remove_drafts(folder: Path, recursive: bool = True) -> None:
    """Remove all drafts in or below a folder to which no other process writes."""
    for pattern in DRAFTS:
        for draft in folder.rglob(pattern) if recursive else folder.glob(pattern):
            if draft.is_symlink() or not draft.is_dir():
                draft.unlink(missing_ok=True)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a hidden folder beside `out` to write into; on success rename it to `out`, on failure remove it.

    Raises:
        UserError: `out` exists and is not an empty folder, cannot be created, or another run is writing it.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UserError(f"{out}: exists and is not a folder; choose another path or remove it")
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out}: the folder is not empty; choose another path or remove it")
    draft = out.with_name(f".{out.name}.partial")
    created = [folder for folder in out.parents if not folder.exists()]
    try:
        draft.mkdir(parents=True)
    except FileExistsError:
        raise UserError(f"{draft}: another run is writing it; if that run was killed, remove it") from None
    except OSError as error:
        raise UserError(f"{out}: cannot be created ({error.strerror}); fix that or choose another path") from None
    try:
        with _named(draft, out):
            yield draft
        if out.is_dir():
            out.rmdir()  # Windows cannot replace a folder, not even an empty one
        draft.replace(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        for folder in created:  # innermost first; folders with content stay
            with suppress(OSError):
                folder.rmdir()


@contextmanager
def _named(draft: Path, path: Path) -> Iterator[None]:
    """Replace the path of a draft by `path` in the errors of the block."""
    try:
        yield
    except UserError as error:
        if str(draft) not in str(error):
            raise
        raise UserError(str(error).replace(str(draft), str(path))) from None
    except OSError as error:
        if isinstance(error.filename, str):
            error.filename = error.filename.replace(str(draft), str(path))
        raise


def refuse_within(root: Path | str, out: Path | str, option: str) -> None:
    """Raise `UserError` if the folder given by `option` lies inside the data set `root`."""
    if Path(out).resolve().is_relative_to(Path(root).resolve()):
        raise UserError(f"{option}: {out} lies in the data set; choose a folder outside of it")


def refuse_existing(out: Path) -> None:
    """Raise `UserError` if `out` exists already, or cannot be created because a parent is a file."""
    try:
        exists, blocked = out.exists(), any(parent.is_file() for parent in out.parents)
    except OSError as error:
        raise UserError(f"{str(out)[:80]}…: {error.strerror}; choose another --out") from None
    if exists or blocked:
        problem = "this exists already" if exists else "a part of this path is a file"
        raise UserError(f"{out}: {problem}; give another --out")


def _mode_of_new_files(folder: Path) -> int:
    """Return the permissions that a new file in the folder gets: 644 with the usual umask.

    The umask of a process can only be read by changing it, which would affect other threads.
    """
    probe = folder / f".{token_hex(8)}.part"
    try:
        with probe.open("xb") as file:
            return stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    finally:
        probe.unlink(missing_ok=True)


def _link(draft: Path, path: Path) -> bool:
    """Hard-link the draft to `path`. Return whether `path` exists now; some file systems have no hard links."""
    try:
        path.hardlink_to(draft)
    except FileExistsError:
        pass
    except OSError:
        return False
    return True
