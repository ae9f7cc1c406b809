"""The figures as tables for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

COCO_MEANING = {
    "AP": "average precision, mean over IoU 0.50 … 0.95",
    "AP50": "average precision at IoU 0.50",
    "AP75": "average precision at IoU 0.75",
    "APs": "AP of small objects, area up to 32² pixels",
    "APm": "AP of medium objects, 32² to 96²",
    "APl": "AP of large objects, from 96²",
    "AR1": "average recall with 1 detection of a class an image",
    "AR10": "with 10",
    "AR100": "with 100",
    "ARs": "AR100 of small objects",
    "ARm": "AR100 of medium objects",
    "ARl": "AR100 of large objects",
}
VOC_MEANING = {"VOC07": "VOC mAP, at 11 recalls, as until 2009", "VOC": "VOC mAP, area under the curve, as from 2010"}
OVERLAP_MEANING = {"ABO": "best overlap with a proposal, mean over the truths", "MABO": "the same, class by class"}


def print_metrics(metrics: dict[str, Any], console: Console | None = None) -> None:
    """Prints whatever figures there are, in per cent: a table of the whole, and one with a row for each class.

    Args:
        metrics: what `evaluate_coco`, `evaluate_voc` and `ProposalRecall.compute` return, or the union of these.
        console: where to print; the terminal if not given.
    """
    console = console or Console()
    meanings = {**COCO_MEANING, **VOC_MEANING, **_recall_meanings(metrics), **OVERLAP_MEANING}
    overall = [(name, _figure(metrics[name]), meaning) for name, meaning in meanings.items() if name in metrics]
    if overall:
        console.print(table(("figure", "%", "meaning"), overall))
    if columns := _class_columns(metrics):
        classes = next(iter(columns.values()))
        console.print()
        console.print(
            table(("class", *columns), [(name, *(column[name] for column in columns.values())) for name in classes])
        )


def _figure(value: float | dict[str, Any] | None) -> float | None:
    return value["mAP"] if isinstance(value, dict) else value


def _class_columns(metrics: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The columns of the table of classes, each by class name."""
    columns: dict[str, dict[str, Any]] = {}
    if per_class := metrics.get("per_class"):
        for figure in ("truths", "AP", "AP50", "AP75", "AR100"):
            columns[figure] = {name: row[figure] for name, row in per_class.items()}
    return columns | {rule: metrics[rule]["per_class"] for rule in VOC_MEANING if rule in metrics}


def _recall_meanings(metrics: dict[str, Any]) -> dict[str, str]:
    """What figures such as AR@100 and recall@0.5@100 mean."""
    meanings = {}
    for name in metrics:
        match name.split("@"):
            case ["AR", limit]:
                meanings[name] = f"average recall of the best {limit} proposals"
            case ["recall", iou, limit]:
                meanings[name] = f"recall of the best {limit} proposals at IoU {iou}"
    return meanings


def table(titles: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """Columns of words and figures, the latter in per cent."""
    made = Table(box=None, pad_edge=False)
    for title in titles:
        words = title in ("figure", "class", "meaning", "config", "detector", "part")
        made.add_column(title, justify="left" if words else "right", overflow="fold", no_wrap=not words)
    for row in rows:
        made.add_row(*map(_cell, row))
    return made


def _cell(value: str | int | float | None) -> str:
    """Figures in per cent, as papers print them; a dash where there is no truth; counts and words as they are."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{100 * value:.1f}"
    if isinstance(value, int):
        return str(value)
    # A class name comes from a file: neither rich's markup nor the terminal's escape codes may act.
    return escape("".join(letter if letter.isprintable() else "?" for letter in value))
