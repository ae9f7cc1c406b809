"""Evaluation of a trained detector on a split: metrics, predictions and report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from detect.config import Config, config_to_yaml
from detect.data.dataset import Dataset
from detect.devices import to_device
from detect.evaluation.coco import Engine, coco_results
from detect.evaluation.evaluator import Evaluator
from detect.evaluation.thresholds import best_score_threshold
from detect.files.atomic import write_text
from detect.models import Detector
from detect.prediction.onnx_detector import OnnxDetector, predict_dataset
from detect.report.pictures import write_pictures
from detect.report.write import Origin, write_report
from detect.terminal import track


@torch.no_grad()
def evaluate(
    model: Detector,
    loader: DataLoader,
    dataset: Dataset,
    device: torch.device,
    engine: Engine = "pycocotools",
    classes: Sequence[str] | None = None,
) -> tuple[dict[str, Any], Evaluator]:
    """Evaluate a detector on a split, with a progress bar.

    Under torchrun each process evaluates its share of the images, each image once, and all return the same metrics.

    Args:
        model: the detector, prepared for prediction and on `device`.
        loader: loader of the split.
        dataset: the split.
        device: device of the images.
        engine: implementation of the COCO metrics.
        classes: classes to evaluate; by default all.
    """
    evaluator = Evaluator(dataset)
    for batch in track(loader, f"evaluating {dataset.split}"):
        given = None if batch.proposals is None else to_device(batch.proposals, device)
        evaluator.update(batch, model.detect(to_device(batch.images, device), given))
    evaluator.gather()
    if classes is not None:
        evaluator.keep_classes(classes)
    return evaluator.compute(engine), evaluator


def evaluate_exported(
    detector: OnnxDetector, dataset: Dataset, engine: Engine = "pycocotools", classes: Sequence[str] | None = None
) -> tuple[dict[str, Any], Evaluator]:
    """Evaluate an exported detector on a split, with a progress bar; without recall of its proposals.

    Args:
        detector: the detector.
        dataset: the split.
        engine: implementation of the COCO metrics.
        classes: classes to evaluate; by default all.

    Raises:
        UserError: the data set has other classes than the detector.
    """
    evaluator = Evaluator(dataset)
    predictions = predict_dataset(detector, dataset)
    evaluator.predictions += track(predictions, f"evaluating {dataset.split}", total=len(dataset))
    if classes is not None:
        evaluator.keep_classes(classes)
    return evaluator.compute(engine), evaluator


def write_evaluation(
    out: Path,
    metrics: dict[str, Any],
    evaluator: Evaluator,
    checkpoint: Path,
    config: Config,
    *,
    device: str,
    precision: str = "fp32",
    engine: str = "pycocotools",
    command: str | None = None,
) -> None:
    """Write metrics, predictions, report and pictures of an evaluation into a folder.

    The pictures show the detections at the score threshold with the highest F1, at which the report starts. If the
    checkpoint is in the folder of its run, the report has the training curves.

    Args:
        out: the folder.
        metrics: the metrics; data, checkpoint and settings are added to them under `evaluation`.
        evaluator: data set and predictions.
        checkpoint: file of the detector.
        config: config of the detector.
        device: device on which the detector ran.
        precision: precision of the weights.
        engine: implementation of the COCO metrics.
        command: command line that repeats the evaluation.
    """
    dataset = evaluator.dataset
    roots = [str(root.absolute()) for root in dataset.folders]
    subject: dict[str, Any] = {"root": roots[0] if len(roots) == 1 else roots, "split": dataset.split}
    subject |= {"images": len(dataset), "division": str(config.data.division) if dataset.is_part else None}
    settings = {"checkpoint": str(checkpoint), "precision": precision, "engine": engine, "device": device}
    metrics["evaluation"] = subject | settings
    write_results(out, metrics, evaluator)
    folder = checkpoint.absolute().parent
    run = folder.parent if folder.name == "checkpoints" else None
    title = f"{dataset.root.absolute().name} {dataset.split}"
    origin = Origin(title, checkpoint, config_to_yaml(config), run, command)
    write_report(out / "report.html", dataset, evaluator.predictions, origin, evaluator.recall)
    score = best_score_threshold(dataset, [evaluator.predictions])
    write_pictures(out / "pictures", dataset, evaluator.predictions, score_threshold=score)


def write_results(out: Path, metrics: dict[str, Any], evaluator: Evaluator) -> None:
    """Write `metrics.json` and the COCO results `predictions.json` into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    results = coco_results(evaluator.predictions, evaluator.dataset)
    for name, content in (("metrics.json", metrics), ("predictions.json", results)):
        indent = 2 if name == "metrics.json" else None
        write_text(out / name, json.dumps(content, indent=indent, allow_nan=False))
