"""Checks before a comparison starts, so that mistakes are not reported only after hours of training."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from detect.compare.entries import Entry
from detect.config import Config, config_to_dict, load_config, with_absolute_paths, with_division
from detect.data.dataset import Dataset
from detect.data.division import DIVISION
from detect.errors import UserError, class_names
from detect.files.folders import create_folder
from detect.report.comparison import Row, read_comparison, write_comparison
from detect.training.fit import prepare
from detect.training.processes import count_processes


def common_split(entries: Sequence[Entry]) -> str:
    """Return the evaluation split that all configs name. Raise `UserError` if they differ or a config names none."""
    splits = {entry.config.data.final for entry in entries}
    if len(splits) > 1 or None in splits:
        named = " and ".join(sorted(str(name) for name in splits if name)) or "none"
        raise UserError(f"--split: the configs name {named} for evaluation; name one for all with --split")
    return str(splits.pop())


def check_entry(entry: Entry, dataset: Dataset, split: str, store: Path) -> None:
    """Raise `UserError` for every mistake of an entry that can be found before its training."""
    data = entry.data(entry.classes)
    if entry.classes is not None and set(entry.classes) != set(dataset.classes):
        raise UserError(
            f"{entry.source}: has {class_names(entry.classes)}, and {dataset.source} has "
            f"{class_names(dataset.classes)}; compare only detectors with the same classes"
        )
    data.split(split)
    prepared = entry.with_store(store) if entry.needs_store else entry
    _check_folder(prepared)
    if entry.trained:
        return
    if count_processes(entry.config.training) > 1:
        raise UserError("training.devices: a comparison trains in one process; give --training.devices 1")
    prepare(prepared.config, data)


def _check_folder(entry: Entry) -> None:
    """Raise `UserError` if the folder of an entry holds something other than the entry's run."""
    folder, config_file = entry.folder, entry.folder / "config.yaml"
    if not folder.exists():
        return
    if entry.classes is not None:
        if config_file.exists():
            raise UserError(f"{folder}: holds a run, but {entry.source} is a checkpoint; give another --out")
    elif config_file.exists():
        recorded = with_absolute_paths(with_division(entry.config, folder / DIVISION))
        _refuse_other_config(folder, load_config(config_file), recorded)
    elif not folder.is_dir() or any(folder.iterdir()):
        raise UserError(f"{folder}: holds something other than a run; give another --out")


def _refuse_other_config(folder: Path, old: Config, new: Config) -> None:
    if new.training.precision == "auto":  # the folder holds the resolved precision
        new = replace(new, training=replace(new.training, precision=old.training.precision))
    if [os.path.realpath(root) for root in old.data.roots] == [os.path.realpath(root) for root in new.data.roots]:
        new = replace(new, data=replace(new.data, root=old.data.root))
    if old != new:
        old_values, new_values = (dict(_leaves(config_to_dict(config))) for config in (old, new))
        key = next(key for key in [*old_values, *new_values] if old_values.get(key) != new_values.get(key))
        difference = f"{key} {old_values.get(key)} instead of {new_values.get(key)}"
        raise UserError(f"{folder}: holds a run with {difference}; give another --out, or remove it")


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def open_comparison(out: Path, setting: dict[str, Any], entries: Sequence[Entry]) -> dict[str, Row]:
    """Mark the folder as a comparison's and return the rows of an interrupted comparison, by name.

    Rows are kept only if the setting is the same and their checkpoint has not changed since.
    """
    file = out / "compare.json"
    before = read_comparison(file)
    if before is None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: holds something other than a comparison; give another --out")
    rows: dict[str, Row] = {}
    if before is not None and before == {"rows": before["rows"], "finished": False, **setting}:
        measured = file.stat().st_mtime
        unchanged = {entry.name for entry in entries if entry.trained and entry.checkpoint.stat().st_mtime <= measured}
        rows = {row["config"]: row for row in before["rows"] if row["config"] in unchanged}
    create_folder(out)
    try:
        write_comparison(file, list(rows.values()), False, setting)
    except OSError as error:
        raise UserError(f"{out}: {error.strerror}; choose another folder with --out") from None
    return rows
