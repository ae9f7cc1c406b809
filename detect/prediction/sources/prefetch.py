"""Prefetching of images in threads, in order and in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from functools import partial
from typing import TypeGuard

from detect.errors import UserError
from detect.prediction.sources.items import Frame, ImageItem, Items, StreamItem


def prefetch(items: Items, workers: int) -> Items:
    """Yield the same items; threads load up to 2 · `workers` images ahead of the first, which the caller loads itself.

    A single image then needs no thread, whose start may take longer than decoding.
    """
    waiting: deque[ImageItem | StreamItem] = deque()
    is_first = True
    failure: Exception | None = None
    pool = ThreadPoolExecutor(workers, thread_name_prefix="detect-decode")
    try:
        while True:
            while len(waiting) < 2 * workers and failure is None:
                try:
                    item = next(items)
                    waiting.append(item if is_first and _is_file(item) else _start(item, pool))
                    is_first = False
                except StopIteration:
                    break
                except Exception as error:  # for example of the caller's iterator; raised after the items before it
                    failure = error
            if not waiting:
                break
            yield waiting.popleft()
        if failure is not None:
            raise failure
    finally:
        pool.shutdown(cancel_futures=True)


def _is_file(item: ImageItem | StreamItem) -> TypeGuard[ImageItem]:
    """Return whether an image may be loaded at any later time."""
    return isinstance(item, ImageItem) and item.prefetch


def _start(item: ImageItem | StreamItem, pool: ThreadPoolExecutor) -> ImageItem | StreamItem:
    """Start loading an item, and return an item that waits for the result."""
    if isinstance(item, StreamItem):
        return replace(item, open=partial(_prefetch_frames, item.open, pool)) if item.prefetch else item
    if _is_file(item):
        return replace(item, load=pool.submit(item.load).result)
    future: Future[Frame] = Future()
    try:
        future.set_result(item.load())
    except UserError as error:
        future.set_exception(error)
    return replace(item, load=future.result)


def _prefetch_frames(
    open: Callable[[], Generator[Frame, None, None]], pool: ThreadPoolExecutor
) -> Generator[Frame, None, None]:
    """Yield the frames of a video; a thread decodes the next frame at the same time."""
    stream = open()
    upcoming = pool.submit(next, stream, None)
    try:
        while (frame := upcoming.result()) is not None:
            upcoming = pool.submit(next, stream, None)
            yield frame
    finally:
        if not upcoming.cancel():
            wait([upcoming])
        stream.close()
