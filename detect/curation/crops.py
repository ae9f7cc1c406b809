"""A detection data set to a classification data set: each object becomes an image of its class.

    SOURCE, any format that `read` knows  ->  OUT/SPLIT/CLASS/IMAGE_k.jpg

`k` is the place of the box among those of its image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float32, UInt8
from rich.console import Console
from rich.progress import track

from detect.data.dataset import Dataset, Record
from detect.data.decode import decode
from detect.data.read import read_all
from detect.errors import UserError
from detect.files.atomic import new_folder

MIN_SIDE = 16
"""Pixels. A box with a shorter side shows too little to be recognised."""
QUALITY = 95  # of the JPEGs
_UNSAFE = frozenset('/\\:*?"<>|')


@dataclass(slots=True)
class Crops:
    """What became of the boxes."""

    crops: Counter[str] = field(default_factory=Counter)
    """Images written, by class."""
    small: int = 0
    """Boxes left out because a side is shorter than `MIN_SIDE`."""
    crowds: int = 0
    """Regions of many objects, left out."""
    unreadable: list[str] = field(default_factory=list)
    """Images left out, with the reason."""
    renamed: dict[str, str] = field(default_factory=dict)
    """The folders of classes whose names are no names of folders."""

    def lines(self) -> list[str]:
        """What to tell the user."""
        named = [f"class {name!r}: its folder is {folder}" for name, folder in self.renamed.items()]
        left_out = f"{self.small} boxes with a side under {MIN_SIDE} pixels and {self.crowds} crowds left out"
        return [*named, f"{self.crops.total()} images of {len(self.crops)} classes; {left_out}"]

    def add(self, other: Crops) -> None:
        """Adds what became of other boxes."""
        self.crops.update(other.crops)
        self.small += other.small
        self.crowds += other.crowds
        self.unreadable += other.unreadable


def to_imagefolder(
    source: Path | str,
    out: Path,
    names: Sequence[str] | None = None,
    *,
    margin: float = 0.1,
    limit: int | None = None,
    follow_links: bool = False,
    progress: bool = True,
) -> Crops:
    """Cuts the objects of a detection data set out of their images, for `read_imagefolder` to read.

    Args:
        source: the folder of the data set.
        out: the new folder; it appears complete or not at all.
        names: the splits; by default all.
        margin: what is cut out around a box on each side, as a share of its width and height, up to the image's edge.
        limit: take the first so many images of each split.
        follow_links: read what links out of the source lead to.
        progress: show a bar.

    Raises:
        UserError: `source` cannot be read, `out` is not empty or cannot be written, `margin` or `limit` makes no
            sense, or the names of two classes would be one folder.
    """
    if not 0 <= margin <= 10:
        raise UserError(f"--margin: {margin:g}; give a share of the box's size, within 0 … 10")
    if limit is not None and limit < 1:
        raise UserError(f"--limit: {limit}; convert 1 image at least")
    by_split = read_all(source, names, follow_links=follow_links, progress=progress)
    folders = folder_names(dict.fromkeys(name for dataset in by_split.values() for name in dataset.classes))
    whole = Crops(renamed={name: folder for name, folder in folders.items() if name != folder})
    try:
        with new_folder(Path(out)) as draft:
            for split, dataset in by_split.items():
                lost = (defect for defect in dataset.repaired if defect.rule in ("missing-image", "unreadable-image"))
                whole.unreadable += [f"{defect.path}: {defect.detail}" for defect in lost]
                kept = replace(dataset, records=dataset.records[:limit])
                whole.add(_convert(kept, draft / split, folders, margin, progress))
            if not whole.crops:
                raise UserError(f"{source}: has no box to cut out whose sides are {MIN_SIDE} pixels or more")
    except OSError as error:
        raise UserError(f"{error.filename or out}: {error.strerror}; fix that or choose another --out") from error
    return whole


def folder_names(classes: Iterable[str]) -> dict[str, str]:
    """A folder for each class, which `safe_name` gives.

    Raises `UserError` where nothing is left of a name, or two names become one, also for systems that ignore case.
    """
    folders: dict[str, str] = {}
    class_of: dict[str, str] = {}
    for name in classes:
        folders[name] = safe = safe_name(name)
        if not safe:
            raise UserError(f"class {name!r}: no folder can have this name; give it another one in the annotations")
        if (other := class_of.setdefault(safe.casefold(), name)) != name:
            raise UserError(f"classes {other!r} and {name!r}: their images would share a folder; rename one of them")
    return folders


def safe_name(name: str) -> str:
    """A name of a file or folder that leads nowhere else, is not hidden and that Windows allows; perhaps nothing."""
    safe = "".join("_" if letter in _UNSAFE or not letter.isprintable() else letter for letter in name)
    return safe.strip(". ")


def cut_out(
    image: UInt8[np.ndarray, "H W 3"], box: Float32[np.ndarray, " 4"], margin: float
) -> UInt8[np.ndarray, "h w 3"]:
    """Every pixel that a box (xyxy) with a margin around it touches; the margin is a share of the box's sides."""
    height, width = image.shape[:2]
    space = margin * (box[2:] - box[:2])
    left, top = np.floor(np.maximum(box[:2] - space, 0)).astype(int)
    right, bottom = np.ceil(np.minimum(box[2:] + space, (width, height))).astype(int)
    return image[top:bottom, left:right]


def _convert(dataset: Dataset, out: Path, folders: Mapping[str, str], margin: float, progress: bool) -> Crops:
    """Writes the objects of a split."""
    console = Console(stderr=True)
    shown = progress and console.is_terminal
    whole = Crops()

    def cut(record: Record, stem: str) -> Crops:
        return _cut(record, stem, dataset.classes, out, folders, margin)

    # Closing the generator cancels what is not begun, so that an interrupt does not wait for all the images.
    with ThreadPoolExecutor() as pool, closing(pool.map(cut, dataset.records, _stems(dataset))) as parts:  # type: ignore[type-var]
        total = len(dataset)
        for part in track(parts, f"Cutting out {dataset.split}", total=total, console=console, disable=not shown):
            whole.add(part)
    return whole


def _cut(
    record: Record, stem: str, classes: Sequence[str], out: Path, folders: Mapping[str, str], margin: float
) -> Crops:
    """Writes the objects of an image."""
    small = (record.boxes[:, 2:] - record.boxes[:, :2]).min(axis=1, initial=np.inf) < MIN_SIDE
    result = Crops(small=int((small & ~record.crowd).sum()), crowds=int(record.crowd.sum()))
    chosen = np.flatnonzero(~small & ~record.crowd)
    if not len(chosen):
        return result
    try:
        image = decode(record.path)
    except UserError as error:  # a damage that its header does not show
        return Crops(unreadable=[str(error).rpartition("; ")[0]])
    for place in chosen:
        name = classes[record.labels[place]]
        file = out / folders[name] / f"{stem}_{place}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        crop = cut_out(image, record.boxes[place], margin)
        _, jpeg = cv2.imencode(".jpg", crop[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        file.write_bytes(jpeg.tobytes())
        result.crops[name] += 1
    return result


def _stems(dataset: Dataset) -> list[str]:
    """The names of the image files; where two in different folders have the same, the images' ids."""
    stems = [record.path.stem for record in dataset.records]
    if len({stem.casefold() for stem in stems}) == len(stems):
        return stems
    return [str(record.id) for record in dataset.records]
