"""A trained detector over a split: figures and predictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch.utils.data import DataLoader

from detect.config import Config, config_to_yaml
from detect.data.dataset import Dataset
from detect.evaluation.coco import Engine, coco_results, evaluate_coco
from detect.evaluation.evaluator import Evaluator
from detect.evaluation.voc import evaluate_voc
from detect.models import Detector
from detect.prediction.onnx_model import OnnxModel, predictions
from detect.report.pictures import write_pictures
from detect.report.write import Origin, write_report


@torch.no_grad()
def evaluate(
    model: Detector,
    loader: DataLoader,
    dataset: Dataset,
    device: torch.device,
    engine: Engine = "pycocotools",
) -> tuple[dict[str, Any], Evaluator]:
    """Runs a prepared detector over the loader of a split, with a progress bar.

    Under torchrun each process sees its part of the images, once, and all of them return the same figures.
    """
    evaluator = Evaluator(dataset)
    console = Console(stderr=True)
    for batch in track(loader, f"evaluating {dataset.split}", console=console, disable=not console.is_terminal):
        given = None if batch.proposals is None else batch.proposals.to(device)
        proposals, detections = model.propose_and_detect(batch.images.to(device), given)
        evaluator.update(batch, detections.to("cpu"), proposals.to("cpu"))
    evaluator.gather()
    return evaluator.compute(engine), evaluator


def evaluate_exported(
    model: OnnxModel, dataset: Dataset, engine: Engine = "pycocotools"
) -> tuple[dict[str, Any], Evaluator]:
    """Runs an exported detector over a split, with a progress bar; of its proposals nothing is known.

    Raises `UserError` where the data set has other classes.
    """
    evaluator, console = Evaluator(dataset), Console(stderr=True)
    found = predictions(model, dataset)
    about, quiet = f"evaluating {dataset.split}", not console.is_terminal
    evaluator.predictions += track(found, about, total=len(dataset), console=console, disable=quiet)
    return evaluate_coco(dataset, evaluator.predictions, engine=engine) | evaluate_voc(
        dataset, evaluator.predictions
    ), evaluator


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
    """Writes results, report and pictures into a folder.

    `metrics` then says, as its `evaluation`, what was judged and how. Where the checkpoint lies in the folder of its
    run, the report has the curves of the training.
    """
    dataset = evaluator.dataset
    subject = {"root": str(dataset.root), "split": dataset.split, "images": len(dataset)}
    how = {"checkpoint": str(checkpoint), "precision": precision, "engine": engine, "device": device}
    metrics["evaluation"] = subject | how
    write_results(out, metrics, evaluator)
    run = checkpoint.absolute().parent.parent if checkpoint.absolute().parent.name == "checkpoints" else None
    title = f"{dataset.root.absolute().name} {dataset.split}"
    origin = Origin(title, checkpoint, config_to_yaml(config), run, command)
    write_report(out / "report.html", dataset, evaluator.predictions, origin, evaluator.recall)
    write_pictures(out / "pictures", dataset, evaluator.predictions)


def write_results(out: Path, metrics: dict[str, Any], evaluator: Evaluator) -> None:
    """Writes `metrics.json` and the COCO-format `predictions.json` into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    results = coco_results(evaluator.predictions, evaluator.dataset)
    for name, content in (("metrics.json", metrics), ("predictions.json", results)):
        indent = 2 if name == "metrics.json" else None
        (out / name).write_text(json.dumps(content, indent=indent, allow_nan=False), encoding="utf-8")
