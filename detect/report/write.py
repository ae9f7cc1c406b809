"""`report.html`: a page with all results of one evaluation, or with the differences between several."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from detect.data.dataset import Dataset
from detect.evaluation.coco import Kind, Prediction, have_masks
from detect.evaluation.thresholds import best_score_threshold
from detect.evaluation.tide import tide
from detect.files.atomic import write_text
from detect.proposals.recall import ProposalRecall
from detect.report.breakdown import analyse, compare_runs
from detect.report.gallery import errors_by_image, gallery, largest_differences
from detect.report.masks import add_masks
from detect.report.page import render_comparison, render_report
from detect.report.proposals import IOU_THRESHOLDS
from detect.report.saved import Evaluation
from detect.versions import versions

PACKAGES = ("torch", "torchvision", "lightning", "pycocotools", "numpy")


@dataclass(frozen=True, slots=True)
class Origin:
    """Origin of the detections of a report; unknown values are None."""

    title: str
    checkpoint: Path | None = None
    config: str | None = None
    """Configuration of the experiment as YAML."""
    run: Path | None = None
    """Folder of the training run, for the training curves."""
    command: str | None = None


def write_report(
    file: Path,
    dataset: Dataset,
    predictions: Sequence[Prediction],
    origin: Origin,
    recall: ProposalRecall | None = None,
) -> None:
    """Write the page of one evaluation, with the proposals' `recall` if the detector uses any."""
    write_text(file, render_report(report_data(dataset, predictions, origin, recall)))


def report_data(
    dataset: Dataset,
    predictions: Sequence[Prediction],
    origin: Origin,
    recall: ProposalRecall | None = None,
) -> dict[str, Any]:
    """Return the data of the page as numbers, strings, lists and dictionaries."""
    errors = tide(dataset, predictions)
    analysis = analyse(dataset, predictions)
    data = {
        "title": origin.title,
        "subject": _subject(dataset, predictions, origin),
        "config": origin.config,
        **analysis,
        "errors": errors.summary(),
        "proposals": _proposals(recall),
        "training": training_curves(origin.run / "metrics.csv") if origin.run else None,
    }
    if have_masks(predictions):
        errors = add_masks(data, dataset, predictions)
    score = analysis["thresholds"]["best"]
    data["gallery"] = gallery(errors_by_image(dataset, predictions, errors, score))
    return data


def write_comparison_report(file: Path, runs: Sequence[Evaluation], command: str | None = None) -> None:
    """Write the page that compares several detectors on the same images with the first of them."""
    dataset = runs[0].dataset
    title = f"{dataset.root.absolute().name} {dataset.split}: {', '.join(run.name for run in runs)}"
    metrics, pairs = compare_runs(dataset, [run.predictions for run in runs])
    subjects = [_subject(dataset, run.predictions, Origin(title, run.checkpoint, command=command)) for run in runs]
    score = best_score_threshold(dataset, [run.predictions for run in runs])
    kind: Kind = "segm" if all(have_masks(run.predictions) for run in runs) else "bbox"
    errors = [errors_by_image(dataset, run.predictions, tide(dataset, run.predictions, kind), score) for run in runs]
    data = {
        "title": title,
        "score": score,
        "runs": [
            {"name": run.name, "subject": subject, "metrics": run_metrics, "masks": have_masks(run.predictions)}
            for run, subject, run_metrics in zip(runs, subjects, metrics, strict=True)
        ],
        "pairs": pairs,
        "images": largest_differences(errors),
    }
    write_text(file, render_comparison(data))


def _subject(dataset: Dataset, predictions: Sequence[Prediction], origin: Origin) -> dict[str, Any]:
    """Return the evaluated data with counts, the date, and the versions."""
    crowds = sum(int(record.crowd.sum()) for record in dataset.records)
    return {
        "images": len(dataset),
        "ground_truths": sum(len(record.labels) for record in dataset.records) - crowds,
        "crowds": crowds,
        "detections": sum(len(prediction.scores) for prediction in predictions),
        "classes": len(dataset.classes),
        "root": str(dataset.root),
        "split": dataset.split,
        "checkpoint": str(origin.checkpoint) if origin.checkpoint else None,
        "date": date.today().isoformat(),
        "versions": versions(*PACKAGES),
        "command": origin.command,
    }


def training_curves(file: Path) -> dict[str, Any] | None:
    """Return the finite values of each column of a run's `metrics.csv` by step; None if there is no such file."""
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
    except OSError:
        return None
    points: dict[str, list[list[float]]] = defaultdict(list)
    for row in rows:
        for name, value in row.items():
            if name not in ("step", "epoch") and value and math.isfinite(float(value)):
                points[name].append([int(row["step"]), float(value)])
    series = [{"name": name, "group": _group(name), "points": values} for name, values in points.items()]
    return {"x": "step", "series": series} if series else None


def _group(name: str) -> str:
    """Return the chart of a column: losses, metrics (AP, AR@100 …) or learning rates."""
    if name.startswith("lr-"):
        return "learning rate"
    return "metrics" if name.startswith(("AP", "AR", "VOC", "recall", "ABO", "MABO", "mask_A")) else "losses"


def _proposals(recall: ProposalRecall | None) -> dict[str, Any] | None:
    if recall is None or not len(recall.labels):
        return None
    limits = range(len(recall.limits))
    return {
        "limits": list(recall.limits),
        "recall": {f"{iou:.2f}": [recall.covered(iou, index) for index in limits] for iou in IOU_THRESHOLDS},
        "AR": [recall.average_recall(index) for index in limits],
        "ABO": recall.mean_overlap(),
        "MABO": recall.mabo(),
    }
