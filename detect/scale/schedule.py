"""Schedule of the parts of a run on workers that may die, for any engine that runs the workers.

A worker that dies costs at most the piece that it was computing. A part that kills its worker three times is halved,
down to the single image that kills three workers, which is left out.
"""

from __future__ import annotations

import json
import logging
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from detect.errors import UserError
from detect.prediction.predict import Outcome, Run

log = logging.getLogger(__name__)
_MAX_DEATHS = 3
"""Number of workers that a whole part or a single image may kill; anything between is halved after one."""

_MAX_FUTILE_DEATHS = 20
"""Number of deaths per worker without a single completed piece, after which the run ends."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Images of a part, from index `start` to before `stop`; a video is one image."""

    part: int
    start: int
    stop: int
    whole: bool
    """True if these are all images of the part."""

    def halves(self) -> tuple[Piece, Piece]:
        """Return the first and the second half."""
        middle = (self.start + self.stop) // 2
        return Piece(self.part, self.start, middle, False), Piece(self.part, middle, self.stop, False)


@runtime_checkable
class Workers(Protocol):
    """Workers, each of which computes one piece at a time. Those that die are replaced."""

    count: int
    """Number of workers."""

    @property
    def idle(self) -> bool:
        """True if a worker is ready for a piece."""

    @property
    def busy(self) -> bool:
        """True if a worker computes a piece."""

    def start(self, piece: Piece) -> None:
        """Give a piece to an idle worker, which writes it into the folder of the run."""

    def wait(self) -> Sequence[tuple[Piece, Outcome | None]]:
        """Wait until a worker is ready, has completed its piece or has died.

        Returns:
            The pieces that workers no longer compute, with their outcome, or None if the worker died.
        """


def predict_parts(run: Run, parts: Mapping[int, Sequence[str]], workers: Workers) -> None:
    """Predict on parts, given as names by index.

    Raises:
        UserError: all workers die.
    """
    schedule = _Schedule(run, parts)
    while schedule.queue or workers.busy:
        while schedule.queue and workers.idle:
            workers.start(schedule.queue.popleft())
        for piece, outcome in workers.wait():
            if outcome is None:
                schedule.add_death(piece, workers.count)
            else:
                schedule.add(piece, outcome)


@dataclass
class _Schedule:
    """Pieces left to do, and what is known of the others."""

    run: Run
    parts: Mapping[int, Sequence[str]]
    queue: deque[Piece] = field(init=False)
    deaths: Counter[Piece] = field(default_factory=Counter)
    completed: bool = False
    """True if a worker has completed any piece."""
    missing: Counter[int] = field(default_factory=Counter)
    """Number of images left to do of each part that was halved."""
    starts: dict[int, list[int]] = field(default_factory=dict)
    """Starts of the complete pieces of each part that was halved."""

    def __post_init__(self) -> None:
        self.queue = deque(Piece(part, 0, len(names), True) for part, names in self.parts.items())

    def add(self, piece: Piece, outcome: Outcome) -> None:
        """Note that a worker has completed a piece."""
        self.completed = True
        self._close(piece, outcome)

    def _close(self, piece: Piece, outcome: Outcome) -> None:
        """Count the images of a piece that is written; join its part if it was the last piece of a halved part."""
        images = piece.stop - piece.start
        self.run.outcome.predicted += outcome.predicted
        self.run.outcome.left_out.extend(outcome.left_out)
        self.run.advance(max(images, outcome.predicted))
        if not piece.whole:
            self.starts[piece.part].append(piece.start)
            self.missing[piece.part] -= images
            if not self.missing[piece.part]:
                self.run.folder.join_pieces(piece.part, sorted(self.starts.pop(piece.part)))

    def add_death(self, piece: Piece, workers: int) -> None:
        """Repeat, halve or leave out a piece whose worker has died."""
        self.deaths[piece] += 1
        name, images = self.parts[piece.part][piece.start], piece.stop - piece.start
        log.warning("a worker died while it predicted on %s%s", name, f" and the next {images - 1}" * (images > 1))
        if not self.completed and self.deaths.total() >= _MAX_FUTILE_DEATHS * workers:
            raise UserError(
                f"{self.deaths.total()} workers died, and none completed a part, perhaps for lack of memory; try fewer "
                "--actors, or one image without --engine"
            )
        is_single = images == 1
        if self.deaths[piece] < _MAX_DEATHS and (piece.whole or is_single):
            self.queue.appendleft(piece)
        elif is_single:
            self._leave_out(piece, name)
        else:
            if piece.whole:
                self.missing[piece.part], self.starts[piece.part] = piece.stop, []
            self.queue.extendleft(reversed(piece.halves()))

    def _leave_out(self, piece: Piece, name: str) -> None:
        line = f"{name}: {_MAX_DEATHS} workers died on it, perhaps for lack of memory"
        with self.run.folder.write_part(piece.part, None if piece.whole else piece.start) as lines:
            lines.write(json.dumps({"error": line}) + "\n")
        self._close(piece, Outcome(left_out=[line]))
