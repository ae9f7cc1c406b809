"""Selection of detections from class probabilities and box deltas (Girshick 2015, §2.3; Ren et al. 2015, §3.3)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from detect.models.box_coder import BoxCoder
from detect.ops.boxes import clip, large_enough
from detect.ops.nms import nms
from detect.ops.topk import topk
from detect.options import Fraction, options
from detect.structures import Detections


@options
class PostprocessOptions:
    """Selection of detections.

    Args:
        score_threshold: detections with lower scores are dropped.
        nms_threshold: IoU above which NMS drops the lower-scoring of two detections of one class.
        max_detections: maximum number of detections per image.
        pre_nms_top_k: maximum number of (region, class) pairs per image that enter NMS. A trained detector has a few
            hundred above the threshold.
        min_size: detections with a side shorter than this many pixels are dropped.
    """

    score_threshold: Fraction = 0.05
    nms_threshold: Fraction = 0.5
    max_detections: PositiveInt = 100
    pre_nms_top_k: PositiveInt = 4096
    min_size: NonNegativeFloat = 1e-2


@torch.no_grad()
def postprocess(
    probabilities: Float[Tensor, "B R C"],
    deltas: Float[Tensor, "B R C 4"],
    boxes: Float[Tensor, "B R 4"],
    valid: Bool[Tensor, "B R"],
    sizes: Int[Tensor, "B 2"],
    box_coder: BoxCoder,
    options: PostprocessOptions,
) -> Detections:
    """Decode, clip, apply NMS within each class, and keep the best D of each image, in order of descending score.

    Args:
        probabilities: score of each class for each region, from 0 to 1.
        deltas: deltas of each class, relative to `boxes`.
        boxes: boxes that the deltas are relative to.
        valid: false for padded regions.
        sizes: height and width of each image.
        box_coder: decodes the deltas.
        options: thresholds and limits.
    """
    num_classes = deltas.shape[2]
    candidates = (probabilities > options.score_threshold) & valid.unsqueeze(-1)
    scores = torch.where(candidates, probabilities, -1.0).flatten(1)
    scores, pairs = topk(scores, options.pre_nms_top_k)
    labels = pairs % num_classes

    pairs = pairs.unsqueeze(-1).expand(-1, -1, 4)
    references = boxes.gather(1, pairs // num_classes)
    boxes = clip(box_coder.decode(deltas.flatten(1, 2).gather(1, pairs), references), sizes)
    return suppress(boxes, scores, labels, options)


def suppress(
    boxes: Float[Tensor, "B k 4"], scores: Float[Tensor, "B k"], labels: Int[Tensor, "B k"], options: PostprocessOptions
) -> Detections:
    """Apply NMS within each class, and keep the best D of each image, in order of descending score.

    Args:
        boxes: the boxes, in order of descending score.
        scores: their scores; boxes with scores of 0 and below are dropped.
        labels: their classes.
        options: thresholds and limits.
    """
    valid = (scores > 0) & large_enough(boxes, options.min_size)
    boxes = boxes.where(valid.unsqueeze(-1), 0.0)
    kept = torch.where(nms(boxes, valid, options.nms_threshold, groups=labels), scores, -1.0)
    scores, best = topk(kept, options.max_detections)
    valid = scores > 0
    boxes = boxes.gather(1, best.unsqueeze(-1).expand(-1, -1, 4))
    return Detections(boxes, scores.where(valid, 0.0), labels.gather(1, best), valid)
