"""`detect compare`."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detect.cli.shared import calm, command
from detect.errors import UserError


def add(commands: Any) -> None:
    """Adds the command."""
    compare = command(
        commands,
        "compare",
        _compare,
        "train, judge and time several detectors on one data set",
        "detect compare configs/bccd/*.yaml --data.root data/bccd --out runs/bccd\n\n"
        "The same command goes on with what was interrupted. An option such as --data.root is for all configs.",
    )
    compare.add_argument("sources", nargs="*", type=Path, metavar="CONFIG", help="a config to train, or a checkpoint")
    compare.add_argument("--out", type=Path, required=True, help="the folder of the comparison, with a run a config")
    compare.add_argument("--split", help="what all are judged on (default: the configs' test, else val)")
    compare.add_argument("--images", type=int, default=50, help="the most that are timed (default: %(default)s)")
    compare.set_defaults(takes_overrides=True)


def _compare(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from detect.allocator import keep_pages
    from detect.compare import compare

    if options.images < 1:
        raise UserError(f"--images: {options.images}; time one image at least")
    if "RANK" in os.environ or "LOCAL_RANK" in os.environ:
        raise UserError("compare: it runs in one process; start it without torchrun")
    calm()
    keep_pages()
    split = [f"--split={options.split}"] if options.split else []
    words = [*options.sources, *overrides, *split, f"--images={options.images}", f"--out={options.out}"]
    command = shlex.join(["detect", "compare", *map(str, words)])
    try:
        compare(options.sources, options.out, overrides, options.split, options.images, command)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; the same command goes on where this one ended") from None
