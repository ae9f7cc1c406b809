"""A thread that runs a detector on batches of the images that wait for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Condition, Thread
from typing import Any, Protocol, runtime_checkable

from detect.prediction.predict import Model
from detect.prediction.result import Result
from detect.prediction.sources import Frame


@runtime_checkable
class Detector(Model, Protocol):
    """Trained detector, run by torch or by another runtime."""

    @property
    def score(self) -> float:
        """Score threshold if none is given."""

    @property
    def min_score(self) -> float:
        """Lowest score threshold that may be given."""

    def canvas(self, height: int, width: int) -> tuple[int, int]:
        """Return the size of the network's input; images with the same one can share a batch without padding."""


@dataclass(frozen=True, slots=True)
class _Job:
    """An image that waits for its result."""

    frame: Frame
    score: float
    batch: Hashable
    """Only jobs with the same value share a batch."""
    future: Future[Result] = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)


class Batcher:
    """Runs a detector in threads of its own.

    Images share a batch if they have the same canvas and score threshold, so that a result does not depend on the other
    images of its batch, apart from rounding.

    Args:
        detector: the detector; `predict` may be called from several threads.
        options: options of `detector.predict`, such as the device.
        max_batch: maximum number of images per batch.
        max_wait: time in seconds that an image waits for others at most.
        cores: number of batches at a time. Each shares the work of a batch among the cores that the others leave.
        set_threads: sets the number of cores that the calling thread uses.
        on_batch: called with the number of images of each batch.
    """

    def __init__(
        self,
        detector: Detector,
        options: dict[str, Any],
        max_batch: int,
        max_wait: float,
        cores: int = 1,
        set_threads: Callable[[int], None] = lambda threads: None,
        on_batch: Callable[[int], None] = lambda size: None,
    ) -> None:
        self.detector, self.options = detector, options
        self.max_batch, self.max_wait, self.on_batch = max_batch, max_wait, on_batch
        self.cores, self.set_threads = cores, set_threads
        self._jobs: list[_Job] = []
        self._running = 0
        self._changed = Condition()
        self._closed = False
        self._threads = [Thread(target=self._run, name="detect-batcher", daemon=True) for _ in range(cores)]
        for thread in self._threads:
            thread.start()

    @property
    def alive(self) -> bool:
        """True if the threads run and take images."""
        return not self._closed and all(thread.is_alive() for thread in self._threads)

    def submit(self, frame: Frame, score: float) -> Future[Result]:
        """Return the future result of an image. If it is cancelled in time, the image is not processed."""
        height, width = frame.pixels.shape[:2]
        job = _Job(frame, score, (self.detector.canvas(height, width), score))
        with self._changed:
            if self._closed:
                raise RuntimeError("the batcher is closed")
            self._jobs.append(job)
            self._changed.notify()
        return job.future

    def close(self) -> None:
        """Process the images that wait, and end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while batch := self._next_batch():
            running = [job for job in batch if job.future.set_running_or_notify_cancel()]
            if running:
                self.set_threads(max(1, self.cores // (self._running + len(self._jobs))))
                self.on_batch(len(running))
                self._answer(running)
            with self._changed:
                self._running -= 1

    def _next_batch(self) -> list[_Job]:
        """Wait for images and take the batch of the one that has waited longest; empty once closed and done."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._jobs or self._closed)
                if not self._jobs:
                    return []
                mates = [job for job in self._jobs if job.batch == self._jobs[0].batch][: self.max_batch]
                left = self._jobs[0].arrived + self.max_wait - time.monotonic()
                if len(mates) == self.max_batch or left <= 0 or self._closed:
                    taken = set(map(id, mates))
                    self._jobs = [job for job in self._jobs if id(job) not in taken]
                    self._running += 1
                    return mates
                self._changed.wait(left)

    def _answer(self, jobs: list[_Job]) -> None:
        """Set the results of a batch. If it fails, each image is tried alone, so that none fails because of others."""
        try:
            frames = [job.frame for job in jobs]
            options = {"score": jobs[0].score, "batch_size": len(jobs), "workers": 0, **self.options}
            results = list(self.detector.predict(frames, **options))
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].future.set_exception(error)
                return
            for job in jobs:
                self._answer([job])
            return
        for job, result in zip(jobs, results, strict=True):
            job.future.set_result(result)
