"""Evaluation of a trained classifier on a split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from detect.data.classification import ClassificationData
from detect.evaluation.classification import ClassificationEvaluator
from detect.models import Classifier
from detect.terminal import track


@torch.no_grad()
def classify(
    model: Classifier,
    data: ClassificationData,
    split: str,
    device: torch.device,
    checkpoint: Path,
    dense: bool = False,
) -> tuple[dict[str, Any], ClassificationEvaluator]:
    """Evaluate a classifier on a split, with a progress bar.

    Under torchrun each process evaluates its share of the images, each image once, and all return the same metrics.

    Args:
        model: the classifier, on `device`.
        data: the data set.
        split: name of the split.
        device: device of the images.
        checkpoint: file of the model, recorded in the metrics.
        dense: evaluate whole images, by the mean of the class scores; the model's network is changed.

    Returns:
        The metrics, with data, checkpoint, device and `dense` under `evaluation`, and the evaluator.
    """
    dataset = data.split(split)
    evaluator = ClassificationEvaluator(dataset)
    if dense:
        model.to_dense(data.options.size)
    for batch in track(data.eval_loader(dataset, whole=dense), f"evaluating {dataset.split}"):
        evaluator.update(batch, model(batch.images.to(device)))
    evaluator.gather()
    metrics = evaluator.compute()
    subject = {"root": str(dataset.root), "split": dataset.split, "images": len(dataset.labels)}
    metrics["evaluation"] = subject | {"checkpoint": str(checkpoint), "device": str(device), "dense": dense}
    return metrics, evaluator
