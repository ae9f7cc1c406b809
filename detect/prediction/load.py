"""A trained detector from a file, of whatever kind; torch is imported only for those that need it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detect.prediction.onnx_model import OnnxModel
    from detect.prediction.predictor import Predictor


def load(path: str | Path) -> Predictor | OnnxModel:
    """A trained detector ready to predict: a checkpoint of `detect train` or `detect import`, or an exported model.

    Nothing in the file is executed. Raises `UserError` where it is none of these.
    """
    if Path(path).suffix == ".onnx":
        from detect.prediction.onnx_model import OnnxModel

        return OnnxModel(path)
    from detect.checkpoint import load_checkpoint
    from detect.prediction.predictor import Predictor

    return Predictor(load_checkpoint(Path(path)))
