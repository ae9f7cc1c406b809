"""Public data sets from their publishers: fetched, checked, unpacked into the layout that the readers know.

    download("voc2007", Path("data"))  ->  data/voc2007/{JPEGImages, Annotations, ImageSets/Main}

An archive grows as `<file>.part` beside the data set, where a cut transfer goes on later; it is removed once unpacked.
The folder of the data set appears in one step, complete, or not at all.
"""

from __future__ import annotations

import hashlib
import http.client
import ssl
import stat
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from detect.errors import UserError
from detect.files.atomic import new_folder

CHUNK = 1 << 20
BLOCK = 4096  # what the smallest file costs on disk, so that a million empty ones are no free lunch either
TIMEOUT = 30.0  # seconds without a byte
PAUSES = (1, 2, 4, 8)  # seconds before each new try; a try that brought data starts the row again
TRANSIENT = {408, 429, 500, 502, 503, 504}
NETWORK_ERRORS = (URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError)


@dataclass(frozen=True, slots=True)
class Archive:
    """One file of a publisher."""

    url: str
    file: str
    """Its name on disk: where it lies when it was brought by hand."""
    inside: str = "."
    """The folder of the archive that becomes the data set; what lies elsewhere is left out."""
    size: int | None = None
    """Bytes; None where the publisher makes the archive anew for each request."""
    checksum: str | None = None
    """`md5:…` or `sha256:…`; None where the publisher gives none."""


@dataclass(frozen=True, slots=True)
class Source:
    """What is unpacked into one folder, in one step."""

    archives: tuple[Archive, ...]
    limit: int
    """The most bytes it may take unpacked, well above what it does take: an archive that wants more is a bomb."""
    licence: str


# Keys are the folders under `root`; a key of two parts is a part of the data set named by its first.
# VOC and COCO are published over plain http: their checksums are what is trusted.
_VOC = "http://host.robots.ox.ac.uk/pascal/VOC"
_COCO = "http://images.cocodataset.org"
_VOC_LICENCE = (
    "The photographs are Flickr users', under Flickr's terms of use; made for research by the PASCAL VOC challenge."
)
_COCO_LICENCE = (
    "Annotations CC BY 4.0 (COCO Consortium); the photographs are Flickr users', each under its own licence."
)
SOURCES: dict[str, Source] = {
    "voc2007": Source(
        archives=(
            Archive(
                url=f"{_VOC}/voc2007/VOCtrainval_06-Nov-2007.tar",
                file="VOCtrainval_06-Nov-2007.tar",
                inside="VOCdevkit/VOC2007",
                size=460_032_000,
                checksum="md5:c52e279531787c972589f7e41ab4ae64",
            ),
            Archive(
                url=f"{_VOC}/voc2007/VOCtest_06-Nov-2007.tar",
                file="VOCtest_06-Nov-2007.tar",
                inside="VOCdevkit/VOC2007",
                size=451_020_800,
                checksum="md5:b6e924de25625d8de591ea690078ad9f",
            ),
        ),
        limit=3 * 10**9,
        licence=_VOC_LICENCE,
    ),
    "voc2012": Source(
        archives=(
            Archive(
                url=f"{_VOC}/voc2012/VOCtrainval_11-May-2012.tar",
                file="VOCtrainval_11-May-2012.tar",
                inside="VOCdevkit/VOC2012",
                size=1_999_639_040,
                checksum="md5:6cd6e144f989b92b3379bac3b3de84fd",
            ),
        ),
        limit=6 * 10**9,
        licence=_VOC_LICENCE,
    ),
    "coco/annotations": Source(
        archives=(
            Archive(
                url=f"{_COCO}/annotations/annotations_trainval2017.zip",
                file="annotations_trainval2017.zip",
                inside="annotations",
                size=252_907_541,
                checksum="md5:f4bbac642086de4f52a3fdda2de5fa2c",
            ),
        ),
        limit=4 * 10**9,
        licence=_COCO_LICENCE,
    ),
    "coco/val2017": Source(
        archives=(
            Archive(
                url=f"{_COCO}/zips/val2017.zip",
                file="val2017.zip",
                inside="val2017",
                size=815_585_330,
                checksum="md5:442b8da7639aecaf257c1dceb8ba8c80",
            ),
        ),
        limit=3 * 10**9,
        licence=_COCO_LICENCE,
    ),
    "coco/train2017": Source(
        archives=(
            Archive(
                url=f"{_COCO}/zips/train2017.zip",
                file="train2017.zip",
                inside="train2017",
                size=19_336_861_798,
                checksum="md5:cced6f7f71b7629ddf16f17bbcfab6b2",
            ),
        ),
        limit=40 * 10**9,
        licence=_COCO_LICENCE,
    ),
    "bccd": Source(
        archives=(
            Archive(  # GitHub packs the branch on request: neither size nor checksum is fixed
                url="https://github.com/Shenggan/BCCD_Dataset/archive/refs/heads/master.zip",
                file="BCCD_Dataset-master.zip",
                inside="BCCD_Dataset-master/BCCD",
            ),
        ),
        limit=10**8,
        licence="MIT (Shenggan/BCCD_Dataset).",
    ),
}


def download(name: str, root: Path, *, sources: Mapping[str, Source] = SOURCES, progress: bool = True) -> Path:
    """Fetches a data set unless it is there, and returns its folder.

    Args:
        name: `voc2007`, `voc2012`, `coco`, `bccd`, or a part: `coco/annotations`, `coco/train2017`, `coco/val2017`.
        root: the folder of all data sets. What is in `root / name` already is left as it is.
        sources: where each data set comes from, by name.
        progress: show bytes, speed and the time that remains.

    Returns:
        The folder to give to a reader: `root / name`, for a part that of the data set it belongs to.

    Raises:
        UserError: the name is unknown; the server cannot be reached, lacks the file or sends another one than expected;
            an archive is damaged or would write outside the folder; the disk is full.
    """
    root = Path(root)
    names = [key for key in sources if key == name or key.startswith(f"{name}/")]
    if not names:
        raise UserError(f"{name}: no data set of that name; there are {', '.join(sources)}")
    console = Console(stderr=True, quiet=not progress, markup=False, highlight=False, soft_wrap=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not progress) as bars:
        for key in names:
            folder = root / key
            if folder.is_dir() and any(folder.iterdir()):
                bars.console.print(f"{folder} is there already; remove it to download it anew")
                continue
            try:
                _install(sources[key], folder, root, bars)
            except OSError as error:  # of the disk; those of the network are dealt with where they occur
                place = error.filename or folder
                raise UserError(f"{place}: {error.strerror or error}; fix that or choose another folder") from error
    return root / name.split("/")[0]


def _install(source: Source, folder: Path, root: Path, bars: Progress) -> None:
    """Fetches the archives of a source and unpacks them into `folder`, with a note of where they came from."""
    with new_folder(folder) as draft:  # made first, so that no second run writes to the same archives
        files = [_obtain(archive, root, source.limit, bars) for archive in source.archives]
        notes, left = [], source.limit
        for archive, file in zip(source.archives, files, strict=True):
            sha256 = _verify(archive, file, bars)
            left = _unpack(archive, file, draft, left, bars)
            notes.append(f"{archive.url}\n{file.stat().st_size} bytes, sha256 {sha256}\n")
        (draft / "SOURCE.txt").write_text("".join(notes) + source.licence + "\n", encoding="utf-8")
    bars.console.print(f"{folder}: {source.licence}")
    for file in files:
        if file.suffix == ".part":  # what a person has put there stays
            file.unlink()


# ---------------------------------------------------------------------------------------------------------------- fetch


def _obtain(archive: Archive, root: Path, limit: int, bars: Progress) -> Path:
    """The whole archive on disk, not yet verified: the one brought by hand, or `<file>.part` once it is complete."""
    by_hand = root / archive.file
    if by_hand.is_file():
        return by_hand
    part = root / f"{archive.file}.part"
    task = bars.add_task(archive.file, total=archive.size)
    best, failures = 0, 0
    while True:
        have = part.stat().st_size if part.exists() else 0
        if have > best:
            best, failures = have, 0
        try:
            _transfer(archive, part, have, limit, bars, task)
            return part
        except NETWORK_ERRORS as error:
            final = isinstance(error, HTTPError) and error.code not in TRANSIENT
            if final or failures == len(PAUSES):
                raise UserError(f"{archive.url}: {_reason(error)}; {_remedy(part)}") from error
        time.sleep(PAUSES[failures])
        failures += 1


def _transfer(archive: Archive, part: Path, have: int, limit: int, bars: Progress, task) -> None:
    """One try to bring `part`, which holds `have` bytes, to its full size; a network error where it falls short."""
    if archive.size is not None and have == archive.size:
        bars.update(task, completed=have)
        return
    headers = {"User-Agent": "detect", **({"Range": f"bytes={have}-"} if have else {})}
    try:
        response = urlopen(Request(archive.url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        error.close()
        if error.code != 416 or not have:
            raise
        part.unlink()  # it is longer than the file, or as long as a file of unknown size: only a fresh start is sure
        raise ConnectionError("the server has no more of this file") from error
    with response:
        if response.status != 206 or not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            have = 0  # the server sends the file from its beginning
        total = None if response.length is None else have + response.length
        expected = archive.size or total
        if (total or expected) != expected or (expected or 0) > limit:
            wanted = archive.size or f"at most {limit}"
            raise UserError(f"{archive.url}: {total} bytes are offered where {wanted} were expected; {_remedy(part)}")
        bars.update(task, completed=have, total=expected)
        with part.open("ab" if have else "wb") as file:
            while chunk := response.read(CHUNK):
                have += file.write(chunk)
                bars.update(task, completed=have)
                if have > (expected or limit):
                    raise UserError(
                        f"{archive.url}: more than the {expected or limit} bytes expected came; {_remedy(part)}"
                    )
    if expected is not None and have < expected:
        raise ConnectionError(f"the connection was cut after {have} of {expected} bytes")


def _remedy(part: Path) -> str:
    return f"run this again later, or bring the file by other means to {part.with_suffix('')}"


def _reason(error: Exception) -> str:
    if isinstance(error, HTTPError):
        return f"the server answers {error.code} {error.reason}"
    return str(error.reason if isinstance(error, URLError) else error) or type(error).__name__


def _verify(archive: Archive, file: Path, bars: Progress) -> str:
    """The file's sha256, after its size and the publisher's checksum were found right."""
    algorithm, _, expected = (archive.checksum or "sha256:").partition(":")
    published, sha256 = hashlib.new(algorithm, usedforsecurity=False), hashlib.sha256()
    size = file.stat().st_size
    task = bars.add_task(f"verify {archive.file}", total=size)
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            sha256.update(chunk)
            published.update(chunk)
            bars.advance(task, len(chunk))
    if archive.size not in (None, size):
        raise _refuse(file, f"{size} bytes where {archive.size} were expected")
    if expected and published.hexdigest() != expected:
        raise _refuse(file, f"its {algorithm} is {published.hexdigest()} where {expected} was expected")
    if not expected:
        bars.console.print(f"{archive.file}: the publisher gives no checksum; sha256 {sha256.hexdigest()}")
    return sha256.hexdigest()


def _refuse(file: Path, what: str) -> UserError:
    """The error of a bad archive. One of ours is removed, for it would be taken up again; a person's own is theirs."""
    if file.suffix == ".part":
        file.unlink()
        return UserError(f"{file}: {what}; the file was removed, run this again to download it anew")
    return UserError(f"{file}: {what}; remove it or replace it by a good one")


# --------------------------------------------------------------------------------------------------------------- unpack


def _unpack(archive: Archive, file: Path, into: Path, limit: int, bars: Progress) -> int:
    """Writes the files below `archive.inside` to `into`; returns what is left of `limit` bytes.

    Nothing of an archive is believed: names must stay within it, only files and folders may be in it, and the bytes
    are counted as they are written.
    """
    task = bars.add_task(f"unpack {archive.file}", total=None)
    found = False
    try:
        for name, content in _files(file, zipped=archive.file.endswith(".zip")):
            path = PurePosixPath(name)
            if not path.is_relative_to(archive.inside):
                continue
            found = True
            target = into / path.relative_to(archive.inside)
            target.parent.mkdir(parents=True, exist_ok=True)
            limit -= BLOCK
            with content() as stream, target.open("wb") as out:
                while limit >= 0 and (chunk := stream.read(CHUNK)):
                    limit -= len(chunk)
                    out.write(chunk)
                    bars.advance(task, len(chunk))
            if limit < 0:
                raise ValueError("it unpacks to more than such a data set takes")
    except DAMAGED as error:
        raise _refuse(file, f"cannot be unpacked: {error}") from error
    if not found:
        raise _refuse(file, f"holds no {archive.inside}")
    bars.update(task, total=bars.tasks[task].completed)
    return limit


def _files(file: Path, *, zipped: bool) -> Iterator[tuple[str, Callable[[], IO[bytes]]]]:
    """Name and content of each regular file of a zip or tar. Raises ValueError for what no data set contains."""
    if zipped:
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where the zip was made on Windows
                _check(info.filename, plain=kind in (0, stat.S_IFREG, stat.S_IFDIR) and not info.flag_bits & 1)
                if not info.is_dir():
                    yield info.filename, partial(archive.open, info)
        return
    with tarfile.open(file, "r:") as archive:
        for member in archive:
            _check(member.name, plain=member.isreg() or member.isdir())
            if member.isreg():
                yield member.name, partial(archive.extractfile, member)  # type: ignore[misc]  # None for folders only


def _check(name: str, *, plain: bool) -> None:
    """Refuses names that lead out of the folder, on any system, and all entries but files and folders."""
    if name.startswith("/") or "\\" in name or ":" in name or "\0" in name or ".." in name.split("/"):
        raise ValueError(f"{name!r} would be written outside of its folder")
    if not plain:
        raise ValueError(f"{name!r} is a link, a device or encrypted")
