"""Predictions on any number of images as files: pictures, videos, COCO's results, CSV. Nothing here needs torch."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import file_digest
from pathlib import Path
from threading import Event
from typing import Any, Protocol, TextIO, runtime_checkable

import numpy as np
from rich.progress import Progress, ProgressColumn, Task
from rich.text import Text

from detect.errors import UserError
from detect.prediction.listing import Listing, listing
from detect.prediction.parts import Parts, whole
from detect.prediction.result import Result
from detect.prediction.sources import Frame, frames, video_info
from detect.prediction.video import FPS, SizeError, film, stopped_by_interrupt
from detect.terminal import progress_bar

SAVED = ("pictures", "coco", "csv")
"""What can be written: annotated pictures and videos; predictions.json with images.json; predictions.csv."""

PICTURES = 1000
"""Of more images and videos than that no pictures are written unless they are asked for."""

_LONGEST = 65_500
"""Pixels along a side of the largest JPEG."""

_SPEED = ("batch_size", "compile", "device", "workers")
"""Options that a run may be gone on with otherwise: they say how it is computed, not what."""


@runtime_checkable
class Model(Protocol):
    """A trained detector, whatever runs it."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of its classes."""

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The data set's id of each class."""

    def predict(self, source: Any, *args: Any, **options: Any) -> Iterator[Result]:
        """A result for each of an iterator of frames, in its order."""


@dataclass
class Outcome:
    """What became of a run."""

    predicted: int = 0
    """Images, frames of videos among them, that were predicted on now."""
    merged: bool = False
    """Whether all is there; if not, other shards have work to do."""
    images: int = 0
    """Of the whole run, once it is merged."""
    detections: int = 0
    left_out: list[str] = field(default_factory=list)
    """A line for each file that could not be read or drawn: of the whole run if `merged`, else of what was done now."""


def predict(
    model: Model,
    sources: Sequence[str | Path],
    out: Path,
    *,
    checkpoint: Path,
    options: Mapping[str, Any] | None = None,
    save: Sequence[str] | None = None,
    shard: tuple[int, int] = (1, 1),
    download: bool = False,
    workers: int = 2,
) -> Outcome:
    """Writes what is in the images of some sources into the folder `out`.

    Whatever ends it, the same call goes on: nothing is predicted on twice but the part at work, at most 256 images or
    one video. Shards may run at the same time in the same folder; whichever finds all parts there merges them. Without
    a shard all that is left is done.

    Args:
        model: the detector.
        sources: paths, patterns, addresses, or `camera:0`, which is written until Ctrl-C.
        out: a new folder, or that of the same run.
        checkpoint: the model's file, by whose content a run knows it again.
        options: of `model.predict`, as plain values.
        save: some of `SAVED`; by default all, but no pictures of more than `PICTURES` images.
        shard: (i, n), the i-th of n shares of the work, from 1.
        download: whether addresses may be fetched.
        workers: threads that decode images ahead.

    Raises:
        UserError: a source or shard is none, a camera is to be shared, `out` holds another run or cannot be written.
    """
    options, (number, of) = dict(options or {}), shard
    if not 1 <= number <= of:
        raise UserError(f"--shard: {number}/{of}; give i/n with i from 1 to n, such as 1/{max(of, 1)}")
    if workers < 1:
        raise UserError(f"--workers: {workers}; give 1 or more")
    listed = listing(sources, out, download)
    if not download and (addresses := [name for name in listed.names if name.startswith(("http://", "https://"))]):
        raise UserError(f"{addresses[0]}: nothing is fetched unless you ask; allow it with --download")
    if of > 1 and listed.cameras:
        raise UserError(f"--shard: {listed.cameras[0]} cannot be shared, for nobody knows its length; leave it out")
    chosen = SAVED[len(listed.names) > PICTURES :] if save is None else [kind for kind in SAVED if kind in save]
    asked = {
        "sources": [str(source) for source in sources],
        "images": len(listed.names),
        "list of files": listed.digest,
        "checkpoint": _digest(checkpoint),
        "classes": model.classes,
        "category_ids": model.category_ids,
        "options": {name: value for name, value in options.items() if name not in _SPEED},
        "save": chosen,
    }
    for _ in model.predict(iter(()), **options):  # options of no meaning are refused before the folder is one of them
        pass
    outcome = Outcome()
    with _told(out):
        parts = Parts(out, asked, listed.size(int(options.get("batch_size", 1))))
        work = listed.parts(parts.size)
        mine = {part: work[part] for part in parts.missing(len(work)) if part % of == number - 1}
        try:
            with progress_bar(_Speed()) as bar:
                run = _Run(model, options, listed, parts, download, workers, outcome, bar)
                run.all(mine)
                if not parts.missing(len(work)) and not parts.done:
                    merging = bar.add_task("merging", total=len(work), unit="parts")
                    parts.merge(len(work), lambda: bar.advance(merging))
        except (OSError, UserError):
            # Another process that had the same work may have finished all of it, and removed the parts.
            if not parts.done:
                raise
        if done := parts.done:
            parts.sweep()
            return Outcome(outcome.predicted, merged=True, **done)
    return outcome


def shard_of(text: str) -> tuple[int, int]:
    """`2/8` as numbers. Raises `UserError` where it is no such thing."""
    number, slash, of = text.partition("/")
    if not (slash and number.isdecimal() and of.isdecimal()):
        raise UserError(f"--shard: {text!r}; give i/n with i from 1 to n, such as 1/4")
    return int(number), int(of)


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: the file cannot be read ({error.strerror}); check the path") from None


@contextmanager
def _told(out: Path) -> Iterator[None]:
    """What the system says of a full disk or of permissions, as one line."""
    try:
        yield
    except OSError as error:
        where, why = error.filename or out, error.strerror or error
        raise UserError(f"{where}: cannot be written ({why}); mend that, and the same command goes on") from None


@dataclass(frozen=True)
class _Run:
    """One process at work."""

    model: Model
    options: Mapping[str, Any]
    listed: Listing
    parts: Parts
    download: bool
    workers: int
    outcome: Outcome
    bar: Progress

    @property
    def draws(self) -> bool:
        return "pictures" in self.parts.asked["save"]

    def all(self, work: Mapping[int, Sequence[str]]) -> None:
        """Makes these parts, given by their numbers."""
        counts = [self.listed.count(names) for names in work.values()]
        total = None if None in counts else sum(filter(None, counts))
        self.bar.add_task("predicting", total=total, unit="images")
        for part, names in work.items():
            with self.parts.write(part) as lines:
                self._part(names, lines)

    def _part(self, names: Sequence[str], lines: TextIO) -> None:
        """Writes the pictures of a part, and its lines: first all results, then what could not be read."""
        left_out: list[str] = []

        def leave_out(name: str, error: UserError) -> None:
            left_out.append(str(error))
            self._advance()

        is_camera = names[0] in self.listed.cameras
        with (
            self._drawing(names[0], left_out) as draw,
            stopped_by_interrupt() if is_camera else nullcontext(Event()) as stopped,
        ):
            for result in self._results(names, leave_out):
                draw(result)
                lines.write(result.to_json() + "\n")
                self.outcome.predicted += 1
                self._advance()
                if stopped.is_set():
                    break
        for line in left_out:
            lines.write(json.dumps({"error": line}) + "\n")
        self.outcome.left_out.extend(left_out)

    def _advance(self) -> None:
        self.bar.advance(self.bar.task_ids[0])

    def _results(self, names: Sequence[str], leave_out: Callable[[str, UserError], None]) -> Iterator[Result]:
        """The results of a part, with their pixels where they are to be drawn."""
        waiting: deque[Frame] = deque()

        def read() -> Iterator[Frame]:
            stream = frames(list(names), download=self.download, workers=self.workers, on_error=leave_out)
            for frame in stream:
                if self.draws:
                    waiting.append(frame)
                yield frame

        for result in self.model.predict(read(), **self.options):
            yield replace(result, pixels=waiting.popleft().pixels) if self.draws else result

    @contextmanager
    def _drawing(self, name: str, left_out: list[str]) -> Iterator[Callable[[Result], None]]:
        """What draws each result of the part that begins with this name: into a picture, or all into one video.

        What is too large to be drawn is left out, with a line that says so.
        """
        if not self.draws:
            yield lambda result: None
        elif name in self.listed.streams:
            target = self.parts.out / "videos" / self.listed.target(name, ".mp4")
            fps = None if name in self.listed.cameras else _frame_rate(name)
            with whole(target, self.parts.drafts) as draft, film(draft, fps) as write:
                yield _film_or_tell(write, left_out)
        else:
            yield partial(self._write_picture, left_out)

    def _write_picture(self, left_out: list[str], result: Result) -> None:
        assert result.path is not None
        height, width = result.size
        if max(height, width) > _LONGEST:
            left_out.append(f"{result.path}: no picture of {width} × {height} pixels can be written")
            return
        target = self.parts.out / "pictures" / self.listed.target(result.path, ".jpg", ".jpeg")
        with whole(target, self.parts.drafts) as draft:
            result.plot(draft)


def _film_or_tell(write: Callable[[np.ndarray], None], left_out: list[str]) -> Callable[[Result], None]:
    """What draws results into a video, until one is of a size that none can have."""
    fits = True

    def draw(result: Result) -> None:
        nonlocal fits
        if fits:
            try:
                write(result.plot())
            except SizeError as error:
                fits = False
                left_out.append(f"{result.path}: {error}")

    return draw


def _frame_rate(video: str) -> float:
    try:
        return video_info(video).fps
    except UserError:  # it tells no rate; or it is damaged, which will be told when it is read
        return FPS


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} {task.fields['unit']}/s")
