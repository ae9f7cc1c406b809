"""The padded tensors that travel from the collate function to the loss and to the detections.

Letters of the shapes: B images, G truths, R proposals, S samples, D detections, H and W pixels of the canvas.
Boxes are xyxy in absolute pixels of the canvas, float32, without a "+1". Labels are 0 … C-1, background is C.
Every padded entry has `valid` False; what its other fields hold is then finite but means nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import torch
from jaxtyping import Bool, Float, Int, Num, UInt8
from torch import Tensor


class _Tensors:
    """Moves every tensor of a structure at once; DataLoader and Lightning call these by name."""

    __slots__ = ()

    def _map(self, function) -> Self:
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return type(self)(**{name: None if value is None else function(value) for name, value in values.items()})

    def to(self, *args, **kwargs) -> Self:
        """The structure on another device. Only devices are meant: the dtypes are part of the types."""
        return self._map(lambda value: value.to(*args, **kwargs))

    def pin_memory(self) -> Self:
        """The structure in page-locked memory, from which copies to a CUDA device overlap with compute."""
        return self._map(lambda value: value.pin_memory())


@dataclass(frozen=True, slots=True)
class Images(_Tensors):
    """Images in the upper left corner of one canvas. Pixels are RGB in 0 … 255, whatever their dtype."""

    pixels: Num[Tensor, "B 3 H W"]
    sizes: Int[Tensor, "B 2"]
    """Height and width of each image within the canvas."""


@dataclass(frozen=True, slots=True)
class Targets(_Tensors):
    """The truths of each image. A crowd region is valid, but it is no truth: it only excuses what lies in it."""

    boxes: Float[Tensor, "B G 4"]
    labels: Int[Tensor, "B G"]
    valid: Bool[Tensor, "B G"]
    crowd: Bool[Tensor, "B G"]


@dataclass(frozen=True, slots=True)
class Proposals(_Tensors):
    """Candidate boxes of each image, best first."""

    boxes: Float[Tensor, "B R 4"]
    scores: Float[Tensor, "B R"]
    valid: Bool[Tensor, "B R"]


@dataclass(frozen=True, slots=True)
class Samples(_Tensors):
    """The proposals that a head is trained on, with what each of them should become."""

    boxes: Float[Tensor, "B S 4"]
    labels: Int[Tensor, "B S"]
    matched_boxes: Float[Tensor, "B S 4"]
    valid: Bool[Tensor, "B S"]


@dataclass(frozen=True, slots=True)
class Detections(_Tensors):
    """What the detector found in each image, best first."""

    boxes: Float[Tensor, "B D 4"]
    scores: Float[Tensor, "B D"]
    labels: Int[Tensor, "B D"]
    valid: Bool[Tensor, "B D"]


@dataclass(frozen=True, slots=True)
class Batch(_Tensors):
    """What the collate function makes and a detector takes."""

    images: Images
    targets: Targets
    ids: Int[Tensor, " B"]
    """The data set's image ids."""
    scales: Float[Tensor, "B 2"]
    """Pixels of the canvas for each pixel of the file, along x and along y."""
    proposals: Proposals | None = None

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class ClassificationBatch(_Tensors):
    """Images of one size, each with the label of the whole. Pixels are RGB."""

    images: UInt8[Tensor, "B 3 H W"]
    labels: Int[Tensor, " B"]
    ids: Int[Tensor, " B"]
    """The place of each image in its split."""

    def __len__(self) -> int:
        return len(self.ids)


def to_file_pixels(detections: Detections, scales: Float[Tensor, "B 2"]) -> Detections:
    """Detections on the canvas, with their boxes in pixels of the image file."""
    boxes = detections.boxes / torch.cat([scales, scales], dim=-1)[:, None]
    return Detections(boxes, detections.scores, detections.labels, detections.valid)
