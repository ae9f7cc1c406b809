"""Recall of proposals, as tables and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console

from detect.proposals.recall import THRESHOLDS, ProposalRecall
from detect.terminal import table

IOU_THRESHOLDS = (0.5, 0.7, 0.8)
"""IoU thresholds at which recall is shown, here and on the report's page."""


def print_recall(recall: ProposalRecall, classes: Sequence[str], console: Console | None = None) -> None:
    """Print recall, AR, ABO and MABO of the first k proposals for each limit k, and the ABO of each class.

    Recall is the share of the ground truths that have a proposal with at least this IoU. For AR, as in COCO, a proposal
    matches at most one ground truth.

    Args:
        recall: recall of the proposals of a split.
        classes: class names by label.
        console: where to print; by default the terminal.
    """
    console = console or Console()
    titles = ("proposals", *(f"recall@{iou:g}" for iou in IOU_THRESHOLDS), "AR", "ABO", "MABO")
    console.print(table(titles, [(limit, *_metrics(recall, index)) for index, limit in enumerate(recall.limits)]))
    console.print()
    rows = [(classes[label], value) for label, value in recall.abo().items()]
    console.print(table(("class", f"ABO@{recall.limits[-1]}"), rows))


def draw_recall(path: Path, recall: ProposalRecall, title: str) -> None:
    """Draw recall and MABO against the number of proposals, and recall against the IoU, to an image file."""
    from matplotlib.figure import Figure  # here, because the import takes a second

    figure = Figure(figsize=(10, 4), layout="constrained")
    figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    lines = {f"recall at IoU {iou:g}": partial(recall.covered, iou) for iou in IOU_THRESHOLDS} | {"MABO": recall.mabo}
    for name, line in lines.items():
        values = np.array([line(index) for index in range(len(recall.limits))], float)
        left.plot(recall.limits, values, marker=".", label=name)
    left.set(xscale="log", xlabel="proposals per image", ylim=(0, 1))
    for index, limit in enumerate(recall.limits):
        values = np.array([recall.covered(iou, index) for iou in THRESHOLDS], float)
        right.plot(THRESHOLDS, values, marker=".", label=f"{limit} proposals")
    right.set(xlabel="IoU", ylabel="recall", ylim=(0, 1))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)


def _metrics(recall: ProposalRecall, index: int) -> list[float | None]:
    recalls = [recall.covered(iou, index) for iou in IOU_THRESHOLDS]
    return [*recalls, recall.average_recall(index), recall.mean_overlap(index), recall.mabo(index)]
