"""`metrics.csv`: losses, learning rates and figures, a row each time that any are logged."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from detect.training.run_folder import is_first, told, write

Row = dict[str, Any]


class MetricsFile(Logger):
    """Each row is in the file when it is logged, and a kill at any time leaves what was there before.

    Lightning's own logger deletes the file of a run that goes on, and rewrites it in place for every new column.

    Args:
        file: where; a file that is there is begun anew unless `rows` says what of it stays.
        rows: how many rows a checkpoint has seen. Those after it will be logged again.
        step: the next step of that checkpoint: what was logged for it beforehand will be logged again, too.
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
        """Lightning wants one."""
        return self.file.stem

    @property
    def version(self) -> str:
        """Lightning wants one."""
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Adds a row."""
        row = {**metrics, "step": step}
        if row.keys() <= set(self._columns):
            with told(self.file), self.file.open("a", encoding="utf-8", newline="") as stream:
                stream.write(_lines([row], self._columns))
        else:
            self._columns = sorted({*self._columns, *row})
            self._rewrite([*_read(self.file), row])
        self.rows += 1

    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        """They are in config.yaml."""

    def _rewrite(self, rows: list[Row]) -> None:
        write(self.file, ",".join(self._columns) + "\r\n" + _lines(rows, self._columns))


def _read(file: Path) -> list[Row]:
    """The whole rows of the file, without one that was cut short."""
    if not file.exists():
        return []
    whole, _, _ = file.read_text(encoding="utf-8").rpartition("\n")
    return list(csv.DictReader(whole.splitlines()))


def _lines(rows: list[Row], columns: list[str]) -> str:
    text = io.StringIO(newline="")
    csv.DictWriter(text, columns).writerows(rows)
    return text.getvalue()
