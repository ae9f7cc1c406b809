"""`detect report`: the report of anybody's results, or of several beside each other."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detect.cli.shared import command, make_folder, refuse_used
from detect.errors import UserError


def add(commands: Any) -> None:
    """Adds the command."""
    report = command(
        commands,
        "report",
        _report,
        "the report of COCO results, or what sets several detectors apart",
        "detect report --truth instances.json --predictions results.json --images photos --out report\n"
        "         detect report --compare runs/one runs/two --out comparison",
    )
    report.add_argument("--truth", type=Path, metavar="JSON", help="a COCO annotation file")
    report.add_argument("--predictions", type=Path, metavar="JSON", help="a COCO results file with boxes")
    report.add_argument("--images", type=Path, metavar="DIR", help="the pictures that the truth names, to be shown")
    several = "folders of runs or of evaluations or, with --truth, results files; the first is the reference"
    report.add_argument("--compare", type=Path, nargs="+", metavar="RUN", help=several)
    report.add_argument("--out", type=Path, required=True, help="a new folder for report.html and metrics.json")
    report.add_argument("--engine", choices=("pycocotools", "fast"), default="pycocotools", help="equal figures")


def _report(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    if options.images is not None and not options.images.is_dir():
        raise UserError(f"--images: {options.images}: there is no such folder; name the one that holds the pictures")
    refuse_used(options.out)
    if options.compare is not None:
        _compare(options)
    elif options.truth is None or options.predictions is None:
        raise UserError("report: give --truth and --predictions, or --compare with two runs or more")
    else:
        _of_files(options)
    print(options.out / "report.html")


def _of_files(options: argparse.Namespace) -> None:
    import json

    from detect.report.saved import evaluate_files
    from detect.report.tables import print_metrics
    from detect.report.write import Origin, write_report

    done, left_out = evaluate_files(options.truth, options.predictions, options.images, options.engine)
    make_folder(options.out)
    content = json.dumps(done.metrics, indent=2, allow_nan=False)
    (options.out / "metrics.json").write_text(content, encoding="utf-8")
    origin = Origin(f"{options.truth.stem}: {done.name}", command=options.command)
    write_report(options.out / "report.html", done.dataset, done.predictions, origin)
    print_metrics(done.metrics)
    if left_out:
        print(f"{options.truth}: {left_out} annotations are of images that it does not list, and were left out")


def _compare(options: argparse.Namespace) -> None:
    from detect.report.saved import read_evaluations
    from detect.report.write import write_comparison_report

    if options.predictions is not None:
        raise UserError("--predictions: give the results files behind --compare instead")
    if len(options.compare) < 2:
        raise UserError("--compare: name two runs or more")
    runs = read_evaluations(options.compare, options.truth, options.images)
    make_folder(options.out)
    write_comparison_report(options.out / "report.html", runs, options.command)
