"""Results of a classifier on the terminal, as files and as a picture of its confusion matrix."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from rich.console import Console

from detect.errors import one_line
from detect.evaluation.classification import TOP_K, ClassificationEvaluator
from detect.files.atomic import write_text
from detect.terminal import table

_MAX_NUMBERED = 20
"""Maximum number of classes for which the confusion matrix has numbers and all names."""
_MAX_PRINTED = 40
"""Maximum number of classes that are printed."""


def print_classification(metrics: dict[str, Any], console: Console | None = None) -> None:
    """Print the accuracies and a row for each class, in per cent; of many classes, those with the lowest recall.

    Args:
        metrics: result of `ClassificationEvaluator.compute`.
        console: where to print; by default the terminal.
    """
    console = console or Console()
    per_class = metrics["per_class"]
    among = f"the best {TOP_K}" if len(per_class) > TOP_K else f"all {len(per_class)}, which is always true"
    meanings = {"top1": "the true class is the best prediction", "top5": f"the true class is among {among}"}
    console.print(table(("metric", "%", "meaning"), [(name, metrics[name], text) for name, text in meanings.items()]))
    console.print()
    rows = [(name, row["images"], row["recall"], row["precision"]) for name, row in per_class.items()]
    if len(rows) > _MAX_PRINTED:
        with_images = [row for row in rows if row[2] is not None]
        rows = sorted(with_images, key=lambda row: row[2])[:_MAX_PRINTED]
        console.print(f"the {len(rows)} classes of {len(per_class)} with the lowest recall")
    console.print(table(("class", "images", "recall", "precision"), rows))


def write_classification(out: Path, metrics: dict[str, Any], evaluator: ClassificationEvaluator) -> None:
    """Write `metrics.json`, `predictions.csv` and `confusion.png` to the folder `out`."""
    dataset = evaluator.dataset
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(metrics, indent=2, allow_nan=False)
    # One line per row of the matrix instead of one per number. JSON strings contain no line breaks.
    rows = re.sub(r"\[\n([\s\d,]+)\]", lambda numbers: f"[{' '.join(numbers[1].split())}]", text)
    write_text(out / "metrics.json", rows)
    with (out / "predictions.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("image", "truth", "predicted", "probability"))
        for prediction in evaluator.predictions():
            names = (dataset.classes[prediction.ground_truth], dataset.classes[prediction.predicted])
            writer.writerow((dataset.name(prediction.image), *names, f"{prediction.probability:.4f}"))
    confusion = np.array(metrics["confusion"])
    draw_confusion(out / "confusion.png", confusion, dataset.classes, f"{dataset.root} {dataset.split}")


def draw_confusion(path: Path, confusion: Int[np.ndarray, "C C"], classes: Sequence[str], title: str) -> None:
    """Draw a confusion matrix to an image file: true classes as rows, predicted classes as columns.

    The colour is the share of the row. With up to 20 classes the cells show their number of images unless it is 0; with
    more classes, some names are left out.
    """
    from matplotlib.figure import Figure  # here, because the import takes a second

    count = len(classes)
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    side = min(10.0, 3.0 + 0.45 * count)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    figure.suptitle(title, parse_math=False)
    axes = figure.subplots()
    axes.set(xlabel="prediction", ylabel="ground truth")
    matrix = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    figure.colorbar(matrix, label="share of the images of a class", shrink=0.8)
    ticks = range(0, count, math.ceil(count / _MAX_NUMBERED) if count > _MAX_NUMBERED else 1)
    names = [_short(classes[tick]) for tick in ticks]
    axes.set_xticks(ticks, names, rotation=90 if max(map(len, names)) > 2 else 0, parse_math=False)
    axes.set_yticks(ticks, names, parse_math=False)
    if count <= _MAX_NUMBERED:
        for row, column in np.argwhere(confusion):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(confusion[row, column]), ha="center", va="center", color=colour, fontsize=8)
    figure.savefig(path, dpi=150)


def _short(name: str, length: int = 20) -> str:
    """Return a class name, shortened and without unprintable characters, which names from files may contain."""
    printable = one_line(name)
    return printable if len(printable) <= length else f"{printable[: length - 1]}…"
