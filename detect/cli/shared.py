"""Helpers that several commands share."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from detect.errors import UserError
from detect.processes import is_first_process

if TYPE_CHECKING:
    from detect.config import Config
    from detect.data.datamodule import DetectionData

CONFIG_HELP = "the experiment: a name that `detect configs` lists, or a YAML file"


def add_command(commands: Any, name: str, run: Any, help: str, example: str) -> argparse.ArgumentParser:
    """Add a command with its help text, which ends with an example, and the function that runs it."""
    parser = commands.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run, parser=parser)
    return parser


def detection_data(config: Config, classes: Sequence[str] | None = None) -> DetectionData:
    """Return the data of a config, to train with or with the classes of a model that exists already."""
    from detect.allocator import keep_pages
    from detect.curation.divide import divide
    from detect.data.datamodule import DetectionData

    keep_pages()
    return DetectionData(config.data, classes, config.training.seed, divide if classes is None else None)


def refuse_training_options(overrides: Sequence[str]) -> None:
    """Raise `UserError` for options of training, which do not apply to a checkpoint."""
    for word in overrides:
        if word.startswith("--training."):
            raise UserError(f"{word}: checkpoints are already trained; give only options of data and model")


def print_once(text: str) -> None:
    """Print in the first process only."""
    if is_first_process():
        print(text, flush=True)


def silence_lightning() -> None:
    """Hide Lightning's informational messages."""
    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
