"""Annotations from images whose boxes have class names, as most formats store them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from detect.data.annotations import Annotations, choose_classes
from detect.data.defects import DefectLog
from detect.data.masks import Mask
from detect.data.tree import FoundImage


@dataclass(frozen=True, slots=True)
class LabelledBox:
    """One box as its file contains it."""

    name: str
    """Name of the class."""
    box: tuple[float, ...]
    """xyxy, in the unit of the format."""
    place: str
    """Location in the file, such as `line 3`."""
    difficult: bool = False
    crowd: bool = False
    mask: Mask | None = None
    """Polygons are in the unit of the box."""


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """One image and its boxes as their file contains them."""

    path: Path
    """Image, which may not exist."""
    source: Path
    """Annotation file."""
    size: tuple[Any, ...] | None = None
    """Width and height according to the file, or None."""
    boxes: list[LabelledBox] = field(default_factory=list)


def to_annotations(
    images: Sequence[LabelledImage],
    names: Iterable[str],
    classes: Sequence[str] | None,
    log: DefectLog,
    *,
    normalised: bool = False,
) -> Annotations:
    """Return the annotations of a split.

    Args:
        images: the images of the split.
        names: names of all classes of the data set, in their order. They must not depend on the split.
        classes: as for `read`: the classes of a trained model, or None for `names`.
        log: log to which boxes of unknown classes are added.
        normalised: whether boxes are fractions of the image's size instead of pixels.
    """
    if classes is None:
        chosen, category_ids, _ = choose_classes(dict(enumerate(names, start=1)), None)
    else:
        chosen, category_ids = tuple(classes), tuple(range(1, len(classes) + 1))
    label_of = {name: label for label, name in enumerate(chosen)}
    rows = [(index, box) for index, image in enumerate(images) for box in image.boxes]
    for index, box in rows:
        if box.name not in label_of:
            log.add("unknown-class", images[index].source, f"{box.place}: {box.name}")
    return Annotations(
        classes=chosen,
        category_ids=category_ids,
        paths=[image.path for image in images],
        sources=[image.source for image in images],
        declared=[image.size for image in images],
        ids=None,
        boxes=np.array([box.box for _, box in rows], dtype=np.float64).reshape(-1, 4),
        image=np.array([index for index, _ in rows], dtype=np.int64),
        labels=np.array([label_of.get(box.name, -1) for _, box in rows], dtype=np.int64),
        crowd=np.array([box.crowd for _, box in rows], dtype=bool),
        difficult=np.array([box.difficult for _, box in rows], dtype=bool),
        areas=np.full(len(rows), np.nan),
        places=[box.place for _, box in rows],
        normalised=normalised,
        masks=[box.mask for _, box in rows] if any(box.mask is not None for _, box in rows) else None,
    )


def names_of_boxes(images: Iterable[LabelledImage]) -> list[str]:
    """Return the names of the classes of all boxes, sorted."""
    return sorted_names({box.name for image in images for box in image.boxes})


def sorted_names(names: Iterable[str]) -> list[str]:
    """Return names sorted; by value if all of them are numbers."""
    ordered = sorted(names)
    return sorted(ordered, key=len) if all(name.isdecimal() for name in ordered) else ordered


def image_path(found: FoundImage | None, name: str, source: Path, log: DefectLog) -> Path | None:
    """Return the path of an image; log a name in another spelling, or log one outside of the root and return None."""
    if found is None:
        log.add("path-outside-root", source, f"it names the image {name}")
        return None
    if found.renamed:
        log.add("foreign-name", source, f"{name} is read as {found.path}")
    return found.path
