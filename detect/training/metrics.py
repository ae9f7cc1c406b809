"""`metrics.csv`: losses, learning rates and metrics, one row per logging call."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from detect.training.run_folder import disk_errors, is_first, write

Row = dict[str, Any]


class MetricsFile(Logger):
    """Logger that writes each row immediately, so that a killed run keeps everything that was logged.

    Lightning's own logger deletes the file when a run resumes, and rewrites it in place for every new column.

    Args:
        file: path; an existing file is overwritten, except for `rows`.
        rows: number of rows when the checkpoint was written; later rows will be logged again.
        step: next step of that checkpoint; its rows will be logged again, too.
    """

    def __init__(self, file: Path, rows: int = 0, step: int = 0) -> None:
        super().__init__()
        self.file = file
        kept = [row for row in _read(file)[:rows] if int(row["step"]) < step] if rows else []
        self.rows, self._columns = len(kept), sorted(set().union(*kept))
        if is_first():
            if kept:
                self._rewrite(kept)
            else:
                file.unlink(missing_ok=True)

    @property
    def name(self) -> str:
        """Name of the logger."""
        return self.file.stem

    @property
    def version(self) -> str:
        """Version of the logger; there is none."""
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a row."""
        row = {**metrics, "step": step}
        if row.keys() <= set(self._columns):
            with disk_errors(self.file), self.file.open("a", encoding="utf-8", newline="") as stream:
                stream.write(_lines([row], self._columns))
        else:
            self._columns = sorted({*self._columns, *row})
            self._rewrite([*_read(self.file), row])
        self.rows += 1

    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        """Do nothing: the options are in config.yaml."""

    def _rewrite(self, rows: list[Row]) -> None:
        write(self.file, ",".join(self._columns) + "\r\n" + _lines(rows, self._columns))


def _read(file: Path) -> list[Row]:
    """Return the complete rows of the file, without a truncated last one."""
    if not file.exists():
        return []
    complete, _, _ = file.read_text(encoding="utf-8").rpartition("\n")
    return list(csv.DictReader(complete.splitlines()))


def _lines(rows: list[Row], columns: list[str]) -> str:
    text = io.StringIO(newline="")
    csv.DictWriter(text, columns).writerows(rows)
    return text.getvalue()
