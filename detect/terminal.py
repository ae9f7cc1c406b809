"""Output to the terminal: progress bars on stderr, and tables."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from rich import progress
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")


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
    """Iterate with a progress bar on stderr, if that is a terminal and `shown` is true."""
    console = Console(stderr=True)
    disable = not (shown and console.is_terminal)
    yield from progress.track(items, description, total, console=console, disable=disable)


def stage(items: Iterable[T] | Sequence[T], description: str) -> Iterator[T]:
    """Iterate like `track`; without a terminal, print the description as one line."""
    if not sys.stderr.isatty():
        print(description, file=sys.stderr, flush=True)
    yield from track(items, description)
