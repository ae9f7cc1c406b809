"""Reading of evaluations from their folders or from COCO files, for a new report or a comparison."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from detect.data.dataset import Dataset
from detect.data.division import Division, beside_run, read_division
from detect.data.merge import keep_classes, refuse_unknown
from detect.data.options import DataOptions
from detect.data.splits import Splits
from detect.errors import UserError
from detect.evaluation.coco import Engine, Prediction, coco_ground_truth, evaluate_coco_json, select_classes
from detect.evaluation.coco_files import GroundTruthFile, has_masks, read_ground_truth, read_results
from detect.evaluation.voc import evaluate_voc
from detect.files.fence import read_bounded

_MAX_BYTES = 2**26
"""Maximum size of `metrics.json`; a thousand classes take a hundredth of this."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Predictions of a detector on a data set, with metrics."""

    name: str
    dataset: Dataset
    predictions: list[Prediction]
    metrics: dict[str, Any]
    checkpoint: Path | None = None
    notes: tuple[str, ...] = ()
    """Remarks on the files for the user: what was left out of the evaluation."""


def evaluate_files(
    ground_truth: Path,
    predictions: Path,
    images: Path | None = None,
    engine: Engine = "pycocotools",
    classes: Sequence[str] | None = None,
) -> Evaluation:
    """Evaluate a COCO annotation file and a results file.

    Args:
        ground_truth: COCO annotation file.
        predictions: COCO results file.
        images: folder of the images, if they are to be shown.
        engine: library that computes COCO's metrics.
        classes: classes to evaluate; by default all.

    Returns:
        The evaluation, whose COCO metrics equal those of pycocotools on the same files to the last bit.

    Raises:
        UserError: a file cannot be read or has another format.
    """
    file = read_ground_truth(ground_truth, images)
    evaluation = _evaluate(predictions.stem, file, predictions, engine, classes)
    if not file.num_skipped:
        return evaluation
    note = f"{ground_truth}: ignored {file.num_skipped} annotations of images that the file does not list"
    return replace(evaluation, notes=(note, *evaluation.notes))


def read_evaluations(
    sources: Sequence[Path],
    ground_truth: Path | None,
    images: Path | None = None,
    classes: Sequence[str] | None = None,
) -> list[Evaluation]:
    """Read the evaluations of several detectors on the same images.

    Args:
        sources: folders of runs or of evaluations; with `ground_truth` also results files.
        ground_truth: COCO annotation file; by default the data set of the first folder's evaluation is read.
        images: folder of the images of `ground_truth`, if they will be shown.
        classes: classes to evaluate; by default all.

    Raises:
        UserError: a folder has no evaluation, or the evaluations are of different data.
    """
    folders = [_evaluation_folder(source) for source in sources]
    if ground_truth is None:
        origins = [_origin(folder) for folder in folders]
        for folder, origin in zip(folders, origins, strict=True):
            if origin != origins[0]:
                evaluated = f"{folder} is an evaluation of {' and '.join(origin.roots)}, split {origin.split}"
                remedy = "compare evaluations of one split and the same classes"
                raise UserError(f"{evaluated}, but {folders[0]} is not; {remedy}")
        dataset = origins[0].read()
        file = GroundTruthFile(coco_ground_truth(dataset), dataset, 0)
    else:
        file = read_ground_truth(ground_truth, images)
    return [
        _evaluate(name, file, folder if folder.is_file() else folder / "predictions.json", classes=classes)
        for name, folder in zip(_names(sources), folders, strict=True)
    ]


def _evaluate(
    name: str,
    file: GroundTruthFile,
    predictions_file: Path,
    engine: Engine = "pycocotools",
    classes: Sequence[str] | None = None,
) -> Evaluation:
    read = read_results(predictions_file, file)
    results, predictions, notes = read.content, read.predictions, read.notes
    content, dataset = file.content, file.dataset
    if classes is not None:
        refuse_unknown(classes, dataset.classes, "classes", "the ground truth")
        dataset = keep_classes(dataset, classes)
        predictions = select_classes(predictions, file.dataset.classes, dataset.classes)
        results, content = _with_categories(results, content, dataset.category_ids)
    metrics = evaluate_coco_json(content, results, dataset, engine=engine, masks=has_masks(results))
    metrics |= evaluate_voc(dataset, predictions)
    if results and metrics["AP50"] == 0:
        notes += (f"{predictions_file}: no box fits an object; are its image ids those of the ground truth?",)
    checkpoint = _saved_metrics(predictions_file.parent).get("evaluation", {}).get("checkpoint")
    return Evaluation(name, dataset, predictions, metrics, Path(checkpoint) if checkpoint else None, notes)


def _with_categories(
    results: list[dict[str, Any]], content: dict[str, Any], ids: Sequence[int]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the contents of a results file and of an annotation file with only some categories."""
    kept = {
        "categories": [entry for entry in content["categories"] if entry["id"] in ids],
        "annotations": [entry for entry in content["annotations"] if entry["category_id"] in ids],
    }
    return [entry for entry in results if entry["category_id"] in ids], content | kept


def _evaluation_folder(source: Path) -> Path:
    """Return the folder of an evaluation: `source` or its folder `eval`; a file is returned unchanged."""
    if source.is_file():
        return source
    for folder in (source, source / "eval"):
        if (folder / "predictions.json").is_file():
            return folder
    raise UserError(f"{source}: no predictions.json here or in eval/; name the folder of a run or of an evaluation")


@dataclass(frozen=True, slots=True)
class _Origin:
    """The evaluated split."""

    roots: tuple[str, ...]
    split: str
    division: Division | None
    """Division of the training split, if the evaluated split is a part of it."""
    classes: tuple[str, ...]
    division_file: Path | None = field(default=None, compare=False)

    def read(self) -> Dataset:
        """Read the split again."""
        parts: dict[str, Any] = {}
        if self.division is not None:
            parts = {"train": self.division.split, "val": None, **self.division.fractions}
        options = DataOptions(
            root=tuple(map(Path, self.roots)),
            classes=self.classes,
            division=self.division_file,
            skip_unreadable=True,
            **parts,
        )
        return Splits(options, self.classes).read(self.split)


def _origin(folder: Path) -> _Origin:
    """Return the split that was evaluated."""
    metrics = _saved_metrics(folder)
    try:
        evaluation = metrics["evaluation"]
        roots = evaluation["root"] if isinstance(evaluation["root"], list) else [evaluation["root"]]
        division = evaluation.get("division")
        file = beside_run(Path(division), folder / "metrics.json") if division else None
        return _Origin(
            roots=tuple(map(os.path.realpath, roots)),
            split=str(evaluation["split"]),
            division=read_division(file) if file else None,
            classes=tuple(map(str, metrics["per_class"])),
            division_file=file,
        )
    except (KeyError, TypeError, AttributeError):
        raise UserError(
            f"{folder}: no metrics.json that names the data set; name the ground truth with --ground-truth FILE"
        ) from None


def _saved_metrics(folder: Path) -> dict[str, Any]:
    try:
        metrics = json.loads(read_bounded(folder / "metrics.json", _MAX_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return metrics if isinstance(metrics, dict) else {}


def _names(sources: Sequence[Path]) -> list[str]:
    """Return the last components of each path, the smallest number that makes all names different."""
    paths = [source.absolute().with_suffix("") if source.is_file() else source.absolute() for source in sources]
    for count in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-count:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    raise UserError(f"--compare: {sources[0]} is given twice; name different evaluations")
