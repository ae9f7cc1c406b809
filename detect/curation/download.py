"""Download of public data sets, in the layouts of the readers.

    download("voc2007", Path("data"))  ->  data/voc2007/{JPEGImages, Annotations, ImageSets/Main}

An archive is stored as `<file>.part` next to the data set until it is unpacked, so that an interrupted transfer can be
resumed. The folder of the data set appears complete or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from rich.progress import Progress

from detect.curation.download_sources import SOURCES, Archive, Source
from detect.curation.unpack import DAMAGED, unpack
from detect.errors import UserError
from detect.files.atomic import new_folder
from detect.files.download import obtain, refused, transfer_bars, verify


def download(name: str, root: Path, *, sources: Mapping[str, Source] = SOURCES, progress: bool = True) -> Path:
    """Download a data set unless it exists, and return its folder.

    Args:
        name: `voc2007`, `voc2012`, `coco`, `bccd`, or a part: `coco/annotations`, `coco/train2017`, `coco/val2017`.
        root: folder of all data sets. Existing content of `root / name` is not changed.
        sources: source of each data set by name.
        progress: show transferred bytes, speed and remaining time.

    Returns:
        The folder for the reader: `root / name`, or for a part the folder of its data set.

    Raises:
        UserError: the name is unknown; the server cannot be reached, or does not send the expected file; an
            archive is damaged or would write outside of its folder; or the disk is full.
    """
    root = Path(root)
    names = [key for key in sources if key == name or key.startswith(f"{name}/")]
    if not names:
        raise UserError(f"{name}: no data set has this name; choose one of {', '.join(sources)}")
    with transfer_bars(progress) as bars:
        for key in names:
            folder = root / key
            if folder.is_dir() and any(folder.iterdir()):
                bars.console.print(f"{folder}: exists already; remove it to download it again")
                continue
            try:
                _install(sources[key], folder, root, bars)
            except OSError as error:  # of the disk; network errors are handled where they occur
                path = error.filename or folder
                raise UserError(f"{path}: {error.strerror or error}; fix that or choose another folder") from error
    return root / name.split("/")[0]


def _install(source: Source, folder: Path, root: Path, bars: Progress) -> None:
    """Download the archives of a source and unpack them into `folder`, with a note on their origin."""
    with new_folder(folder) as draft:  # created first, so that no second run writes the same archives
        files = [obtain(archive, root, source.limit, bars) for archive in source.archives]
        notes, remaining = [], source.limit
        for archive, file in zip(source.archives, files, strict=True):
            sha256 = verify(archive, file, bars)
            remaining = _unpack(archive, file, draft, remaining, bars)
            notes.append(f"{archive.url}\n{file.stat().st_size} bytes, sha256 {sha256}\n")
        (draft / "SOURCE.txt").write_text("".join(notes) + source.licence + "\n", encoding="utf-8")
    bars.console.print(f"{folder}: {source.licence}")
    for file in files:
        if file.suffix == ".part":  # files of the user are kept
            file.unlink()


def _unpack(archive: Archive, file: Path, into: Path, limit: int, bars: Progress) -> int:
    """Unpack an archive into a folder, and return the remainder of `limit` bytes."""
    task = bars.add_task(f"unpack {archive.file}", total=None)
    try:
        remaining = unpack(archive, file, into, limit, partial(bars.advance, task))
    except DAMAGED as error:
        raise refused(file, f"cannot be unpacked: {error}") from error
    bars.update(task, total=bars.tasks[task].completed)
    return remaining
