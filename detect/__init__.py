"""Object detection with the R-CNN family: train, evaluate, compare, predict, export."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from detect.cores import share_cores
from detect.versions import __version__ as __version__

if TYPE_CHECKING:
    from detect.curation.check import check
    from detect.models import RCNN, FasterRCNN, FastRCNN
    from detect.prediction.evaluate_model import evaluate
    from detect.prediction.load import load
    from detect.prediction.result import Result
    from detect.proposals.selective_search import selective_search
    from detect.structures import Detections
    from detect.training.run import Run, train

# Modules of the public names, imported on first use: `detect --help` needs none of them.
_MODULES = {
    "Detections": "detect.structures",
    "FastRCNN": "detect.models",
    "FasterRCNN": "detect.models",
    "RCNN": "detect.models",
    "Result": "detect.prediction.result",
    "Run": "detect.training.run",
    "check": "detect.curation.check",
    "evaluate": "detect.prediction.evaluate_model",
    "load": "detect.prediction.load",
    "selective_search": "detect.proposals.selective_search",
    "train": "detect.training.run",
}

__all__ = [
    "RCNN",
    "Detections",
    "FastRCNN",
    "FasterRCNN",
    "Result",
    "Run",
    "check",
    "evaluate",
    "load",
    "selective_search",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'detect' has no attribute {name!r}")
    share_cores()
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
