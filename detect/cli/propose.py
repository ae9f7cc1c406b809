"""`detect propose`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detect.cli.shared import command, detection_data
from detect.errors import UserError

if TYPE_CHECKING:
    from detect.data.dataset import Dataset
    from detect.proposals.recall import ProposalRecall


def add(commands: Any) -> None:
    """Adds the command."""
    propose = command(
        commands,
        "propose",
        _propose,
        "selective search into a store of proposals, or the recall of proposals",
        "detect propose data/bccd --out data/bccd.proposals",
    )
    propose.add_argument("sources", nargs="+", metavar="SOURCE", help="a data set, a folder, an image or a pattern")
    propose.add_argument("--out", type=Path, help="the store; images that it has are not searched again")
    propose.add_argument("--mode", choices=("single", "fast", "quality"), default="fast", help="default: %(default)s")
    propose.add_argument("--seed", type=int, default=0, help="of the ranking")
    propose.add_argument("--processes", type=int, help="how many work at a time (default: one for each core)")
    propose.add_argument("--recall", metavar="SPLIT", help="tell how well the proposals cover the truths of this split")
    propose.add_argument("--ckpt", type=Path, help="with --recall: the RPN of this checkpoint; --out is the picture")


def _propose(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    from detect.curation.propose import propose
    from detect.data.read import read

    if options.ckpt is not None:
        _rpn_recall(options)
        return 0
    if options.out is None:
        raise UserError("--out: name the file of the store, for example --out proposals.db")
    # Read before the work, so that a wrong split costs nothing.
    truths = None if options.recall is None else read(_only_source(options), options.recall, skip_unreadable=True)
    try:
        outcome = propose(options.sources, options.out, options.mode, options.seed, options.processes)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; the same command goes on where this one ended") from None
    print(f"{options.out}: {outcome.added} images added, {outcome.present} were there")
    for line in outcome.unreadable:
        print(f"detect: left out: {line}", file=sys.stderr)
    if truths is not None:
        _store_recall(options, truths)
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
    import torch

    from detect.checkpoint import load_checkpoint
    from detect.curation.recall import rpn_recall
    from detect.prediction.prepare import prepare

    if options.recall is None:
        raise UserError("--ckpt: the recall of an RPN needs the split of the truths; give --recall SPLIT")
    checkpoint = load_checkpoint(options.ckpt, [f"--data.root={_only_source(options)}"])
    if checkpoint.model.rpn is None:
        raise UserError(f"--ckpt: {options.ckpt}: a {checkpoint.config.model.name} has no RPN; leave --ckpt out")
    data = detection_data(checkpoint.config, checkpoint.classes)
    dataset = data.split(options.recall)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recall = rpn_recall(prepare(checkpoint.model.to(device)), data.eval_loader(dataset), device)
    _show_recall(recall, dataset, options.out or options.ckpt.with_name(f"proposals_{dataset.split}.png"), "RPN")


def _show_recall(recall: ProposalRecall, dataset: Dataset, picture: Path, title: str) -> None:
    from detect.report.proposals import draw_recall, print_recall

    print_recall(recall, dataset.classes)
    draw_recall(picture, recall, f"{title}: {dataset.root} {dataset.split}")
    print(picture)


def _only_source(options: argparse.Namespace) -> Path:
    if len(options.sources) != 1:
        raise UserError("--recall: give one data set as the only source, for it has the truths")
    return Path(options.sources[0])
