"""Output to the terminal: progress bars on stderr, and tables."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from rich import progress
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from detect.errors import one_line

T = TypeVar("T")
TEXT_COLUMNS = ("metric", "class", "meaning", "config", "detector", "part")
"""Titles of table columns of text, which are left-aligned and may wrap."""


def progress_bar(*more: ProgressColumn, shown: bool = True) -> Progress:
    """Return a progress bar with counts, the columns in `more`, and elapsed and remaining time.

    It is shown on stderr, and only on a terminal.
    """
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        *more,
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not (shown and console.is_terminal),
    )


def track(
    items: Iterable[T] | Sequence[T], description: str, total: float | None = None, shown: bool = True
) -> Iterator[T]:
    """Iterate with a progress bar on stderr, if stderr is a terminal and `shown` is true."""
    console = Console(stderr=True)
    disable = not (shown and console.is_terminal)
    yield from progress.track(items, description, total, console=console, disable=disable)


def stage(items: Iterable[T] | Sequence[T], description: str) -> Iterator[T]:
    """Iterate like `track`; without a terminal, print the description as one line."""
    if not sys.stderr.isatty():
        print(description, file=sys.stderr, flush=True)
    yield from track(items, description)


def table(titles: Sequence[str], rows: Iterable[Sequence[str | int | float | None]]) -> Table:
    """Return a table of text and numbers. Floats are shown in per cent, None as a dash."""
    result = Table(box=None, pad_edge=False)
    for title in titles:
        is_text = title in TEXT_COLUMNS
        result.add_column(title, justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text)
    for row in rows:
        result.add_row(*map(_cell, row))
    return result


def _cell(value: str | int | float | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{100 * value:.1f}"
    if isinstance(value, int):
        return str(value)
    # Class names come from files, so rich's markup and terminal escape codes are escaped.
    return escape(one_line(value))


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of words as indented lines with aligned columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    first, *others = widths
    return [
        "  ".join(("", f"{row[0]:{first}}", *(f"{cell:>{width}}" for cell, width in zip(row[1:], others, strict=True))))
        for row in rows
    ]


def shorten(names: Sequence[str], limit: int = 6) -> str:
    """Return names in one line, at most `limit` of them and the number of the others."""
    more = [f"… and {len(names) - limit} more"] if len(names) > limit else []
    return ", ".join([*map(one_line, names[:limit]), *more])
