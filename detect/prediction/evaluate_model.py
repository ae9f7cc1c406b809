"""`detect.evaluate`: evaluation of a model from Python."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from detect.config import as_overrides
from detect.errors import UserError
from detect.evaluation.coco import Engine
from detect.prediction.evaluate_checkpoint import Evaluation, evaluate_file
from detect.prediction.onnx_detector import OnnxDetector
from detect.prediction.predictor import Predictor
from detect.prediction.prepare import Precision
from detect.processes import print_once

AnyPath = str | PathLike[str]


def evaluate(
    model: AnyPath | Predictor | OnnxDetector,
    data: AnyPath | Sequence[AnyPath] | None = None,
    *,
    split: str | None = None,
    out: AnyPath | None = None,
    classes: Sequence[str] | None = None,
    precision: Precision = "fp32",
    engine: Engine = "pycocotools",
    dense: bool = False,
    **options: Any,
) -> Evaluation:
    """Evaluate a trained model on a split, and write metrics and report into a new folder, like `detect eval`.

        evaluation = detect.evaluate(run.best, "photos", split="test")
        evaluation.metrics["AP50"], evaluation.out

    Args:
        model: a checkpoint, an exported detector (.onnx), or what `detect.load` returned for one of them.
        data: data folder or annotation file, or a list of these; by default those of the training.
        split: by default the test split, else the validation split; of other data, else the training split.
        out: folder of the results; by default `eval_SPLIT` in the folder of the run.
        classes: names of the classes to evaluate; by default all.
        precision: precision of the weights.
        engine: implementation of the COCO metrics; both give equal numbers.
        dense: evaluate a classifier on whole images instead of centre crops.
        options: options of data and model, as for `detect.train`.

    Raises:
        UserError: the model, the data or an option cannot be used.
    """
    path = model.path if isinstance(model, Predictor | OnnxDetector) else Path(model)
    if path is None:
        raise UserError("model: this Predictor was not loaded from a file; load it with detect.load(FILE)")
    folders: tuple[Path, ...] = ()
    if data is not None:
        folders = (Path(data),) if isinstance(data, str | PathLike) else tuple(map(Path, data))
    overrides = as_overrides(options)
    return evaluate_file(
        path,
        overrides,
        split,
        None if out is None else Path(out),
        classes=classes,
        precision=precision,
        engine=engine,
        dense=dense,
        data=folders,
        log=print_once,
    )
