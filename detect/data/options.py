"""Options of detection data."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, PositiveInt

from detect.options import options

Side = Annotated[int, Field(gt=0, le=8192)]
"""Pixels. The largest canvas takes 200 MB; this limit prevents running out of memory."""


@options
class DataOptions:
    """Options of reading, transforming and loading images with boxes.

    Args:
        root: data folder, or one of its annotation files; the format is detected.
        train: training split.
        val: validation split, which selects the best checkpoint; null for none, which uses the last checkpoint.
        test: split that is evaluated once at the end; null for `val`.
        short_side: pixels of the short side. Training draws one of several per batch, evaluation uses the largest.
        long_side: maximum number of pixels of the long side.
        batch_size: training batch size per device.
        eval_batch_size: evaluation batch size per device.
        workers: data loading processes per device; 0 loads in the main process.
        augment: albumentations by name, applied in training before resizing.
        canvases: maximum number of canvas sizes per short side. More need less padding, fewer need less compilation.
        max_objects: maximum number of ground truths per image.
        proposals: proposal store written by `detect propose`, for detectors without an RPN.
        max_proposals: maximum number of proposals per image, best first.
        skip_unreadable: leave out missing and damaged images (they are counted and reported) instead of stopping.
        follow_links: follow links out of the data folder; only for links that you made yourself.
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
