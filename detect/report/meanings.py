"""Explanations of the metrics for the terminal and the report."""

from __future__ import annotations

from collections.abc import Iterable

COCO_MEANINGS = {
    "AP": "average precision, mean over IoU 0.50 … 0.95",
    "AP50": "average precision at IoU 0.50",
    "AP75": "average precision at IoU 0.75",
    "APs": "AP of small objects, area up to 32² pixels",
    "APm": "AP of medium objects, area 32² … 96² pixels",
    "APl": "AP of large objects, area from 96² pixels",
    "AR1": "average recall with 1 detection per class and image",
    "AR10": "average recall with 10 detections per class and image",
    "AR100": "average recall with 100 detections per class and image",
    "ARs": "AR100 of small objects",
    "ARm": "AR100 of medium objects",
    "ARl": "AR100 of large objects",
}
VOC_MEANINGS = {
    "VOC07": "VOC mAP at 11 recalls (until 2009)",
    "VOC": "VOC mAP, area under the curve (from 2010)",
}
MASK_MEANINGS = {f"mask_{name}": f"masks: {meaning}" for name, meaning in COCO_MEANINGS.items()}
DETECTION_MEANINGS = {**COCO_MEANINGS, **VOC_MEANINGS}
"""Metrics of detections in the order of the report."""
OVERLAP_MEANINGS = {"ABO": "best IoU with a proposal, mean over the objects", "MABO": "ABO, mean over the classes"}


def recall_meanings(names: Iterable[str]) -> dict[str, str]:
    """Return the meanings of the metrics of proposals among `names`, such as AR@100 and recall@0.5@100."""
    meanings = {}
    for name in names:
        match name.split("@"):
            case ["AR", limit]:
                meanings[name] = f"average recall of the best {limit} proposals"
            case ["recall", iou, limit]:
                meanings[name] = f"recall of the best {limit} proposals at IoU {iou}"
    return meanings
