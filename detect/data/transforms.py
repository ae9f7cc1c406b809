"""From a decoded photograph to the network's input size, boxes alongside: augmentation, then resizing."""

from __future__ import annotations

import os
import reprlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float32, Int64, UInt8
from pydantic import ValidationError

from detect.errors import UserError

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else the import below looks for updates on the network
import albumentations as A

Step = Mapping[str, Any]
"""A transform's name with its arguments."""


@dataclass(frozen=True, slots=True)
class Resize:
    """Scales an image to a short side, unless its long side would then exceed a limit (Girshick 2015, §2.4)."""

    short_side: int
    long_side: int

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after resizing, in whole pixels."""
        scale = min(self.short_side / min(height, width), self.long_side / max(height, width))
        return max(1, round(height * scale)), max(1, round(width * scale))


class Augmentation:
    """Albumentations by name, as YAML gives them: `[{HorizontalFlip: {p: 0.5}}, …]`.

    Each call is seeded by itself, so what an image becomes depends neither on the worker that loads it nor on the
    images before it.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        transforms = [_transform(name, arguments or {}) for step in steps for name, arguments in step.items()]
        # Labels would come back as float32: the boxes carry their places instead.
        boxes = A.BboxParams(format="pascal_voc", label_fields=["places"], clip=True, min_area=1.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # steps that leave all boxes where they are, are no mistake
            self.compose = A.Compose(transforms, bbox_params=boxes) if transforms else None

    def __call__(
        self, image: UInt8[np.ndarray, "h w 3"], boxes: Float32[np.ndarray, "n 4"], seed: int
    ) -> tuple[UInt8[np.ndarray, "H W 3"], Float32[np.ndarray, "m 4"], Int64[np.ndarray, " m"]]:
        """The image, the boxes that remain in it, and the places that these had before.

        Raises `UserError` where a transform fails on the image, or makes something else than RGB of 8 bits of it.
        """
        places = np.arange(len(boxes))
        if self.compose is None:
            return image, boxes, places
        self.compose.set_random_seed(seed % 2**32)
        try:
            out = self.compose(image=image, bboxes=boxes, places=places)
        except Exception as error:  # which kinds there are is up to the transforms
            height, width = image.shape[:2]
            raise UserError(
                f"data.augment: {type(error).__name__}: {_one_line(error)} on an image of {height} × {width}; choose "
                "arguments that fit every image, or leave the transform out"
            ) from error
        image, kept = out["image"], np.asarray(out["places"], dtype=np.int64).reshape(-1)
        if image.dtype != np.uint8 or image.shape[2:] != (3,):
            raise UserError(
                f"data.augment: makes {image.dtype} images of shape {image.shape}, not RGB of 8 bits; leave out what "
                "normalises or converts them"
            )
        return image, np.asarray(out["bboxes"], dtype=np.float32).reshape(-1, 4), kept


def resize(image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "H W 3"]:
    """The image at another height and width: averaged when it shrinks, interpolated when it grows."""
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
            warnings.simplefilter("error", UserWarning)  # all it has for an argument that it does not know
            return transform(**arguments)
    except (TypeError, ValueError, UserWarning) as error:
        raise UserError(f"data.augment: {name}: {_mistake(error)}") from error


def _mistake(error: Exception) -> str:
    """What a transform says of its arguments; albumentations asks pydantic, whose text has many lines."""
    if not isinstance(error.__cause__, ValidationError):
        return _one_line(error)
    first = error.__cause__.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}, not {reprlib.repr(first['input'])}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
