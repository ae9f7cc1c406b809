"""Loading a trained detector from a file; torch is imported only if the file needs it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detect.prediction.onnx_detector import OnnxDetector
    from detect.prediction.predictor import Predictor


def load(path: str | Path) -> Predictor | OnnxDetector:
    """Load a trained detector, ready to predict. Nothing in the file is executed.

    Args:
        path: a checkpoint of `detect train` or `detect import`, or a file of `detect export` (.onnx, .safetensors).

    Raises:
        UserError: the file is none of these.
    """
    if Path(path).suffix == ".onnx":
        from detect.prediction.onnx_detector import OnnxDetector

        return OnnxDetector(path)
    from detect.checkpoint import load_checkpoint
    from detect.prediction.predictor import Predictor

    return Predictor(load_checkpoint(Path(path)), Path(path))
