"""`detect data check`: checks a data set and the anchors of a config; prints and writes the results."""

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
from detect.data.dataset import Record
from detect.data.transforms import Resize
from detect.errors import UserError
from detect.models.box_head import BoxHeadOptions, build_features
from detect.models.rpn import RPN, RPNOptions

MIN_RECALL = 0.9
"""Warn if the anchors match a smaller fraction of the ground truths with IoU 0.5."""
_CASES = 3  # findings per rule in the terminal
_STYLE = {"error": "bold red", "warning": "yellow", "note": "cyan"}


def run_check(
    root: Path,
    splits: Sequence[str] | None = None,
    *,
    config: Path | None = None,
    json_file: Path | None = None,
    html: Path | None = None,
    fix: Path | None = None,
    workers: int | None = None,
    console: Console | None = None,
) -> int:
    """Check a data set, print the findings and write the requested files.

    Args:
        root: data folder.
        splits: names of the splits; by default all.
        config: YAML file of an experiment; if given, its anchors are checked, and tiny boxes are those in its network's
            input.
        json_file: file for all findings.
        html: file for a page with pictures.
        fix: new folder for a repaired copy, which is then checked as well.
        workers: decoding threads.
        console: where to print; by default the terminal.

    Returns:
        0 if there are no findings other than notes, else 1.

    Raises:
        UserError: the data set, split or config does not exist, an output cannot be written, or a repaired copy would
            lose most of the data.
    """
    console = console or Console()
    experiment = None if config is None else load_config(config)
    resize = None if experiment is None else Resize.for_evaluation(experiment.data)
    report = examine(root, splits, resize=resize, workers=workers)
    anchors = None if experiment is None or report.survey is None else anchor_report(report, experiment)
    if anchors and config and anchors["ceiling"]["all"]["0.5"] < MIN_RECALL:
        share = anchors["ceiling"]["all"]["0.5"]
        what = f"the anchors of {config.name} match only {share:.1%} of the ground truths with IoU 0.5"
        report = replace(report, findings=sort([*report.findings, Finding("anchors", config, what)]))
    print_report(report, console)
    if anchors:
        print_anchors(anchors, console)
    _write_files(report, anchors, json_file, html)
    if fix is not None:
        log = write_repaired_copy(report, fix)
        remaining = _remaining(examine(fix, resize=resize, workers=workers))
        changes = f"{fix}: a copy with {len(log)} change{'s' * (len(log) != 1)}, listed in {fix / LOG}"
        console.print(f"{changes}; {remaining}", markup=False, highlight=False, soft_wrap=True)
    return 0 if report.clean else 1


def _remaining(report: Report) -> str:
    """Return what is left to do in a repaired copy, by its own check."""
    rules = {rule: len(findings) for rule, findings in report.by_rule() if CHECKS[rule].severity == "error"}
    if not rules:
        return "no errors remain"
    count = sum(rules.values())
    kinds = ", ".join(f"{number} × {rule}" for rule, number in rules.items())
    return f"{count} error{'s' * (count != 1)} left to correct by hand: {kinds}"


def _write_files(report: Report, anchors: dict[str, Any] | None, json_file: Path | None, html: Path | None) -> None:
    try:
        if json_file is not None:
            document = report.as_dict() | ({"anchors": anchors} if anchors else {})
            json_file.write_text(json.dumps(document, indent=1), encoding="utf-8")
        if html is not None:
            write_page(html, report, anchors)
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
    console.print(headline(report), markup=False, highlight=False, soft_wrap=True)


def headline(report: Report) -> str:
    """Return the data set and the counts in one line."""
    count = report.count()
    splits = ", ".join(f"{split} {number:,}" for split, number in report.splits.items())
    counts = ", ".join(f"{count[severity]:,} {severity}{'s' * (count[severity] != 1)}" for severity in _STYLE)
    data = f"{report.root} ({report.format or 'not read'}; {splits or 'no split'}): {report.boxes:,} boxes"
    return f"{data}; {counts}; {report.seconds:.1f} s"


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
