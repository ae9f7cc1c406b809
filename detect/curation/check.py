"""`detect data check`: the doctor of data, with the anchors of a config, and what he writes."""

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

from detect.config import Config, FasterRCNNOptions, load_config
from detect.curation.doctor import anchor_recall
from detect.curation.doctor.diagnosis import CHECKS, Finding, Report, sort
from detect.curation.doctor.examine import Survey, check
from detect.curation.doctor.mending import fix as write_repaired_copy
from detect.curation.doctor.page import write_page
from detect.data.dataset import Record
from detect.data.transforms import Resize
from detect.errors import UserError
from detect.models.rpn import RPN

LOW = 0.9
"""A ceiling below this at IoU 0.5 is worth a warning."""
_CASES = 3  # of each rule, in the terminal
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
    """Checks a data set, prints what was found and writes what was asked for.

    Args:
        root: the data folder.
        splits: some of its splits; by default all.
        config: a YAML file; tiny boxes and anchors are then judged as its network sees them.
        json_file: where to write all findings.
        html: where to write a page for people.
        fix: a new folder for a repaired copy.
        workers: threads that decode.
        console: where to print; the terminal if not given.

    Returns:
        0 where there is nothing worse than a note, else 1.

    Raises:
        UserError: there is no such data set, split or config, or an output cannot be written.
    """
    console = console or Console()
    experiment = None if config is None else load_config(config)
    resize = None if experiment is None else _resize(experiment)
    report = check(root, splits, resize=resize, workers=workers)
    anchors = None if experiment is None or report.survey is None else anchor_report(report, experiment)
    if anchors and config and anchors["ceiling"]["all"]["0.5"] < LOW:
        what = f"of {config.name} meet only {anchors['ceiling']['all']['0.5']:.1%} of the truths with IoU 0.5"
        report = replace(report, findings=sort([*report.findings, Finding("anchors", config, f"the anchors {what}")]))
    print_report(report, console)
    if anchors:
        print_anchors(anchors, console)
    try:
        if json_file is not None:
            document = report.as_dict() | ({"anchors": anchors} if anchors else {})
            json_file.write_text(json.dumps(document, indent=1), encoding="utf-8")
        if html is not None:
            write_page(html, report, anchors)
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}; choose another place for the file") from None
    if fix is not None:
        log = write_repaired_copy(report, fix)
        console.print(f"{fix}: a repaired copy, {len(log)} changes, told in {fix / 'MENDED.txt'}", markup=False)
    return 0 if report.clean else 1


def _resize(config: Config) -> Resize:
    """That of evaluation."""
    return Resize.for_evaluation(config.data)


# -------------------------------------------------------------------------------------------------------------- anchors


def anchors_of(config: Config) -> anchor_recall.Anchors | None:
    """The anchors of a config; None for a detector that is given its proposals."""
    if not isinstance(config.model, FasterRCNNOptions):
        return None
    with torch.device("meta"):  # only its strides are asked for
        body, _ = replace(config.model.backbone, weights=None).build()
    options = config.model.rpn
    generator = RPN(1, [level.stride for level in body.features], replace(options, convolutions=0)).anchors
    sizes = options.anchor_sizes
    return anchor_recall.Anchors(
        sizes=(sizes,) if len(generator.strides) == 1 else tuple((size,) for size in sizes),
        ratios=options.anchor_ratios,
        strides=generator.strides,
        offset=options.anchor_offset,
        rounded=options.anchors_rounded,
        fitted=options.anchors_fitted,
        border=options.border,
    )


def anchor_report(report: Report, config: Config) -> dict[str, Any] | None:
    """What the anchors of a config can meet of all truths, and anchors that would meet more."""
    anchors, records = anchors_of(config), _records(report.survey)
    if anchors is None or not any(len(record.boxes) for record in records):
        return None
    truths = anchor_recall.truths(records, _resize(config), config.data.canvases)
    proposed = anchor_recall.propose(truths, anchors)
    count = sum(map(len, anchors.sizes)) * len(anchors.ratios)
    shapes, mean = anchor_recall.kmeans(truths.boxes[:, 2:] - truths.boxes[:, :2], count)
    return {
        "ceiling": anchor_recall.ceiling(truths, anchors),
        "proposed": None if proposed == anchors else anchor_recall.ceiling(truths, proposed),
        "yaml": None if proposed == anchors else anchor_recall.as_yaml(proposed),
        "kmeans": {"shapes": shapes.round(1).tolist(), "mean": mean},
    }


def _records(survey: Survey) -> list[Record]:
    """Every readable image once, with its good boxes."""
    records: dict[Path, Record] = {}
    for split, kept in survey.repaired.items():
        order = np.argsort(kept.image, kind="stable")
        bounds = np.searchsorted(kept.image[order], np.arange(len(kept.paths) + 1))
        for place, (width, height) in enumerate(survey.sizes(split).tolist()):
            if width and kept.paths[place] not in records:
                rows = order[bounds[place] : bounds[place + 1]]
                records[kept.paths[place]] = Record(
                    id=place,
                    path=kept.paths[place],
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
    """Of each rule the count, the first cases and the advice."""
    for rule, findings in report.by_rule():
        check = CHECKS[rule]
        console.print(f"[{_STYLE[check.severity]}]{check.severity:8}[/] [bold]{rule}[/] × {len(findings):,}")
        for finding in findings[:_CASES]:
            console.print(
                f"  {_file(report, finding.path)}: {finding.what}", markup=False, highlight=False, soft_wrap=True
            )
        if len(findings) > _CASES:
            console.print(f"  and {len(findings) - _CASES:,} more", style="dim")
        repaired = " (--fix does)" if check.repaired else ""
        console.print(f"  → {escape(check.advice)}{repaired}", style="dim", highlight=False, soft_wrap=True)
    console.print(headline(report), markup=False, highlight=False, soft_wrap=True)


def headline(report: Report) -> str:
    """The data set and the counts in one line."""
    count = report.count()
    splits = ", ".join(f"{split} {number:,}" for split, number in report.splits.items())
    found = ", ".join(f"{count[severity]:,} {severity}{'s' * (count[severity] != 1)}" for severity in _STYLE)
    data = f"{report.root} ({report.format or 'not read'}; {splits or 'no split'}): {report.boxes:,} boxes"
    return f"{data}; {found}; {report.seconds:.1f} s"


def _file(report: Report, path: Path) -> str:
    shown = path.relative_to(report.root) if path.is_relative_to(report.root) else path
    return "".join(letter if letter.isprintable() else "?" for letter in str(shown))


def print_anchors(anchors: dict[str, Any], console: Console) -> None:
    """What the anchors meet, beside what the proposed ones would."""
    table = Table(
        title="Truths that some anchor meets, by IoU: the config's anchors → the proposed ones",
        caption="A ceiling and no forecast of the AP: train with both.",
    )
    for name in ("truths", "number", "0.5", "0.7", "mean IoU"):
        table.add_column(name, justify="left" if name == "truths" else "right")
    for name, row in anchors["ceiling"].items():
        better = (anchors["proposed"] or {}).get(name)
        cells = [f"{row[key]:.1%}" + (f" → {better[key]:.1%}" if better else "") for key in ("0.5", "0.7", "mean")]
        table.add_row(name, f"{row['truths']:,.0f}", *cells)
    console.print(table)
    if anchors["yaml"]:
        console.print(anchors["yaml"], markup=False, highlight=False, soft_wrap=True)
