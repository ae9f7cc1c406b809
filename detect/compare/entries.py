"""Entries of a comparison: configs to train, and trained checkpoints."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from detect.checkpoint import load_checkpoint
from detect.config import Config, load_config
from detect.curation.divide import divide
from detect.data.datamodule import DetectionData
from detect.data.division import Division
from detect.data.options import DataOptions
from detect.errors import UserError
from detect.training import clock
from detect.training.loop import best_checkpoint


@dataclass(frozen=True, slots=True)
class Entry:
    """One detector of a comparison."""

    name: str
    source: Path
    """Config or checkpoint."""
    folder: Path
    """Folder of the run, or of a checkpoint's results."""
    config: Config
    classes: tuple[str, ...] | None
    """Class names of a checkpoint; None for a config."""
    overrides: tuple[str, ...]
    """Options for reading a checkpoint."""
    division: Division | None = None
    """Division of the training split that all entries share, if it is divided."""

    @property
    def checkpoint(self) -> Path:
        """The checkpoint to evaluate; for a config, the best one of its run."""
        return best_checkpoint(self.folder) if self.classes is None else self.source

    @property
    def trained(self) -> bool:
        """True if training is complete."""
        return self.classes is not None or (clock.finished(self.folder) and self.checkpoint.exists())

    @property
    def uses_store(self) -> bool:
        """True if the detector's proposals are given."""
        return self.config.model.proposals == "given"

    @property
    def needs_store(self) -> bool:
        """True if proposals must be computed for the detector."""
        return self.uses_store and self.config.data.proposals is None

    @property
    def run(self) -> Path:
        """Folder of the run to which the checkpoint belongs."""
        folder = self.checkpoint.absolute().parent
        return folder.parent if folder.name == "checkpoints" else folder

    def with_store(self, store: Path | None) -> Entry:
        """Return the entry with `store` as proposal store, if it uses one and its config names none."""
        proposals = (self.config.data.proposals or store) if self.uses_store else None
        return replace(self, config=replace(self.config, data=replace(self.config.data, proposals=proposals)))

    def data(self, classes: Sequence[str] | None = None, stored: bool = True) -> DetectionData:
        """Return the data of the config, for a new model or a model with these classes, with or without proposals."""
        options = self.config.data if stored else replace(self.config.data, proposals=None)
        shared = self.division
        given = (lambda *_: shared) if shared else divide
        return DetectionData(options, classes, self.config.training.seed, given, self.config.model.predicts_masks)


def read_entries(sources: Sequence[Path], out: Path, overrides: Sequence[str]) -> list[Entry]:
    """Read configs and checkpoints. Raise `UserError` if they do not use the same data."""
    if not sources:
        raise UserError("compare: name the configs or checkpoints, for example bccd/faster_rcnn bccd/fast_rcnn")
    checkpoint_overrides = tuple(word for word in overrides if not word.startswith("--training."))
    if all(source.suffix == ".ckpt" for source in sources) and len(checkpoint_overrides) < len(overrides):
        raise UserError("--training: checkpoints are already trained; give only options of data and model")
    entries = []
    for source, name in zip(sources, unique_names(sources), strict=True):
        classes = None
        if source.suffix == ".ckpt":
            checkpoint = load_checkpoint(source, checkpoint_overrides)
            config, classes = checkpoint.config, checkpoint.classes
        else:
            config = load_config(source, overrides)
        entry = Entry(name, source, out / name, config, classes, checkpoint_overrides)
        # An override may name a store for all entries; detectors with an RPN do not use it.
        entries.append(entry if entry.uses_store else entry.with_store(None))
    for key in ("root", "skip_unreadable", "follow_links", *_division_keys(entries)):
        values = {_shared(entry.config.data, key): str(getattr(entry.config.data, key)) for entry in entries}
        if len(values) > 1:
            named = " and ".join(sorted(values.values()))
            raise UserError(f"--data.{key}: the configs differ: {named}; give one for all with --data.{key}")
    return entries


def _division_keys(entries: Sequence[Entry]) -> tuple[str, ...]:
    """Return the options of the division, if a config divides its training split."""
    return ("train", "val", "test") if any(entry.config.data.fractions for entry in entries) else ()


def _shared(data: DataOptions, key: str) -> str:
    """Return the value of an option that all entries share; a data folder may be spelled in several ways."""
    return str([os.path.realpath(root) for root in data.roots] if key == "root" else getattr(data, key))


def share_division(entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries with one division of the training split for all, if the configs divide it.

    Raises:
        UserError: the checkpoints were trained with different divisions.
    """
    divisions = [(entry, entry.data().division) for entry in entries if entry.config.data.division is not None]
    for entry, division in divisions[1:]:
        if division != divisions[0][1]:
            raise UserError(
                f"{entry.source}: its training split is divided differently from that of {divisions[0][0].source}; "
                "compare detectors with the same division"
            )
    division = divisions[0][1] if divisions else entries[0].data(stored=False).division
    return [replace(entry, division=division) for entry in entries]


def unique_names(sources: Sequence[Path]) -> list[str]:
    """Return the stem of each file, with as many parent folders as distinguish it from the others.

    A checkpoint has the name of its run: RUN for RUN/checkpoints/best.ckpt, RUN_last for last.ckpt beside it.
    """
    parts = [_parts(source) for source in sources]
    depths = [1] * len(parts)
    while True:
        names = ["_".join(part[-depth:]) for part, depth in zip(parts, depths, strict=True)]
        repeated = [names.count(name) > 1 for name in names]
        if not any(repeated):
            return names
        longer = [depth + is_repeated for depth, is_repeated in zip(depths, repeated, strict=True)]
        if not any(
            depth <= len(part) and is_repeated for depth, part, is_repeated in zip(longer, parts, repeated, strict=True)
        ):
            raise UserError(f"{sources[repeated.index(True)]}: given twice; name each config or checkpoint once")
        depths = longer


def _parts(source: Path) -> tuple[str, ...]:
    path = source.absolute().with_suffix("")
    if source.suffix == ".ckpt" and path.parent.name == "checkpoints":
        run = path.parent.parent
        path = run if path.name == "best" else run.with_name(f"{run.name}_{path.name}")
    return path.parts[1:]
