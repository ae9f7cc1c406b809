"""Prediction on any number of images, written as pictures, videos, COCO results and CSV, without importing torch."""

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
from detect.files.atomic import atomic_write
from detect.prediction.listing import Listing, Part, list_sources
from detect.prediction.output_folder import OutputFolder
from detect.prediction.result import Result
from detect.prediction.sources import Frame, frames, video_info
from detect.prediction.video import FPS, VideoSizeError, stop_on_interrupt, video_writer
from detect.terminal import progress_bar

KINDS = ("pictures", "coco", "csv")
"""Kinds of output: annotated pictures and videos; predictions.json with images.json; predictions.csv."""

MAX_PICTURES = 1000
"""Maximum number of images and videos for which pictures are written by default."""

_MAX_JPEG_SIDE = 65_500
"""Maximum side of a JPEG in pixels."""

_SPEED = ("batch_size", "compile", "device", "workers")
"""Options that may change when a run is continued, because they affect its speed, not its results."""


@runtime_checkable
class Model(Protocol):
    """Trained detector, run by torch or by another runtime."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names."""

    @property
    def category_ids(self) -> tuple[int, ...]:
        """Category id of each class in the training data."""

    @property
    def predicts_masks(self) -> bool:
        """True if the results have masks."""

    def check_options(self, *args: Any, **options: Any) -> None:
        """Raise `UserError` if an option of `predict` is invalid."""

    def predict(self, source: Any, *args: Any, **options: Any) -> Iterator[Result]:
        """Yield a result for each frame of an iterator, in order."""


@dataclass
class Outcome:
    """Outcome of a run."""

    predicted: int = 0
    """Number of images, including frames of videos, on which this call has predicted."""
    merged: bool = False
    """True if the run is complete; otherwise other shards are incomplete."""
    images: int = 0
    """Number of images of the whole run, once it is merged."""
    detections: int = 0
    """Number of detections of the whole run, once it is merged."""
    left_out: list[str] = field(default_factory=list)
    """A line per file that could not be read or drawn: of the whole run if `merged`, else of this call."""


Engine = Callable[["Run", Mapping[int, Sequence[str]]], None]
"""Function that predicts on parts of a run, given as names by index, and writes them into its folder."""


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
    engine: Engine | None = None,
) -> Outcome:
    """Predict on the images of some sources and write the results into a folder.

    An interrupted run is continued by the same call; only the part that was being predicted, at most 256 images or one
    video, is predicted again. Shards may run at the same time in one folder, and the last one merges them. A call
    without a shard does all that is left.

    Args:
        model: the detector.
        sources: paths, patterns, web addresses, or `camera:0`, which is recorded until Ctrl-C.
        out: a new folder, or the folder of the same run.
        checkpoint: file of the model, whose content identifies the run.
        options: options of `model.predict`, as JSON values.
        save: some of `KINDS`; by default all, but no pictures of more than `MAX_PICTURES` images.
        shard: (i, n) for the i-th of n shards of the work, from 1.
        download: allow web addresses to be downloaded.
        workers: number of threads that decode images ahead.
        engine: predicts on the missing parts, perhaps on other machines; by default this process does.

    Raises:
        UserError: an argument is invalid, `out` has another run or cannot be written.
    """
    options = dict(options or {})
    _check_shard(shard)
    if workers < 1:
        raise UserError(f"--workers: {workers}; give 1 or more")
    listing = list_sources(sources, out, download)
    _check_sources(listing, shard, download)
    settings = _settings(model, sources, listing, checkpoint, options, save)
    model.check_options(**options)
    with _system_errors_as_user_errors(out):
        folder = OutputFolder(out, settings, listing.part_size(int(options.get("batch_size", 1))))
        run = Run(model, checkpoint, options, listing, folder, download, workers)
        return run.complete(engine or _predict_here, shard)


def parse_shard(text: str) -> tuple[int, int]:
    """Return the numbers of a shard such as `2/8`. Raise `UserError` for other texts."""
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal()):
        raise UserError(f"--shard: {text!r}; give i/n with i from 1 to n, such as 1/4")
    return int(number), int(count)


def _check_shard(shard: tuple[int, int]) -> None:
    number, count = shard
    if not 1 <= number <= count:
        raise UserError(f"--shard: {number}/{count}; give i/n with i from 1 to n, such as 1/{max(count, 1)}")


def _check_sources(listing: Listing, shard: tuple[int, int], download: bool) -> None:
    urls = [name for name in listing.names if name.startswith(("http://", "https://"))]
    if urls and not download:
        raise UserError(f"{urls[0]}: downloads are disabled; enable them with --download")
    if shard[1] > 1 and listing.cameras:
        raise UserError(f"--shard: {listing.cameras[0]} cannot be split, since its length is unknown; leave it out")


def _settings(
    model: Model,
    sources: Sequence[str | Path],
    listing: Listing,
    checkpoint: Path,
    options: Mapping[str, Any],
    save: Sequence[str] | None,
) -> dict[str, Any]:
    """Return all settings that affect the results; the keys are part of the manifest's format."""
    if save is None:
        save = KINDS[len(listing.names) > MAX_PICTURES :]
    return {
        "sources": [str(source) for source in sources],
        "images": len(listing.names),
        "list of files": listing.digest,
        "checkpoint": _sha256(checkpoint),
        "classes": model.classes,
        "category_ids": model.category_ids,
        **({"masks": True} if model.predicts_masks else {}),
        "options": {name: value for name, value in options.items() if name not in _SPEED},
        "save": [kind for kind in KINDS if kind in save],
    }


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: the file cannot be read ({error.strerror}); check the path") from None


@contextmanager
def _system_errors_as_user_errors(out: Path) -> Iterator[None]:
    """Turn errors such as a full disk or missing permissions into one line."""
    try:
        yield
    except OSError as error:
        path, reason = error.filename or out, error.strerror or error
        raise UserError(f"{path}: cannot be written ({reason}); fix this and run the same command again") from None


@dataclass(frozen=True)
class Run:
    """Work of one process on a run whose arguments have been checked and whose folder is open."""

    model: Model
    checkpoint: Path
    options: Mapping[str, Any]
    listing: Listing
    folder: OutputFolder
    download: bool
    workers: int
    outcome: Outcome = field(default_factory=Outcome)
    bar: Progress = field(default_factory=lambda: progress_bar(_Speed()))

    def complete(self, engine: Engine, shard: tuple[int, int]) -> Outcome:
        """Predict on the missing parts of a shard, then merge all parts if none is missing."""
        folder, parts = self.folder, self.listing.parts(self.folder.part_size)
        number, count = shard
        work = {index: parts[index] for index in folder.missing_parts(len(parts)) if index % count == number - 1}
        try:
            with self.bar:
                self._show_total(work)
                engine(self, work)
                if not folder.missing_parts(len(parts)) and not folder.summary:
                    merging = self.bar.add_task("merging", total=len(parts), unit="parts")
                    folder.merge(len(parts), lambda: self.bar.advance(merging))
        except (OSError, UserError):
            # Another process with the same parts may have finished the run and removed them.
            if not folder.summary:
                raise
        if summary := folder.summary:
            folder.remove_parts()
            return Outcome(self.outcome.predicted, merged=True, **summary)
        return self.outcome

    def advance(self, images: int = 1) -> None:
        """Advance the progress bar."""
        self.bar.advance(self.bar.task_ids[0], images)

    def _show_total(self, parts: Mapping[int, Sequence[str]]) -> None:
        counts = [self.listing.count_images(names) for names in parts.values()]
        total = None if None in counts else sum(filter(None, counts))
        self.bar.add_task("predicting", total=total, unit="images")


def _predict_here(run: Run, parts: Mapping[int, Sequence[str]]) -> None:
    """Predict on parts in this process."""
    predictor = PartPredictor(run.model, run.options, run.folder, run.download, run.workers, run.outcome, run.advance)
    for part, names in parts.items():
        with run.folder.write_part(part) as lines:
            predictor.predict(run.listing.part(names, run.folder.draws), lines)


@dataclass(frozen=True)
class PartPredictor:
    """Prediction on single parts of a run."""

    model: Model
    options: Mapping[str, Any]
    folder: OutputFolder
    download: bool
    workers: int
    outcome: Outcome
    """Counts of all calls."""
    advance: Callable[[], None] = lambda: None
    """Called after each image."""

    def predict(self, part: Part, lines: TextIO) -> None:
        """Write the pictures of a part and its lines: all results, then the images that could not be read."""
        left_out: list[str] = []

        def leave_out(name: str, error: UserError) -> None:
            left_out.append(str(error))
            self.advance()

        with (
            self._drawing(part, left_out) as draw,
            stop_on_interrupt() if part.kind == "camera" else nullcontext(Event()) as stopped,
        ):
            for result in self._results(part.names, leave_out):
                draw(result)
                lines.write(result.to_json() + "\n")
                self.outcome.predicted += 1
                self.advance()
                if stopped.is_set():
                    break
        for line in left_out:
            lines.write(json.dumps({"error": line}) + "\n")
        self.outcome.left_out.extend(left_out)

    def _results(self, names: Sequence[str], leave_out: Callable[[str, UserError], None]) -> Iterator[Result]:
        """Yield the results of a part, with their pixels if pictures are drawn."""
        waiting: deque[Frame] = deque()

        def read() -> Iterator[Frame]:
            for frame in frames(list(names), download=self.download, workers=self.workers, on_error=leave_out):
                if self.folder.draws:
                    waiting.append(frame)
                yield frame

        for result in self.model.predict(read(), **self.options):
            yield replace(result, pixels=waiting.popleft().pixels) if self.folder.draws else result

    @contextmanager
    def _drawing(self, part: Part, left_out: list[str]) -> Iterator[Callable[[Result], None]]:
        """Yield a function that draws each result of a part, to pictures or to one video.

        Images that are too large for a picture add a line to `left_out`.
        """
        if not self.folder.draws:
            yield lambda result: None
        elif part.kind == "images":
            yield partial(self._draw_picture, dict(zip(part.names, part.drawings, strict=True)), left_out)
        else:
            path = self.folder.out / "videos" / part.drawings[0]
            fps = None if part.kind == "camera" else _frame_rate(part.names[0])
            with atomic_write(path, self.folder.parts) as draft, video_writer(draft, fps) as write:
                yield _draw_video(write, left_out)

    def _draw_picture(self, drawings: Mapping[str, str], left_out: list[str], result: Result) -> None:
        assert result.path is not None
        height, width = result.size
        if max(height, width) > _MAX_JPEG_SIDE:
            left_out.append(f"{result.path}: no picture of {width} × {height} pixels can be written")
            return
        path = self.folder.out / "pictures" / drawings[result.path]
        with atomic_write(path, self.folder.parts) as draft:
            result.plot(draft)


def _draw_video(write: Callable[[np.ndarray], None], left_out: list[str]) -> Callable[[Result], None]:
    """Return a function that draws results into a video, unless its size is not supported."""
    fits = True

    def draw(result: Result) -> None:
        nonlocal fits
        if fits:
            try:
                write(result.plot())
            except VideoSizeError as error:
                fits = False
                left_out.append(f"{result.path}: {error}")

    return draw


def _frame_rate(video: str) -> float:
    try:
        return video_info(video).fps
    except UserError:  # no frame rate, or damaged, which is reported when it is read
        return FPS


class _Speed(ProgressColumn):
    """Images or parts per second."""

    def render(self, task: Task) -> Text:
        """Return the speed of a task."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} {task.fields['unit']}/s")
