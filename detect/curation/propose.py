"""Selective search over many images, in one process per core, into a proposal store."""

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

from detect.cores import available_cores
from detect.data.decode import decode
from detect.data.read import image_files
from detect.errors import UserError, one_line
from detect.proposals.selective_search import REVISION, Mode, selective_search
from detect.proposals.store import ProposalStore, digest
from detect.terminal import progress_bar


@dataclass
class Outcome:
    """Result of a run."""

    added: int = 0
    """Number of images whose proposals were added."""
    present: int = 0
    """Number of images that were already in the store or are equal to another image."""
    unreadable: list[str] = field(default_factory=list)
    """Unreadable images, one line each, with the reason."""


def propose(
    sources: Sequence[str],
    out: Path,
    mode: Mode = "fast",
    seed: int = 0,
    processes: int | None = None,
    splits: Sequence[str] | None = None,
) -> Outcome:
    """Add the proposals of all images to the store `out`, which is created if necessary.

    An interrupted call can be repeated: each image is in the store completely or not at all.

    Args:
        sources: data sets, folders, image files, or patterns such as `photos/*.jpg`.
        out: file of the store.
        mode: as for `selective_search`.
        seed: as for `selective_search`.
        processes: number of processes; by default one per core.
        splits: splits of the data sets; by default all.

    Raises:
        UserError: a source has no images, or `out` is not a store, or a store with other parameters.
    """
    if processes is not None and processes < 1:
        raise UserError(f"--processes: {processes}; give 1 or more")
    paths = find_images(sources, splits)
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


def find_images(sources: Sequence[str], splits: Sequence[str] | None = None) -> list[Path]:
    """Return the images of data sets, of which some splits can be chosen, folders, files and patterns, each once."""
    images: dict[Path, None] = {}
    for source in sources:
        path = Path(source)
        if path.is_dir():
            paths = image_files(path, splits)
        elif path.exists():
            paths = [path]
        else:
            paths = [Path(name) for name in sorted(glob(source, recursive=True)) if Path(name).is_file()]  # noqa: PTH207
        if not paths:
            raise UserError(f"{source}: no images; give a data set, a folder, a file or a pattern such as '*.jpg'")
        images |= dict.fromkeys(paths)
    return list(images)


Result = Float32[np.ndarray, "n 4"] | str | None
"""Proposals, or the reason why the image has none, or None if the image is already in the store."""


def _results(
    paths: Iterable[Path], store: ProposalStore, mode: Mode, seed: int, processes: int
) -> Iterator[tuple[Path, bytes, Result]]:
    """Yield each image with its digest and result, in order of completion.

    Only a few jobs are submitted at a time, because results take memory.
    """
    # Spawned, because a fork of a process with threads may hang.
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_init_process)
    running: dict[Future[Result], tuple[Path, bytes]] = {}
    started: set[bytes] = set()

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
            if image in started or image in store:
                yield path, image, None
                continue
            started.add(image)
            running[pool.submit(_propose, path, mode, seed)] = path, image
            yield from finished()
        yield from finished(all_of_them=True)
    except BrokenProcessPool:
        raise UserError(
            "a process was killed, perhaps for lack of memory; start again with fewer --processes"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _init_process() -> None:
    """Ignore Ctrl-C, which the parent process handles, and use one thread."""
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
