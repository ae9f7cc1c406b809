"""Helpers that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

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


def detection_data(config: Config, classes: Sequence[str]) -> DetectionData:
    """Return the data of a config with the classes of a model that exists already."""
    from detect.allocator import keep_pages
    from detect.data.datamodule import DetectionData

    keep_pages()
    return DetectionData(config.data, classes, config.training.seed, None, config.model.predicts_masks)
