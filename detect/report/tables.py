"""Tables of metrics for a terminal of 80 columns."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from detect.errors import listed
from detect.report.meanings import DETECTION_MEANINGS, MASK_MEANINGS, OVERLAP_MEANINGS, VOC_MEANINGS, recall_meanings
from detect.terminal import table

_CLASS_COLUMNS = {"truths": "objects", "AP": "AP", "AP50": "AP50", "AP75": "AP75", "AR100": "AR100"}
"""Columns of the table of classes: key in `per_class` and title."""
_MASK_COLUMNS = {"mask_AP": "mask AP"}


def print_metrics(metrics: dict[str, Any], console: Console | None = None) -> None:
    """Print metrics in per cent: a table of the overall metrics, and one with a row for each class with objects.

    Args:
        metrics: results of `evaluate_coco`, `evaluate_voc` and `ProposalRecall.compute`, or some of them.
        console: where to print; by default the terminal.
    """
    console = console or Console()
    meanings = {**DETECTION_MEANINGS, **MASK_MEANINGS, **recall_meanings(metrics), **OVERLAP_MEANINGS}
    overall = [(name, _value(metrics[name]), meaning) for name, meaning in meanings.items() if name in metrics]
    if overall:
        console.print(table(("metric", "%", "meaning"), overall))
    if columns := _class_columns(metrics):
        objects = columns.get("objects", {})
        names = [name for name in next(iter(columns.values())) if objects.get(name) != 0]
        console.print()
        console.print(
            table(("class", *columns), [(name, *(column[name] for column in columns.values())) for name in names])
        )
        if absent := [name for name, count in objects.items() if count == 0]:
            console.print(f"without objects: {listed(absent)}", markup=False, highlight=False)


def _value(value: float | dict[str, Any] | None) -> float | None:
    return value["mAP"] if isinstance(value, dict) else value


def _class_columns(metrics: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the columns of the table of classes: title → class name → value."""
    columns: dict[str, dict[str, Any]] = {}
    if per_class := metrics.get("per_class"):
        has_masks = any("mask_AP" in row for row in per_class.values())
        for key, title in (_CLASS_COLUMNS | (_MASK_COLUMNS if has_masks else {})).items():
            columns[title] = {name: row[key] for name, row in per_class.items()}
    return columns | {rule: metrics[rule]["per_class"] for rule in VOC_MEANINGS if rule in metrics}
