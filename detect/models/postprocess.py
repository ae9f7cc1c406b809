"""From scores and deltas of the proposals to detections (Girshick 2015, §2.3; Ren et al. 2015, §3.3)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from detect.models.box_coder import BoxCoder
from detect.ops.boxes import clip, large_enough
from detect.ops.nms import nms
from detect.ops.topk import topk
from detect.options import Fraction, options
from detect.structures import Detections, Proposals


@options
class PostprocessOptions:
    """How detections are chosen.

    Args:
        score: detections below this are dropped.
        nms_iou: IoU above which the worse of two detections of one class goes.
        detections: the most an image.
        candidates: the most (proposal, class) pairs an image that enter NMS. A trained detector has a few hundred.
        min_size: detections with a side shorter than this many pixels are dropped.
    """

    score: Fraction = 0.05
    nms_iou: Fraction = 0.5
    detections: PositiveInt = 100
    candidates: PositiveInt = 4096
    min_size: NonNegativeFloat = 1e-2


@torch.no_grad()
def postprocess(
    scores: Float[Tensor, "B R C"],
    deltas: Float[Tensor, "B R C 4"],
    proposals: Proposals,
    sizes: Int[Tensor, "B 2"],
    coder: BoxCoder,
    options: PostprocessOptions,
) -> Detections:
    """Decoding, clipping, NMS within each class, and the best D of each image by falling score, which is in 0 … 1."""
    num_classes = deltas.shape[2]
    scores = torch.where((scores > options.score) & proposals.valid.unsqueeze(-1), scores, -1.0).flatten(1)
    scores, pairs = topk(scores, options.candidates)
    labels = pairs % num_classes

    pair = pairs.unsqueeze(-1).expand(-1, -1, 4)
    references = proposals.boxes.gather(1, (pair // num_classes))
    boxes = clip(coder.decode(deltas.flatten(1, 2).gather(1, pair), references), sizes)
    valid = (scores > 0) & large_enough(boxes, options.min_size)
    boxes = boxes.where(valid.unsqueeze(-1), 0.0)

    kept = torch.where(nms(boxes, valid, options.nms_iou, groups=labels), scores, -1.0)
    scores, best = topk(kept, options.detections)
    valid = scores > 0
    boxes = boxes.gather(1, best.unsqueeze(-1).expand(-1, -1, 4))
    return Detections(boxes, scores.where(valid, 0.0), labels.gather(1, best), valid)
