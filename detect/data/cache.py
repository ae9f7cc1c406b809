"""Large splits that were read and checked once, kept in columns in the user's cache until a file of them changes.

    ~/.cache/detect/splits/DIGEST/dataset.json  classes, repaired defects
    ~/.cache/detect/splits/DIGEST/boxes.npy …   the columns of `Records`, which are mapped into memory

The digest is of all files of the data folder, by path, size, inode and times, and of what was asked for. The time of
the last change (ctime) is among them, which programs cannot set: new content with an old date is a change, too. All
processes of a machine share a split: one reads it, and the others wait for it.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from detect.data.dataset import Dataset, Defect
from detect.data.records import Records
from detect.data.tree import Tree
from detect.files.atomic import new_folder
from detect.versions import __version__

VERSION = 1
"""Version of the layout; others are not read."""
MIN_FILES, MIN_BYTES = 5_000, 2**25
"""A split is kept if its folder has this many files, or one annotation file of this size; others are read quickly."""
MAX_DAYS = 30
"""Splits that were not used for longer are removed."""
_ANNOTATIONS = (".json", ".csv", ".xml", ".txt")


def remembered(tree: Tree, follow_links: bool, asked: tuple[Any, ...], read: Callable[[], Dataset]) -> Dataset:
    """Return the split that `read` returns, from the cache if it was read before and no file has changed.

    Args:
        tree: files of the data folder.
        follow_links: follow links to folders.
        asked: all arguments on which the result depends.
        read: reads and checks the split.
    """
    digest, is_large = _state(tree, follow_links, asked)
    folder = _cache() / digest
    if not is_large or not _can_use(folder.parent):
        return read()
    with _alone(folder.with_suffix(".lock")):
        dataset = _load(folder, tree.root)
        if dataset is None:
            shutil.rmtree(folder, ignore_errors=True)  # it may be damaged
            dataset = read()
            if _state(tree, follow_links, asked)[0] == digest:  # no file has changed meanwhile
                with suppress(OSError):  # for example of a full disk
                    _save(folder, dataset)
        return dataset


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "detect" / "splits"


def _can_use(folder: Path) -> bool:
    """Create the folder of all splits, and remove those that were not used for long; return whether it is writable."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        oldest = time.time() - MAX_DAYS * 86_400
        for entry in folder.iterdir():
            if entry.stat().st_mtime < oldest:
                shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink(missing_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _state(tree: Tree, follow_links: bool, asked: tuple[Any, ...]) -> tuple[str, bool]:
    """Return a digest of what was asked for and of all files below the data folder, and whether they are many."""
    digest = blake2b(repr((VERSION, __version__, os.path.realpath(tree.root), asked)).encode(), digest_size=20)
    files, largest = 0, 0
    for path, status in _files(tree.root, follow_links):
        digest.update(os.fsencode(path.removeprefix(str(tree.root))))
        digest.update(
            b"%d %d %d %d" % (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino),
        )
        files += 1
        if path.endswith(_ANNOTATIONS):
            largest = max(largest, status.st_size)
    return digest.hexdigest(), files >= MIN_FILES or largest >= MIN_BYTES


def _files(root: Path, follow_links: bool) -> Iterator[tuple[str, os.stat_result]]:
    """Yield all files and folders below a folder in a fixed order; links to files are followed."""
    seen = set()
    folders = [str(root)]
    while folders:
        folder = folders.pop()
        with suppress(OSError), os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                try:
                    status = entry.stat()
                except OSError:  # a link that leads nowhere
                    status = entry.stat(follow_symlinks=False)
                yield entry.path, status
                if entry.is_dir(follow_symlinks=follow_links) and (status.st_dev, status.st_ino) not in seen:
                    seen.add((status.st_dev, status.st_ino))
                    folders.append(entry.path)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other process holds the lock; it is released when this process ends, however it does."""
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows: two processes may both read the split
        yield
        return
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _save(folder: Path, dataset: Dataset) -> None:
    root = f"{dataset.root}{os.sep}"
    if not isinstance(dataset.records, Records) or dataset.records.folder != root:  # images elsewhere may change
        return
    content = {
        "version": VERSION,
        "split": dataset.split,
        "format": dataset.format,
        "classes": dataset.classes,
        "category_ids": dataset.category_ids,
        "repaired": [(one.rule, *_below(root, str(one.path)), one.detail) for one in dataset.repaired],
    }
    with new_folder(folder) as draft:
        for name, array in dataset.records.arrays().items():
            np.save(draft / f"{name}.npy", array, allow_pickle=False)
        (draft / "dataset.json").write_text(json.dumps(content))


def _below(root: str, path: str) -> tuple[bool, str]:
    """Return whether a path is below the data folder, and its path there."""
    return path.startswith(root), path.removeprefix(root)


def _load(folder: Path, root: Path) -> Dataset | None:
    """Return the split in a folder, with the paths of its images below `root`, or None if there is none."""
    try:
        content = json.loads((folder / "dataset.json").read_text())
        arrays = {path.stem: np.load(path, mmap_mode="r", allow_pickle=False) for path in folder.glob("*.npy")}
        start = f"{root}{os.sep}"
        records = Records.from_arrays(start, arrays)
        repaired = [
            Defect(rule, Path(start + path if below else path), detail)
            for rule, below, path, detail in content["repaired"]
        ]
        os.utime(folder)  # it was used
    except (OSError, ValueError, KeyError):
        return None
    return Dataset(
        root=root,
        split=content["split"],
        format=content["format"],
        classes=tuple(content["classes"]),
        category_ids=tuple(content["category_ids"]),
        records=records,
        repaired=tuple(repaired),
    )
