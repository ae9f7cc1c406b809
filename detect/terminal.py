"""Output to the terminal: progress bars on stderr, and tables."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich import progress
from rich.console import Console, ConsoleOptions
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

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


@contextmanager
def step(description: str) -> Iterator[None]:
    """Show on stderr that a step runs: a spinner with the elapsed time, or one line without a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        print(description, file=sys.stderr, flush=True)
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        bar.add_task(description, total=None)
        yield


def table(titles: Sequence[str], rows: Iterable[Sequence[str | int | float | None]]) -> NameTable:
    """Return a table of text and numbers. Floats are shown in per cent, None as a dash."""
    return NameTable(titles, [[_cell(value) for value in row] for row in rows])


def fits(table: Table, console: Console) -> bool:
    """Return whether no cell of the table has to be wrapped on the console."""
    return console.measure(table, options=console.options.update(width=10_000)).maximum <= console.width


class NameTable:
    """Table whose first column holds names, which are never broken: a long one has a line of its own.

    Args:
        titles: titles of the columns; the first column is at the left.
        rows: cells of each row, one line each, as rich's markup.
    """

    def __init__(self, titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self.titles, self.rows = titles, rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table | Text]:
        columns = zip(self.titles, *self.rows, strict=True)
        widths = [max(map(_width, column)) for column in columns]
        if self.titles[-1] in TEXT_COLUMNS:  # the last column may wrap between words
            widths[-1] = min(widths[-1], max(20, options.max_width - sum(widths[:-1]) - 2 * (len(widths) - 1)))
        room = max(options.max_width - sum(widths[1:]) - 2 * (len(widths) - 1), len(self.titles[0]))
        widths[0] = min(widths[0], max(width for row in (self.titles, *self.rows) if (width := _width(row[0])) <= room))
        part = self._part(widths, show_header=True)
        for name, *cells in self.rows:
            if _width(name) > widths[0]:
                yield part
                yield Text.from_markup(name)
                part, name = self._part(widths, show_header=False), ""
            part.add_row(name, *cells)
        yield part

    def _part(self, widths: Sequence[int], show_header: bool) -> Table:
        part = Table(box=None, pad_edge=False, show_header=show_header)
        for title, width in zip(self.titles, widths, strict=True):
            part.add_column(title, justify="left" if title in TEXT_COLUMNS else "right", width=width, overflow="fold")
        return part


def _width(markup: str) -> int:
    return Text.from_markup(markup).cell_len


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
