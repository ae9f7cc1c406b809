"""Selective search over many images, by as many processes as there are cores, into a store."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, field
from glob import glob
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float32

from detect.data.decode import decode
from detect.data.read import image_files
from detect.errors import UserError, one_line
from detect.proposals.selective_search import REVISION, Mode, available_cores, selective_search
from detect.proposals.store import ProposalStore, digest
from detect.terminal import progress_bar


@dataclass
class Outcome:
    """What became of the images."""

    added: int = 0
    present: int = 0
    """Had their proposals in the store, or are the same as another image."""
    unreadable: list[str] = field(default_factory=list)
    """For each image that could not be read, a line that says why."""


def propose(
    sources: Sequence[str], out: Path, mode: Mode = "fast", seed: int = 0, processes: int | None = None
) -> Outcome:
    """Puts the proposals of all images into the store `out`, made if there is none.

    Whatever ends it, the next call goes on: each image is in the store whole or not at all.

    Args:
        sources: data sets, folders, image files, or patterns such as `photos/*.jpg`.
        mode, seed: of `selective_search`.
        processes: how many work at a time; by default one for each core.

    Raises:
        UserError: a source holds no images, or `out` is no store or one of other parameters.
    """
    if processes is not None and processes < 1:
        raise UserError(f"--processes: {processes}; give 1 or more")
    paths = find_images(sources)
    processes = processes or available_cores()
    parameters = {"method": "selective search", "revision": REVISION, "mode": mode, "seed": seed}
    outcome = Outcome()
    with closing(ProposalStore(out, parameters)) as store, progress_bar() as bar:
        task = bar.add_task(f"proposing, {mode}", total=len(paths))
        for path, image, result in _results(paths, store, mode, seed, processes):
            if isinstance(result, str):
                outcome.unreadable.append(result)
            elif result is None:
                outcome.present += 1
            else:
                store.add(image, path.name, result)
                outcome.added += 1
            bar.advance(task)
    outcome.unreadable.sort()
    return outcome


def find_images(sources: Sequence[str]) -> list[Path]:
    """The images of data sets, folders, files and patterns, each once, in order."""
    found: dict[Path, None] = {}
    for source in sources:
        path = Path(source)
        if path.is_dir():
            paths = image_files(path)
        elif path.exists():
            paths = [path]
        else:
            paths = [Path(name) for name in sorted(glob(source, recursive=True)) if Path(name).is_file()]  # noqa: PTH207
        if not paths:
            raise UserError(f"{source}: no images; give a data set, a folder, a file or a pattern such as '*.jpg'")
        found |= dict.fromkeys(paths)
    return list(found)


Result = Float32[np.ndarray, "n 4"] | str | None
"""Proposals, why there are none, or nothing where none were wanted."""


def _results(
    paths: Iterable[Path], store: ProposalStore, mode: Mode, seed: int, processes: int
) -> Iterator[tuple[Path, bytes, Result]]:
    """Each image with its digest and its result, as they come; few are under way at a time, for results take memory."""
    # Spawned: a fork of a process that has threads may hang.
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_begin)
    running: dict[Future[Result], tuple[Path, bytes]] = {}
    begun: set[bytes] = set()

    def finished(all_of_them: bool = False) -> Iterator[tuple[Path, bytes, Result]]:
        while running and (all_of_them or len(running) >= 3 * processes):
            for job in wait(running, return_when=FIRST_COMPLETED).done:
                yield *running.pop(job), job.result()

    try:
        for path in paths:
            try:
                image = digest(path)
            except OSError as error:
                yield path, b"", one_line(f"{path}: {error.strerror}")
                continue
            if image in begun or image in store:
                yield path, image, None
                continue
            begun.add(image)
            running[pool.submit(_propose, path, mode, seed)] = path, image
            yield from finished()
        yield from finished(all_of_them=True)
    except BrokenProcessPool:
        raise UserError("a process was killed, maybe for want of memory; start again with fewer --processes") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    """A process that works for another: one thread, and Ctrl-C is for the one that it works for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)


def _propose(path: Path, mode: Mode, seed: int) -> Result:
    try:
        image = decode(path)
    except UserError as error:
        return str(error)
    try:
        return selective_search(image, mode, seed=seed, threads=1)
    except UserError as error:  # too large
        return one_line(f"{path}: {error}")
