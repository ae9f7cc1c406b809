"""Loaders of batches, for detectors and for classifiers."""

from __future__ import annotations

import atexit
import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import cv2
import torch
from torch import distributed
from torch.utils import data

from detect.data.canvases import CanvasBatchSampler, Size
from detect.data.transforms import Resize


def make_loader(
    images: data.Dataset,
    sizes: Sequence[Size],
    *,
    batch_size: int,
    resizes: Sequence[Resize],
    canvases: int,
    collate: Callable[[Any], Any],
    workers: int,
    seed: int,
    trainer: Any = None,
    training: bool,
) -> data.DataLoader:
    """Batches of images that share a canvas, on each process those that are its own (`CanvasBatchSampler`).

    Args:
        images: gives the sample of an `Item`.
        sizes: heights and widths of the image files.
        batch_size, resizes, canvases, training, seed: as the sampler has them.
        collate: makes a batch of samples.
        workers: processes that load; 0 loads in this one.
        trainer: Lightning's, which tells the epoch and the batch at which training begins.
    """
    parallel = distributed.is_available() and distributed.is_initialized()
    sampler = CanvasBatchSampler(
        sizes=sizes,
        batch_size=batch_size,
        resizes=resizes,
        most_canvases=canvases,
        training=training,
        seed=seed,
        rank=distributed.get_rank() if parallel else 0,
        world_size=distributed.get_world_size() if parallel else 1,
    )
    if trainer is not None:
        # Workers begin before Lightning tells the epoch: a run that goes on would repeat the first one's batches.
        loop = trainer.fit_loop
        sampler.begin(loop.epoch_progress.current.processed, loop.epoch_loop.batch_progress.current.completed)
    return data.DataLoader(
        images,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=workers,
        persistent_workers=workers > 0 and training,
        pin_memory=torch.cuda.is_available(),
        # Its own, so that what the model draws depends neither on the workers nor on when they start.
        generator=torch.Generator().manual_seed(seed),
        worker_init_fn=partial(_begin_worker, ending=_ending()),
    )


@cache
def _ending() -> Any:
    """Whether this process is about to end, as its workers see it."""
    ending = multiprocessing.RawValue(ctypes.c_bool, False)
    atexit.register(setattr, ending, "value", True)
    return ending


def _begin_worker(worker: int, ending: Any) -> None:
    """Workers are parallel by themselves, and end with the process that they work for.

    Ctrl-C and a cluster's signals reach all processes of a run; the first one saves and then ends the others, whose
    death before would be an error to it. When it ends it sends SIGTERM itself and waits: that must be heard.
    """
    cv2.setNumThreads(0)

    def hear(*_: object) -> None:
        if ending.value:
            os._exit(0)

    signal.signal(signal.SIGTERM, hear)
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
