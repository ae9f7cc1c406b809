"""How long a run has trained, over all the sessions that it took: `training.json` in its folder."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from detect.training.run_folder import write


@rank_zero_only
def begin(out: Path, resume: bool) -> None:
    """Notes that a session begins in the folder of a run, after what earlier ones took."""
    _write(out, {"seconds": _so_far(out) if resume else 0.0, "since": time.time()})


@rank_zero_only
def end(out: Path) -> None:
    """Notes that the run is finished."""
    there = _read(out)
    before = there["seconds"]
    _write(out, {"seconds": None if before is None else before + time.time() - there["since"]})


def finished(out: Path) -> bool:
    """Whether training came to its end in this folder."""
    there = _read(out)
    return bool(there) and "since" not in there


def seconds(out: Path) -> float | None:
    """What a finished run took; None where that is not known."""
    return _read(out).get("seconds") if finished(out) else None


def _so_far(out: Path) -> float | None:
    """A session that did not end lasted until it last wrote anything: whatever killed it had no time to say so."""
    there = _read(out)
    if "since" not in there or there["seconds"] is None:
        return there.get("seconds")
    written = max(path.stat().st_mtime for path in out.rglob("*") if path.is_file())
    return there["seconds"] + max(0.0, written - there["since"])


def _read(out: Path) -> dict[str, Any]:
    """Nothing for a folder without the file, as that of a run before there was one."""
    file = out / "training.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def _write(out: Path, content: dict[str, Any]) -> None:
    write(out / "training.json", json.dumps(content))
