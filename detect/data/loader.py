"""Data loaders for detectors and classifiers."""

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
import numpy as np
import torch
from jaxtyping import Int
from torch import distributed
from torch.utils import data

from detect.cores import available_cores
from detect.data.canvases import CanvasBatchSampler, Size
from detect.data.transforms import Resize
from detect.devices import is_distributed


def make_loader(
    images: data.Dataset,
    sizes: Int[np.ndarray, "n 2"] | Sequence[Size],
    *,
    batch_size: int,
    resizes: Sequence[Resize],
    canvases: int,
    collate: Callable[[Any], Any],
    workers: int | None,
    seed: int,
    trainer: Any = None,
    training: bool,
    closing_from: int | None = None,
) -> data.DataLoader:
    """Return a loader of batches of images that share a canvas, by `CanvasBatchSampler`.

    Args:
        images: data set that maps an `Item` to a sample.
        sizes: heights and widths of the image files.
        batch_size: batch size per process.
        resizes: scales to draw from.
        canvases: maximum number of canvases per scale.
        collate: collate function, which makes a batch from samples.
        workers: data loading processes; 0 loads in this process, None takes `default_workers`.
        seed: determines shuffles, scales and augmentations.
        trainer: Lightning's trainer, which has the epoch and batch at which training starts.
        training: shuffle, draw scales and fill the batches.
        closing_from: as for `CanvasBatchSampler`.
    """
    rank, world_size = (distributed.get_rank(), distributed.get_world_size()) if is_distributed() else (0, 1)
    sampler = CanvasBatchSampler(sizes, batch_size, resizes, canvases, training, seed, rank, world_size, closing_from)
    if trainer is not None:
        # Workers start before Lightning sets the epoch: a resumed run would repeat the batches of the first epoch.
        loop = trainer.fit_loop
        sampler.resume_at(loop.epoch_progress.current.processed, loop.epoch_loop.batch_progress.current.completed)
    workers = default_workers() if workers is None else workers
    return data.DataLoader(
        images,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=workers,
        persistent_workers=workers > 0 and training,
        pin_memory=torch.cuda.is_available(),
        # A separate generator: the random numbers of the model must not depend on the workers.
        generator=torch.Generator().manual_seed(seed),
        worker_init_fn=partial(_init_worker, exiting=_exiting()),
    )


def default_workers() -> int:
    """Return two, or with GPUs the number of cores per GPU, up to eight; never more than there are cores."""
    gpus = torch.cuda.device_count()
    return min(8, max(1, available_cores() // gpus)) if gpus else min(2, available_cores())


@cache
def _exiting() -> Any:
    """Return a flag in shared memory, for the workers, that is set when this process exits."""
    exiting = multiprocessing.RawValue(ctypes.c_bool, False)
    atexit.register(setattr, exiting, "value", True)
    return exiting


def _init_worker(worker: int, exiting: Any) -> None:
    """Limit OpenCV to one thread, and ignore signals until the parent process exits.

    Ctrl-C and a cluster's signals reach all processes of a run. The parent saves a checkpoint and then ends its
    workers; if they ended earlier, it would raise an error. When it exits, it sends SIGTERM and waits for the workers,
    so they must not ignore that signal then.
    """
    cv2.setNumThreads(0)

    def on_sigterm(*_: object) -> None:
        if exiting.value:
            os._exit(0)

    signal.signal(signal.SIGTERM, on_sigterm)
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
