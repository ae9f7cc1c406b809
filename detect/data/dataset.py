"""Images and boxes of one split, the same for every file format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from detect.data.records import Record, Records
from detect.errors import class_names

VALIDATION = ("val", "valid", "validation")
"""Synonyms for the validation split; the name on disk may differ from the requested one."""
SEPARATOR = " + "
"""Between the names of splits that are joined: `train + new` is also the name of the joined split."""


@dataclass(frozen=True, slots=True)
class Defect:
    """Defect in a data set, reported by a reader."""

    rule: str
    """Name of the rule that was applied, a key of `defects.RULES`."""
    path: Path
    """File with the defect."""
    detail: str
    """Location and value in a few words."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """One split of a data set, checked and repaired."""

    root: Path
    """Data folder; of several joined data folders the one that contains them."""
    split: str
    format: str
    """A key of `formats.FORMATS`, or several of them."""
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    """Id of each class in the file; `predictions.json` uses these."""
    records: Sequence[Record]
    """The images, of a split that was read in columns; see `records.Records`."""
    repaired: tuple[Defect, ...] = field(default=())
    """Defects that were repaired while reading. A defect that cannot be repaired raises `UserError`."""
    roots: tuple[Path, ...] = ()
    """Data folders that were joined; empty if there is only `root`."""
    is_part: bool = False
    """True for a part of a divided training split; `split` is then the name of the part."""

    @property
    def folders(self) -> tuple[Path, ...]:
        """All data folders."""
        return self.roots or (self.root,)

    @property
    def source(self) -> str:
        """The data folders, for messages."""
        return " and ".join(map(str, self.folders))

    def __len__(self) -> int:
        return len(self.records)

    def __repr__(self) -> str:
        place = f"{str(self.root)!r}, {self.split}, {self.format}"
        return f"Dataset({place}, {len(self):,} images, {class_names(self.classes)})"


def without_masks(dataset: Dataset) -> Dataset:
    """Return the data set with boxes only; the masks of a large one take hundreds of megabytes."""
    if isinstance(dataset.records, Records):
        return replace(dataset, records=dataset.records.without_masks())
    return replace(dataset, records=tuple(replace(record, masks=None) for record in dataset.records))
