"""`detect report`: report on COCO results of any detector, or comparison of several evaluations."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detect.cli.shared import add_command
from detect.errors import UserError
from detect.files.folders import create_folder, refuse_used

if TYPE_CHECKING:
    from detect.report.saved import Evaluation


def add(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "report",
        _report,
        "report on COCO results, or on the differences between several detectors",
        "detect report --ground-truth instances.json --predictions results.json --out report\n"
        "         detect report --compare runs/one runs/two --out comparison",
    )
    truth = "the ground truth, a COCO annotation file"
    parser.add_argument("--ground-truth", type=Path, metavar="JSON", help=truth)
    parser.add_argument("--truth", dest="ground_truth", type=Path, help=argparse.SUPPRESS)  # its former name
    predictions = "a COCO results file of boxes or masks; images.json of detect predict beside it names the images"
    parser.add_argument("--predictions", type=Path, metavar="JSON", help=predictions)
    parser.add_argument("--images", type=Path, metavar="DIR", help="the folder of the images, to show them")
    compared = "folders of runs or evaluations, or results files if --ground-truth is given; the first is the reference"
    parser.add_argument("--compare", type=Path, nargs="+", metavar="RUN", help=compared)
    parser.add_argument("--classes", nargs="+", metavar="NAME", help="evaluate only these classes (default: all)")
    parser.add_argument("--out", type=Path, required=True, help="a new folder for report.html and metrics.json")
    engines = "implementation of the COCO metrics; both give equal numbers"
    parser.add_argument("--engine", choices=("pycocotools", "fast"), default="pycocotools", help=engines)


def _report(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    if options.images is not None and not options.images.is_dir():
        raise UserError(f"--images: {options.images}: no such folder; name the folder of the images")
    refuse_used(options.out)
    if options.compare is not None:
        _compare(options)
    elif options.ground_truth is None or options.predictions is None:
        raise UserError("report: give --ground-truth and --predictions, or --compare with two or more runs")
    else:
        _report_results(options)
    print(options.out / "report.html")


def _report_results(options: argparse.Namespace) -> None:
    from detect.files.atomic import write_text
    from detect.report.saved import evaluate_files
    from detect.report.tables import print_metrics
    from detect.report.write import Origin, write_report

    files = options.ground_truth, options.predictions, options.images
    evaluation = evaluate_files(*files, options.engine, options.classes)
    create_folder(options.out)
    write_text(options.out / "metrics.json", json.dumps(evaluation.metrics, indent=2, allow_nan=False))
    origin = Origin(f"{options.ground_truth.stem}: {evaluation.name}", command=options.command)
    write_report(options.out / "report.html", evaluation.dataset, evaluation.predictions, origin)
    print_metrics(evaluation.metrics)
    _print_notes(evaluation)


def _compare(options: argparse.Namespace) -> None:
    from detect.report.saved import read_evaluations
    from detect.report.write import write_comparison_report

    if options.predictions is not None:
        raise UserError("--predictions: give the results files to --compare instead")
    if len(options.compare) < 2:
        raise UserError("--compare: name two or more runs")
    evaluations = read_evaluations(options.compare, options.ground_truth, options.images, options.classes)
    create_folder(options.out)
    write_comparison_report(options.out / "report.html", evaluations, options.command)
    _print_notes(*evaluations)


def _print_notes(*evaluations: Evaluation) -> None:
    for note in dict.fromkeys(note for evaluation in evaluations for note in evaluation.notes):
        print(f"detect: {note}", file=sys.stderr)
