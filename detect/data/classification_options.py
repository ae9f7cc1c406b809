"""What can be chosen of the data of classification."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from detect.data.options import Side
from detect.options import options


def _ordered(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] > ends[1]:
        raise ValueError("the first number is the least, the second the greatest")
    return ends


Range = AfterValidator(_ordered)
Share = Annotated[float, Field(gt=0, le=1)]


@options
class RandomCropOptions:
    """The stretch of an image that training sees.

    Args:
        scale: the least and the greatest share of the image's area.
        ratio: the least and the greatest width over height, before it becomes a square.
    """

    scale: Annotated[tuple[Share, Share], Range] = (0.08, 1.0)
    ratio: Annotated[tuple[PositiveFloat, PositiveFloat], Range] = (3 / 4, 4 / 3)


@options
class ClassificationDataOptions:
    """Where images and their classes come from, and how they reach the network.

    Args:
        dataset: `folder`, one folder a class (ROOT/SPLIT/CLASS/*.jpg), or scikit-learn's `digits`, splits train and
            test, which have no root.
        root: the data folder.
        train: the split to train on.
        val: the split that chooses the best checkpoint, or null for none: the last one is then taken.
        test: the split that is evaluated once at the end; null takes `val`.
        size: pixels of a side of the square that the network sees.
        resize: pixels of the short side in evaluation, of which the middle `size` are taken; at least `size`.
        batch_size: images a training step, on each device.
        eval_batch_size: images a step of evaluation, on each device.
        workers: processes that load images, on each device; 0 loads in the main process.
        crop: the stretch of an image that training draws; null takes the middle, as evaluation does.
        augment: albumentations by name, applied in training to what has been cropped; they keep the size.
        skip_unreadable: leave damaged images out (counted and told) instead of stopping.
        follow_links: read what links out of the data folder lead to; they are then the user's own, not a stranger's.
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
    workers: NonNegativeInt = 2
    crop: RandomCropOptions | None = field(default_factory=RandomCropOptions)
    augment: tuple[dict[str, Any], ...] = field(default_factory=lambda: ({"HorizontalFlip": {"p": 0.5}},))
    skip_unreadable: bool = False
    follow_links: bool = False

    @model_validator(mode="after")
    def _middle_is_within(self) -> ClassificationDataOptions:
        if self.resize < self.size:
            raise ValueError(f"resize is {self.resize}, less than size, {self.size}; the middle would not be there")
        return self
