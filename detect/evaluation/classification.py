"""Metrics of classifiers: accuracies, recall and precision of each class, and the confusion matrix.

logits [B, C] ── sorted ──> best labels [B, 5]   of equal logits the lower label comes first
best[:, 0] == label         top1
label in best               top5                 with fewer than five classes: among all of them, always 1
label × best[:, 0]          confusion [C, C]     row: ground truth, column: prediction
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int64
from torch import Tensor, distributed

from detect.data.formats.imagefolder import ImageClasses
from detect.devices import is_distributed
from detect.structures import ClassificationBatch

TOP_K = 5
"""Number of predictions per image that count for top5."""


class ClassPrediction(NamedTuple):
    """Prediction of a classifier for one image."""

    image: int
    """Index of the image in its split."""
    ground_truth: int
    predicted: int
    probability: float
    """Softmax of the predicted label."""


class ClassificationEvaluator:
    """Best labels of each image of a split, accumulated over batches and processes."""

    def __init__(self, dataset: ImageClasses) -> None:
        self.dataset = dataset
        self.ids: Int64[np.ndarray, " n"] = np.empty(0, np.int64)
        self.best: Int64[np.ndarray, "n k"] = np.empty((0, min(TOP_K, len(dataset.classes))), np.int64)
        """Labels of the highest logits, highest first."""
        self.probabilities: Float32[np.ndarray, " n"] = np.empty(0, np.float32)
        """Softmax of the best label."""

    def update(self, batch: ClassificationBatch, logits: Float[Tensor, "B C"]) -> None:
        """Add a batch.

        Raises:
            ValueError: the number of logits is not the number of classes.
        """
        if logits.shape[1] != len(self.dataset.classes):
            raise ValueError(f"{logits.shape[1]} logits for {len(self.dataset.classes)} classes")
        logits = logits.detach().float()
        best = logits.argsort(dim=1, descending=True, stable=True)[:, :TOP_K]
        probabilities = logits.softmax(dim=1).gather(1, best[:, :1])[:, 0]
        self.ids = np.concatenate([self.ids, batch.ids.cpu().numpy().astype(np.int64)])
        self.best = np.concatenate([self.best, best.cpu().numpy()])
        self.probabilities = np.concatenate([self.probabilities, probabilities.cpu().numpy()])

    def gather(self) -> None:
        """Gather the batches of all processes, in the order of the split; repeated images count once."""
        shards: list[Any] = [(self.ids, self.best, self.probabilities)]
        if is_distributed():
            shards *= distributed.get_world_size()
            distributed.all_gather_object(shards, shards[0])
        ids, best, probabilities = (np.concatenate(columns) for columns in zip(*shards, strict=True))
        self.ids, first = np.unique(ids, return_index=True)
        self.best, self.probabilities = best[first], probabilities[first]

    def predictions(self) -> Iterator[ClassPrediction]:
        """Yield the prediction of each evaluated image."""
        columns = (self.ids, self.dataset.labels[self.ids], self.best[:, 0], self.probabilities)
        yield from map(ClassPrediction._make, zip(*(column.tolist() for column in columns), strict=True))

    def compute(self) -> dict[str, Any]:
        """Compute the metrics of the evaluated images, in 0 … 1; None where the denominator is 0.

        Returns:
            `top1` and `top5`: share of the images whose label is the best one, or among the best five (with fewer than
            five classes, among all). `per_class` by name: number of `images`, `recall` (share of them that is predicted
            correctly) and `precision` (share of the predictions of the class that is correct). `confusion`: numbers of
            images, a row for each true class, a column for each predicted class.
        """
        labels = self.dataset.labels[self.ids]
        correct = self.best == labels[:, None]
        confusion = np.zeros([len(self.dataset.classes)] * 2, np.int64)
        np.add.at(confusion, (labels, self.best[:, 0]), 1)
        diagonal, images, predicted = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
        return {
            "top1": _share(correct[:, 0].sum(), len(labels)),
            "top5": _share(correct.sum(), len(labels)),
            "per_class": {
                name: {
                    "images": int(images[label]),
                    "recall": _share(diagonal[label], images[label]),
                    "precision": _share(diagonal[label], predicted[label]),
                }
                for label, name in enumerate(self.dataset.classes)
            },
            "confusion": confusion.tolist(),
        }


def _share(part: np.integer, whole: int | np.integer) -> float | None:
    return float(part / whole) if whole else None
