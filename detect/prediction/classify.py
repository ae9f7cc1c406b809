"""A trained classifier over a split: figures, predictions and the confusion of classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from detect.data.classification import ClassificationData
from detect.evaluation.classification import ClassificationEvaluator
from detect.models import Classifier


@torch.no_grad()
def classify(
    model: Classifier, data: ClassificationData, split: str, device: torch.device, checkpoint: Path
) -> tuple[dict[str, Any], ClassificationEvaluator]:
    """Runs a classifier over a split, with a progress bar.

    The figures say, as their `evaluation`, what was judged and how. Under torchrun each process sees its part of the
    images, once, and all of them return the same figures.
    """
    dataset = data.split(split)
    evaluator, console = ClassificationEvaluator(dataset), Console(stderr=True)
    loader = data.eval_loader(dataset)
    for batch in track(loader, f"evaluating {dataset.split}", console=console, disable=not console.is_terminal):
        evaluator.update(batch, model(batch.images.to(device)))
    evaluator.gather()
    metrics = evaluator.compute()
    subject = {"root": str(dataset.root), "split": dataset.split, "images": len(dataset.labels)}
    metrics["evaluation"] = subject | {"checkpoint": str(checkpoint), "device": str(device)}
    return metrics, evaluator
