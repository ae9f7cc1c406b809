"""Padded tensors that pass from the collate function to the loss and the detections.

Shapes: B images, G ground truths, R proposals, S samples, D detections, H and W pixels of the canvas,
M and m cells along each side of a mask, which lies in its box.
Boxes are xyxy in absolute pixels of the canvas, float32, without "+1". Labels are 0 … C-1; background is C.
Padded entries have `valid` False; their other fields are finite and have no meaning.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from jaxtyping import Bool, Float, Int, Num, UInt8
from torch import Tensor


class _Tensors:
    """Moves all tensors of a structure at once; DataLoader and Lightning call these methods by name."""

    __slots__ = ()

    def _map(self, function) -> Self:
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return type(self)(**{name: None if value is None else function(value) for name, value in values.items()})

    def to(self, *args, **kwargs) -> Self:
        """Return the structure on another device. Dtypes must not change."""
        return self._map(lambda value: value.to(*args, **kwargs))

    def pin_memory(self) -> Self:
        """Return the structure in page-locked memory, from which copies to a CUDA device overlap with compute."""
        return self._map(lambda value: value.pin_memory())


@dataclass(frozen=True, slots=True)
class Images(_Tensors):
    """Images in the upper left corner of one canvas. Pixels are RGB in 0 … 255, of any dtype."""

    pixels: Num[Tensor, "B 3 H W"]
    sizes: Int[Tensor, "B 2"]
    """Height and width of each image within the canvas."""


@dataclass(frozen=True, slots=True)
class Targets(_Tensors):
    """Ground truths of each image. A crowd region is valid but not an object: boxes inside it are ignored."""

    boxes: Float[Tensor, "B G 4"]
    labels: Int[Tensor, "B G"]
    valid: Bool[Tensor, "B G"]
    crowd: Bool[Tensor, "B G"]
    masks: UInt8[Tensor, "B G M M"] | None = None
    """Covered part, 255 for all, of each cell of a grid over the box; zero everywhere for a box without a mask."""


@dataclass(frozen=True, slots=True)
class Proposals(_Tensors):
    """Candidate boxes of each image, best first."""

    boxes: Float[Tensor, "B R 4"]
    scores: Float[Tensor, "B R"]
    valid: Bool[Tensor, "B R"]


@dataclass(frozen=True, slots=True)
class Samples(_Tensors):
    """Regions that a head is trained on, each with its matched ground truth."""

    boxes: Float[Tensor, "B S 4"]
    labels: Int[Tensor, "B S"]
    """Class of the ground truth, C for background."""
    matched: Int[Tensor, "B S"]
    """Index of the ground truth in `Targets`; meaningless for background."""
    matched_boxes: Float[Tensor, "B S 4"]
    valid: Bool[Tensor, "B S"]


@dataclass(frozen=True, slots=True)
class Detections(_Tensors):
    """Detected objects of each image, best first."""

    boxes: Float[Tensor, "B D 4"]
    scores: Float[Tensor, "B D"]
    labels: Int[Tensor, "B D"]
    valid: Bool[Tensor, "B D"]
    proposals: Proposals | None = None
    """Proposals from which the detections were computed, if the detector uses any."""
    masks: Float[Tensor, "B D m m"] | None = None
    """Probability of each cell of a grid over the box that it belongs to the object."""


@dataclass(frozen=True, slots=True)
class Batch(_Tensors):
    """Output of the collate function and input of a detector."""

    images: Images
    targets: Targets
    ids: Int[Tensor, " B"]
    """Image ids of the data set."""
    scales: Float[Tensor, "B 2"]
    """Pixels of the canvas per pixel of the file, along x and along y."""
    proposals: Proposals | None = None
    closing: Bool[Tensor, ""] | None = None
    """True in the last epochs of training, in which a detector may add a loss; None is like False."""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class ClassificationBatch(_Tensors):
    """Images of one size, each with one label. Pixels are RGB."""

    images: UInt8[Tensor, "B 3 H W"]
    labels: Int[Tensor, " B"]
    ids: Int[Tensor, " B"]
    """Index of each image in its split."""

    def __len__(self) -> int:
        return len(self.ids)


def to_file_pixels(detections: Detections, scales: Float[Tensor, "B 2"]) -> Detections:
    """Return the detections with boxes in pixels of the image file instead of the canvas."""
    return replace(detections, boxes=detections.boxes / torch.cat([scales, scales], dim=-1)[:, None])
