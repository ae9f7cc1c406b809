"""What every reader gives: the images and boxes of one split, whatever the format of the files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

VALIDATION = ("val", "valid", "validation")
"""What the split that chooses the best checkpoint is called: one name asks for the others where it is not there."""


@dataclass(frozen=True, slots=True)
class Record:
    """One image and its boxes, in pixels of the image as `decode` gives it (EXIF orientation applied)."""

    id: int
    path: Path
    width: int
    height: int
    boxes: Float[np.ndarray, "n 4"]
    """xyxy, inside the image, of positive area; float32 but where figures must be those of a file to the last bit."""
    labels: Int64[np.ndarray, " n"]
    """0 … C-1, the place of the class in `Dataset.classes`."""
    crowd: Bool[np.ndarray, " n"]
    """COCO's `iscrowd`: a region of many objects, neither truth nor background."""
    difficult: Bool[np.ndarray, " n"]
    """VOC's `difficult`: trained on, but left out of VOC's figures."""
    areas: Float64[np.ndarray, " n"]
    """COCO's `area`, which sorts truths into small, medium and large; the box's own where the file has none."""


@dataclass(frozen=True, slots=True)
class Defect:
    """One finding of a reader: what is wrong where, and which rule was applied."""

    rule: str
    """The name of the rule, a key of `defects.RULES`."""
    path: Path
    """The file that is at fault."""
    detail: str
    """The object, the value and what became of it, in a few words."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """One split of a data set, read, checked and mended."""

    root: Path
    split: str
    format: str
    """`coco`, `voc` or `yolo`."""
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    """The file's own id of each class: what `predictions.json` carries."""
    records: tuple[Record, ...]
    mended: tuple[Defect, ...] = field(default=())
    """What was repaired on the way in; what cannot be repaired raises `UserError`."""

    def __len__(self) -> int:
        return len(self.records)
