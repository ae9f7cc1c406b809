"""How often a classifier is right: accuracies, recall and precision of each class, and what is taken for what.

logits [B, C] ── sorted ──> best labels [B, 5]   of equal logits the lower label comes first
best[:, 0] == truth         top1
truth in best               top5                 of fewer than five classes: among all of them, hence 1
truth × best[:, 0]          confusion [C, C]     row the truth, column the prediction
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int, Int64
from rich.console import Console
from torch import Tensor, distributed

from detect.data.formats.imagefolder import ImageClasses
from detect.report.tables import table
from detect.structures import ClassificationBatch

MOST = 5
"""The predictions of an image that count for top5."""
_NUMBERED = 20
"""The most classes whose confusion is drawn with its numbers and with every name."""
_LISTED = 40
"""The most classes of which all are printed."""


class ClassPrediction(NamedTuple):
    """What a classifier says of an image."""

    place: int
    """Of the image in its split."""
    truth: int
    label: int
    probability: float
    """The softmax of that label."""


class ClassificationEvaluator:
    """Gathers the best labels of each image of a split, batch by batch and process by process."""

    def __init__(self, dataset: ImageClasses) -> None:
        self.dataset = dataset
        self.ids: Int64[np.ndarray, " n"] = np.empty(0, np.int64)
        self.best: Int64[np.ndarray, "n k"] = np.empty((0, min(MOST, len(dataset.classes))), np.int64)
        """The labels of the highest logits, best first."""
        self.probabilities: Float32[np.ndarray, " n"] = np.empty(0, np.float32)
        """Of the best label."""

    def update(self, batch: ClassificationBatch, logits: Float[Tensor, "B C"]) -> None:
        """Adds a batch.

        Raises:
            ValueError: there are more or fewer logits than classes.
        """
        if logits.shape[1] != len(self.dataset.classes):
            raise ValueError(f"{logits.shape[1]} logits for {len(self.dataset.classes)} classes")
        logits = logits.detach().float()
        best = logits.argsort(dim=1, descending=True, stable=True)[:, :MOST]
        probabilities = logits.softmax(dim=1).gather(1, best[:, :1])[:, 0]
        self._extend(batch.ids.cpu().numpy(), best.cpu().numpy(), probabilities.cpu().numpy())

    def gather(self) -> None:
        """Joins what every process has seen, in the order of the split; an image that came twice counts once."""
        parts: list[Any] = [(self.ids, self.best, self.probabilities)]
        if distributed.is_available() and distributed.is_initialized():
            parts *= distributed.get_world_size()
            distributed.all_gather_object(parts, parts[0])
        ids, best, probabilities = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        self.ids, first = np.unique(ids, return_index=True)
        self.best, self.probabilities = best[first], probabilities[first]

    def predictions(self) -> Iterator[ClassPrediction]:
        """Those of the images seen."""
        rows = (self.ids, self.dataset.labels[self.ids], self.best[:, 0], self.probabilities)
        yield from map(ClassPrediction._make, zip(*(row.tolist() for row in rows), strict=True))

    def compute(self) -> dict[str, Any]:
        """The figures of the images seen, in 0 … 1; None where they are of nothing.

        `top1` and `top5`: the share of the images whose truth is the best label, or among the best five (of fewer than
        five classes, among all). `per_class`, by name: its `images`, `recall` (the share of these that is recognised)
        and `precision` (the share of the predictions of the class that is right). `confusion`: numbers of images, a
        row for each truth, a column for each prediction.
        """
        truths = self.dataset.labels[self.ids]
        right = self.best == truths[:, None]
        confusion = np.zeros([len(self.dataset.classes)] * 2, np.int64)
        np.add.at(confusion, (truths, self.best[:, 0]), 1)
        diagonal, of_truth, of_prediction = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
        return {
            "top1": _share(right[:, 0].sum(), len(truths)),
            "top5": _share(right.sum(), len(truths)),
            "per_class": {
                name: {
                    "images": int(of_truth[label]),
                    "recall": _share(diagonal[label], of_truth[label]),
                    "precision": _share(diagonal[label], of_prediction[label]),
                }
                for label, name in enumerate(self.dataset.classes)
            },
            "confusion": confusion.tolist(),
        }

    def _extend(self, ids: np.ndarray, best: np.ndarray, probabilities: np.ndarray) -> None:
        self.ids = np.concatenate([self.ids, ids.astype(np.int64)])
        self.best = np.concatenate([self.best, best])
        self.probabilities = np.concatenate([self.probabilities, probabilities])


def print_classification(metrics: dict[str, Any], console: Console | None = None) -> None:
    """Prints the accuracies and a row for each class, in per cent; of many classes, those recognised least.

    Args:
        metrics: what `ClassificationEvaluator.compute` returns.
        console: where to print; the terminal if not given.
    """
    console = console or Console()
    per_class = metrics["per_class"]
    among = f"among the best {MOST}" if len(per_class) > MOST else f"among all {len(per_class)}, hence always"
    meanings = {"top1": "the truth is the best label", "top5": f"the truth is {among}"}
    console.print(table(("figure", "%", "meaning"), [(name, metrics[name], told) for name, told in meanings.items()]))
    console.print()
    rows = [(name, row["images"], row["recall"], row["precision"]) for name, row in per_class.items()]
    if len(rows) > _LISTED:
        seen = [row for row in rows if row[2] is not None]
        rows = sorted(seen, key=lambda row: row[2])[:_LISTED]
        console.print(f"the {len(rows)} classes of {len(per_class)} with the lowest recall")
    console.print(table(("class", "images", "recall", "precision"), rows))


def draw_confusion(path: Path, confusion: Int[np.ndarray, "C C"], classes: Sequence[str], title: str) -> None:
    """Draws what is taken for what into an image file: truths as rows, predictions as columns.

    The colour is the share of the row. Up to 20 classes have their numbers of images in the cells, zeros left out; of
    more classes, some names are left out.
    """
    from matplotlib.figure import Figure  # late, for it takes a second

    count = len(classes)
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    side = min(10.0, 3.0 + 0.45 * count)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    figure.suptitle(title, parse_math=False)
    axes = figure.subplots()
    axes.set(xlabel="prediction", ylabel="truth")
    picture = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    figure.colorbar(picture, label="share of the truths of a class", shrink=0.8)
    places = range(0, count, math.ceil(count / _NUMBERED) if count > _NUMBERED else 1)
    names = [_short(classes[place]) for place in places]
    axes.set_xticks(places, names, rotation=90 if max(map(len, names)) > 2 else 0, parse_math=False)
    axes.set_yticks(places, names, parse_math=False)
    if count <= _NUMBERED:
        for row, column in np.argwhere(confusion):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(confusion[row, column]), ha="center", va="center", color=colour, fontsize=8)
    figure.savefig(path, dpi=150)


def write_classification(out: Path, metrics: dict[str, Any], evaluator: ClassificationEvaluator) -> None:
    """Writes `metrics.json`, `predictions.csv` and `confusion.png` into a folder."""
    dataset = evaluator.dataset
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(metrics, indent=2, allow_nan=False)
    # A row of the confusion on a line, not a number. No string has a line break in JSON.
    rows = re.sub(r"\[\n([\s\d,]+)\]", lambda numbers: f"[{' '.join(numbers[1].split())}]", text)
    (out / "metrics.json").write_text(rows, encoding="utf-8")
    with (out / "predictions.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("image", "truth", "predicted", "probability"))
        for one in evaluator.predictions():
            names = (dataset.classes[one.truth], dataset.classes[one.label])
            writer.writerow((dataset.name(one.place), *names, f"{one.probability:.4f}"))
    confusion = np.array(metrics["confusion"])
    draw_confusion(out / "confusion.png", confusion, dataset.classes, f"{dataset.root} {dataset.split}")


def _share(part: np.integer, whole: int | np.integer) -> float | None:
    return float(part / whole) if whole else None


def _short(name: str, most: int = 20) -> str:
    """A class name comes from a file: it may be long, and hold what no font has."""
    printable = "".join(letter if letter.isprintable() else "?" for letter in name)
    return printable if len(printable) <= most else f"{printable[: most - 1]}…"
