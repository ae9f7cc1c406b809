"""Stratified division of a split into parts, with near-duplicate images in one part.

Iterative stratification (Sechidis et al. 2011, "On the stratification of multi-label data"), with groups of
near-duplicates in place of single images: the rarest class is first, and each of its groups goes to the part that lacks
most images of the class.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from detect.curation.doctor import duplicates
from detect.curation.doctor.image_checks import inspect_images
from detect.data.dataset import SEPARATOR, Dataset
from detect.data.division import Division, image_names
from detect.data.merge import unify_classes
from detect.data.records import Record
from detect.errors import UserError


def divide(
    datasets: Sequence[Dataset], fractions: Mapping[str, float], seed: int, *, progress: bool = True
) -> Division:
    """Divide a split into the part `train` and parts of the given fractions.

    Every class that is in enough images is in every part, and its images are divided by the fractions as nearly as
    possible. Duplicates and near-duplicates stay in one part. To find them, all images are decoded, with a
    progress bar. The same data, fractions and seed give the same division.

    Args:
        datasets: the split, one data set per data folder.
        fractions: fraction of the images in each part; the others are `train`.
        seed: determines the division.
        progress: show a progress bar on a terminal.

    Raises:
        UserError: a part would have no image.
    """
    records = [record for dataset in unify_classes(datasets) for record in dataset.records]
    num_classes = max((int(record.labels.max(initial=-1)) + 1 for record in records), default=0)
    groups, notes = _groups(records, max(fractions.values()), progress)
    counts, sizes = _count(records, groups, num_classes)
    part_of_group = stratify(counts, sizes, list(fractions.values()), seed)
    parts = ["train", *fractions]
    chosen = part_of_group[groups]
    if empty := [part for number, part in enumerate(parts) if not (chosen == number).any()]:
        source = " and ".join(dataset.source for dataset in datasets)
        what = f"the split {datasets[0].split}, of {len(records)} images, leaves none for the part {empty[0]}"
        raise UserError(f"{source}: {what}; add images, or give other fractions")
    part_of = {record.path: parts[number] for record, number in zip(records, chosen, strict=True)}
    return Division(
        split=SEPARATOR.join(dict.fromkeys(dataset.split for dataset in datasets)),
        seed=seed,
        fractions=dict(fractions),
        parts=tuple(_names_by_part(dataset, part_of, parts) for dataset in datasets),
        notes=notes,
        roots=tuple(str(dataset.root.absolute()) for dataset in datasets),
    )


def _names_by_part(dataset: Dataset, part_of: Mapping[Path, str], parts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    names = image_names(dataset)
    return {part: tuple(name for name, record in names.items() if part_of[record.path] == part) for part in parts}


# --------------------------------------------------------------------------------------------------- near-duplicates


def _groups(records: Sequence[Record], share: float, progress: bool) -> tuple[Int64[np.ndarray, " i"], tuple[str, ...]]:
    """Return the number of each image's group of near-duplicates, and notes on the groups.

    All images of a fixed camera are near-duplicates. If one group leaves too few others for a part of the fraction
    `share`, only images with equal pixels stay together, and a note says so.
    """
    images = list(inspect_images(list(dict.fromkeys(record.path for record in records)), progress=progress).values())
    equal = [pair for group in duplicates.exact(images) for pair in pairwise(group)]
    near = [(pair.first, pair.second) for pair in duplicates.near(images)]
    groups = _join(records, [*equal, *near])
    largest = np.bincount(groups).max(initial=0)
    if largest > 1 and len(records) - largest < share * len(records):
        note = f"{largest} of {len(records)} images are near-duplicates, as of a fixed camera, and are divided"
        return _join(records, equal), (f"{note} all the same: expect metrics that are too good",)
    together = int((np.bincount(groups)[groups] > 1).sum())
    return groups, (f"{together} images stay in one part with their near-duplicates",) if together else ()


def _join(records: Sequence[Record], pairs: Iterable[tuple[Path, Path]]) -> Int64[np.ndarray, " i"]:
    """Return a number for each image, the same for images that pairs connect, in the order of the images."""
    parent = {record.path: record.path for record in records}

    def find(path: Path) -> Path:
        while parent[path] != path:
            parent[path] = path = parent[parent[path]]
        return path

    for first, second in pairs:
        parent[find(second)] = find(first)
    number: dict[Path, int] = defaultdict(lambda: len(number))
    return np.array([number[find(record.path)] for record in records], dtype=np.int64)


# ------------------------------------------------------------------------------------------------------ stratification


def _count(
    records: Sequence[Record], groups: Int64[np.ndarray, " i"], num_classes: int
) -> tuple[Int64[np.ndarray, "g c"], Int64[np.ndarray, " g"]]:
    """Return for each group the number of its images with each class, and the number of all its images."""
    sizes = np.bincount(groups).astype(np.int64)
    counts = np.zeros((len(sizes), num_classes), np.int64)
    for record, group in zip(records, groups, strict=True):
        counts[group, np.unique(record.labels)] += 1
    return counts, sizes


def stratify(
    counts: Int64[np.ndarray, "g c"], sizes: Int64[np.ndarray, " g"], fractions: Sequence[float], seed: int
) -> Int64[np.ndarray, " g"]:
    """Divide groups of images into parts, so that the parts have their shares of the images of each class.

    Args:
        counts: number of images of each group that have each class.
        sizes: number of images of each group.
        fractions: shares of the parts 1, 2, …; part 0 has the rest.
        seed: determines the order of the groups.

    Returns:
        The part of each group.
    """
    shares = np.array([1 - sum(fractions), *fractions])
    table = np.column_stack([counts, sizes])
    wanted = shares[:, None] * table.sum(axis=0)
    num_groups = (counts > 0).sum(axis=0)
    for part in range(len(shares)):  # one image at least, if there are enough groups; part 0 has precedence
        wanted[part, :-1] = np.where(num_groups > part, np.maximum(wanted[part, :-1], 1), wanted[part, :-1])
    order = np.random.default_rng(seed).permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]  # the largest first, while all parts have room
    parts = np.full(len(sizes), -1, np.int64)
    for column in _rarest_first(counts, parts):
        members = order[(table[order, column] > 0) & (parts[order] < 0)]
        for group in members:
            part = max(range(len(shares)), key=lambda part: (wanted[part, column], wanted[part, -1], -part))
            parts[group] = part
            wanted[part] -= table[group]
    _complete(parts, table, len(shares))
    return parts


def _rarest_first(counts: Int64[np.ndarray, "g c"], parts: Int64[np.ndarray, " g"]) -> Iterable[int]:
    """Yield the class with the fewest groups without a part, until there is none, then the column of all images."""
    while True:
        left = (counts[parts < 0] > 0).sum(axis=0)
        if not left.any():
            break
        yield int(np.where(left > 0, left, len(counts) + 1).argmin())
    yield counts.shape[1]


def _complete(parts: Int64[np.ndarray, " g"], table: Int64[np.ndarray, "g c"], num_parts: int) -> None:
    """Move groups into parts that lack a class, as long as no part loses its last group of a class."""
    present = table > 0
    for column in np.argsort(present.sum(axis=0), kind="stable"):
        for part in range(num_parts):
            if present[parts == part, column].any():
                continue
            held = np.stack([present[parts == other].sum(axis=0) for other in range(num_parts)])
            spare = present[:, column] & (parts != part) & ((held[parts] > 1) | ~present).all(axis=1)
            if spare.any():
                candidates = np.flatnonzero(spare)
                parts[candidates[table[candidates, -1].argmin()]] = part
