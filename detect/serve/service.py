"""From the bytes of an image to detections, within bounds on pixels and waiting requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from detect.data.decode import decode, image_size
from detect.prediction.result import Result, class_labels
from detect.prediction.sources import Frame
from detect.serve.batcher import Batcher, Detector
from detect.serve.metrics import Metrics

T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """Bounds of a service."""

    bytes: int = 16 * 2**20
    """Maximum size of a request's body."""
    pixels: int = 64_000_000
    """Maximum width × height of an image."""
    requests: int = 64
    """Maximum number of requests for predictions at a time."""
    seconds: float = 30.0
    """Maximum time of a request."""


class TooManyRequestsError(Exception):
    """The service has as many requests as its bound allows."""


class Service:
    """Detector that answers many requests at the same time.

    Images are checked and decoded in threads before they share a batch, so that a bad image never affects others.

    Args:
        detector: the detector.
        options: options of `detector.predict`, such as the device.
        limits: bounds.
        max_batch: maximum number of images per batch.
        max_wait: time in seconds that an image waits for others at most.
        cores: number of batches at a time; see `Batcher`.
        set_threads: sets the number of cores that the calling thread uses.
        threads: number of threads that decode images and write answers.
    """

    def __init__(
        self,
        detector: Detector,
        options: dict[str, Any],
        limits: Limits,
        max_batch: int = 1,
        max_wait: float = 0.005,
        cores: int = 1,
        set_threads: Callable[[int], None] = lambda threads: None,
        threads: int = 4,
    ) -> None:
        self.detector, self.limits, self.metrics = detector, limits, Metrics()
        detector.check_options(**options)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="detect-serve")
        self._batcher = Batcher(
            detector, options, max_batch, max_wait, cores, set_threads, self.metrics.batch_size.observe
        )
        self._pixels = _Budget(2 * limits.pixels)
        self._requests = 0

    @property
    def ready(self) -> bool:
        """True if images are taken."""
        return self._batcher.alive

    def warm_up(self) -> None:
        """Detect in a grey image, so that the first request does not wait for the network's preparation."""
        self._batcher.submit(Frame(np.full((480, 640, 3), 114, np.uint8)), self.detector.score).result()

    def close(self) -> None:
        """Answer what waits, then end all threads."""
        self._batcher.close()
        self._pool.shutdown()

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Count a request in. Raise `TooManyRequestsError` if there are too many."""
        if self._requests >= self.limits.requests:
            raise TooManyRequestsError
        self._requests += 1
        self.metrics.in_progress.set(self._requests)
        try:
            yield
        finally:
            self._requests -= 1
            self.metrics.in_progress.set(self._requests)

    async def detect(
        self, data: bytes, score: float | None, classes: Sequence[str], answer: Callable[[Result], T]
    ) -> T:
        """Return the answer for an image, which a thread computes from the detections.

        Args:
            data: bytes of an image file.
            score: score threshold; None for the detector's.
            classes: names of the classes to keep; all if empty.
            answer: function of the detections, whose image it may use.

        Raises:
            UserError: the image cannot be read, or an option is invalid.
        """
        labels = class_labels(classes, self.detector.classes) if classes else None
        threshold = self.detector.score if score is None else score
        self.detector.check_options(score=threshold)
        width, height = await self._in_thread(lambda: image_size(data, max_pixels=self.limits.pixels))
        async with self._pixels.taken(width * height):
            frame = Frame(await self._in_thread(lambda: decode(data, max_pixels=self.limits.pixels)))
            result = await asyncio.wrap_future(self._batcher.submit(frame, threshold))
            if labels is not None:
                result = result.filter(classes=labels)
            self.metrics.detections.inc(len(result))
            return await self._in_thread(lambda: answer(result))

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function)


class _Budget:
    """Number of pixels that may be in memory at a time; who needs more than are free waits."""

    def __init__(self, pixels: int) -> None:
        self._free, self._changed = pixels, asyncio.Condition()

    @asynccontextmanager
    async def taken(self, pixels: int) -> AsyncIterator[None]:
        """Take pixels for the time of the block."""
        async with self._changed:
            await self._changed.wait_for(lambda: pixels <= self._free)
            self._free -= pixels
        try:
            yield
        finally:
            async with self._changed:
                self._free += pixels
                self._changed.notify_all()
