"""Training time of a run over all its sessions, in `training.json` in its folder."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from detect.training.run_folder import write


@rank_zero_only
def begin(out: Path, resume: bool) -> None:
    """Record the start of a session in a run's folder, with the seconds of earlier sessions."""
    _write(out, {"seconds": _seconds_so_far(out) if resume else 0.0, "since": time.time()})


@rank_zero_only
def end(out: Path) -> None:
    """Record that the run is finished."""
    record = _read(out)
    before = record["seconds"]
    _write(out, {"seconds": None if before is None else before + time.time() - record["since"]})


def finished(out: Path) -> bool:
    """Return whether the run is finished."""
    record = _read(out)
    return bool(record) and "since" not in record


def seconds(out: Path) -> float | None:
    """Return the seconds of a finished run; None if they are not known."""
    return _read(out).get("seconds") if finished(out) else None


def _seconds_so_far(out: Path) -> float | None:
    """Return the seconds of earlier sessions. A killed session counts until its last write to the folder."""
    record = _read(out)
    if "since" not in record or record["seconds"] is None:
        return record.get("seconds")
    written = max(path.stat().st_mtime for path in out.rglob("*") if path.is_file())
    return record["seconds"] + max(0.0, written - record["since"])


def _read(out: Path) -> dict[str, Any]:
    """Return the content of the file, or an empty dictionary without one."""
    file = out / "training.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def _write(out: Path, content: dict[str, Any]) -> None:
    write(out / "training.json", json.dumps(content))
