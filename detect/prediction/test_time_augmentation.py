"""Test-time augmentation: detect at several scales and with the image flipped, and merge the detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from numbers import Real

import torch
from jaxtyping import Float, Num
from torch import Tensor

from detect.errors import UserError
from detect.models import PostprocessOptions
from detect.ops.boxes import gather_boxes
from detect.ops.nms import nms
from detect.structures import Detections


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Transformation of an image before detection."""

    scale: float = 1.0
    """Factor of the config's image size."""
    flip: bool = False
    """Flip the image horizontally."""


def augmentations(flip: bool, scales: Sequence[float]) -> tuple[Augmentation, ...]:
    """Return an augmentation for each scale and, with `flip`, another flipped one for each scale.

    Raises:
        UserError: no scale is given, or a scale is not a number from 0.1 to 10.
    """
    are_numbers = isinstance(scales, Sequence) and all(isinstance(scale, Real) for scale in scales)
    if not are_numbers or not scales or not all(0.1 <= scale <= 10 for scale in scales):
        raise UserError(f"scales: {scales}; give factors of the image size from 0.1 to 10, such as 0.75 1 1.25")
    return tuple(Augmentation(*pair) for pair in product(scales, (False, True) if flip else (False,)))


def flip_boxes(boxes: Num[Tensor, "*b n 4"], widths: Num[Tensor, "*b"]) -> Num[Tensor, "*b n 4"]:
    """Flip boxes horizontally, in images of the given widths."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([widths[..., None] - x2, y1, widths[..., None] - x1, y2], dim=-1)


def flip_detections(detections: Detections, widths: Num[Tensor, " B"]) -> Detections:
    """Flip boxes and masks horizontally, in images of the given widths."""
    masks = None if detections.masks is None else detections.masks.flip(-1)
    return replace(detections, boxes=flip_boxes(detections.boxes, widths), masks=masks)


def merge_detections(augmented: Sequence[Detections], options: PostprocessOptions) -> Detections:
    """Merge the detections of several augmentations of the same images by NMS within each class.

    A mask stays with its box: masks of the same object are not averaged.

    Args:
        augmented: detections of each augmentation, in pixels of the original images.
        options: NMS threshold and maximum number of detections.
    """
    boxes, scores, labels, valid = (
        torch.cat([getattr(detections, name) for detections in augmented], dim=1)
        for name in ("boxes", "scores", "labels", "valid")
    )
    scores, order = torch.where(valid, scores, -1.0).sort(dim=1, descending=True, stable=True)
    boxes, labels = gather_boxes(boxes, order), labels.gather(1, order)
    kept: Float[Tensor, "B n"] = torch.where(nms(boxes, scores > 0, options.nms_threshold, groups=labels), scores, -1.0)
    scores, best = kept.topk(min(options.max_detections, kept.shape[1]))
    masks = None
    if given := [detections.masks for detections in augmented if detections.masks is not None]:
        places = order.gather(1, best)[..., None, None].expand(-1, -1, *given[0].shape[2:])
        masks = torch.cat(given, dim=1).gather(1, places)
    labels = labels.gather(1, best)
    return Detections(gather_boxes(boxes, best), scores.clamp(min=0), labels, scores > 0, masks=masks)
