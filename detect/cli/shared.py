"""What several commands do alike."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detect.errors import UserError

if TYPE_CHECKING:
    from detect.config import Config
    from detect.data.datamodule import DetectionData


def command(commands: Any, name: str, run: Any, help: str, example: str) -> argparse.ArgumentParser:
    """A command with its help, an example at its end, and what runs it."""
    parser = commands.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def detection_data(config: Config, classes: Sequence[str] | None = None) -> DetectionData:
    """The data of a config, for a new model or for one with these classes."""
    from detect.allocator import keep_pages
    from detect.data.datamodule import DetectionData

    keep_pages()
    return DetectionData(config.data, classes, seed=config.training.seed)


def tell_data(data: DetectionData, datasets: Sequence[Any]) -> None:
    """What was read and mended, before the first step."""
    from detect.data.defects import summary

    for name in dict.fromkeys(dataset.split for dataset in datasets):
        say(summary(data.split(name)))


def free_folder(folder: Path) -> Path:
    """The folder, or where it exists the first of those with a number that does not."""
    names = (folder, *(folder.with_name(f"{folder.name}_{number}") for number in range(2, 10**4)))
    return next(name for name in names if not name.exists())


def refuse_used(out: Path, remedy: str = "") -> None:
    """Raises `UserError` where something is in the way of a new folder; `remedy` is one more than there always are."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: this is a file; give another --out")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: the folder is not empty; give another --out, or remove it{remedy}")


def refuse_training(overrides: Sequence[str]) -> None:
    """Raises `UserError` for options that come too late."""
    for word in overrides:
        if word.startswith("--training."):
            raise UserError(f"{word}: training is over; a checkpoint has options of data and model")


def make_folder(out: Path) -> None:
    """Before the work whose results go there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: {error.strerror}; choose another folder with --out") from None


def is_first_process() -> bool:
    """True but in the second and later processes of torchrun (RANK) or of Lightning (LOCAL_RANK)."""
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"


def say(text: str) -> None:
    """Prints, but in one of several processes only."""
    if is_first_process():
        print(text, flush=True)


def calm() -> None:
    """Keeps Lightning's advice and advertisements from the terminal, once it is imported."""
    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
