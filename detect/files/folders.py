"""Folders for new results."""

from __future__ import annotations

from pathlib import Path

from detect.errors import UserError


def unused_folder(folder: Path) -> Path:
    """Return the first of `FOLDER`, `FOLDER_2`, `FOLDER_3`, … that does not exist."""
    numbered = (folder.with_name(f"{folder.name}_{number}") for number in range(2, 10**4))
    return next(path for path in (folder, *numbered) if not path.exists())


def refuse_used(out: Path, remedy: str = "") -> None:
    """Raise `UserError` if `out` is a file or a folder with content; the message ends with `remedy`."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: this is a file; give another --out")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: the folder is not empty; give another --out, or remove it{remedy}")


def create_folder(out: Path) -> None:
    """Create a folder, before any work that its absence would waste. Raise `UserError` if it cannot be created."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: {error.strerror}; choose another folder with --out") from None
