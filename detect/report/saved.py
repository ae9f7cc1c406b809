"""Evaluations read back from their folders, to be reported anew or beside each other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from detect.data.dataset import Dataset
from detect.data.read import read
from detect.errors import UserError
from detect.evaluation.coco import Prediction, coco_truth, evaluate_documents
from detect.evaluation.documents import Truth, read_results, read_truth
from detect.evaluation.voc import evaluate_voc
from detect.files.fence import read_bounded

_MOST = 2**26
"""Bytes of a `metrics.json`; a thousand classes take a hundredth of it."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a detector found in a data set, and its figures."""

    name: str
    dataset: Dataset
    predictions: list[Prediction]
    metrics: dict[str, Any]
    checkpoint: Path | None = None


def evaluate_files(
    truth: Path,
    predictions: Path,
    images: Path | None = None,
    engine: Literal["pycocotools", "fast"] = "pycocotools",
) -> tuple[Evaluation, int]:
    """The figures of anybody's results, and how many annotations of unlisted images were left out of the truth.

    The twelve of COCO are those of pycocotools on the same files, to the last bit.
    """
    read = read_truth(truth, images)
    return _evaluate(predictions.stem, read, predictions, engine), read.left_out


def read_evaluations(sources: Sequence[Path], truth: Path | None, images: Path | None = None) -> list[Evaluation]:
    """The evaluations of several detectors on the same images.

    Args:
        sources: the folder of a run or of an evaluation, or, with `truth`, a results file.
        truth: a COCO annotation file; without it the data set that the first folder names is read.

    Raises:
        UserError: a folder holds no evaluation, or they are of different data.
    """
    folders = [_folder(source) for source in sources]
    if truth is None:
        subjects = [_subject(folder) for folder in folders]
        for folder, subject in zip(folders, subjects, strict=True):
            if subject != subjects[0]:
                about = "{} is of {}, split {}".format(folder, *subject[:2])
                raise UserError(f"{about}, but {folders[0]} of another; compare evaluations of one split")
        root, split, classes = subjects[0]
        dataset = read(root, split, classes=classes, skip_unreadable=True)
        whole = Truth(coco_truth(dataset), dataset, 0)
    else:
        whole = read_truth(truth, images)
    names = _names(sources)
    return [
        _evaluate(name, whole, folder if folder.is_file() else folder / "predictions.json")
        for name, folder in zip(names, folders, strict=True)
    ]


def _evaluate(
    name: str, truth: Truth, file: Path, engine: Literal["pycocotools", "fast"] = "pycocotools"
) -> Evaluation:
    results, predictions = read_results(file, truth.dataset)
    figures = evaluate_documents(truth.document, results, truth.dataset, engine=engine)
    checkpoint = _metrics(file.parent).get("evaluation", {}).get("checkpoint")
    metrics = figures | evaluate_voc(truth.dataset, predictions)
    return Evaluation(name, truth.dataset, predictions, metrics, Path(checkpoint) if checkpoint else None)


def _folder(source: Path) -> Path:
    """The folder of an evaluation: the one given, or the `eval` of the run; a file is taken as it is."""
    if source.is_file():
        return source
    for folder in (source, source / "eval"):
        if (folder / "predictions.json").is_file():
            return folder
    raise UserError(
        f"{source}: no predictions.json there or in its eval/; name the folder of a run or of an evaluation"
    )


def _subject(folder: Path) -> tuple[str, str, list[str]]:
    """The root of the data set, the split, and the classes in their order."""
    metrics = _metrics(folder)
    try:
        return metrics["evaluation"]["root"], metrics["evaluation"]["split"], list(metrics["per_class"])
    except (KeyError, TypeError):
        remedy = "give the truth with --truth instances.json"
        raise UserError(f"{folder}: no metrics.json beside it that names the data set; {remedy}") from None


def _metrics(folder: Path) -> dict[str, Any]:
    try:
        metrics = json.loads(read_bounded(folder / "metrics.json", _MOST))
    except (OSError, ValueError, RecursionError):
        return {}
    return metrics if isinstance(metrics, dict) else {}


def _names(sources: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many as tell them apart."""
    paths = [source.absolute().with_suffix("") if source.is_file() else source.absolute() for source in sources]
    for count in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-count:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    raise UserError(f"--compare: {sources[0]} is there twice; name different evaluations")
