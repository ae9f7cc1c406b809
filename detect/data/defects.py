"""What can be wrong with the files of a data set, and what is done about each of it.

The readers of the formats put down what the files say in `Annotations`, `mend` makes the boxes good, and `Findings`
gathers every defect on the way, so that the user hears of all of them at once and not of one at each try.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

import numpy as np
from jaxtyping import Bool, Float64, Int64

from detect.data.dataset import Dataset, Defect
from detect.errors import UserError, one_line
from detect.files.fence import Fence, OutsideError

MIN_SIDE = 1e-3
"""Pixels. A box with a shorter side than this has no area."""
_ROUNDING = 0.01
"""Pixels. A box that reaches out by less than this is cut as well, but it is the file's rounding and no defect."""


class Rule(NamedTuple):
    """What is done about a defect: `refused` data cannot be read before the user mends it, `mended` data can."""

    verdict: Literal["refused", "mended"]
    action: str
    """What the user should do where it is refused, what was done where it is mended."""


_SKIP = "leave such images out with --data.skip_unreadable true"
RULES: dict[str, Rule] = {
    "missing-image": Rule("refused", f"restore it or take its entry out, or {_SKIP}"),
    "unreadable-image": Rule("refused", f"replace the image, or {_SKIP}"),
    "missing-annotation": Rule("refused", "add the file; for an image without objects, one without objects"),
    "nan-box": Rule("refused", "write finite numbers or take the box out"),
    "pixel-box": Rule(
        "refused", "YOLO wants fractions: divide x and width by the image's width, y and height by its height"
    ),
    "unknown-category": Rule("refused", "correct it, or name it: COCO in categories, YOLO in names of data.yaml"),
    "unknown-class": Rule(
        "refused",
        "the classes are those of the training split, or of the trained model: add the class there and train with it, "
        "or take its boxes out here",
    ),
    "class-count": Rule("refused", "correct nc or names, or take nc out"),
    "class-list": Rule("refused", "write the names of the images alone, one a line, or name another split"),
    "duplicate-image": Rule("refused", "list every image once, with an id of its own and all its boxes"),
    "broken-file": Rule("refused", "correct the file at that place"),
    "path-outside-root": Rule(
        "refused",
        "name files by their path within the data folder; links out of it that are your own are followed with "
        "--data.follow_links true, by detect data stats and convert with --follow-links",
    ),
    "zero-area": Rule("mended", "a box without width or height is left out, its image is kept"),
    "negative-size": Rule("mended", "a box with its corners reversed is left out, its image is kept"),
    "outside-image": Rule("mended", "a box that lies wholly outside its image is left out, the image is kept"),
    "clipped": Rule("mended", "a box that reaches out of its image is cut at the edge"),
    "size-mismatch": Rule("mended", "the file gives another size than the image has: the image's own is used"),
    "missing-label": Rule(
        "mended",
        "an image without a label file, which lies in `labels` where its image lies in `images`, counts as empty",
    ),
    "unknown-image": Rule("mended", "a box of an image that is not listed is left out"),
    "duplicate-annotation-id": Rule("mended", "annotations that share an id are all kept and numbered anew"),
    "missing-area": Rule("mended", "an annotation without a finite area is given that of its box"),
    "missing-iscrowd": Rule("mended", "an annotation without iscrowd is taken for one object"),
}
"""Every kind of defect the readers look for. Identical boxes of one image are no defect: they are kept."""

_SKIPPABLE = ("missing-image", "unreadable-image")
_REMEDY = {name: rule.action for name, rule in RULES.items()}
_DONE = _REMEDY | dict.fromkeys(_SKIPPABLE, "the image is left out")
"""What was done about a defect that did not stop the reader."""


class Findings:
    """Gathers the defects of one split, and reads its files for the readers.

    Args:
        root: the data folder.
        split: for messages.
        skip_unreadable: leave images that cannot be read out and go on.
        follow_links: as `Fence` has it.
    """

    def __init__(self, root: Path, split: str, *, skip_unreadable: bool = False, follow_links: bool = False):
        self.fence = Fence(root, follow_links)
        self._root = root
        self._split = split
        self._mendable = {name for name, rule in RULES.items() if rule.verdict == "mended"}
        if skip_unreadable:
            self._mendable.update(_SKIPPABLE)
        self._defects: list[Defect] = []

    def add(self, rule: str, path: Path, detail: str) -> None:
        """Puts down one defect: its rule, the file at fault, and place and value in a few words."""
        assert rule in RULES, rule
        self._defects.append(Defect(rule, path, detail))

    def stop(self, rule: str, path: Path, detail: str) -> NoReturn:
        """Puts down a defect that nothing can be read beyond, and raises `UserError`."""
        self.add(rule, path, detail)
        self.raise_refused()
        raise AssertionError(f"{rule} is not refused")

    def read(self, path: Path) -> bytes | None:
        """The content of an annotation file. None where it must not or cannot be read, which becomes a defect."""
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
        """The same of a file that nothing can be read without: raises `UserError`."""
        content = self.read(path)
        if content is None:
            self.raise_refused()
            raise AssertionError(f"{path} is refused")
        return content

    @property
    def mended(self) -> tuple[Defect, ...]:
        """What can be, and is, mended, in the order it was found."""
        return tuple(defect for defect in self._defects if defect.rule in self._mendable)

    def raise_refused(self) -> None:
        """Raises one `UserError` for all that cannot be mended: for each rule the count, the first case, the remedy."""
        refused = [defect for defect in self._defects if defect.rule not in self._mendable]
        if refused:
            raise UserError(one_line(f"{self._root}, split {self._split}: {_cases(refused, _REMEDY)}"))


def refuse_without_boxes(dataset: Dataset) -> None:
    """Raises `UserError` where a split has nothing to train on, with what was mended: it often tells why."""
    if not any((~record.crowd).any() for record in dataset.records):
        why = f": {_cases(dataset.mended, _DONE)}" if dataset.mended else ""
        what = f"the split {dataset.split}, of {len(dataset)} images, has no box to train on"
        remedy = "add boxes or name another split with --data.train"
        raise UserError(one_line(f"{dataset.root}: {what}{why}; {remedy}"))


def as_json(value: object) -> str:
    """A value of a file for a message, as JSON writes it; of what JSON cannot write, its kind."""
    try:
        # Most values are whole numbers, asked for with every annotation: `dumps` takes its time.
        return (str(value) if type(value) is int else json.dumps(value, ensure_ascii=False))[:60]
    except (RecursionError, TypeError, ValueError):  # YAML has dates and, in base 16, numbers of any length
        return type(value).__name__


def _cases(defects: Iterable[Defect], actions: Mapping[str, str]) -> str:
    """Of each rule the count, the first case and the action."""
    return "; ".join(
        f"{len(of_rule)} × {rule}, first {str(of_rule[0].path)[:300]}: {of_rule[0].detail[:200]} ({actions[rule]})"
        for rule, of_rule in _by_rule(defects).items()
    )


def _by_rule(defects: Iterable[Defect]) -> dict[str, list[Defect]]:
    groups = defaultdict(list)
    for defect in defects:
        groups[defect.rule].append(defect)
    return dict(sorted(groups.items(), key=lambda group: list(RULES).index(group[0])))


@dataclass(frozen=True, slots=True)
class Annotations:
    """What the files of one split say, before it is checked against the images: `i` images and `m` boxes."""

    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    paths: list[Path]
    """The image files, which may not exist."""
    sources: list[Path]
    """The file that holds the boxes of each image."""
    declared: list[tuple[Any, ...] | None]
    """Width and height of each image according to its source, None where it is silent."""
    ids: list[int] | None
    """The ids of the images, None where the format has none."""
    boxes: Float64[np.ndarray, "m 4"]
    """xyxy, in pixels of the image, or as fractions of its size where `normalised`."""
    image: Int64[np.ndarray, " m"]
    """The place of each box's image in `paths`."""
    labels: Int64[np.ndarray, " m"]
    """0 … C-1, -1 where the category is unknown."""
    crowd: Bool[np.ndarray, " m"]
    difficult: Bool[np.ndarray, " m"]
    areas: Float64[np.ndarray, " m"]
    """NaN where the file has none."""
    places: list[str]
    """Where in its source each box stands."""
    normalised: bool = False


def choose_classes(
    names: Mapping[int, str], classes: Sequence[str] | None
) -> tuple[tuple[str, ...], tuple[int, ...], dict[int, int]]:
    """The classes, the category id of each, and the label of each category id of a file.

    Without `classes` they are the file's own, in the order of `names`. Given `classes`, labels follow these; one that
    the file lacks gets an unused id, and a category of the file that is not among them has no label.
    """
    chosen = tuple(names.values()) if classes is None else tuple(classes)
    id_of = {name: id for id, name in names.items()}
    unused = count(max([0, *names]) + 1)
    category_ids = tuple(id_of[name] if name in id_of else next(unused) for name in chosen)
    label_of = {name: label for label, name in enumerate(chosen)}
    return chosen, category_ids, {id: label_of[name] for id, name in names.items() if name in label_of}


def inside(root: Path, folder: Path, name: str) -> Path | None:
    """The file `name` of `folder`, or None where the name leads out of `root`.

    Only the name is judged; where links lead is for `Fence` to tell.
    """
    path = Path(name)
    if "\0" in name or ".." in path.parts:
        return None
    if not path.is_absolute():
        return folder / path
    # The root may have been given by another name: with `..` or through a link.
    bases = root.absolute(), Path(os.path.realpath(root))
    return next((root / path.relative_to(base) for base in bases if path.is_relative_to(base)), None)


def is_file(path: Path) -> bool:
    """Whether there is such a file. Unlike Path's own it does not raise for what the system refuses, as a long name."""
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: Path) -> bool:
    """Whether there is such a folder; otherwise as `is_file`."""
    return os.path.isdir(path)  # noqa: PTH112


def mend(annotations: Annotations, sizes: Int64[np.ndarray, "i 2"], findings: Findings) -> Annotations:
    """The annotations with boxes in pixels, inside their images and, as float32, of positive area; others are left out.

    `sizes` holds the width and height that each image really has. An image whose size is 0 could not be read, and its
    boxes go with it. Boxes without an area get their own.
    """
    annotations = _select(annotations, sizes[annotations.image].all(axis=1))
    limits = np.tile(sizes[annotations.image], 2).astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):  # the values are only tested below
        boxes = annotations.boxes * limits if annotations.normalised else annotations.boxes
        inner = np.clip(boxes, 0, limits).astype(np.float32)
        sides = (boxes[:, 2:] - boxes[:, :2]).min(axis=1, initial=np.inf)
        inner_sides = (inner[:, 2:] - inner[:, :2]).min(axis=1, initial=np.inf)
        excess = np.abs(boxes - inner).max(axis=1, initial=0)
    # Each box falls under the first rule that holds for it.
    rules: dict[str, Bool[np.ndarray, " m"]] = {
        "nan-box": ~np.isfinite(boxes).all(axis=1) | ~np.isfinite(sides),
        "negative-size": sides < 0,
        "zero-area": sides < MIN_SIDE,
        "outside-image": inner_sides < MIN_SIDE,
        "clipped": excess > _ROUNDING,
    }
    names = np.array([*rules, ""])
    verdict = names[np.argmax([*rules.values(), np.ones(len(boxes), dtype=bool)], axis=0)]
    for place in np.flatnonzero(verdict != ""):
        image = annotations.image[place]
        width, height = sizes[image]
        numbers = ", ".join(f"{number:g}" for number in boxes[place])
        detail = f"{annotations.places[place]}: box ({numbers}) in {annotations.paths[image].name}, {width} × {height}"
        findings.add(str(verdict[place]), annotations.sources[image], detail)

    areas = np.where(np.isnan(annotations.areas), (inner[:, 2:] - inner[:, :2]).prod(axis=1), annotations.areas)
    mended = replace(annotations, boxes=inner.astype(np.float64), areas=areas, normalised=False)
    return _select(mended, (verdict == "") | (verdict == "clipped"))


def _select(annotations: Annotations, kept: Bool[np.ndarray, " m"]) -> Annotations:
    columns = ("boxes", "image", "labels", "crowd", "difficult", "areas")
    chosen = {name: getattr(annotations, name)[kept] for name in columns}
    return replace(annotations, **chosen, places=[annotations.places[place] for place in np.flatnonzero(kept)])


def summary(dataset: Dataset) -> str:
    """A few lines for people: images, boxes, boxes of each class, and of each rule the count and the first case."""
    records = dataset.records
    boxes = sum(len(record.boxes) for record in records)
    counts = np.bincount(
        np.concatenate([[], *(record.labels for record in records)]).astype(np.int64), minlength=len(dataset.classes)
    )
    crowds = sum(int(record.crowd.sum()) for record in records)
    difficult = sum(int(record.difficult.sum()) for record in records)
    empty = sum(len(record.boxes) == 0 for record in records)
    lines = [
        f"{dataset.root}, split {dataset.split} ({dataset.format})",
        f"  {len(records)} images, {empty} of them without a box",
        f"  {boxes} boxes, {crowds} of them crowds, {difficult} difficult",
        f"  {len(dataset.classes)} classes: "
        + ", ".join(f"{name} {number}" for name, number in zip(dataset.classes, counts, strict=True)),
    ]
    for rule, defects in _by_rule(dataset.mended).items():
        lines.append(f"  {len(defects)} × {rule}: {_DONE[rule]}")
        lines.append(f"    first {defects[0].path}: {defects[0].detail}")
    return "\n".join(one_line(line) for line in lines)
