"""Options of detection data."""

from __future__ import annotations

from dataclasses import field
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from detect.data.dataset import SEPARATOR
from detect.data.merge import distinct
from detect.options import Fraction, options

Side = Annotated[int, Field(gt=0, le=8192)]
"""Pixels. The largest canvas takes 200 MB; this limit prevents running out of memory."""


def _roots(given: Any) -> Any:
    """Accept one data folder, or a list of them."""
    folders = list(given) if isinstance(given, list | tuple) else [given]
    if not folders or not all(isinstance(folder, str | PathLike) for folder in folders):
        raise ValueError(f"give a data folder or a list of data folders, not {given!r}")
    return folders[0] if len(folders) == 1 else folders


def _names(given: Any) -> Any:
    """Accept the name of one split, or a list of names."""
    names = list(given) if isinstance(given, list | tuple) else [given]
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"give the name of a split or a list of names, not {given!r}")
    return names[0] if len(names) == 1 else names


def _names_or_fraction(given: Any) -> Any:
    """Accept the names of splits, a fraction of the training split, or null."""
    if isinstance(given, int | float) and not isinstance(given, bool):
        if not 0 < given < 1:
            raise ValueError(f"give a fraction of the training split between 0 and 1, such as 0.2, not {given}")
        return given
    return None if given is None else _names(given)


Names = Annotated[str | tuple[str, ...], BeforeValidator(_names)]
"""One or several splits, which are joined."""
NamesOrFraction = Annotated[str | tuple[str, ...] | float | None, BeforeValidator(_names_or_fraction)]


def _ascending(given: tuple[float, float]) -> tuple[float, float]:
    if given[0] > given[1]:
        raise ValueError(f"give the smaller number first: [{given[1]:g}, {given[0]:g}]")
    return given


Range = Annotated[tuple[PositiveFloat, PositiveFloat], AfterValidator(_ascending)]
"""Lowest and highest value."""


@options
class MosaicOptions:
    """Options of mosaic, four images in one; the defaults are those of YOLOX (Ge et al. 2021).

    Args:
        probability: fraction of the images.
        scale: lowest and highest factor of the size of the images, which fit into the canvas at 1.
        degrees: maximum rotation to either side.
        translate: maximum shift to each side, as a fraction of the canvas.
        shear: maximum shear to each side, in degrees.
    """

    probability: Fraction = 1.0
    scale: Range = (0.1, 2.0)
    degrees: Annotated[float, Field(ge=0, le=180)] = 10.0
    translate: Fraction = 0.1
    shear: Annotated[float, Field(ge=0, le=60)] = 2.0


@options
class MixupOptions:
    """Options of mixup, the mean of two images; the defaults are those of YOLOX (Ge et al. 2021).

    Args:
        probability: fraction of the images.
        scale: lowest and highest factor of the size of the second image, which fits into the canvas at 1.
    """

    probability: Fraction = 1.0
    scale: Range = (0.5, 1.5)


@options
class DataOptions:
    """Options of reading, transforming and loading images with boxes.

    Args:
        root: data folder, an annotation file in it, or a list of these, which are joined.
        format: format of the annotations, such as `coco`; null recognises it by the content of the files.
        train: training split, or a list of splits that are joined.
        val: validation split, which selects the best checkpoint: a name, a list of names that are joined, a fraction
            such as 0.2 of the training split to hold out (by `training.seed`), or null to use the last checkpoint.
        test: split that is evaluated once at the end, given like `val`; null for `val`.
        classes: classes to keep, by default all; boxes of others are left out, their images are kept.
        division: file with the division of the training split, if `val` or `test` is a fraction; by default a new
            division, which is written into the run's folder.
        short_side: pixels of the short side. Training draws one of several per batch.
        eval_short_side: pixels of the short side in evaluation and prediction; null for the largest `short_side`.
        long_side: maximum number of pixels of the long side; null for the short side, so that images fit into a square.
        batch_size: training batch size per device.
        eval_batch_size: evaluation batch size per device; null for 1 on the CPU and for 8 on a GPU.
        workers: data loading processes per device; 0 loads in the main process; null for two, or with GPUs for the
            number of cores per GPU, up to eight.
        augment: albumentations by name, applied in training before resizing, and after mosaic and mixup.
        mosaic: combine each training image with three others; null for none.
        mixup: add another image to each training image; null for none.
        canvases: maximum number of canvas sizes per short side. More need less padding, fewer need less compilation.
        max_objects: maximum number of ground truths per image.
        proposals: proposal store written by `detect propose`, for detectors without an RPN.
        max_proposals: maximum number of proposals per image, best first.
        skip_unreadable: leave out missing and damaged images (they are counted and reported) instead of stopping.
        follow_links: follow links out of the data folder; only for links that you made yourself.
    """

    root: Annotated[Path | tuple[Path, ...], BeforeValidator(_roots)] = Path("data")
    format: str | None = None
    train: Names = "train"
    val: NamesOrFraction = "val"
    test: NamesOrFraction = None
    classes: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    division: Path | None = None
    short_side: Annotated[tuple[Side, ...], Field(min_length=1)] = (800,)
    eval_short_side: Side | None = None
    long_side: Side | None = 1333
    batch_size: PositiveInt = 2
    eval_batch_size: PositiveInt | None = None
    workers: NonNegativeInt | None = None
    augment: tuple[dict[str, Any], ...] = field(default_factory=lambda: ({"HorizontalFlip": {"p": 0.5}},))
    mosaic: MosaicOptions | None = None
    mixup: MixupOptions | None = None
    canvases: PositiveInt = 4
    max_objects: PositiveInt = 1024
    proposals: Path | None = None
    max_proposals: PositiveInt = 2000
    skip_unreadable: bool = False
    follow_links: bool = False

    @model_validator(mode="after")
    def _parts_are_unique(self) -> DataOptions:
        if sum(self.fractions.values()) >= 1:
            raise ValueError("val and test are the whole training split; give smaller fractions")
        for part, other in (("val", "test"), ("test", "val")):
            if part in self.fractions and getattr(self, other) == part:
                raise ValueError(f"{other} names {part}, a part of the training split; give it another split, or null")
        return self

    @model_validator(mode="after")
    def _proposals_are_of_one_image(self) -> DataOptions:
        if self.proposals is not None and (self.mosaic or self.mixup):
            raise ValueError("mosaic and mixup are for detectors without given proposals; leave them out")
        return self

    @property
    def roots(self) -> tuple[Path, ...]:
        """Data folders, each once."""
        return distinct(self.root if isinstance(self.root, tuple) else (self.root,))

    @property
    def train_sides(self) -> list[tuple[int, int]]:
        """Short side and maximum long side of images in training, of which each batch draws one."""
        return [(short_side, self.long_side or short_side) for short_side in self.short_side]

    @property
    def eval_sides(self) -> tuple[int, int]:
        """Short side and maximum long side of images in evaluation and prediction."""
        short_side = self.eval_short_side or max(self.short_side)
        return short_side, self.long_side or short_side

    @property
    def fractions(self) -> dict[str, float]:
        """Parts of the training split to hold out, by name: `val`, `test` or both."""
        fractions = {"val": self.val, "test": self.test}
        return {name: fraction for name, fraction in fractions.items() if isinstance(fraction, float)}

    def split_name(self, part: Literal["train", "val", "test"]) -> str | None:
        """Return the name of the training, validation or test split, by which `DetectionData.split` finds it."""
        value = getattr(self, part)
        if isinstance(value, tuple):
            return SEPARATOR.join(value)
        return part if isinstance(value, float) else value

    @property
    def final(self) -> str | None:
        """Name of the split that is evaluated at the end."""
        return self.split_name("test") or self.split_name("val")
