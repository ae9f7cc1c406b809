"""Weights of several programs, recognised by the names of their tensors, for `detect train --weights`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detect.backbones.weights import FILES
from detect.checkpoint import Checkpoint, ClassifierCheckpoint, load_any
from detect.errors import UserError
from detect.foreign_weights.coco_names import COCO_NAMES
from detect.foreign_weights.import_weights import Project, convert
from detect.foreign_weights.state_dicts import State, read_content, state_dict

DETECTRON2 = ("proposal_generator.", "backbone.bottom_up.", "backbone.res2.", "backbone.stem.conv1.")
TORCHVISION = ("roi_heads.", "rpn.head.")
YOLOX = ("backbone.backbone.stem.", "head.obj_preds.")
"""Prefixes by which the detectors of a project are recognised."""
READABLE = (
    "give a checkpoint of detect, a Faster or Mask R-CNN of torchvision or detectron2, a Cascade R-CNN of detectron2, "
    "or a YOLOX; detect weights list names published ones"
)
MOBILENET = "a torchvision Faster R-CNN on MobileNetV3, which is no backbone here"
UNSUPPORTED = {
    "backbone.body.0.": MOBILENET,
    "head.classification_head.": "a RetinaNet, FCOS or SSD of torchvision",
    "roi_head.": "a detector of MMDetection",
    "bbox_head.": "a detector of MMDetection",
    "0.conv.": "a YOLO of Ultralytics, which is no YOLOX",
    "transformer.encoder.": "a DETR",
    "res2.": "an ImageNet backbone of detectron2",
    "conv1_w": "an ImageNet backbone of Caffe2",
    "region_head.": "a detector of detect without its config and classes",
}
"""Networks that cannot be read, by a prefix of their keys."""
NO_NAMES = (
    "the file has no class names, so that all rows of its classes are left out; to keep them, run detect import with "
    "--names first"
)


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights from which a training can begin.

    Args:
        path: the file.
        checkpoint: the detector or classifier in the file; None for a state dict of a backbone alone, which
            `backbone.weights` reads.
        notes: assumptions about values that the file does not have.
    """

    path: Path
    checkpoint: Checkpoint | ClassifierCheckpoint | None
    notes: tuple[str, ...] = ()


def read_weights(path: Path) -> Weights:
    """Read a checkpoint or an exported safetensors file of ours, or weights of torchvision, detectron2 or YOLOX.

    The program that wrote the file is recognised by its content. Nothing in the file is executed.

    Raises:
        UserError: the file is missing, damaged, hostile, or has a network that cannot be read.
    """
    if not path.is_file():
        load_any(path)  # raises the error, which names a checkpoint nearby
    if path.suffix in (".onnx", ".pt2"):
        raise UserError(f"{path}: an exported program; give the checkpoint from which it was exported")
    content = read_content(path)
    if _is_ours(path, content):
        return Weights(path, load_any(path))
    state = state_dict(content, path)
    project = _project(state, path)
    if project is None:
        if path.suffix not in FILES:
            raise UserError(f"{path}: a backbone is read from {', '.join(FILES)}; save its state dict as .pth")
        return Weights(path, None)
    imported = convert(project, state, path)
    checkpoint = imported.checkpoint
    has_names = not set(checkpoint.classes).isdisjoint(COCO_NAMES.values())
    notes = (imported.note, "" if has_names else NO_NAMES)
    return Weights(path, checkpoint, tuple(f"{path}: {note}" for note in notes if note))


def _is_ours(path: Path, content: Any) -> bool:
    """Return whether a file has our model card."""
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            return "config" in (file.metadata() or {})
    return isinstance(content, dict) and "detect" in content


def _project(state: State, path: Path) -> Project | None:
    """Return the project that wrote a detector, or None for a backbone. Raise `UserError` for other networks."""
    if _has(state, DETECTRON2):
        return "detectron2"
    if _has(state, YOLOX):
        return "yolox"
    for prefix, network in UNSUPPORTED.items():
        if _has(state, (prefix,)):
            raise UserError(f"{path}: this is {network}; {READABLE}")
    return "torchvision" if _has(state, TORCHVISION) else None


def _has(state: State, prefixes: Iterable[str]) -> bool:
    return any(key.startswith(tuple(prefixes)) for key in state)
