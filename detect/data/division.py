"""The division of a training split into parts, as a run's folder records it.

    {"split": "train", "seed": 0, "fractions": {"val": 0.2},
     "notes": [...], "images": [{"root": "data", "train": ["a.jpg", ...], "val": [...]}]}

`images` has an entry per data folder, with file names relative to it, so that the data may move. `split` is the name of
the training split, the remaining images of which are the part `train`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict  # pydantic requires this one before Python 3.12

from detect.data.dataset import Dataset, Defect
from detect.data.records import Record
from detect.errors import UserError, one_line
from detect.files.fence import MAX_BYTES, read_bounded

DIVISION = "division.json"
"""Name of the file in a run's folder."""
PARTS = ("train", "val", "test")
"""Names of the parts."""


@with_config({"extra": "forbid", "strict": True, "allow_inf_nan": False})
class _File(TypedDict):
    split: str
    seed: int
    fractions: dict[str, float]
    notes: list[str]
    images: list[dict[str, str | list[str]]]


_FILE = TypeAdapter(_File)


@dataclass(frozen=True, slots=True)
class Division:
    """A division of a training split into parts."""

    split: str
    """Training split that was divided."""
    seed: int
    fractions: dict[str, float]
    """Fraction of the images in each part except `train`, which has the others."""
    parts: tuple[dict[str, tuple[str, ...]], ...]
    """For each data folder, the file names of each part, relative to it."""
    notes: tuple[str, ...] = field(default=(), compare=False)
    """What the user should know about it, one line each."""
    roots: tuple[str, ...] = field(default=(), compare=False)
    """Data folders when it was made."""

    def lines(self) -> list[str]:
        """Return the lines to print."""
        counts = {part: sum(len(names.get(part, ())) for names in self.parts) for part in ("train", *self.fractions)}
        named = ", ".join(f"{part} {count}" for part, count in counts.items())
        return [one_line(f"split {self.split} divided with seed {self.seed}: {named} images"), *self.notes]


def division_json(division: Division) -> str:
    """Return a division as the content of its file."""
    images = [{"root": root, **parts} for root, parts in zip(division.roots, division.parts, strict=True)]
    content = {"split": division.split, "seed": division.seed, "fractions": division.fractions}
    return json.dumps(content | {"notes": division.notes, "images": images}, indent=1, ensure_ascii=False)


def read_division(file: Path) -> Division:
    """Read the file of a division. Raise `UserError` if it is missing or not such a file."""
    try:
        content = _FILE.validate_json(read_bounded(file, MAX_BYTES[".json"]))
    except OSError as error:
        remedy = "restore it, or leave it out with --data.division null"
        raise UserError(one_line(f"{file}: {error.strerror}: the division of the data; {remedy}")) from None
    except (ValidationError, ValueError):
        remedy = "restore it, or give --data.division null"
        raise UserError(one_line(f"{file}: not the division of a training split; {remedy}")) from None
    parts = tuple(
        {part: tuple(names) for part, names in entry.items() if isinstance(names, list)} for entry in content["images"]
    )
    return Division(
        split=content["split"],
        seed=content["seed"],
        fractions=content["fractions"],
        parts=parts,
        notes=tuple(content["notes"]),
        roots=tuple(str(entry.get("root", "")) for entry in content["images"]),
    )


def image_names(dataset: Dataset) -> dict[str, Record]:
    """Return the images of one data folder by their file names, relative to the folder if they are in it."""
    return {_name(record.path, dataset.root): record for record in dataset.records}


def _name(path: Path, root: Path) -> str:
    folder = root if root.is_dir() else root.parent
    return (path.relative_to(folder) if path.is_relative_to(folder) else path.absolute()).as_posix()


def _unreadable(dataset: Dataset) -> set[str]:
    """Return the names of the images that were left out because they cannot be read."""
    rules = ("missing-image", "unreadable-image")
    return {_name(defect.path, dataset.root) for defect in dataset.repaired if defect.rule in rules}


def select_part(
    division: Division, part: str, datasets: Sequence[Dataset], file: Path | None
) -> tuple[set[Path], list[Defect]]:
    """Return the images of a part, and a defect for each image that no part lists.

    Args:
        division: the division.
        part: name of the part.
        datasets: the divided split of each data folder, in the order of the division.
        file: file of the division, for messages.

    Raises:
        UserError: the data has other folders than the division, or lacks images of the part.
    """
    source = file or Path(DIVISION)
    remedy = "give the data that was divided with --data.root, or --data.division null for the splits of other data"
    if len(datasets) != len(division.parts):
        folders = f"it divides {len(division.parts)} data folders, and data.root has {len(datasets)}"
        raise UserError(one_line(f"{source}: {folders}; {remedy}"))
    chosen: set[Path] = set()
    undivided = []
    for dataset, parts in zip(datasets, division.parts, strict=True):
        names, wanted = image_names(dataset), set(parts.get(part, ()))
        if missing := wanted - names.keys() - _unreadable(dataset):
            what = f"{len(missing)} images of the part {part} are not in {dataset.root}, split {dataset.split}"
            raise UserError(one_line(f"{source}: {what}, first {min(missing)}; {remedy}"))
        chosen.update(record.path for name, record in names.items() if name in wanted)
        listed = {name for names in parts.values() for name in names}
        new = sorted(record.path for name, record in names.items() if name not in listed)
        undivided += [Defect("undivided-image", path, f"{source} lists it in no part") for path in new]
    return chosen, undivided


def check_division(division: Division, fractions: Mapping[str, float], file: Path) -> None:
    """Raise `UserError` if a division has other fractions than the config."""
    if division.fractions != dict(fractions):
        had, asked = (
            ", ".join(f"{part} {share:g}" for part, share in one.items()) for one in (division.fractions, fractions)
        )
        remedy = "give the same fractions, or begin a new run with --data.division null"
        raise UserError(one_line(f"{file}: it divides with {had}, not {asked}; {remedy}"))


def beside_run(division: Path | None, file: Path) -> Path | None:
    """Return the file of a division or, if it is missing, the one in the run's folder that holds `file`.

    A run may have been moved since its config and its checkpoints recorded the path.
    """
    if division is None or division.exists():
        return division
    folder = Path(os.path.realpath(file)).parent
    return next((path / DIVISION for path in (folder, folder.parent) if (path / DIVISION).exists()), division)
