"""Joining of data sets, and selection of classes: classes are identified by name, images by their files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from detect.data.dataset import SEPARATOR, Dataset, Defect
from detect.data.records import Record, columns
from detect.errors import UserError, listed, one_line
from detect.proposals.store import digest


def merge(datasets: Sequence[Dataset]) -> Dataset:
    """Join data sets into one, in their order.

    Classes are joined by name, see `unify_classes`. Image ids are kept, unless two images have the same one: then all
    images are numbered from 1. An image that an earlier data set has too, byte by byte, is left out; if it is another
    file, or has other boxes, this is reported as repaired.

    Args:
        datasets: at least one data set.
    """
    if len(datasets) == 1:
        return datasets[0]
    unified = unify_classes(datasets)
    records, repeated = _without_repeated(unified)
    ids = [record.id for record in records]
    if len(set(ids)) < len(ids):
        records = [replace(record, id=id) for id, record in enumerate(records, start=1)]
    defects = [*_similar_classes(datasets), *repeated]
    roots = tuple(dict.fromkeys(root for dataset in datasets for root in dataset.folders))
    return Dataset(
        root=roots[0] if len(roots) == 1 else Path(os.path.commonpath([root.absolute() for root in roots])),
        split=SEPARATOR.join(dict.fromkeys(dataset.split for dataset in datasets)),
        format=SEPARATOR.join(dict.fromkeys(dataset.format for dataset in datasets)),
        classes=unified[0].classes,
        category_ids=unified[0].category_ids,
        records=tuple(records),
        repaired=(*(defect for dataset in datasets for defect in dataset.repaired), *defects),
        roots=roots,
    )


def distinct(roots: Iterable[Path]) -> tuple[Path, ...]:
    """Return the data folders, each once, even if it is spelled in two ways or named by a link."""
    first: dict[str, Path] = {}
    for root in roots:
        first.setdefault(os.path.realpath(root), root)
    return tuple(first.values())


# -------------------------------------------------------------------------------------------------------------- classes


def unify_classes(datasets: Sequence[Dataset]) -> list[Dataset]:
    """Return the data sets with the same classes: the union of all, by name.

    A class keeps the id of the first data set that has it, and the classes are sorted by id. If two classes have the
    same id, all are numbered from 1: in alphabetical order if each data set has that order, else by first appearance.
    """
    if all(dataset.classes == datasets[0].classes for dataset in datasets):  # perhaps the order of a model's labels
        return [replace(dataset, category_ids=datasets[0].category_ids) for dataset in datasets]
    id_of: dict[str, int] = {}
    for dataset in datasets:
        for name, id in zip(dataset.classes, dataset.category_ids, strict=True):
            id_of.setdefault(name, id)
    if len(set(id_of.values())) < len(id_of):
        is_sorted = all(list(dataset.classes) == sorted(dataset.classes) for dataset in datasets)
        id_of = {name: id for id, name in enumerate(sorted(id_of) if is_sorted else id_of, start=1)}
    classes = tuple(sorted(id_of, key=id_of.__getitem__))
    return [_relabel(dataset, classes, tuple(id_of[name] for name in classes)) for dataset in datasets]


def _similar_classes(datasets: Iterable[Dataset]) -> list[Defect]:
    """Return a defect for each class whose name differs from that of an earlier one only in case or spaces."""
    first: dict[str, str] = {}
    similar: dict[str, Defect] = {}
    for dataset in datasets:
        for name in dataset.classes:
            known = first.setdefault(" ".join(name.casefold().split()), name)
            if name != known:
                similar.setdefault(name, Defect("similar-class", dataset.root, f"{name} besides {known}"))
    return list(similar.values())


def keep_classes(dataset: Dataset, classes: Sequence[str]) -> Dataset:
    """Return the data set with only these classes, in its own order; boxes of others are dropped, all images stay."""
    kept = tuple(name for name in dataset.classes if name in classes)
    ids = tuple(id for name, id in zip(dataset.classes, dataset.category_ids, strict=True) if name in classes)
    return _relabel(dataset, kept, ids)


def with_labels(dataset: Dataset, classes: Sequence[str]) -> Dataset:
    """Return the data set with the labels of a model, whose classes include all of the data set's classes."""
    id_of = dict(zip(dataset.classes, dataset.category_ids, strict=True))
    unused = (id for id in range(1, len(classes) + len(id_of) + 1) if id not in id_of.values())
    ids = tuple(id_of[name] if name in id_of else next(unused) for name in classes)
    return _relabel(dataset, tuple(classes), ids)


def refuse_unknown(chosen: Iterable[str], classes: Sequence[str], option: str, source: str) -> None:
    """Raise `UserError` if a chosen class is none of `classes`; the message has similar names."""
    for name in chosen:
        if name not in classes:
            folded = {known.casefold(): known for known in classes}
            near = [folded[key] for key in get_close_matches(name.casefold(), folded, n=3)]
            remedy = f"did you mean {' or '.join(near)}?" if near else f"its classes are {listed(classes)}"
            raise UserError(one_line(f"{option}: {source} has no class {name[:60]}; {remedy}"))


def _relabel(dataset: Dataset, classes: tuple[str, ...], category_ids: tuple[int, ...]) -> Dataset:
    """Return the data set with labels by `classes`; boxes of other classes are left out."""
    place = {name: label for label, name in enumerate(classes)}
    label_of = np.array([place.get(name, -1) for name in dataset.classes], dtype=np.int64)
    records = []
    for record in dataset.records:
        labels = label_of[record.labels]
        kept = replace(record, labels=labels)
        records.append(kept if (labels >= 0).all() else kept.select(labels >= 0))
    return replace(dataset, classes=classes, category_ids=category_ids, records=tuple(records))


# --------------------------------------------------------------------------------------------------------------- images


def with_leaks(dataset: Dataset, training: Iterable[Dataset]) -> Dataset:
    """Return a split with a defect for each image that the training split has too, byte by byte."""
    trained = {path: size for one in training for path, size in _sizes(one)}
    sizes = dict(_sizes(dataset))
    common = set(trained.values()) & set(sizes.values())
    digests = {digest(path): path for path, size in trained.items() if size in common}
    same = ((path, digests.get(digest(path))) for path, size in sizes.items() if size in common)
    leaks = [Defect("leaked-image", path, f"the same image as {first}") for path, first in same if first is not None]
    return replace(dataset, repaired=(*dataset.repaired, *leaks)) if leaks else dataset


def _without_repeated(datasets: Iterable[Dataset]) -> tuple[list[Record], list[Defect]]:
    """Return the records without images that an earlier data set has, and a defect for each of these."""
    lists = [
        [(record, size) for record, (_, size) in zip(dataset.records, _sizes(dataset), strict=True)]
        for dataset in datasets
    ]
    counts = Counter(size for sizes in lists for _, size in sizes)
    kept, repeated = [], []
    earlier: dict[bytes, Record] = {}
    for sizes in lists:
        # An image whose size no other image has need not be read.
        digests = {record.path: digest(record.path) for record, size in sizes if counts[size] > 1}
        for record, _ in sizes:
            first = earlier.get(digests.get(record.path, b""))
            if first is None:
                kept.append(record)
            elif first.path != record.path or not first.has_boxes_of(record):  # else the splits overlap by design
                lost = "" if first.has_boxes_of(record) else "; it has other boxes there"
                if not lost and first.masks is None and any(record.masks or ()):
                    lost = "; it has no masks there"
                repeated.append(Defect("repeated-image", record.path, f"the same image as {first.path}{lost}"))
        for record, _ in sizes:
            if record.path in digests:
                earlier.setdefault(digests[record.path], record)
    return kept, repeated


def _sizes(dataset: Dataset) -> Iterator[tuple[Path, tuple[int, int, int]]]:
    """Yield path, and number of bytes, width and height, of each image."""
    images = columns(dataset.records)
    for path, (width, height) in zip(images.paths(), images.sizes.tolist(), strict=True):
        yield path, (path.stat().st_size, width, height)
