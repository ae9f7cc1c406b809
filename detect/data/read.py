"""A folder of images and boxes, in any of the known formats, to a `Dataset`."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
from jaxtyping import Int64

from detect.data.dataset import VALIDATION, Dataset, Record
from detect.data.decode import SUFFIXES, orientation
from detect.data.defects import Annotations, Findings, as_json, mend
from detect.data.formats import coco, voc, yolo
from detect.data.image_headers import check_images
from detect.errors import UserError, one_line
from detect.files.fence import Fence, OutsideError

_FORMATS: dict[str, ModuleType] = {"coco": coco, "voc": voc, "yolo": yolo}


def splits(root: Path | str, follow_links: bool = False) -> tuple[str, ...]:
    """The names of the splits that a data folder holds. Raises `UserError` where no known format is found."""
    return _format(Path(root), follow_links)[1]


def read(
    root: Path | str,
    split: str,
    *,
    classes: Sequence[str] | None = None,
    skip_unreadable: bool = False,
    follow_links: bool = False,
    progress: bool = True,
) -> Dataset:
    """One split of a data folder, with every box checked and every image looked at, in the order of its files.

    The format is found out: COCO (`annotations/instances_{split}.json`, or `{split}/_annotations.coco.json` as Roboflow
    has it), VOC (`ImageSets/Main/{split}.txt`) or YOLO (`data.yaml`). A split's name may go without the year that the
    files give it, `train` for `train2017`, and `val`, `valid` and `validation` mean the same, where there is only one.

    Args:
        root: The data folder.
        split: One of `splits(root)`.
        classes: The classes of a trained model, whose order the labels then follow; by default the data's own.
        skip_unreadable: Leave images out that are missing or damaged, and count them as mended.
        follow_links: Read what links out of the folder lead to. The folder itself may be a link in any case.
        progress: Show a progress bar on a terminal.

    Raises:
        UserError: Nothing is found under that name, or there are defects that `defects.RULES` refuses. Of these, one
            line names the count, the first case and the remedy of each kind.
    """
    root = Path(root)
    format, names = _format(root, follow_links)
    split = _resolve(root, split, names)
    findings = Findings(root, split, skip_unreadable=skip_unreadable, follow_links=follow_links)
    with _collector_paused():
        annotations = _FORMATS[format].parse(root, split, classes, findings)
    sizes = _check_images(annotations, findings, progress)
    annotations = mend(annotations, sizes, findings)
    findings.raise_refused()
    return Dataset(
        root=root,
        split=split,
        format=format,
        classes=annotations.classes,
        category_ids=annotations.category_ids,
        records=_records(annotations, sizes),
        mended=findings.mended,
    )


def read_all(
    root: Path | str, names: Sequence[str] | None = None, *, follow_links: bool = False, progress: bool = True
) -> dict[str, Dataset]:
    """Some splits of a data folder, by default all, each once by its name in the files, without unreadable images.

    Raises `UserError` as `read` does.
    """
    chosen = splits(root, follow_links) if names is None else names
    datasets = [read(root, name, skip_unreadable=True, follow_links=follow_links, progress=progress) for name in chosen]
    return {dataset.split: dataset for dataset in datasets}


def image_files(root: Path) -> list[Path]:
    """The images that the splits of a data set list; in a folder of no known format, the image files below it.

    Raises `UserError` where one lies behind a link that leads out of the folder.
    """
    found = _listed_images(root)
    if found is None:
        found = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    fence = Fence(root)
    if outside := [path for path in found if not fence.admits(path)]:
        raise UserError(f"{outside[0]}: {OutsideError()}; name the folder that it leads to as a source of its own")
    return found


def _listed_images(root: Path) -> list[Path] | None:
    for module in _FORMATS.values():
        if names := module.splits(root):
            listed = (module.parse(root, name, None, Findings(root, name)).paths for name in names)
            return list(dict.fromkeys(path for paths in listed for path in paths))
    return None


def _format(root: Path, follow_links: bool) -> tuple[str, tuple[str, ...]]:
    """The format of a data folder and the names of its splits."""
    if not root.is_dir():
        raise UserError(f"{root}: there is no such folder; check the path of the data")
    for name, module in _FORMATS.items():
        if names := module.splits(root, follow_links):
            return name, names
    wanted = ", ".join(module.LOOKED_FOR for module in _FORMATS.values())
    there = sorted(path.name for path in root.iterdir())
    listing = ", ".join(there[:10]) + (" …" if len(there) > 10 else "") or "nothing"
    raise UserError(one_line(f"{root}: no data set of a known format: looked for {wanted}; there is {listing}"))


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Parsing makes millions of objects and not one cycle: looking for cycles would take more time than parsing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _resolve(root: Path, split: str, names: tuple[str, ...]) -> str:
    """The split's name in the files: `split` itself, or the only one that adds a year to it or to its other names."""
    same = VALIDATION if split in VALIDATION else (split,)
    dated = re.compile(f"({'|'.join(map(re.escape, same))})(\\d{{4}})?")
    candidates = [split] if split in names else [name for name in names if dated.fullmatch(name)]
    if len(candidates) != 1:
        remedy = f"name one of {', '.join(names)}, or null for none"
        raise UserError(one_line(f"{root}: there is no split {split}; {remedy}"))
    return candidates[0]


def _check_images(annotations: Annotations, findings: Findings, progress: bool) -> Int64[np.ndarray, "i 2"]:
    """Width and height of each image, 0 where it cannot be read; what is wrong with the images becomes defects."""
    paths = annotations.paths
    sizes = np.zeros((len(paths), 2), dtype=np.int64)
    for place, (size, rule, detail) in enumerate(check_images(paths, progress, findings.fence)):
        if size is None:
            source = annotations.sources[place]
            findings.add(rule, paths[place], f"{detail}, its boxes are in {source}")
        else:
            sizes[place] = size
            _compare_sizes(annotations, place, size, findings)
    return sizes


def _compare_sizes(annotations: Annotations, place: int, size: tuple[int, int], findings: Findings) -> None:
    declared, path = annotations.declared[place], annotations.paths[place]
    if declared is None or tuple(declared) == size:
        return
    said = " × ".join(f"{side:g}" if isinstance(side, float) else as_json(side) for side in declared)
    detail = f"{path.name} is {size[0]} × {size[1]}, not {said}"
    if not all(isinstance(side, (int, float)) for side in declared):
        detail += ": wanted are whole numbers"
    if tuple(declared) == size[::-1] and orientation(path) >= 5:
        detail += ": its EXIF orientation swaps them, and its boxes may be meant for the image before that"
    findings.add("size-mismatch", annotations.sources[place], detail)


def _records(annotations: Annotations, sizes: Int64[np.ndarray, "i 2"]) -> tuple[Record, ...]:
    ids = image_ids(annotations.paths) if annotations.ids is None else annotations.ids
    order = np.argsort(annotations.image, kind="stable")
    boxes = annotations.boxes[order].astype(np.float32)
    labels, areas = annotations.labels[order], annotations.areas[order]
    crowd, difficult = annotations.crowd[order], annotations.difficult[order]
    bounds = np.searchsorted(annotations.image[order], np.arange(len(sizes) + 1))
    records = []
    for place, path in enumerate(annotations.paths):
        width, height = map(int, sizes[place])
        if not width:  # it could not be read, and the user chose to leave it out
            continue
        own = slice(bounds[place], bounds[place + 1])
        columns = (boxes[own], labels[own], crowd[own], difficult[own], areas[own])
        records.append(Record(ids[place], path, width, height, *columns))
    return tuple(records)


def image_ids(paths: Sequence[Path]) -> list[int]:
    """Ids for images that have none: the digits of their names where these tell them apart, else 1, 2, …"""
    digits = [re.sub(r"[^0-9]", "", path.stem) for path in paths]
    if all(0 < len(digit) <= 18 for digit in digits) and len(set(map(int, digits))) == len(digits):
        return list(map(int, digits))
    return list(range(1, len(paths) + 1))
