"""How well proposals cover the truths, as tables and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console

from detect.proposals.recall import THRESHOLDS, ProposalRecall
from detect.report.tables import table

SHOWN = (0.5, 0.7, 0.8)
"""The IoUs whose recalls are shown."""


def print_recall(recall: ProposalRecall, classes: Sequence[str], console: Console | None = None) -> None:
    """Prints recall, AR and (M)ABO of the first k proposals for each limit k, and the ABO of each class.

    Recall is the share of the truths that some proposal covers with the IoU; for AR, as COCO has it, each proposal
    stands for one truth at most.

    Args:
        classes: the name of each label.
        console: where to print; the terminal if not given.
    """
    console = console or Console()
    titles = ("proposals", *(f"recall@{iou:g}" for iou in SHOWN), "AR", "ABO", "MABO")
    console.print(table(titles, [(limit, *_figures(recall, place)) for place, limit in enumerate(recall.limits)]))
    console.print()
    rows = [(classes[label], value) for label, value in recall.abo().items()]
    console.print(table(("class", f"ABO@{recall.limits[-1]}"), rows))


def draw_recall(path: Path, recall: ProposalRecall, title: str) -> None:
    """Draws recall and MABO against the number of proposals, and recall against the IoU, into an image file."""
    from matplotlib.figure import Figure  # late, for it takes a second

    figure = Figure(figsize=(10, 4), layout="constrained")
    figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    lines = {f"recall at IoU {iou:g}": partial(recall.covered, iou) for iou in SHOWN} | {"MABO": recall.mabo}
    for name, line in lines.items():
        figures = np.array([line(place) for place in range(len(recall.limits))], float)
        left.plot(recall.limits, figures, marker=".", label=name)
    left.set(xscale="log", xlabel="proposals an image", ylim=(0, 1))
    for place, limit in enumerate(recall.limits):
        figures = np.array([recall.covered(iou, place) for iou in THRESHOLDS], float)
        right.plot(THRESHOLDS, figures, marker=".", label=f"{limit} proposals")
    right.set(xlabel="IoU", ylabel="recall", ylim=(0, 1))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)


def _figures(recall: ProposalRecall, place: int) -> list[float | None]:
    recalls = [recall.covered(iou, place) for iou in SHOWN]
    return [*recalls, recall.average_recall(place), recall.mean_overlap(place), recall.mabo(place)]
