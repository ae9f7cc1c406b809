"""`detect propose`: compute proposals, and their recall."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detect.cli.shared import add_command, detection_data
from detect.errors import UserError

if TYPE_CHECKING:
    from detect.data.dataset import Dataset
    from detect.proposals.recall import ProposalRecall


def add(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "propose",
        _propose,
        "compute selective search proposals into a store, or measure the recall of proposals",
        "detect propose data/bccd --out data/bccd.proposals",
    )
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="a data set, a folder, an image or a pattern")
    splits = "splits of the data sets (default: all splits)"
    parser.add_argument("--split", action="extend", nargs="+", metavar="NAME", help=splits)
    parser.add_argument("--out", type=Path, help="the store; images that it already contains are skipped")
    parser.add_argument("--mode", choices=("single", "fast", "quality"), default="fast", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="seed of the ranking")
    parser.add_argument("--processes", type=int, help="number of processes (default: one per core)")
    parser.add_argument("--recall", metavar="SPLIT", help="report how well the proposals cover this split's boxes")
    parser.add_argument("--ckpt", type=Path, help="with --recall: use this checkpoint's RPN; --out is then the plot")


def _propose(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    from detect.curation.propose import propose
    from detect.data.read import read

    if options.ckpt is not None:
        _rpn_recall(options)
        return 0
    if options.out is None:
        raise UserError("--out: name the file of the store, for example --out proposals.db")
    # Read first, so that a wrong split is reported immediately.
    dataset = None if options.recall is None else read(_only_source(options), options.recall, skip_unreadable=True)
    try:
        outcome = propose(options.sources, options.out, options.mode, options.seed, options.processes, options.split)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; to continue, repeat the command") from None
    print(f"{options.out}: {outcome.added} images added, {outcome.present} already present")
    for line in outcome.unreadable:
        print(f"detect: skipped: {line}", file=sys.stderr)
    if dataset is not None:
        _store_recall(options, dataset)
    return 3 if outcome.unreadable else 0


def _store_recall(options: argparse.Namespace, dataset: Dataset) -> None:
    from contextlib import closing

    from detect.curation.recall import store_recall
    from detect.proposals.store import ProposalStore

    with closing(ProposalStore(options.out)) as store:
        recall = store_recall(store, dataset)
    picture = options.out.with_name(f"{options.out.name}.{dataset.split}.png")
    _show_recall(recall, dataset, picture, f"Selective search, {options.mode}")


def _rpn_recall(options: argparse.Namespace) -> None:
    from detect.checkpoint import load_checkpoint
    from detect.curation.recall import rpn_recall
    from detect.devices import choose_device
    from detect.models import TwoStage
    from detect.prediction.prepare import prepare

    if options.recall is None:
        raise UserError("--ckpt: the recall of an RPN needs the split of the ground truth; give --recall SPLIT")
    checkpoint = load_checkpoint(options.ckpt, [f"--data.root={_only_source(options)}"])
    model = checkpoint.model
    if not isinstance(model, TwoStage) or model.rpn is None:
        raise UserError(f"--ckpt: {options.ckpt}: a {checkpoint.config.model.name} has no RPN; leave --ckpt out")
    data = detection_data(checkpoint.config, checkpoint.classes)
    dataset = data.split(options.recall)
    device = choose_device()
    prepared = prepare(model.to(device))
    assert isinstance(prepared, TwoStage)
    recall = rpn_recall(prepared, data.eval_loader(dataset), device)
    _show_recall(recall, dataset, options.out or options.ckpt.with_name(f"proposals_{dataset.split}.png"), "RPN")


def _show_recall(recall: ProposalRecall, dataset: Dataset, picture: Path, title: str) -> None:
    from detect.report.proposals import draw_recall, print_recall

    print_recall(recall, dataset.classes)
    draw_recall(picture, recall, f"{title}: {dataset.root} {dataset.split}")
    print(picture)


def _only_source(options: argparse.Namespace) -> Path:
    if len(options.sources) != 1:
        raise UserError("--recall: give one data set as the only source; it contains the ground truth")
    return Path(options.sources[0])
