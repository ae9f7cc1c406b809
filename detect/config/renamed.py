"""Renamed options, so that the error message for an old name contains the new one."""

from __future__ import annotations

from typing import Any

RENAMED = {
    "model.backbone.fpn": "model.neck ({name: fpn} or null)",
    "model.backbone.fpn_channels": "model.neck.channels",
    "model.backbone.fpn_top": "model.backbone.last_stage",
    "model.head": "model.box_head",
    "model.boxes": "model.region_head",
    "model.boxes.samples": "model.region_head.batch_size_per_image",
    "model.boxes.negative_from": "model.region_head.negative_iou_min",
    "model.boxes.class_wise": "model.region_head.class_agnostic, with the opposite value",
    "model.boxes.beta": "model.region_head.smooth_l1_beta",
    "model.detections": "model.postprocess",
    "model.detections.score": "model.postprocess.score_threshold",
    "model.detections.nms_iou": "model.postprocess.nms_threshold",
    "model.detections.detections": "model.postprocess.max_detections",
    "model.detections.candidates": "model.postprocess.pre_nms_top_k",
    "model.rpn.nms_iou": "model.rpn.nms_threshold",
    "model.rpn.samples": "model.rpn.batch_size_per_image",
    "model.rpn.border": "model.rpn.straddle_threshold",
    "model.rpn.beta": "model.rpn.smooth_l1_beta",
    "model.rpn.training.before_nms": "model.rpn.training.pre_nms_top_k",
    "model.rpn.training.after_nms": "model.rpn.training.post_nms_top_k",
    "model.rpn.testing.before_nms": "model.rpn.testing.pre_nms_top_k",
    "model.rpn.testing.after_nms": "model.rpn.testing.post_nms_top_k",
    "model.crop.at_once": "model.crop.batch_size",
    "model.regions": "model.predictor",
    "model.fine_tuning": "training.recipe.fine_tuning, with training.recipe.name: rcnn_stages",
    "model.svm": "training.recipe.svm, with training.recipe.name: rcnn_stages",
    "model.ridge": "training.recipe.ridge, with training.recipe.name: rcnn_stages",
    "model.learns": "model.trainable",
    "training.alternating": "training.recipe.name: alternating",
    "training.bias_rate": "training.bias_lr_factor",
}
"""New names by old names. Options of a renamed section are listed only if they were renamed as well."""


def find_renamed(values: Any, prefix: str = "") -> tuple[str, str] | None:
    """Return the first old name in a nested dictionary, innermost first, and its new name."""
    for key, value in values.items() if isinstance(values, dict) else ():
        name = f"{prefix}{key}"
        if inner := find_renamed(value, f"{name}."):
            return inner
        if name in RENAMED:
            return name, RENAMED[name]
        section, _, option = name.rpartition(".")
        if section in RENAMED and " " not in RENAMED[section]:
            return name, f"{RENAMED[section]}.{option}"
    return None
