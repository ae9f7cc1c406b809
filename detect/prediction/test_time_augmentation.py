"""Test-time augmentation: an image is seen several times, at other sizes and mirrored, and what is found is merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
class View:
    """How an image is shown to the detector."""

    scale: float = 1.0
    """Times the size that the config asks for."""
    mirrored: bool = False
    """Left and right change places."""


def views(flip: bool, scales: Sequence[float]) -> tuple[View, ...]:
    """Every scale, and with `flip` each of them mirrored too. Raises `UserError` for scales of no meaning."""
    given = isinstance(scales, Sequence) and all(isinstance(scale, Real) for scale in scales)
    if not given or not scales or not all(0.1 <= scale <= 10 for scale in scales):
        raise UserError(f"scales: {scales}; give factors of the image's size from 0.1 to 10, such as 0.75 1 1.25")
    return tuple(View(scale, mirrored) for scale, mirrored in product(scales, (False, True) if flip else (False,)))


def mirror(boxes: Num[Tensor, "*b n 4"], widths: Num[Tensor, "*b"]) -> Num[Tensor, "*b n 4"]:
    """Boxes of images of these widths, when left and right change places."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([widths[..., None] - x2, y1, widths[..., None] - x1, y2], dim=-1)


def merge(seen: Sequence[Detections], options: PostprocessOptions) -> Detections:
    """What was found in several views of the same images, in the same pixels: NMS within each class once more."""
    boxes, scores, labels, valid = (
        torch.cat([getattr(one, name) for one in seen], dim=1) for name in ("boxes", "scores", "labels", "valid")
    )
    scores, order = torch.where(valid, scores, -1.0).sort(dim=1, descending=True, stable=True)
    boxes, labels = gather_boxes(boxes, order), labels.gather(1, order)
    kept: Float[Tensor, "B n"] = torch.where(nms(boxes, scores > 0, options.nms_iou, groups=labels), scores, -1.0)
    scores, best = kept.topk(min(options.detections, kept.shape[1]))
    return Detections(gather_boxes(boxes, best), scores.clamp(min=0), labels.gather(1, best), scores > 0)
