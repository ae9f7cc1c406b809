"""Copies of data sets with other splits: one divided into parts, or several joined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from detect.curation.convert import Conversion, Format, write_datasets
from detect.curation.divide import divide
from detect.data.dataset import Dataset, Defect
from detect.data.division import select_part
from detect.data.merge import distinct, merge, with_leaks
from detect.data.read import matching, read_all
from detect.data.tree import usual_split
from detect.errors import UserError
from detect.files.atomic import refuse_within


def split_copy(
    source: Path,
    out: Path,
    fractions: Mapping[str, float],
    seed: int = 0,
    names: Sequence[str] | None = None,
    *,
    format: str | None = None,
    follow_links: bool = False,
    progress: bool = True,
) -> Conversion:
    """Write a copy of a data set that is divided into `train`, `val` and `test`, as by `divide`.

    Args:
        source: the data set.
        out: new folder; it appears complete or not at all. Its format is that of the source, or COCO if there is no
            writer for it.
        fractions: fraction of the images in `val`, `test` or both.
        seed: determines the division.
        names: splits to divide, which are joined; by default all.
        format: one of `formats.FORMATS`; by default it is recognised by the content of the files.
        follow_links: follow links that lead out of the source.
        progress: show progress bars on a terminal.

    Raises:
        UserError: a fraction is not between 0 and 1, the source cannot be read or divided, or `out` cannot be written.
    """
    for name, fraction in fractions.items():
        if not 0 < fraction < 1:
            raise UserError(f"--{name}: {fraction:g}; give a fraction between 0 and 1, such as 0.2")
    if not 0 < sum(fractions.values()) < 1:
        raise UserError("--val, --test: give a fraction for one of them or both, less than 1 in total")
    refuse_within(source, out, "--out")
    options: dict[str, Any] = {"format": format, "follow_links": follow_links, "progress": progress}
    whole = merge(list(read_all(source, names, **options).values()))
    division = divide([whole], fractions, seed, progress=progress)
    parts = []
    for part in ("train", *fractions):
        paths, _ = select_part(division, part, [whole], None)
        records = tuple(record for record in whole.records if record.path in paths)
        parts.append(replace(whole, split=part, records=records, repaired=()))
    parts[0] = replace(parts[0], repaired=whole.repaired)
    return write_datasets(parts, out, _format(parts), chosen=True, progress=progress)


def merge_copy(
    sources: Sequence[Path],
    out: Path,
    names: Sequence[str] | None = None,
    *,
    format: str | None = None,
    follow_links: bool = False,
    progress: bool = True,
) -> Conversion:
    """Write several data sets as one, as by `merge`: splits and classes of the same name are joined.

    Args:
        sources: the data sets.
        out: new folder; it appears complete or not at all. Its format is that of the sources, or COCO if they differ
            or there is no writer for it.
        names: names of the splits; by default all.
        format: one of `formats.FORMATS`; by default it is recognised by the content of the files.
        follow_links: follow links that lead out of a source.
        progress: show progress bars on a terminal.

    Raises:
        UserError: there are not two data sets, one cannot be read, or `out` cannot be written.
    """
    roots = distinct(sources)
    if len(roots) < 2:
        raise UserError(f"{sources[0]}: this is one data set; name two or more that differ")
    for root in roots:
        refuse_within(root, out, "--out")
    options: dict[str, Any] = {"format": format, "follow_links": follow_links, "progress": progress}
    joined: dict[str, list[Dataset]] = {}
    for root in roots:
        for split, dataset in read_all(root, names, **options).items():
            same = (name for name in joined if matching(name, [split]) or matching(split, [name]))
            joined.setdefault(next(same, split), []).append(dataset)
    merged = [replace(_with_absent_splits(merge(datasets), roots), split=split) for split, datasets in joined.items()]
    training = [dataset for dataset in merged if usual_split(dataset.split) == "train"]
    merged = [one if usual_split(one.split) == "train" else with_leaks(one, training) for one in merged]
    return write_datasets(merged, out, _format(merged), chosen=True, progress=progress)


def _with_absent_splits(dataset: Dataset, roots: Sequence[Path]) -> Dataset:
    """Return a joined split with a defect for each data set that does not have it."""
    absent = [Defect("absent-split", root, f"there is no split {dataset.split}") for root in roots]
    kept = tuple(defect for defect in absent if defect.path not in dataset.folders)
    return replace(dataset, repaired=(*dataset.repaired, *kept))


def _format(datasets: Sequence[Dataset]) -> Format:
    formats = {dataset.format for dataset in datasets}
    for format in ("coco", "voc", "yolo"):
        if formats == {format}:
            return format
    return "coco"
