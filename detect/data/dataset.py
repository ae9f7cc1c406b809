"""Images and boxes of one split, the same for every file format."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from detect.data.masks import Mask
from detect.errors import class_names

VALIDATION = ("val", "valid", "validation")
"""Synonyms for the validation split; the name on disk may differ from the requested one."""
SEPARATOR = " + "
"""Between the names of splits that are joined: `train + new` is also the name of the joined split."""


@dataclass(frozen=True, slots=True)
class Record:
    """One image and its boxes, in pixels of the image that `decode` returns (EXIF orientation applied)."""

    id: int
    path: Path
    width: int
    height: int
    boxes: Float[np.ndarray, "n 4"]
    """xyxy, inside the image, of positive area. float32, or float64 where metrics must match a file to the last bit."""
    labels: Int64[np.ndarray, " n"]
    """0 … C-1, the index of the class in `Dataset.classes`."""
    crowd: Bool[np.ndarray, " n"]
    """COCO's `iscrowd`: a region of many objects, neither ground truth nor background."""
    difficult: Bool[np.ndarray, " n"]
    """VOC's `difficult`: used in training, but left out of VOC's metrics."""
    areas: Float64[np.ndarray, " n"]
    """COCO's `area`, which divides ground truths into small, medium and large; without it, that of the mask or box."""
    masks: tuple[Mask | None, ...] | None = None
    """Mask of each box, None for a box without one; None for a data set without masks."""

    def select(self, kept: Bool[np.ndarray, " n"]) -> Record:
        """Return the record with only some of its boxes."""
        columns = ("boxes", "labels", "crowd", "difficult", "areas")
        masks = None if self.masks is None else tuple(self.masks[row] for row in np.flatnonzero(kept))
        return replace(self, **{name: getattr(self, name)[kept] for name in columns}, masks=masks)

    def has_boxes_of(self, other: Record) -> bool:
        """Return whether another record has the same boxes with the same labels."""
        columns = ("boxes", "labels", "difficult")
        return all(np.array_equal(getattr(self, name), getattr(other, name)) for name in columns)


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
    records: tuple[Record, ...]
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
    return replace(dataset, records=tuple(replace(record, masks=None) for record in dataset.records))
