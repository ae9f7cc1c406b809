"""Defects in the files of a data set, and the action taken for each kind.

`DefectLog` collects all defects of a split, so that all of them are reported at once instead of one per attempt.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn

import numpy as np

from detect.data.dataset import Dataset, Defect
from detect.data.records import columns
from detect.errors import UserError, listed, one_line
from detect.files.fence import Fence, OutsideError


class Rule(NamedTuple):
    """Action for one kind of defect: `refused` data must be fixed by the user first, `repaired` data is read."""

    verdict: Literal["refused", "repaired"]
    action: str
    """Remedy for refused data, or the repair."""


_FIX = "detect data check DIR --fix OUT writes a corrected copy"
_SKIP = "leave such images out with --data.skip_unreadable true"
RULES: dict[str, Rule] = {
    "missing-image": Rule("refused", f"restore it or remove its entry, or {_SKIP}"),
    "unreadable-image": Rule("refused", f"replace the image, or {_SKIP}"),
    "embedded-image": Rule(
        "refused",
        f"save it as a file of this name beside the annotations, for example with labelme_export_json, or {_SKIP}",
    ),
    "missing-annotation": Rule("refused", "add the file; for an image without objects, a file without objects"),
    "nan-box": Rule("refused", "write finite numbers or remove the box"),
    "pixel-box": Rule(
        "refused", "YOLO needs fractions: divide x and width by the image's width, y and height by its height"
    ),
    "corners-for-sizes": Rule("refused", f"the file has corners where its format has width and height: {_FIX}"),
    "sizes-for-corners": Rule("refused", f"the file has width and height where its format has a corner: {_FIX}"),
    "corner-for-centre": Rule("refused", f"the file has a corner where its format has the centre: {_FIX}"),
    "fractions-for-pixels": Rule("refused", f"the file has fractions where its format has pixels: {_FIX}"),
    "pixels-for-fractions": Rule("refused", f"the file has pixels where its format has fractions: {_FIX}"),
    "scaled-images": Rule("refused", f"the images were scaled after their boxes were drawn: {_FIX}"),
    "swapped-axes": Rule("refused", f"x and y are exchanged: {_FIX}"),
    "keypoint-lines": Rule(
        "refused", f"YOLO needs kpt_shape in its YAML to tell keypoints from polygons: {_FIX}, with kpt_shape"
    ),
    "12-bit-images": Rule("refused", f"they would be nearly black; multiply the values by 16: {_FIX}"),
    "unknown-category": Rule("refused", "correct it, or add its name: COCO in categories, YOLO in names of data.yaml"),
    "unknown-class": Rule(
        "refused",
        "the classes are those of the training split or of the trained model: add the class there and train with it, "
        "or remove its boxes here",
    ),
    "class-count": Rule("refused", "correct nc or names, or remove nc"),
    "class-list": Rule("refused", "list only the names of the images, one per line, or name another split"),
    "duplicate-image": Rule("refused", "list every image once, with an id of its own and all its boxes"),
    "broken-file": Rule("refused", "correct the file there"),
    "path-outside-root": Rule(
        "refused",
        "name files by their path within the data folder; links that you made yourself are followed with "
        "--data.follow_links true, by detect data stats and convert with --follow-links",
    ),
    "zero-area": Rule("repaired", "a box without width or height is left out, its image is kept"),
    "negative-size": Rule("repaired", "a box with reversed corners is left out, its image is kept"),
    "shape-without-area": Rule("repaired", "a point or a line is left out, its image is kept"),
    "unlabelled-image": Rule("repaired", "an image that is not labelled yet is left out"),
    "several-annotations": Rule(
        "repaired", "of several annotations of an image, the last one marked as ground truth is read, else the last one"
    ),
    "outside-image": Rule("repaired", "a box entirely outside its image is left out, the image is kept"),
    "clipped": Rule("repaired", "a box that exceeds its image is clipped at the edge"),
    "broken-mask": Rule("repaired", "a mask that is damaged or has no pixel is left out, its box is kept"),
    "mask-size": Rule("repaired", "a mask of another size than its image is left out, its box is kept"),
    "short-polygon": Rule(
        "repaired", "a polygon with fewer than three corners is left out, others of its object are kept"
    ),
    "masks-elsewhere": Rule(
        "repaired", "all masks of a split that nearly all lie elsewhere than their boxes are left out"
    ),
    "size-mismatch": Rule("repaired", "the size in the file differs from the image's size, which is used"),
    "foreign-name": Rule(
        "repaired", "a file name in the spelling of another system is read as the only image that fits it"
    ),
    "ignored-region": Rule("repaired", "a region that its format excludes from evaluation is left out"),
    "partial-download": Rule("repaired", "missing images are left out with their boxes"),
    "absent-split": Rule("repaired", "a split without its images is left out"),
    "missing-label": Rule(
        "repaired",
        "an image without a label file, which is expected in `labels` for an image in `images`, counts as empty",
    ),
    "unknown-image": Rule("repaired", "a box of an image that is not listed is left out"),
    "implied-box": Rule("repaired", "an annotation without bbox gets the box of its polygon or mask"),
    "id-not-number": Rule("repaired", "ids that are not whole numbers are replaced by whole numbers"),
    "duplicate-annotation-id": Rule("repaired", "annotations that share an id are all kept and renumbered"),
    "missing-area": Rule("repaired", "an annotation without a finite area gets the area of its box"),
    "repeated-image": Rule("repaired", "an image that two joined data sets have is read from the first one only"),
    "similar-class": Rule(
        "repaired", "names that differ in case or spaces are different classes: rename them in the files to join them"
    ),
    "leaked-image": Rule(
        "repaired",
        "an image that training has too stays in the split, whose metrics are too good: leave it out of one of them",
    ),
    "undivided-image": Rule(
        "repaired",
        "an image that the division does not list is left out; a new run with --data.division null divides anew",
    ),
    "missing-iscrowd": Rule("repaired", "an annotation without iscrowd is read as a single object"),
}
"""All kinds of defects that the readers detect. Identical boxes in one image are not a defect: they are kept."""

_MAX_COUNTED = 12
"""Maximum number of classes whose boxes a summary counts."""
_SKIPPABLE = ("missing-image", "unreadable-image", "embedded-image")
_REMEDY = {name: rule.action for name, rule in RULES.items()}
_DONE = _REMEDY | dict.fromkeys(_SKIPPABLE, "the image is left out")
"""The action for defects that did not stop the reader."""


class DefectLog:
    """Log of the defects of one split. It also reads annotation files, and logs unreadable ones.

    Args:
        root: data folder.
        split: name of the split, for messages.
        skip_unreadable: leave out images that cannot be read, instead of refusing the split.
        follow_links: as for `Fence`.
    """

    def __init__(self, root: Path, split: str, *, skip_unreadable: bool = False, follow_links: bool = False):
        self.fence = Fence(root, follow_links)
        self._root = root
        self._split = split
        self._follow_links = follow_links
        self._repairable = {name for name, rule in RULES.items() if rule.verdict == "repaired"}
        if skip_unreadable:
            self._repairable.update(_SKIPPABLE)
        self._defects: list[Defect] = []

    def aside(self) -> DefectLog:
        """Return a new log for files of other splits, whose defects are not those of this split."""
        return DefectLog(self._root, self._split, follow_links=self._follow_links)

    def add(self, rule: str, path: Path, detail: str) -> None:
        """Log a defect: its rule, the file, and location and value in a few words."""
        assert rule in RULES, rule
        self._defects.append(Defect(rule, path, detail))

    def stop(self, rule: str, path: Path, detail: str) -> NoReturn:
        """Log a defect that makes the split unreadable, and raise `UserError`."""
        self.add(rule, path, detail)
        self.raise_refused()
        raise AssertionError(f"{rule} is not refused")

    def read(self, path: Path) -> bytes | None:
        """Return the content of an annotation file; if it cannot be read, log a defect and return None."""
        try:
            return self.fence.read(path)
        except OutsideError as error:
            self.add("path-outside-root", path, str(error))
        except OSError as error:
            self.add("broken-file", path, f"it cannot be read ({error.strerror})")
        except ValueError as error:
            self.add("broken-file", path, str(error))
        return None

    def need(self, path: Path) -> bytes:
        """Return the content of a required annotation file. Raise `UserError` if it cannot be read."""
        content = self.read(path)
        if content is None:
            self.raise_refused()
            raise AssertionError(f"{path} is refused")
        return content

    @property
    def repaired(self) -> tuple[Defect, ...]:
        """Defects that are repaired, in the order in which they were logged."""
        return tuple(defect for defect in self._defects if defect.rule in self._repairable)

    def raise_refused(self) -> None:
        """Raise one `UserError` for all refused defects, if any, with count, first case and remedy per rule."""
        refused = [defect for defect in self._defects if defect.rule not in self._repairable]
        if refused:
            raise UserError(one_line(f"{self._root}, split {self._split}: {_cases(refused, _REMEDY)}"))


def refuse_without_boxes(dataset: Dataset) -> None:
    """Raise `UserError` if a split has no box to train on; the message lists repaired defects, a likely cause."""
    if columns(dataset.records).crowd.all():
        cause = f": {summary_of_repairs(dataset)}" if dataset.repaired else ""
        problem = f"the split {dataset.split}, of {len(dataset)} images, has no box to train on"
        remedy = "add boxes or name another split with --data.train"
        raise UserError(one_line(f"{dataset.source}: {problem}{cause}; {remedy}"))


def summary_of_repairs(dataset: Dataset) -> str:
    """Return count, first case and action of each kind of repaired defect."""
    return _cases(dataset.repaired, _DONE)


def summary(dataset: Dataset) -> str:
    """Return a summary of a split: counts of images, boxes and classes, and count and first case per defect rule."""
    records = columns(dataset.records)
    counts = np.bincount(records.labels, minlength=len(dataset.classes))
    empty = int((records.counts == 0).sum())
    lines = [
        f"{dataset.source}, split {dataset.split} ({dataset.format})",
        f"  {len(records)} images, {empty} of them without a box",
        f"  {len(records.boxes)} boxes, {records.crowd.sum()} of them crowds, {records.difficult.sum()} difficult",
        f"  {_class_counts(dataset.classes, counts.tolist())}",
    ]
    for rule, defects in _by_rule(dataset.repaired).items():
        lines.append(f"  {len(defects)} × {rule}: {_DONE[rule]}")
        lines.append(f"    first {defects[0].path}: {defects[0].detail}")
    return "\n".join(one_line(line) for line in lines)


def _class_counts(classes: Sequence[str], counts: Sequence[int]) -> str:
    """Return the number of boxes of each class; of many classes, those with the most boxes."""
    noun = "class" if len(classes) == 1 else "classes"
    if len(classes) <= _MAX_COUNTED:
        shown = [f"{name} {count}" for name, count in zip(classes, counts, strict=True)]
        return f"{len(classes)} {noun}: {', '.join(shown)}"
    used = sorted(
        ((count, name) for name, count in zip(classes, counts, strict=True) if count), key=lambda one: -one[0]
    )
    unused = len(classes) - len(used)
    missing = f", {unused} of them without a box" if unused else ""
    return f"{len(classes)} {noun}{missing}: {listed((f'{name} {count}' for count, name in used), _MAX_COUNTED)}"


def as_json(value: object) -> str:
    """Return a value of a file as JSON for a message, or the name of its type if JSON cannot represent it."""
    try:
        # Most values are integers, converted for every annotation, and `dumps` is slow.
        return (str(value) if type(value) is int else json.dumps(value, ensure_ascii=False))[:60]
    except (RecursionError, TypeError, ValueError):  # YAML has dates and hexadecimal integers of any length
        return type(value).__name__


def _cases(defects: Iterable[Defect], actions: Mapping[str, str]) -> str:
    """Return count, first case and action per rule."""
    return "; ".join(
        f"{len(of_rule)} × {rule}, first {str(of_rule[0].path)[:300]}: {of_rule[0].detail[:200]} ({actions[rule]})"
        for rule, of_rule in _by_rule(defects).items()
    )


def _by_rule(defects: Iterable[Defect]) -> dict[str, list[Defect]]:
    groups = defaultdict(list)
    for defect in defects:
        groups[defect.rule].append(defect)
    return dict(sorted(groups.items(), key=lambda group: list(RULES).index(group[0])))
