"""The R-CNN family as one pipeline: train, evaluate, compare, predict, export."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Where the public names live. They are imported when they are first used: `detect --help` needs none of them.
_HOMES = {
    "Detections": "detect.structures",
    "FastRCNN": "detect.models",
    "FasterRCNN": "detect.models",
    "RCNN": "detect.models",
    "load": "detect.prediction.load",
    "selective_search": "detect.proposals.selective_search",
}

__all__ = ["RCNN", "Detections", "FastRCNN", "FasterRCNN", "load", "selective_search"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'detect' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
