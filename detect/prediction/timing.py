"""Time and memory of a detector per image, measured in a separate process.

The batch size is 1, on the canvases of evaluation. The time is from pixels on the device to detections on the device,
without decoding, resizing and copying. A proposal store has only the result of selective search, so that search is
repeated to time it, on each image at its original size, with torch's number of threads.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from detect.allocator import keep_pages
from detect.checkpoint import load_checkpoint
from detect.data.canvases import Item
from detect.data.datamodule import DetectionData
from detect.data.dataset import Dataset
from detect.data.decode import decode
from detect.errors import UserError
from detect.models import MODELS, Detector, TwoStage
from detect.prediction.prepare import prepare
from detect.proposals.selective_search import Mode, selective_search
from detect.proposals.store import ProposalStore
from detect.structures import Detections, Images, Proposals

STAGES = ("proposals", "features", "heads", "postprocessing")
"""Stages of detection; `postprocessing` is the rest of the time. A mask head is another stage, `masks`."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Time and memory per image."""

    seconds: float
    """Median over the images."""
    stages: dict[str, float]
    """The median divided among the stages, in the proportions of the total time of all images."""
    memory: int | None
    """Peak memory in bytes: on a CUDA device what torch allocated, else the growth of the process's resident memory
    since before the checkpoint was loaded, without memory that only loading needed. None if the system does not report
    it."""


@dataclass(frozen=True, slots=True)
class _Search:
    """Options of selective search for a proposal store."""

    mode: Mode
    seed: int


def measure_cost(
    checkpoint: Path,
    overrides: Sequence[str],
    data: DetectionData,
    dataset: Dataset,
    count: int,
    device: torch.device,
) -> Cost:
    """Measure time and memory of a checkpoint on images evenly spaced over a split, after a warm-up.

    Args:
        checkpoint: see `load_checkpoint`.
        overrides: see `load_checkpoint`.
        data: data of the detector, which loads the images as in evaluation.
        dataset: the split.
        count: maximum number of images, each timed once.
        device: device of the detector. The process uses as many threads as this one.

    Raises:
        UserError: the process was killed.
    """
    loader = data.eval_loader(dataset)
    sampler: Any = loader.batch_sampler
    items = [item for batch in sampler for item in batch]
    items = [items[index] for index in np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)]
    search = None if data.options.proposals is None else _search_options(data.options.proposals)
    samples: Any = loader.dataset
    arguments = (checkpoint, overrides, samples, loader.collate_fn, items, search, device, torch.get_num_threads())
    # A new process lacks the detectors that code outside of the package has registered.
    spawn = get_context("spawn")
    with ProcessPoolExecutor(1, spawn, initializer=_register, initargs=(tuple(MODELS),)) as pool:
        try:
            return pool.submit(_measure, *arguments).result()
        except BrokenProcessPool:
            raise UserError(
                f"{checkpoint}: the timing process was killed, perhaps for lack of memory; free some memory"
            ) from None


def time_stages(
    model: Detector, images: Images, given: Proposals | None = None, now: Callable[[], float] = time.perf_counter
) -> tuple[Detections, dict[str, float]]:
    """Run a detector and return its detections and the seconds of each stage.

    Args:
        model: the detector.
        images: a batch.
        given: proposals, for a model without an RPN.
        now: clock, which first waits for the device.
    """
    seconds = dict.fromkeys(STAGES, 0.0)
    stages: list[tuple[str, Any, str]] = [("features", model, "features")]
    if isinstance(model, TwoStage):
        stages.append(("heads", model.region_head, "predict"))
        if model.rpn is not None:
            stages += [("proposals", model.rpn, "forward"), ("proposals", model.rpn, "propose")]
        if model.mask_head is not None:
            seconds["masks"] = 0.0
            stages.append(("masks", model.mask_head, "detect"))
    with torch.no_grad(), ExitStack() as stack:
        for stage, owner, method in stages:
            stack.enter_context(_timed(owner, method, seconds, stage, now))
        start = now()
        detections = model.detect(images, given)
        seconds["postprocessing"] = now() - start - sum(seconds.values())
    return detections, seconds


@contextmanager
def _timed(owner: Any, method: str, seconds: dict[str, float], stage: str, now: Callable[[], float]) -> Iterator[None]:
    """Add the time of each call of a method to `seconds[stage]`."""
    original = getattr(owner, method)

    def timed(*args: Any) -> Any:
        start = now()
        result = original(*args)
        seconds[stage] += now() - start
        return result

    setattr(owner, method, timed)
    try:
        yield
    finally:
        delattr(owner, method)


def _search_options(store: Path) -> _Search:
    with closing(ProposalStore(store)) as opened:
        return _Search(opened.parameters["mode"], opened.parameters["seed"])


def _register(models: Sequence[type[Detector]]) -> None:
    """Register detectors in the separate process."""
    MODELS[:] = models


def _measure(
    checkpoint: Path,
    overrides: Sequence[str],
    samples: Any,
    collate: Callable,
    items: Sequence[Item],
    search: _Search | None,
    device: torch.device,
    threads: int,
) -> Cost:
    """Measure time and memory, in the separate process."""
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    before = _resident("VmRSS")
    model = prepare(load_checkpoint(checkpoint, overrides).model.to(device))
    gc.collect()
    _reset_peak(device)
    keep_pages()

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    def time_image(item: Item) -> dict[str, float]:
        batch = collate([samples[item]])
        given = None if batch.proposals is None else batch.proposals.to(device)
        _, seconds = time_stages(model, batch.images.to(device), given, now)
        if search is not None:
            pixels, began = decode(samples.dataset.records[item.index].path), time.perf_counter()
            selective_search(pixels, search.mode, seed=search.seed, threads=threads)
            seconds["proposals"] += time.perf_counter() - began
        return seconds

    for item in {item.canvas: item for item in items}.values():  # warm-up with one image per canvas
        time_image(item)
    images = [time_image(item) for item in items]
    median = statistics.median(sum(seconds.values()) for seconds in images)
    spent = {stage: sum(seconds[stage] for seconds in images) for stage in images[0]}
    total = sum(spent.values())
    return Cost(median, {stage: median * seconds / total for stage, seconds in spent.items()}, _peak(device, before))


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # not on Linux
            Path("/proc/self/clear_refs").write_text("5")


def _peak(device: torch.device, before: int | None) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = _resident("VmHWM")
    return None if peak is None or before is None else peak - before


def _resident(key: str) -> int | None:
    """Return the resident memory of this process in bytes, now (VmRSS) or at the peak (VmHWM).

    getrusage's peak would include the parent process.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:")), None)
