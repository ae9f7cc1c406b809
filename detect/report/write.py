"""`report.html`: all that an evaluation knows, or in what several differ, in one file that a person opens."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from detect.data.dataset import Dataset
from detect.evaluation.coco import Prediction
from detect.evaluation.tide import tide
from detect.proposals.recall import ProposalRecall
from detect.report.breakdown import analyse, compare
from detect.report.gallery import differing, gallery, judge
from detect.report.page import render_comparison, render_report
from detect.report.saved import Evaluation

VERSIONS = ("detect", "torch", "torchvision", "lightning", "pycocotools", "numpy")
COVERED = (0.5, 0.7, 0.8)
"""The IoUs at which the recall of proposals is shown."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the detections of a report come from; None for what is not known."""

    title: str
    checkpoint: Path | None = None
    config: str | None = None
    """The whole experiment, as YAML."""
    run: Path | None = None
    """The folder of the training, which has its curves."""
    command: str | None = None


def write_report(
    file: Path,
    dataset: Dataset,
    predictions: Sequence[Prediction],
    origin: Origin,
    recall: ProposalRecall | None = None,
) -> None:
    """Writes the page; `recall` is that of the proposals, where there were any."""
    data = report_data(dataset, predictions, origin, recall)
    file.write_text(render_report(data), encoding="utf-8")


def report_data(
    dataset: Dataset,
    predictions: Sequence[Prediction],
    origin: Origin,
    recall: ProposalRecall | None = None,
) -> dict[str, Any]:
    """What the page shows, as plain numbers, strings, lists and dictionaries."""
    errors = tide(dataset, predictions)
    return {
        "title": origin.title,
        "subject": _subject(dataset, predictions, origin),
        "config": origin.config,
        **analyse(dataset, predictions),
        "errors": errors.summary(),
        "proposals": _proposals(recall),
        "gallery": gallery(judge(dataset, predictions, errors)),
        "training": training_curves(origin.run / "metrics.csv") if origin.run else None,
    }


def write_comparison_report(file: Path, runs: Sequence[Evaluation], command: str | None = None) -> None:
    """Writes the page on what sets detectors apart on the same images; the first one is the reference."""
    dataset = runs[0].dataset
    title = f"{dataset.root.absolute().name} {dataset.split}: {', '.join(run.name for run in runs)}"
    figures, pairs = compare(dataset, [run.predictions for run in runs])
    subjects = [_subject(dataset, run.predictions, Origin(title, run.checkpoint, command=command)) for run in runs]
    data = {
        "title": title,
        "runs": [
            {"name": run.name, "subject": subject, "figures": own}
            for run, subject, own in zip(runs, subjects, figures, strict=True)
        ],
        "pairs": pairs,
        "images": differing([judge(dataset, run.predictions, tide(dataset, run.predictions)) for run in runs]),
    }
    file.write_text(render_comparison(data), encoding="utf-8")


def _subject(dataset: Dataset, predictions: Sequence[Prediction], origin: Origin) -> dict[str, Any]:
    """What was judged, when and with what."""
    crowds = sum(int(record.crowd.sum()) for record in dataset.records)
    return {
        "images": len(dataset),
        "truths": sum(len(record.labels) for record in dataset.records) - crowds,
        "crowds": crowds,
        "detections": sum(len(prediction.scores) for prediction in predictions),
        "classes": len(dataset.classes),
        "root": str(dataset.root),
        "split": dataset.split,
        "checkpoint": str(origin.checkpoint) if origin.checkpoint else None,
        "made": date.today().isoformat(),
        "versions": {name: version(name) for name in VERSIONS},
        "command": origin.command,
    }


def training_curves(file: Path) -> dict[str, Any] | None:
    """The columns of a run's `metrics.csv` over the steps; None where there is no such file."""
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
    except OSError:
        return None
    points: dict[str, list[list[float]]] = defaultdict(list)
    for row in rows:
        for name, value in row.items():
            if name not in ("step", "epoch") and value:
                points[name].append([int(row["step"]), float(value)])
    series = [{"name": name, "group": _group(name), "points": values} for name, values in points.items()]
    return {"x": "step", "series": series} if series else None


def _group(name: str) -> str:
    """Losses, figures (AP, AR@100 …) and rates go into pictures of their own."""
    if name.startswith("lr-"):
        return "learning rate"
    return "figures" if name.startswith(("AP", "AR", "VOC", "recall", "ABO", "MABO")) else "losses"


def _proposals(recall: ProposalRecall | None) -> dict[str, Any] | None:
    if recall is None or not len(recall.labels):
        return None
    places = range(len(recall.limits))
    return {
        "limits": list(recall.limits),
        "recall": {f"{iou:.2f}": [recall.covered(iou, place) for place in places] for iou in COVERED},
        "AR": [recall.average_recall(place) for place in places],
        "ABO": recall.mean_overlap(),
        "MABO": recall.mabo(),
    }
