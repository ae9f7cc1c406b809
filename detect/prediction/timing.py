"""Where a detector's time and memory go on one image, measured in a process of its own.

Images come one at a time, at the canvas that they have in the evaluation. The clock runs from the pixels on the device
to the detections there; decoding, resizing and copying are left out. A store keeps only the result of selective search,
so its time is that of searching each image anew, in pixels of the file, on as many threads as torch has.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, suppress
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
from detect.models import Detector
from detect.prediction.prepare import prepare
from detect.proposals.selective_search import Mode, selective_search
from detect.proposals.store import ProposalStore
from detect.structures import Detections, Images, Proposals

STAGES = ("proposals", "features", "heads", "postprocessing")


@dataclass(frozen=True, slots=True)
class Cost:
    """What an image costs."""

    seconds: float
    """The median over the images."""
    stages: dict[str, float]
    """How the median divides into `STAGES`, as the time of all the images together does."""
    memory: int | None
    """Bytes at the peak: what torch allocated on a CUDA device, else by how much more was resident of the process than
    before the checkpoint was loaded, not counting what only loading needed. None where the system does not tell."""


@dataclass(frozen=True, slots=True)
class _Search:
    """What a store was made with."""

    mode: Mode
    seed: int


def measure(
    checkpoint: Path,
    overrides: Sequence[str],
    data: DetectionData,
    dataset: Dataset,
    count: int,
    device: torch.device,
) -> Cost:
    """Time and memory of a checkpoint on at most `count` images, evenly spread over a split, after a warm-up.

    Args:
        checkpoint, overrides: as for `load_checkpoint`.
        data, dataset: how the images reach the network, and the split.
        count: images, each of which is timed once.
        device: where the detector runs; the threads are those of this process.

    Raises `UserError` where the process is killed.
    """
    loader = data.eval_loader(dataset)
    sampler: Any = loader.batch_sampler
    items = [item for batch in sampler for item in batch]
    items = [items[place] for place in np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)]
    search = None if data.options.proposals is None else _search_of(data.options.proposals)
    samples: Any = loader.dataset
    arguments = (checkpoint, overrides, samples, loader.collate_fn, items, search, device, torch.get_num_threads())
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(_measure, *arguments).result()
        except BrokenProcessPool:
            raise UserError(f"{checkpoint}: the process that timed it was killed, maybe for want of memory") from None


def time_stages(
    model: Detector, images: Images, given: Proposals | None = None, now: Callable[[], float] = time.perf_counter
) -> tuple[Detections, dict[str, float]]:
    """What `Detector.detect` returns, and the seconds of each of `STAGES`; `now` waits for the device."""
    with torch.no_grad():
        times = [now()]
        features = model.features(images)
        times.append(now())
        proposals = model.regions(features, images, given)
        times.append(now())
        logits, deltas = model.heads(features, proposals.boxes)
        times.append(now())
        detections = model.postprocess(logits, deltas, proposals, images)
        times.append(now())
    laps = np.diff(times).tolist()
    return detections, dict(zip(("features", "proposals", "heads", "postprocessing"), laps, strict=True))


def _search_of(store: Path) -> _Search:
    with closing(ProposalStore(store)) as opened:
        return _Search(opened.parameters["mode"], opened.parameters["seed"])


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
    """The work of the process."""
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

    def image(item: Item) -> dict[str, float]:
        batch = collate([samples[item]])
        given = None if batch.proposals is None else batch.proposals.to(device)
        _, seconds = time_stages(model, batch.images.to(device), given, now)
        if search is not None:
            pixels, began = decode(samples.dataset.records[item.index].path), time.perf_counter()
            selective_search(pixels, search.mode, seed=search.seed, threads=threads)
            seconds["proposals"] += time.perf_counter() - began
        return seconds

    for first_of_its_canvas in {item.canvas: item for item in items}.values():
        image(first_of_its_canvas)
    images = [image(item) for item in items]
    median = statistics.median(sum(seconds.values()) for seconds in images)
    spent = {stage: sum(seconds[stage] for seconds in images) for stage in STAGES}
    whole = sum(spent.values())
    return Cost(median, {stage: median * part / whole for stage, part in spent.items()}, _peak(device, before))


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # elsewhere than on Linux
            Path("/proc/self/clear_refs").write_text("5")


def _peak(device: torch.device, before: int | None) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = _resident("VmHWM")
    return None if most is None or before is None else most - before


def _resident(figure: str) -> int | None:
    """Bytes of this process, now (VmRSS) or at the peak (VmHWM); getrusage's peak begins with that of the parent."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{figure}:")), None)
