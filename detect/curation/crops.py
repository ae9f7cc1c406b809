"""Conversion of a detection data set to a classification data set: each object becomes an image.

    SOURCE, in any readable format  ->  OUT/SPLIT/CLASS/IMAGE_k.jpg

`k` is the index of the box in its image.
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

from detect.data.dataset import Dataset
from detect.data.decode import decode
from detect.data.read import read_all
from detect.data.records import Record
from detect.errors import UserError
from detect.files.atomic import new_folder
from detect.terminal import track

MIN_SIDE = 16
"""Pixels. A box with a shorter side is too small to be recognised."""
QUALITY = 95  # of the JPEGs
_UNSAFE = frozenset('/\\:*?"<>|')


@dataclass(slots=True)
class Crops:
    """Result of a conversion."""

    crops: Counter[str] = field(default_factory=Counter)
    """Number of images written per class."""
    small: int = 0
    """Number of boxes left out because a side is shorter than `MIN_SIDE`."""
    crowds: int = 0
    """Number of crowd regions, which are left out."""
    masks: int = 0
    """Number of objects whose mask is not used: an image shows the whole box."""
    unreadable: list[str] = field(default_factory=list)
    """Images left out, with the reason."""
    renamed: dict[str, str] = field(default_factory=dict)
    """Folder of each class whose name cannot be used as a folder name."""

    def lines(self) -> list[str]:
        """Return the lines to print."""
        named = [f"class {name!r}: its folder is {folder}" for name, folder in self.renamed.items()]
        left_out = f"{self.small} boxes with a side under {MIN_SIDE} pixels and {self.crowds} crowds left out"
        masks = [f"{self.masks} × mask not used: a crop shows the whole box"] if self.masks else []
        return [*named, f"{self.crops.total()} images of {len(self.crops)} classes; {left_out}", *masks]

    def add(self, other: Crops) -> None:
        """Add the result of other boxes."""
        self.crops.update(other.crops)
        self.small += other.small
        self.crowds += other.crowds
        self.masks += other.masks
        self.unreadable += other.unreadable


def to_imagefolder(
    source: Path | str,
    out: Path,
    names: Sequence[str] | None = None,
    *,
    margin: float = 0.1,
    limit: int | None = None,
    format: str | None = None,
    follow_links: bool = False,
    progress: bool = True,
) -> Crops:
    """Crop the objects of a detection data set, in the layout of `read_imagefolder`.

    Args:
        source: folder of the data set.
        out: new folder; it appears complete or not at all.
        names: names of the splits; by default all.
        margin: margin around a box on each side, as a fraction of its width and height, up to the image's edge.
        limit: convert only the first `limit` images of each split.
        format: one of `formats.FORMATS`; by default it is recognised by the content of the files.
        follow_links: follow links that lead out of the source.
        progress: show a progress bar on a terminal.

    Raises:
        UserError: `source` cannot be read; `out` is not empty or cannot be written; `margin` or `limit` is invalid; or
            two classes would share a folder.
    """
    if not 0 <= margin <= 10:
        raise UserError(f"--margin: {margin:g}; give a fraction of the box's size, within 0 … 10")
    if limit is not None and limit < 1:
        raise UserError(f"--limit: {limit}; convert 1 image at least")
    by_split = read_all(source, names, format=format, follow_links=follow_links, progress=progress)
    folders = folder_names(dict.fromkeys(name for dataset in by_split.values() for name in dataset.classes))
    total = Crops(renamed={name: folder for name, folder in folders.items() if name != folder})
    try:
        with new_folder(Path(out)) as draft:
            for split, dataset in by_split.items():
                lost = (defect for defect in dataset.repaired if defect.rule in ("missing-image", "unreadable-image"))
                total.unreadable += [f"{defect.path}: {defect.detail}" for defect in lost]
                kept = replace(dataset, records=dataset.records[:limit])
                total.add(_convert(kept, draft / split, folders, margin, progress))
            if not total.crops:
                raise UserError(f"{source}: has no box to crop with sides of {MIN_SIDE} pixels or more")
    except OSError as error:
        raise UserError(f"{error.filename or out}: {error.strerror}; fix that or choose another --out") from error
    return total


def folder_names(classes: Iterable[str]) -> dict[str, str]:
    """Return a folder name for each class, by `safe_name`.

    Raises:
        UserError: a name becomes empty, or two names become equal, perhaps only on systems that ignore case.
    """
    folders: dict[str, str] = {}
    class_of: dict[str, str] = {}
    for name in classes:
        folders[name] = safe = safe_name(name)
        if not safe:
            raise UserError(f"class {name!r}: no folder can have this name; rename it in the annotations")
        if (other := class_of.setdefault(safe.casefold(), name)) != name:
            raise UserError(f"classes {other!r} and {name!r}: their images would share a folder; rename one of them")
    return folders


def safe_name(name: str) -> str:
    """Return a file name without a path, not hidden and allowed on Windows; it may be empty."""
    safe = "".join("_" if letter in _UNSAFE or not letter.isprintable() else letter for letter in name)
    return safe.strip(". ")


def crop(
    image: UInt8[np.ndarray, "H W 3"], box: Float32[np.ndarray, " 4"], margin: float
) -> UInt8[np.ndarray, "h w 3"]:
    """Return all pixels touched by a box (xyxy) with a margin, which is a fraction of the box's sides."""
    height, width = image.shape[:2]
    space = margin * (box[2:] - box[:2])
    left, top = np.floor(np.maximum(box[:2] - space, 0)).astype(int)
    right, bottom = np.ceil(np.minimum(box[2:] + space, (width, height))).astype(int)
    return image[top:bottom, left:right]


def _convert(dataset: Dataset, out: Path, folders: Mapping[str, str], margin: float, progress: bool) -> Crops:
    """Write the crops of a split."""
    total = Crops()

    def write(record: Record, stem: str) -> Crops:
        return _write_crops(record, stem, dataset.classes, out, folders, margin)

    # Closing the generator cancels pending jobs, so that an interrupt does not wait for all images.
    with ThreadPoolExecutor() as pool, closing(pool.map(write, dataset.records, _stems(dataset))) as results:  # type: ignore[type-var]
        for result in track(results, f"Cropping {dataset.split}", total=len(dataset), shown=progress):
            total.add(result)
    return total


def _write_crops(
    record: Record, stem: str, classes: Sequence[str], out: Path, folders: Mapping[str, str], margin: float
) -> Crops:
    """Write the crops of an image."""
    small = (record.boxes[:, 2:] - record.boxes[:, :2]).min(axis=1, initial=np.inf) < MIN_SIDE
    result = Crops(small=int((small & ~record.crowd).sum()), crowds=int(record.crowd.sum()))
    chosen = np.flatnonzero(~small & ~record.crowd)
    result.masks = sum(record.masks[index] is not None for index in chosen) if record.masks else 0
    if not len(chosen):
        return result
    try:
        image = decode(record.path)
    except UserError as error:  # damage that the header does not show
        return Crops(unreadable=[str(error).rpartition("; ")[0]])
    for index in chosen:
        name = classes[record.labels[index]]
        file = out / folders[name] / f"{stem}_{index}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = crop(image, record.boxes[index], margin)
        _, jpeg = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        file.write_bytes(jpeg.tobytes())
        result.crops[name] += 1
    return result


def _stems(dataset: Dataset) -> list[str]:
    """Return the stems of the image files, or the image ids if two stems are equal."""
    stems = [record.path.stem for record in dataset.records]
    if len({stem.casefold() for stem in stems}) == len(stems):
        return stems
    return [str(record.id) for record in dataset.records]
