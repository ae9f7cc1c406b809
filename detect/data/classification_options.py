"""Options of classification data."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from detect.data.options import Side
from detect.options import options


def _ordered(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] > ends[1]:
        raise ValueError("the first number is the minimum, the second the maximum")
    return ends


Range = AfterValidator(_ordered)
Share = Annotated[float, Field(gt=0, le=1)]


@options
class RandomCropOptions:
    """Random crop of an image in training, resized to a square.

    Args:
        scale: smallest and largest fraction of the image's area.
        ratio: smallest and largest aspect ratio, width over height.
    """

    scale: Annotated[tuple[Share, Share], Range] = (0.08, 1.0)
    ratio: Annotated[tuple[PositiveFloat, PositiveFloat], Range] = (3 / 4, 4 / 3)


@options
class ClassificationDataOptions:
    """Options of reading, transforming and loading images with one class each.

    Args:
        dataset: `folder`, one folder per class (ROOT/SPLIT/CLASS/*.jpg), or `digits` of scikit-learn, with the splits
            train and test and without a root.
        root: data folder.
        train: training split.
        val: validation split, which selects the best checkpoint; null for none, which uses the last checkpoint.
        test: split that is evaluated once at the end; null for `val`.
        size: side of the network's square input, in pixels.
        resize: short side in evaluation, in pixels, before the centre crop of `size`; at least `size`.
        batch_size: training batch size per device.
        eval_batch_size: evaluation batch size per device.
        workers: data loading processes per device; 0 loads in the main process; null for two, or with GPUs for the
            number of cores per GPU, up to eight.
        crop: random crop in training; null for the centre crop, as in evaluation.
        augment: albumentations by name, applied in training after the crop; they must keep the size.
        skip_unreadable: leave out damaged images (they are counted and reported) instead of stopping.
        follow_links: follow links out of the data folder; only for links that you made yourself.
    """

    dataset: Literal["folder", "digits"] = "folder"
    root: Path = Path("data")
    train: str = "train"
    val: str | None = "val"
    test: str | None = None
    size: Side = 224
    resize: Side = 256
    batch_size: PositiveInt = 32
    eval_batch_size: PositiveInt = 64
    workers: NonNegativeInt | None = None
    crop: RandomCropOptions | None = field(default_factory=RandomCropOptions)
    augment: tuple[dict[str, Any], ...] = field(default_factory=lambda: ({"HorizontalFlip": {"p": 0.5}},))
    skip_unreadable: bool = False
    follow_links: bool = False

    @property
    def final(self) -> str | None:
        """Name of the split that is evaluated at the end."""
        return self.test or self.val

    @model_validator(mode="after")
    def _crop_fits(self) -> ClassificationDataOptions:
        if self.resize < self.size:
            raise ValueError(f"resize is {self.resize}, less than size, {self.size}: the centre crop would not fit")
        return self
