"""Reader of a data folder in any known format."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from detect.data.annotations import Annotations, repair
from detect.data.dataset import VALIDATION, Dataset, Defect, Record
from detect.data.decode import SUFFIXES, orientation
from detect.data.defects import AbsentSplitError, DefectLog, as_json
from detect.data.formats import FORMATS
from detect.data.image_headers import check_images
from detect.errors import UserError, one_line
from detect.files.fence import Fence, OutsideError


def splits(root: Path | str, follow_links: bool = False) -> tuple[str, ...]:
    """Return the names of the splits of a data folder. Raise `UserError` if its format is unknown."""
    return _detect_format(Path(root), follow_links)[1]


def read(
    root: Path | str,
    split: str,
    *,
    classes: Sequence[str] | None = None,
    skip_unreadable: bool = False,
    follow_links: bool = False,
    progress: bool = True,
) -> Dataset:
    """Read one split of a data folder and check every box and image header. The order of the files is kept.

    The format is detected: COCO (`annotations/instances_{split}.json`, or Roboflow's `{split}/_annotations.coco.json`),
    VOC (`ImageSets/Main/{split}.txt`) or YOLO (`data.yaml`). `train` also matches a split with a year, `train2017`, and
    `val`, `valid` and `validation` are synonyms, as long as only one split matches.

    Args:
        root: data folder.
        split: one of `splits(root)`.
        classes: classes of a trained model, which define the labels; by default the classes of the data.
        skip_unreadable: leave out missing and damaged images, and report them as repaired.
        follow_links: follow links that lead out of the folder. The folder itself may always be a link.
        progress: show a progress bar on a terminal.

    Raises:
        UserError: the split does not exist, or has defects that `defects.RULES` refuses. The message has count, first
            case and remedy of each kind of defect.
    """
    root = Path(root)
    format, names = _detect_format(root, follow_links)
    split = _resolve(root, split, names)
    log = DefectLog(root, split, skip_unreadable=skip_unreadable, follow_links=follow_links)
    with _garbage_collection_paused():
        annotations = FORMATS[format].parse(root, split, classes, log)
    sizes = _check_images(annotations, log, progress)
    annotations = repair(annotations, sizes, log)
    log.raise_refused()
    return Dataset(
        root=root,
        split=split,
        format=format,
        classes=annotations.classes,
        category_ids=annotations.category_ids,
        records=_records(annotations, sizes),
        repaired=log.repaired,
    )


def read_all(
    root: Path | str, names: Sequence[str] | None = None, *, follow_links: bool = False, progress: bool = True
) -> dict[str, Dataset]:
    """Read the named splits of a data folder, by default all that exist, without unreadable images.

    Returns:
        Each split once, by its name in the files. Absent splits are reported as repaired by the first.

    Raises:
        UserError: see `read`.
    """
    options: dict[str, Any] = {"skip_unreadable": True, "follow_links": follow_links, "progress": progress}
    datasets, absent = [], []
    for name in splits(root, follow_links) if names is None else names:
        try:
            datasets.append(read(root, name, **options))
        except AbsentSplitError as error:
            if names is not None:
                raise
            absent.append(error)
    if absent and not datasets:
        raise absent[0]
    defects = tuple(Defect("absent-split", error.path, error.problem) for error in absent)
    datasets[:1] = [replace(dataset, repaired=(*dataset.repaired, *defects)) for dataset in datasets[:1]]
    return {dataset.split: dataset for dataset in datasets}


def image_files(root: Path) -> list[Path]:
    """Return the images that a data set's splits list, or all image files below a folder of unknown format.

    Raises:
        UserError: a link to an image leads out of the folder.
    """
    paths = _listed_images(root)
    if paths is None:
        paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    fence = Fence(root)
    if outside := [path for path in paths if not fence.admits(path)]:
        raise UserError(f"{outside[0]}: {OutsideError()}; name the folder that it leads to as a separate source")
    return paths


def _listed_images(root: Path) -> list[Path] | None:
    for module in FORMATS.values():
        if names := module.splits(root):
            listed = (module.parse(root, name, None, DefectLog(root, name)).paths for name in names)
            return list(dict.fromkeys(path for paths in listed for path in paths))
    return None


def _detect_format(root: Path, follow_links: bool) -> tuple[str, tuple[str, ...]]:
    """Return the format of a data folder and the names of its splits."""
    if not root.is_dir():
        raise UserError(f"{root}: there is no such folder; check the path of the data")
    for name, module in FORMATS.items():
        if names := module.splits(root, follow_links):
            return name, names
    wanted = ", ".join(module.LOOKED_FOR for module in FORMATS.values())
    entries = sorted(path.name for path in root.iterdir())
    listing = ", ".join(entries[:10]) + (" …" if len(entries) > 10 else "") or "nothing"
    raise UserError(one_line(f"{root}: no data set of a known format: looked for {wanted}; there is {listing}"))


@contextmanager
def _garbage_collection_paused() -> Iterator[None]:
    """Pause the garbage collector: its search for cycles in millions of new objects takes longer than parsing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _resolve(root: Path, split: str, names: tuple[str, ...]) -> str:
    """Return the name of the split in the files."""
    candidates = matching(split, names)
    if len(candidates) != 1:
        remedy = f"name one of {', '.join(names)}, or null for none"
        raise UserError(one_line(f"{root}: there is no split {split}; {remedy}"))
    return candidates[0]


def matching(split: str, names: Sequence[str]) -> list[str]:
    """Return those of the `names` of splits that `split` may mean: itself, else its synonyms, possibly with a year."""
    synonyms = VALIDATION if split in VALIDATION else (split,)
    dated = re.compile(f"({'|'.join(map(re.escape, synonyms))})(\\d{{4}})?")
    return [split] if split in names else [name for name in names if dated.fullmatch(name)]


def _check_images(annotations: Annotations, log: DefectLog, progress: bool) -> Int64[np.ndarray, "i 2"]:
    """Return width and height of each image, 0 if it cannot be read; log the defects of the images."""
    paths = annotations.paths
    sizes = np.zeros((len(paths), 2), dtype=np.int64)
    for index, (size, rule, detail) in enumerate(check_images(paths, progress, log.fence)):
        if size is None:
            log.add(rule, paths[index], f"{detail}, its boxes are in {annotations.sources[index]}")
        else:
            sizes[index] = size
            _compare_sizes(annotations, index, size, log)
    return sizes


def _compare_sizes(annotations: Annotations, index: int, size: tuple[int, int], log: DefectLog) -> None:
    declared, path = annotations.declared[index], annotations.paths[index]
    if declared is None or tuple(declared) == size:
        return
    stated = " × ".join(f"{side:g}" if isinstance(side, float) else as_json(side) for side in declared)
    detail = f"{path.name} is {size[0]} × {size[1]}, not {stated}"
    if not all(isinstance(side, (int, float)) for side in declared):
        detail += ": whole numbers are expected"
    if tuple(declared) == size[::-1] and orientation(path) >= 5:
        detail += ": its EXIF orientation swaps them, and its boxes may refer to the image before the rotation"
    log.add("size-mismatch", annotations.sources[index], detail)


def _records(annotations: Annotations, sizes: Int64[np.ndarray, "i 2"]) -> tuple[Record, ...]:
    ids = image_ids(annotations.paths) if annotations.ids is None else annotations.ids
    order = np.argsort(annotations.image, kind="stable")
    boxes = annotations.boxes[order].astype(np.float32)
    labels, areas = annotations.labels[order], annotations.areas[order]
    crowd, difficult = annotations.crowd[order], annotations.difficult[order]
    bounds = np.searchsorted(annotations.image[order], np.arange(len(sizes) + 1))
    records = []
    for index, path in enumerate(annotations.paths):
        width, height = map(int, sizes[index])
        if not width:  # unreadable and skipped
            continue
        rows = slice(bounds[index], bounds[index + 1])
        columns = (boxes[rows], labels[rows], crowd[rows], difficult[rows], areas[rows])
        records.append(Record(ids[index], path, width, height, *columns))
    return tuple(records)


def image_ids(paths: Sequence[Path]) -> list[int]:
    """Return ids for images without ids: the digits in their names if these are unique, else 1 … n."""
    digits = [re.sub(r"[^0-9]", "", path.stem) for path in paths]
    if all(0 < len(digit) <= 18 for digit in digits) and len(set(map(int, digits))) == len(digits):
        return list(map(int, digits))
    return list(range(1, len(paths) + 1))
