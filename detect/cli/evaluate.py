"""`detect eval`: evaluate a checkpoint or an exported detector."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detect.cli.shared import add_command
from detect.processes import is_first_process, print_once

if TYPE_CHECKING:
    from detect.prediction.evaluate_checkpoint import Evaluation


def add(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "eval",
        _evaluate,
        "COCO and VOC metrics of a detector, or accuracies of a classifier",
        "detect eval --ckpt runs/bccd/checkpoints/best.ckpt --data.root data/bccd --split test",
    )
    parser.add_argument("--ckpt", type=Path, required=True, help="a checkpoint, or an exported detector (.onnx)")
    parser.add_argument("--split", help="the split to evaluate (default: the config's test, else val)")
    parser.add_argument("--classes", nargs="+", metavar="NAME", help="evaluate only these classes (default: all)")
    parser.add_argument("--out", type=Path, help="a new folder for the results (default: eval_SPLIT/ in the run)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="precision of the weights")
    engines = "implementation of the COCO metrics; both give equal numbers"
    parser.add_argument("--engine", choices=("pycocotools", "fast"), default="pycocotools", help=engines)
    dense = "of a classifier: whole images instead of centre crops, with fully connected layers as convolutions"
    parser.add_argument("--dense", action="store_true", help=dense)
    parser.set_defaults(takes_overrides=True)


def _evaluate(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from detect.prediction.evaluate_checkpoint import evaluate_file

    evaluation = evaluate_file(
        options.ckpt,
        overrides,
        options.split,
        options.out,
        classes=options.classes,
        precision=options.precision,
        engine=options.engine,
        dense=options.dense,
        command=options.command,
        log=print_once,
    )
    print_evaluation(evaluation)


def print_evaluation(evaluation: Evaluation) -> None:
    """Print the metrics and the paths of the results, in the first process."""
    from detect.report.classification import print_classification
    from detect.report.tables import print_metrics

    if is_first_process():
        (print_classification if evaluation.is_classifier else print_metrics)(evaluation.metrics)
        print(evaluation)
