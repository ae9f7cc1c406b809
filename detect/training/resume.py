"""Resuming a run with other options than those with which it began."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from detect.checkpoint import load_any
from detect.config import ClassificationConfig, Experiment, config_to_dict, recipe_of
from detect.data.division import DIVISION, Division, read_division
from detect.data.options import DataOptions
from detect.errors import UserError, class_names, one_line

FIXED = ("training.optimizer", "training.recipe.name", "training.ema")
"""Options that determine the state in a checkpoint, so that it has no meaning with another value."""
OF_STORED_FEATURES = ("data.train", "data.short_side", "data.eval_short_side", "data.long_side", "data.max_proposals")
"""Options of the features that R-CNN's stages store by the number of the image; a folder may have been moved."""
IGNORED = (
    *("training.weights", "training.compile", "training.cuda_graphs", "training.accelerator", "training.devices"),
    "training.save_minutes",
    *("data.workers", "data.eval_batch_size", "data.skip_unreadable", "data.follow_links"),
)
"""Options that do not change what is learned, or that only the start of a run reads."""


def check_resumable(config: Experiment, classes: Sequence[str], checkpoint: Path) -> str:
    """Check whether a run can resume from a checkpoint with the options of `config`.

    Args:
        config: the experiment, possibly with other options than before.
        classes: names of the classes of the data.
        checkpoint: the checkpoint that the run would resume from.

    Returns:
        The options that differ, in words; empty if there are none.

    Raises:
        UserError: the checkpoint has other classes, another network, or a state that has no meaning with the
            options.
    """
    before = load_any(checkpoint)
    remedy = f"to begin a new run from here, use --weights {checkpoint} and another --out"
    if before.classes != tuple(classes):
        raise UserError(f"--resume: {checkpoint} has {class_names(before.classes)}; the data has others; {remedy}")
    if before.config.model != config.model:
        raise UserError(f"--resume: {checkpoint} has another network than the config; {remedy}")
    old_options, new_options = (config_to_dict(_with_recipe(one)) for one in (before.config, config))
    changes = list(_changes(old_options, new_options))
    stores = new_options["model"]["name"] == "rcnn"
    for option, old, new in changes:
        if option in FIXED or (stores and option in OF_STORED_FEATURES):
            raise UserError(f"--resume: {checkpoint} began with {option} {old}, not {new}; {remedy}")
    return ", ".join(f"{option} {new} (before: {old})" for option, old, new in changes)


def check_division_kept(division: Division | None, checkpoint: Path, out: Path) -> None:
    """Raise `UserError` if a run would be validated on images that it was trained on.

    Args:
        division: division of the training split from now on, if any.
        checkpoint: the checkpoint that the run would resume from.
        out: the folder of the run, with the division until now.
    """
    if division is None:
        return
    before, file = load_any(checkpoint).config.data, out / DIVISION
    if isinstance(before, DataOptions) and not before.fractions:
        kept = f"keep --data.val {before.val or 'null'} and --data.test {before.test or 'null'}"
        what = "was trained with the whole training split, part of which is now the validation split"
    elif file.exists() and read_division(file) != division:
        kept = "leave out --data.division"
        what = f"was trained with another division, {file}"
    else:
        return
    raise UserError(one_line(f"--resume: {checkpoint} {what}; {kept}, or begin a new run with another --out"))


def _with_recipe(config: Experiment) -> Experiment:
    """Return the experiment with its default recipe written out."""
    if isinstance(config, ClassificationConfig):
        return config
    return replace(config, training=replace(config.training, recipe=recipe_of(config)))


def _changes(before: dict[str, Any], after: dict[str, Any], section: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield name, old and new value of each option of data and training that differs."""
    for option, old in before.items():
        name, new = f"{section}{option}", after.get(option)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _changes(old, new, f"{name}.")
        elif old != new and name.startswith(("data.", "training.")) and name not in IGNORED:
            yield name, "null" if old is None else old, "null" if new is None else new
