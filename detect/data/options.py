"""What can be chosen of the data."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, PositiveInt

from detect.options import options

Side = Annotated[int, Field(gt=0, le=8192)]
"""Pixels. The largest canvas then takes 200 MB; what is larger ends in memory that nobody has."""


@options
class DataOptions:
    """Where images and boxes come from, and how they reach the network.

    Args:
        root: the data folder; COCO, VOC or YOLO is found out.
        train: the split to train on.
        val: the split that chooses the best checkpoint, or null for none: the last one is then taken.
        test: the split that is evaluated once at the end; null takes `val`.
        short_side: pixels of the short side; of several, training draws one a batch and evaluation takes the largest.
        long_side: the most pixels of the long side.
        batch_size: images a training step, on each device.
        eval_batch_size: images a step of evaluation, on each device.
        workers: processes that load images, on each device; 0 loads in the main process.
        augment: albumentations by name, applied in training before resizing.
        canvases: sizes of canvas for each short side; more of them pad less, fewer compile less.
        max_objects: the most truths an image.
        proposals: a store that `detect propose` has made, for detectors without an RPN.
        max_proposals: the best so many of them an image.
        skip_unreadable: leave missing and damaged images out (counted and told) instead of stopping.
        follow_links: read what links out of the data folder lead to; they are then the user's own, not a stranger's.
    """

    root: Path = Path("data")
    train: str = "train"
    val: str | None = "val"
    test: str | None = None
    short_side: Annotated[tuple[Side, ...], Field(min_length=1)] = (800,)
    long_side: Side = 1333
    batch_size: PositiveInt = 2
    eval_batch_size: PositiveInt = 1
    workers: NonNegativeInt = 2
    augment: tuple[dict[str, Any], ...] = field(default_factory=lambda: ({"HorizontalFlip": {"p": 0.5}},))
    canvases: PositiveInt = 4
    max_objects: PositiveInt = 1024
    proposals: Path | None = None
    max_proposals: PositiveInt = 2000
    skip_unreadable: bool = False
    follow_links: bool = False
