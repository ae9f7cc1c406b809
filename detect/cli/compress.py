"""`detect compress`: shrink the fully connected layers of a detector."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detect.cli.shared import add_command, detection_data
from detect.errors import UserError


def add(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "compress",
        _compress,
        "compress a detector's fully connected layers by truncated SVD",
        "detect compress --ckpt runs/voc/checkpoints/best.ckpt --out runs/voc/checkpoints/svd.ckpt --split test",
    )
    parser.add_argument("--ckpt", type=Path, required=True, help="a checkpoint of detect train")
    parser.add_argument("--out", type=Path, required=True, help="the new checkpoint")
    ranks = "ranks of fc6, fc7 and so on (default: the paper's, 1024 256)"
    parser.add_argument("--ranks", type=int, nargs="+", default=(1024, 256), metavar="RANK", help=ranks)
    parser.add_argument("--split", help="also report AP before and after, on this split")
    parser.set_defaults(takes_overrides=True)


def _compress(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from rich.console import Console

    from detect.checkpoint import load_checkpoint, save_checkpoint
    from detect.config import check_proposals, refuse_training_options
    from detect.devices import choose_device
    from detect.export.compress import compare_cost, compress
    from detect.files.atomic import refuse_existing
    from detect.files.folders import create_folder
    from detect.terminal import table

    refuse_training_options(overrides)
    refuse_existing(options.out)
    before = load_checkpoint(options.ckpt, overrides)
    dataset = loader = None
    if options.split is not None:  # read first, so that a wrong split is reported immediately
        check_proposals(before.config)
        data = detection_data(before.config, before.classes)
        dataset = data.split(options.split)
        loader = data.eval_loader(dataset)
    after = compress(before, options.ranks)
    create_folder(options.out.parent)
    try:
        save_checkpoint(after, options.out)
    except OSError as error:
        raise UserError(
            f"{options.out}: cannot be written ({error.strerror}); choose another file with --out"
        ) from None
    rows = compare_cost(before, after, choose_device(), loader, dataset)
    Console().print(table(("metric", "before", "after"), rows))
    print(options.out)
