"""`detect compare`: train, evaluate and time several detectors on one data set."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detect.cli.shared import add_command
from detect.errors import UserError


def add(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "compare",
        _compare,
        "train, evaluate and time several detectors on one data set",
        "detect compare bccd/rcnn bccd/fast_rcnn bccd/faster_rcnn --data.root data/bccd --out runs/bccd\n\n"
        "To continue after an interruption, repeat the command. Options such as --data.root apply to all configs.",
    )
    parser.add_argument(
        "sources", nargs="*", type=Path, metavar="CONFIG", help="a config to train, by name or file, or a checkpoint"
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder of the comparison, with a run per config")
    parser.add_argument("--split", help="the split to evaluate on (default: the configs' test, else val)")
    parser.add_argument("--images", type=int, default=50, help="maximum number of timed images (default: %(default)s)")
    parser.set_defaults(takes_overrides=True)


def _compare(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from detect.allocator import keep_pages
    from detect.compare import compare
    from detect.training.loop import silence_lightning

    if options.images < 1:
        raise UserError(f"--images: {options.images}; time at least one image")
    if "RANK" in os.environ or "LOCAL_RANK" in os.environ:
        raise UserError("compare: it runs in one process; start it without torchrun")
    silence_lightning()
    keep_pages()
    split = [f"--split={options.split}"] if options.split else []
    words = [*options.sources, *overrides, *split, f"--images={options.images}", f"--out={options.out}"]
    command = shlex.join(["detect", "compare", *map(str, words)])
    try:
        compare(options.sources, options.out, overrides, options.split, options.images, command)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; to continue, repeat the command") from None
