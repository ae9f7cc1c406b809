"""Splits of one or several data folders: found by name, joined, divided and limited to some classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from detect.data.dataset import SEPARATOR, Dataset, Defect, without_masks
from detect.data.division import Division, check_division, read_division, select_part
from detect.data.merge import keep_classes, merge, refuse_unknown, with_labels, with_leaks
from detect.data.options import DataOptions
from detect.data.read import matching, read, serving, splits
from detect.errors import UserError, one_line

Divide = Callable[[Sequence[Dataset], Mapping[str, float], int], Division]
"""Divides the training split, one data set per folder, into parts of these fractions, by a seed."""


def usual_splits(options: DataOptions) -> dict[str, str | None]:
    """Return what the splits `train`, `val` and `test` of data folders are called, None for absent ones.

    `trainval` is the training split if there is no `train`.

    Raises:
        UserError: there is no such folder, or its format is unknown.
    """
    found = (splits(root, options.follow_links, options.format) for root in options.roots)
    names = list(dict.fromkeys(name for one in found for name in one))
    whole = bool(matching("trainval", names)) and not matching("train", names)
    return {
        "train": "trainval" if whole else "train",
        "val": "val" if matching("val", names) and not whole else None,
        "test": "test" if matching("test", names) else None,
    }


class Splits:
    """Splits of a detection data set; each is read and checked on first use.

    Args:
        options: location of the data.
        classes: classes of a trained model, which define the labels; by default those of the training split.
        seed: seed of a new division.
        divide: makes a new division if the options have fractions and name no file; None for a trained model.
        masks: keep the masks.
    """

    def __init__(
        self,
        options: DataOptions,
        classes: Sequence[str] | None = None,
        seed: int = 0,
        divide: Divide | None = None,
        masks: bool = True,
    ) -> None:
        self.options, self._seed, self._divide, self._masks = options, seed, divide, masks
        self._classes = tuple(classes) if classes is not None else None
        self._read: dict[str, Dataset] = {}
        if classes is not None and options.classes is not None:
            refuse_unknown(options.classes, classes, "classes", "the model")

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels 0 … C-1."""
        if self._classes is None:
            self._classes = self._joined(self._training).classes
        return self._classes

    @cached_property
    def division(self) -> Division | None:
        """Division of the training split; None if it is not divided."""
        options = self.options
        if not options.fractions:
            return None
        if options.division is not None:
            division = read_division(options.division)
            check_division(division, options.fractions, options.division)
            return division
        return self._divide(self._training, options.fractions, self._seed) if self._divide else None

    def read(self, name: str) -> Dataset:
        """Return a split by its name, or several joined ones by `NAME + NAME`; labels are indices into `classes`.

        If the training split is divided, `train`, `val` and `test` name its parts.
        """
        if name not in self._read:
            parts = ("train", *self.options.fractions) if self.options.fractions else ()
            if name in parts and self.division is not None:
                self._read[name] = self._part(name, self.division)
            else:
                is_training = name == self.options.split_name("train")
                dataset = self._joined(self._training if is_training else self._folders(name))
                if not is_training and "_training" in vars(self):  # evaluation alone does not read it
                    dataset = with_leaks(dataset, self._training)
                self._read[name] = self._read[dataset.split] = dataset
        return self._read[name]

    @cached_property
    def _training(self) -> list[Dataset]:
        """The undivided training split, one data set per data folder."""
        return self._folders(str(self.options.split_name("train")))

    def _part(self, part: str, division: Division) -> Dataset:
        paths, undivided = select_part(division, part, self._training, self.options.division)
        whole = self._joined(self._training)
        # Defects do not belong to a part: the first part reports those of the whole split.
        repaired = (*whole.repaired, *undivided) if part == "train" else ()
        records = tuple(record for record in whole.records if record.path in paths)
        return replace(whole, split=part, records=records, repaired=repaired, is_part=True)

    def _joined(self, datasets: Sequence[Dataset]) -> Dataset:
        """Return the data sets of all folders as one, with the classes to keep and the labels of the model."""
        dataset, kept = merge(datasets), self.options.classes
        if kept is None:
            return dataset
        if self._classes is None:
            refuse_unknown(kept, dataset.classes, "classes", dataset.source)
        dataset = keep_classes(dataset, kept)
        return dataset if self._classes is None else with_labels(dataset, self._classes)

    # ---- data folders ------------------------------------------------------------------------------------------------

    def _folders(self, name: str) -> list[Dataset]:
        """Return a split, or several joined by `SEPARATOR`, of each data folder that has it.

        Raises:
            UserError: a split is in no folder, or a folder has none of the training splits.
        """
        options, names = self.options, name.split(SEPARATOR)
        available = {root: splits(root, options.follow_links, options.format) for root in options.roots}
        found = {root: [self._find(one, available[root]) for one in names] for root in options.roots}
        for place, one in enumerate(names):
            if not any(places[place] for places in found.values()):
                raise self._no_split(one, available)
        datasets, absent = [], []
        for root, places in found.items():
            actual = dict.fromkeys(match for match in places if match)
            if actual:
                datasets.append(merge([self._read_folder(root, split) for split in actual]))
            elif name == options.split_name("train"):
                raise self._no_training_split(root, names, available[root])
            else:
                absent.append(Defect("absent-split", root, f"there is no split {name}"))
        datasets[0] = replace(datasets[0], repaired=(*datasets[0].repaired, *absent))
        return datasets

    def _read_folder(self, root: Path, split: str) -> Dataset:
        options = self.options
        dataset = read(
            root,
            split,
            classes=self._classes if options.classes is None else None,
            format=options.format,
            skip_unreadable=options.skip_unreadable,
            follow_links=options.follow_links,
        )
        return dataset if self._masks else without_masks(dataset)

    def _find(self, name: str, available: Sequence[str]) -> str | None:
        """Return the name of a split in the files, or None."""
        matches = serving(name, available)
        return matches[0] if len(matches) == 1 else name if matches else None  # `read` refuses an ambiguous name

    def _no_split(self, name: str, available: Mapping[Path, Sequence[str]]) -> UserError:
        listed = ", ".join(dict.fromkeys(split for splits in available.values() for split in splits))
        remedy = f"name one of {listed}"
        if self._divide is not None and name == self.options.val:
            held_out = "hold out a part of the training split with --data.val 0.2"
            remedy = f"{held_out}, {remedy}, or null for none"
        roots = " and ".join(map(str, available))
        return UserError(one_line(f"{roots}: there is no split {name}; {remedy}"))

    def _no_training_split(self, root: Path, names: Sequence[str], available: Sequence[str]) -> UserError:
        what = f"there is no split {' or '.join(names)}, only {', '.join(available)}"
        remedy = f"for example --data.train [{', '.join([*names, available[0]])}], or leave the folder out"
        return UserError(one_line(f"{root}: {what}; name splits of every folder, {remedy}"))
