"""Reader of a data folder in any known format."""

from __future__ import annotations

import gc
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from detect.data.annotations import Annotations, repair
from detect.data.cache import remembered
from detect.data.dataset import Dataset
from detect.data.decode import SUFFIXES, orientation
from detect.data.deep_images import log_12_bit
from detect.data.defects import DefectLog, as_json
from detect.data.formats import FORMATS, USUAL_FILES, yolo
from detect.data.image_headers import check_images
from detect.data.mistakes import correct_mistakes
from detect.data.records import Masks, Records
from detect.data.tree import Tree, unwrapped, usual_split
from detect.errors import UserError, listed, one_line
from detect.files.fence import OutsideError


def splits(root: Path | str, follow_links: bool = False, format: str | None = None) -> tuple[str, ...]:
    """Return the names of the splits of a data folder. Raise `UserError` if its format is unknown."""
    return open_data(Path(root), follow_links, format).splits


def read(
    root: Path | str,
    split: str,
    *,
    classes: Sequence[str] | None = None,
    format: str | None = None,
    skip_unreadable: bool = False,
    follow_links: bool = False,
    progress: bool = True,
) -> Dataset:
    """Read one split of a data folder and check every box and image header. The order of the files is kept.

    `train` also matches a split with a year, `train2017`, and synonyms, such as `val`, `valid` and `validation`, match
    as long as only one split does. A data set that is not divided has one split, which also matches `train`.

    Args:
        root: data folder, or one of its annotation files.
        split: one of `splits(root)`.
        classes: classes of a trained model, which define the labels; by default the classes of the data.
        format: one of `formats.FORMATS`; by default the format is recognised by the content of the files.
        skip_unreadable: leave out missing and damaged images, and report them as repaired.
        follow_links: follow links that lead out of the folder. The folder itself may always be a link.
        progress: show a progress bar on a terminal.

    Raises:
        UserError: the split does not exist, or has defects that `defects.RULES` refuses. The message has count, first
            case and remedy of each kind of defect.
    """
    source = open_data(Path(root), follow_links, format)
    split = _resolve(source, split)
    labels = None if classes is None else tuple(classes)
    asked = (source.tree.entry and source.tree.entry.name, split, labels, source.format, skip_unreadable)
    return remembered(
        source.tree, follow_links, asked, lambda: _read(source, split, classes, skip_unreadable, follow_links, progress)
    )


def _read(
    source: Source,
    split: str,
    classes: Sequence[str] | None,
    skip_unreadable: bool,
    follow_links: bool,
    progress: bool,
) -> Dataset:
    """Read and check a split that exists; see `read`."""
    log = DefectLog(source.tree.root, split, skip_unreadable=skip_unreadable, follow_links=follow_links)
    with _garbage_collection_paused():
        annotations = FORMATS[source.format].parse(source.tree, split, classes, log)
    sizes = _check_images(annotations, log, progress)
    log_12_bit(annotations.paths, sizes, log)
    annotations = correct_mistakes(annotations, sizes, log)
    annotations = repair(annotations, sizes, log)
    log.raise_refused()
    return Dataset(
        root=source.tree.root,
        split=split,
        format=source.format,
        classes=annotations.classes,
        category_ids=annotations.category_ids,
        records=_records(source.tree.root, annotations, sizes),
        repaired=log.repaired,
    )


def read_all(
    root: Path | str,
    names: Sequence[str] | None = None,
    *,
    format: str | None = None,
    follow_links: bool = False,
    progress: bool = True,
) -> dict[str, Dataset]:
    """Read the named splits of a data folder, by default all, without unreadable images.

    Returns:
        Each split once, by its name in the files.

    Raises:
        UserError: see `read`.
    """
    chosen = splits(root, follow_links, format) if names is None else names
    options: dict[str, Any] = {"format": format, "follow_links": follow_links, "progress": progress}
    datasets = [read(root, name, skip_unreadable=True, **options) for name in chosen]
    return {dataset.split: dataset for dataset in datasets}


def image_files(root: Path, chosen: Sequence[str] | None = None) -> list[Path]:
    """Return the images that a data set's splits list, or all image files below a folder without annotations.

    Args:
        root: a data set, or a folder of images.
        chosen: splits of the data set; by default all.

    Raises:
        UserError: a link to an image leads out of the folder, or it has no such split.
    """
    tree = Tree(unwrapped(root))
    fitting = _fitting(tree)
    if len(fitting) == 1:
        source = Source(tree, *fitting[0])
        names = source.splits if chosen is None else [_resolve(source, split) for split in chosen]
        parse = FORMATS[source.format].parse
        of_splits = (parse(tree, name, None, DefectLog(tree.root, name)).paths for name in names)
        images = list(dict.fromkeys(path for paths in of_splits for path in paths))
    elif chosen:
        raise UserError(f"{root}: a folder of images without splits; leave out --split, or name a data set")
    else:
        images = list(tree.images)
    if outside := [path for path in images if not tree.fence.admits(path)]:
        raise UserError(f"{outside[0]}: {OutsideError()}; name the folder that it leads to as a separate source")
    return images


class Source(NamedTuple):
    """Data set of a known format."""

    tree: Tree
    format: str
    splits: tuple[str, ...]


def open_data(root: Path, follow_links: bool = False, format: str | None = None) -> Source:
    """Return the files, the format and the splits of a data set.

    A folder that contains nothing but one folder, as archives often do, stands for that folder.

    Raises:
        UserError: there is no such folder or file, no format fits, or several do.
    """
    tree = Tree(unwrapped(root), follow_links)
    fitting = _fitting(tree, format)
    if not fitting:
        raise UserError(one_line(f"{root}: {_unknown(tree, format)}"))
    if len(fitting) > 1:
        seen = " and ".join(f"{name} ({', '.join(names[:3])})" for name, names in fitting)
        problem = f"it has annotations in several formats: {seen}; choose with --data.format {fitting[0][0]}"
        remedy = "(detect data: --format), or name the annotation file instead of the folder"
        raise UserError(one_line(f"{root}: {problem} {remedy}"))
    return Source(tree, *fitting[0])


def _fitting(tree: Tree, format: str | None = None) -> list[tuple[str, tuple[str, ...]]]:
    """Return the formats that fit, with the names of the splits."""
    if format is not None and format not in FORMATS:
        raise UserError(f"data.format: {format}; choose {', '.join(FORMATS)}, or leave it out")
    if format is not None:
        attempts = [[format]]
    elif tree.entry is not None:
        attempts = [[*FORMATS]]
    else:
        attempts = [[name for name in USUAL_FILES if _has_usual_files(tree, name)], [*FORMATS]]
    for names in attempts:
        if fitting := [(name, splits) for name in names if (splits := FORMATS[name].splits(tree))]:
            # Tutorials have a table made from the XML files beside them.
            return [pair for pair in fitting if pair[0] != "csv"] if len(fitting) > 1 else fitting
    return []


def _has_usual_files(tree: Tree, format: str) -> bool:
    """Return whether names of files show the format: then the folder need not be listed to recognise it."""
    return any(next(tree.root.glob(pattern), None) for pattern in USUAL_FILES[format])


def _unknown(tree: Tree, format: str | None) -> str:
    """Return what is in a folder that has no known format, and what to do."""
    suffixes = Counter(path.suffix.lower() or path.name for path in tree.files)
    counts = ", ".join(f"{number} {suffix}" for suffix, number in suffixes.most_common(6))
    entries = sorted(path.name for path in tree.root.iterdir())
    seen = counts or listed(entries) or "nothing"
    if format is not None:
        return f"it is not in the format {format}: looked for {FORMATS[format].LOOKED_FOR}; there is {seen}"
    if yolo.has_labels(tree):
        return f"YOLO's label files without class names; write classes.txt, with one name in each line ({seen})"
    if tree.images and set(suffixes) <= set(SUFFIXES):
        return f"it has images ({seen}) and no annotations; add these to train, or use detect predict or propose"
    return f"no data set of a known format ({', '.join(FORMATS)}); detect data formats describes them; there is {seen}"


def matching(split: str, names: Sequence[str]) -> list[str]:
    """Return those of the `names` of splits that `split` may mean: itself, else its synonyms, possibly with a year."""
    usual = None if split[-1:].isdigit() else usual_split(split)
    dated = re.compile(rf"{re.escape(split)}\d{{4}}")
    matches = [name for name in names if dated.fullmatch(name) or (usual and usual_split(name) == usual)]
    return [split] if split in names else matches


def serving(split: str, names: Sequence[str]) -> list[str]:
    """Return the `matching` splits of a data set; if it is not divided, its only split serves for training."""
    is_undivided = len(names) == 1 and usual_split(names[0]) is None
    return matching(split, names) or (list(names) if is_undivided and usual_split(split) == "train" else [])


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


def _resolve(source: Source, split: str) -> str:
    """Return the name of the split in the files."""
    names, candidates = source.splits, serving(split, source.splits)
    if len(candidates) != 1:
        remedy = f"name one of {', '.join(names)}"
        raise UserError(one_line(f"{source.tree.root}: there is no split {split}; {remedy}"))
    return candidates[0]


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


def _records(root: Path, annotations: Annotations, sizes: Int64[np.ndarray, "i 2"]) -> Records:
    """Return the images that can be read, with their boxes in the order of the images."""
    ids = image_ids(annotations.paths) if annotations.ids is None else annotations.ids
    order = np.argsort(annotations.image, kind="stable")
    columns = {name: getattr(annotations, name)[order] for name in ("labels", "crowd", "difficult", "areas")}
    columns["boxes"] = annotations.boxes[order].astype(np.float32)
    bounds = np.searchsorted(annotations.image[order], np.arange(len(sizes) + 1))
    masks = annotations.masks
    if isinstance(masks, Masks):
        masks = masks if (np.diff(order) == 1).all() else masks.take(order)
    elif masks is not None:
        masks = [masks[row] for row in order.tolist()]
    records = Records.in_columns(f"{root}{os.sep}", annotations.paths, ids, sizes, bounds, columns, masks)
    readable = sizes[:, 0] > 0
    return records if readable.all() else records.take(np.flatnonzero(readable))


def image_ids(paths: Sequence[Path]) -> list[int]:
    """Return ids for images without ids: the digits in their names if these are unique, else 1 … n."""
    digits = [re.sub(r"[^0-9]", "", path.stem) for path in paths]
    if all(0 < len(digit) <= 18 for digit in digits) and len(set(map(int, digits))) == len(digits):
        return list(map(int, digits))
    return list(range(1, len(paths) + 1))
