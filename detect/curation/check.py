"""`detect.check` and `detect data check`: check a data set and the anchors of a config, print and write the results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from detect.config import Config, load_config
from detect.curation.doctor import anchor_recall
from detect.curation.doctor.diagnosis import CHECKS, Finding, Report, sort
from detect.curation.doctor.examine import Survey, examine
from detect.curation.doctor.page import write_page
from detect.curation.doctor.repair.copy import LOG, write_repaired_copy
from detect.data.records import Record
from detect.data.transforms import Resize
from detect.errors import UserError
from detect.models.box_head import BoxHeadOptions, build_features
from detect.models.rpn import RPN, RPNOptions

MIN_RECALL = 0.9
"""Warn if the anchors match a smaller fraction of the ground truths with IoU 0.5."""
_CASES = 3  # findings per rule in the terminal
_STYLE = {"error": "bold red", "warning": "yellow", "note": "cyan"}


def check(
    data: Path | str,
    splits: Sequence[str] | None = None,
    *,
    config: Path | str | None = None,
    format: str | None = None,
    json: Path | str | None = None,
    html: Path | str | None = None,
    fix: Path | str | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Report:
    """Check every file, box and pixel of a data set, without stopping at a defect: `detect.check`.

    `print(report)` shows the findings of each rule; `report.findings` has all of them, and `report.clean` tells whether
    none is more than a note.

    Args:
        data: data folder.
        splits: names of the splits; by default all.
        config: name or YAML file of an experiment; if given, its anchors are checked, and tiny boxes are those in its
            network's input.
        format: one of `formats.FORMATS`; by default it is recognised by the content of the files.
        json: file for all findings.
        html: file for a page with pictures.
        fix: new folder for a repaired copy; the data set itself is never changed.
        workers: decoding threads.
        progress: show a progress bar on a terminal.

    Raises:
        UserError: the data set, split or config does not exist, an output cannot be written, or a repaired copy would
            lose most of the data.
    """
    report = _examine(Path(data), splits, config, format, workers, progress)
    _write_files(report, json, html)
    if fix is not None:
        write_repaired_copy(report, Path(fix))
    return report


def run_check(
    root: Path,
    splits: Sequence[str] | None = None,
    *,
    config: Path | None = None,
    format: str | None = None,
    json_file: Path | None = None,
    html: Path | None = None,
    fix: Path | None = None,
    workers: int | None = None,
    console: Console | None = None,
) -> int:
    """Check a data set like `check`, print the findings first, and check the repaired copy as well.

    Returns:
        0 if there are no findings other than notes, else 1.
    """
    console = console or Console()
    report = _examine(root, splits, config, format, workers)
    print_report(report, console)
    if report.anchors:
        print_anchors(report.anchors, console)
    _write_files(report, json_file, html)
    if fix is not None:
        log = write_repaired_copy(report, fix)
        remaining = _remaining(_examine(fix, None, config, None, workers))
        changes = f"{fix}: a copy with {len(log)} change{'s' * (len(log) != 1)}, listed in {fix / LOG}"
        console.print(f"{changes}; {remaining}", markup=False, highlight=False, soft_wrap=True)
    return 0 if report.clean else 1


def _examine(
    root: Path,
    splits: Sequence[str] | None,
    config: Path | str | None,
    format: str | None,
    workers: int | None,
    progress: bool = True,
) -> Report:
    """Return the report, with the recall of the anchors if there is a config."""
    experiment = None if config is None else load_config(Path(config))
    resize = None if experiment is None else Resize.for_evaluation(experiment.data)
    report = examine(root, splits, format=format, resize=resize, workers=workers, progress=progress)
    anchors = None if experiment is None or report.survey is None else anchor_report(report, experiment)
    if anchors is None or config is None:
        return report
    findings, recall = report.findings, anchors["ceiling"]["all"]["0.5"]
    if recall < MIN_RECALL:
        what = f"the anchors of {Path(config).name} match only {recall:.1%} of the ground truths with IoU 0.5"
        findings = sort([*findings, Finding("anchors", Path(config), what)])
    return replace(report, findings=findings, anchors=anchors)


def _remaining(report: Report) -> str:
    """Return what is left to do in a repaired copy, by its own check."""
    rules = {rule: len(findings) for rule, findings in report.by_rule() if CHECKS[rule].severity == "error"}
    if not rules:
        return "no errors remain"
    count = sum(rules.values())
    kinds = ", ".join(f"{number} × {rule}" for rule, number in rules.items())
    return f"{count} error{'s' * (count != 1)} left to correct by hand: {kinds}"


def _write_files(report: Report, json_file: Path | str | None, html: Path | str | None) -> None:
    try:
        if json_file is not None:
            Path(json_file).write_text(json.dumps(report.as_dict(), indent=1), encoding="utf-8")
        if html is not None:
            write_page(Path(html), report)
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}; choose another path for the file") from None


# -------------------------------------------------------------------------------------------------------------- anchors


def anchors_of(config: Config) -> anchor_recall.Anchors | None:
    """Return the anchors of a config, or None for a detector without an RPN."""
    options: RPNOptions | None = getattr(config.model, "rpn", None)
    if options is None:
        return None
    backbone, neck = replace(config.model.backbone, weights=None), getattr(config.model, "neck", None)
    with torch.device("meta"):  # only the strides are needed
        levels = build_features(backbone, neck, BoxHeadOptions())[2]
    generator = RPN(1, [level.stride for level in levels], replace(options, convolutions=0)).anchors
    sizes = options.anchor_sizes
    return anchor_recall.Anchors(
        sizes=(sizes,) if len(generator.strides) == 1 else tuple((size,) for size in sizes),
        ratios=options.anchor_ratios,
        strides=generator.strides,
        offset=options.anchor_offset,
        rounded=options.anchors_rounded,
        fitted=options.anchors_fitted,
        border=options.straddle_threshold,
    )


def anchor_report(report: Report, config: Config) -> dict[str, Any] | None:
    """Return the recall ceiling of a config's anchors, and better anchors; None without boxes or without an RPN."""
    anchors, records = anchors_of(config), _records(report.survey)
    if anchors is None or not any(len(record.boxes) for record in records):
        return None
    gt = anchor_recall.ground_truths(records, Resize.for_evaluation(config.data), config.data.canvases)
    proposed = anchor_recall.propose(gt, anchors)
    count = sum(map(len, anchors.sizes)) * len(anchors.ratios)
    shapes, mean = anchor_recall.kmeans(gt.boxes[:, 2:] - gt.boxes[:, :2], count)
    return {
        "ceiling": anchor_recall.ceiling(gt, anchors),
        "proposed": None if proposed == anchors else anchor_recall.ceiling(gt, proposed),
        "yaml": None if proposed == anchors else anchor_recall.as_yaml(proposed),
        "kmeans": {"shapes": shapes.round(1).tolist(), "mean": mean},
    }


def _records(survey: Survey) -> list[Record]:
    """Return each readable image once, with its valid boxes."""
    records: dict[Path, Record] = {}
    for split, kept in survey.repaired.items():
        order = np.argsort(kept.image, kind="stable")
        bounds = np.searchsorted(kept.image[order], np.arange(len(kept.paths) + 1))
        for index, (width, height) in enumerate(survey.sizes(split).tolist()):
            if width and kept.paths[index] not in records:
                rows = order[bounds[index] : bounds[index + 1]]
                records[kept.paths[index]] = Record(
                    id=index,
                    path=kept.paths[index],
                    width=width,
                    height=height,
                    boxes=kept.boxes[rows].astype(np.float32),
                    labels=kept.labels[rows],
                    crowd=kept.crowd[rows],
                    difficult=kept.difficult[rows],
                    areas=kept.areas[rows],
                    masks=None if kept.masks is None else tuple(kept.masks[row] for row in rows),
                )
    return list(records.values())


# ------------------------------------------------------------------------------------------------------------- terminal


def print_report(report: Report, console: Console) -> None:
    """Print count, first cases and advice for each rule."""
    for rule, findings in report.by_rule():
        check = CHECKS[rule]
        console.print(f"[{_STYLE[check.severity]}]{check.severity:8}[/] [bold]{rule}[/] × {len(findings):,}")
        for finding in findings[:_CASES]:
            console.print(
                f"  {_file(report, finding.path)}: {finding.what}", markup=False, highlight=False, soft_wrap=True
            )
        if len(findings) > _CASES:
            console.print(f"  and {len(findings) - _CASES:,} more", style="dim")
        remedy = check.advice + (" (--fix does)" if check.repaired else "")
        console.print(f"  → {escape(remedy)}", style="dim", highlight=False, soft_wrap=True)
    console.print(report.headline, markup=False, highlight=False, soft_wrap=True)


def _file(report: Report, path: Path) -> str:
    shown = path.relative_to(report.root) if path.is_relative_to(report.root) else path
    return "".join(letter if letter.isprintable() else "?" for letter in str(shown))


def print_anchors(anchors: dict[str, Any], console: Console) -> None:
    """Print the recall ceiling of the config's anchors and of the proposed ones."""
    table = Table(
        title="Ground truths matched by an anchor, by IoU: config → proposed anchors",
        caption="an upper bound of recall, not a prediction of AP: compare both by training",
        box=None,
        pad_edge=False,
        title_justify="left",
        caption_justify="left",
    )
    for name in ("ground truths", "number", "0.5", "0.7", "mean IoU"):
        table.add_column(name, justify="left" if name == "ground truths" else "right", no_wrap=True)
    for name, row in anchors["ceiling"].items():
        better = (anchors["proposed"] or {}).get(name)
        cells = [f"{row[key]:.1%}" + (f" → {better[key]:.1%}" if better else "") for key in ("0.5", "0.7", "mean")]
        table.add_row(name, f"{row['truths']:,.0f}", *cells)
    console.print(table)
    if anchors["yaml"]:
        console.print(anchors["yaml"], markup=False, highlight=False, soft_wrap=True)
