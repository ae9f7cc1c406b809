"""Augmentation and resizing of a decoded image and its boxes to the network's input size."""

from __future__ import annotations

import os
import reprlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NamedTuple, Self

import cv2
import numpy as np
from jaxtyping import Float32, Int64, UInt8
from pydantic import ValidationError

from detect.data.options import DataOptions
from detect.errors import UserError, reason

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # otherwise the import below looks for updates on the network
import albumentations as A

Step = Mapping[str, Any]
"""Name of a transform with its arguments."""
_MIN_AREA = 0.99
"""Minimum area in square pixels of a box after augmentation; below 1, because a flip rounds a box of one pixel."""


@dataclass(frozen=True, slots=True)
class Resize:
    """Scale of an image: the short side becomes `short_side`, but the long side at most `long_side`.

    Girshick 2015, §2.4.
    """

    short_side: int
    long_side: int

    @classmethod
    def for_evaluation(cls, options: DataOptions) -> Self:
        """Return the scale for evaluation and prediction: by default the largest scale of training."""
        return cls(*options.eval_sides)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width after resizing, in whole pixels."""
        scale = min(self.short_side / min(height, width), self.long_side / max(height, width))
        return max(1, round(height * scale)), max(1, round(width * scale))


class Augmented(NamedTuple):
    """Augmented image with the boxes that remain."""

    image: UInt8[np.ndarray, "H W 3"]
    boxes: Float32[np.ndarray, "m 4"]
    kept: Int64[np.ndarray, " m"]
    """Index of each box among the given boxes."""
    masks: UInt8[np.ndarray, "n H W"] | None
    """Bitmaps of all given masks, also of those whose box is gone."""


class Augmentation:
    """Augmentation by albumentations' transforms, named as in YAML: `[{HorizontalFlip: {p: 0.5}}, …]`.

    Each call has its own seed, so that the result does not depend on the worker that loads the image or on the images
    before it.

    Raises:
        UserError: a transform or one of its arguments is unknown or invalid.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        transforms = [_transform(name, arguments or {}) for step in steps for name, arguments in step.items()]
        # Labels would come back as float32, so the boxes carry their indices instead.
        boxes = A.BboxParams(format="pascal_voc", label_fields=["indices"], clip=True, min_area=_MIN_AREA)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # transforms that do not move boxes are allowed
            self.compose = A.Compose(transforms, bbox_params=boxes) if transforms else None

    def __call__(
        self,
        image: UInt8[np.ndarray, "h w 3"],
        boxes: Float32[np.ndarray, "n 4"],
        seed: int,
        masks: UInt8[np.ndarray, "k h w"] | None = None,
    ) -> Augmented:
        """Augment an image, its boxes and its masks.

        Raises:
            UserError: a transform fails on the image, or its result is not 8-bit RGB.
        """
        indices = np.arange(len(boxes))
        if self.compose is None:
            return Augmented(image, boxes, indices, masks)
        self.compose.set_random_seed(seed % 2**32)
        try:
            # albumentations fails on an array without masks.
            given = {} if masks is None or not len(masks) else {"masks": masks}
            out = self.compose(image=image, bboxes=boxes, indices=indices, **given)
        except Exception as error:  # transforms may raise any kind of exception
            height, width = image.shape[:2]
            raise UserError(
                f"data.augment: {type(error).__name__}: {reason(error)} on an image of {height} × {width}; choose "
                "arguments that fit every image, or leave the transform out"
            ) from error
        image, kept = out["image"], np.asarray(out["indices"], dtype=np.int64).reshape(-1)
        if image.dtype != np.uint8 or image.shape[2:] != (3,):
            raise UserError(
                f"data.augment: makes {image.dtype} images of shape {image.shape}, not 8-bit RGB; leave out the "
                "transforms that normalise or convert images"
            )
        masks = (
            np.asarray(out["masks"]) if given else None if masks is None else np.empty((0, *image.shape[:2]), np.uint8)
        )
        return Augmented(image, np.asarray(out["bboxes"], dtype=np.float32).reshape(-1, 4), kept, masks)


def resize(image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "H W 3"]:
    """Resize an image to (height, width): with area averaging when shrinking, else with linear interpolation."""
    if image.shape[:2] == size:
        return image
    shrinks = size[0] < image.shape[0]
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _transform(name: str, arguments: Any) -> A.BasicTransform:
    transform = getattr(A, name, None)
    if not (isinstance(transform, type) and issubclass(transform, A.BasicTransform)):
        names = [n for n, t in vars(A).items() if isinstance(t, type) and issubclass(t, A.BasicTransform)]
        near = get_close_matches(name, names)
        hint = f"did you mean {' or '.join(near)}?" if near else "the names are those of albumentations"
        raise UserError(f"data.augment: albumentations has no transform named {name!r}; {hint}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # albumentations only warns about unknown arguments
            return transform(**arguments)
    except (TypeError, ValueError, UserWarning) as error:
        raise UserError(f"data.augment: {name}: {_explain(error)}") from error


def _explain(error: Exception) -> str:
    """Return a transform's error in one line; albumentations raises pydantic's errors, which have several lines."""
    if not isinstance(error.__cause__, ValidationError):
        return reason(error)
    first = error.__cause__.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}, not {reprlib.repr(first['input'])}"
