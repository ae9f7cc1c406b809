"""What a data set consists of: its images, objects and classes in figures, split beside split.

Objects are the boxes of single objects; crowds are counted apart and enter no other figure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64, Shaped
from rich.console import Console
from rich.table import Table
from rich.text import Text

from detect.data.dataset import Dataset
from detect.data.read import read_all
from detect.errors import UserError, one_line
from detect.files.atomic import new_folder

AREAS = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, np.inf)}
"""COCO's sizes of objects: from so many square pixels to less than so many."""
SHOWN = 30
"""Classes in the terminal; the others are added up."""
QUANTILES = {"min": 0.0, "p5": 0.05, "median": 0.5, "p95": 0.95, "max": 1.0}


@dataclass(frozen=True, slots=True)
class Objects:
    """The objects of a split in columns: `m` objects, `i` images."""

    boxes: Float64[np.ndarray, "m 4"]
    """xyxy, in pixels."""
    labels: Int64[np.ndarray, " m"]
    areas: Float64[np.ndarray, " m"]
    """COCO's `area`."""
    image: Int64[np.ndarray, " m"]
    """The place of each object's image."""
    sizes: Int64[np.ndarray, "i 2"]
    """Width and height of each image."""

    @property
    def sides(self) -> Float64[np.ndarray, "m 2"]:
        """Width and height of each box."""
        return self.boxes[:, 2:] - self.boxes[:, :2]

    @property
    def counts(self) -> Int64[np.ndarray, " i"]:
        """The number of objects in each image."""
        return np.bincount(self.image, minlength=len(self.sizes))


def stats(
    root: Path | str,
    names: Sequence[str] | None = None,
    out: Path | str | None = None,
    *,
    follow_links: bool = False,
    console: Console | None = None,
    progress: bool = True,
) -> dict[str, dict[str, Any]]:
    """Prints what a data set consists of, and writes it as `stats.json` with a picture `SPLIT.png` of each split.

    Args:
        root: the folder of the data set.
        names: the splits; by default all.
        out: the new folder for the files; none are written if not given.
        follow_links: read what links out of the folder lead to.
        console: where to print; the terminal if not given.
        progress: show a bar while the images are checked.

    Returns:
        The figures of each split, as by `statistics`.

    Raises:
        UserError: the data cannot be read, or `out` is not empty or cannot be written.
    """
    by_split = read_all(root, names, follow_links=follow_links, progress=progress)
    figures = {split: statistics(dataset) for split, dataset in by_split.items()}
    print_statistics(figures, console)
    if out is not None:
        from detect.curation.stats_picture import draw_sheet  # late, for matplotlib takes a second

        try:
            with new_folder(Path(out)) as draft:
                text = json.dumps({"root": str(root), "splits": figures}, indent=1, ensure_ascii=True)
                (draft / "stats.json").write_text(text + "\n", encoding="utf-8")
                for split, dataset in by_split.items():
                    draw_sheet(draft / f"{split}.png", dataset)
        except OSError as error:
            raise UserError(f"{error.filename or out}: {error.strerror}; fix that or choose another --out") from error
    return figures


def columns(dataset: Dataset) -> Objects:
    """All objects of a split; crowds are left out."""
    records = dataset.records
    kept = [~record.crowd for record in records]
    return Objects(
        boxes=np.concatenate([np.zeros((0, 4)), *(r.boxes[k] for r, k in zip(records, kept, strict=True))]),
        labels=np.concatenate([np.zeros(0, np.int64), *(r.labels[k] for r, k in zip(records, kept, strict=True))]),
        areas=np.concatenate([np.zeros(0), *(r.areas[k] for r, k in zip(records, kept, strict=True))]),
        image=np.repeat(np.arange(len(records)), [int(k.sum()) for k in kept]),
        sizes=np.array([(r.width, r.height) for r in records], dtype=np.int64).reshape(-1, 2),
    )


def statistics(dataset: Dataset) -> dict[str, Any]:
    """The figures of a split, ready for JSON.

    Distributions are given as minimum, 5 %, median, mean, 95 % and maximum, or None where there is nothing; sides and
    sizes are in pixels, aspect ratios are width through height. `size` of a box is the root of width times height.
    """
    objects = columns(dataset)
    width, height = objects.sizes.T.astype(np.float64)
    sides = objects.sides
    own_image = objects.sizes[objects.image].astype(np.float64)
    labels = [np.unique(record.labels[~record.crowd]) for record in dataset.records]
    together = cooccurrence(dataset)
    crowds = _count(np.concatenate([[], *(record.labels[record.crowd] for record in dataset.records)]), dataset)
    in_class, with_class = _count(objects.labels, dataset), _count(np.concatenate([[], *labels]), dataset)
    small = {name: int(((low <= objects.areas) & (objects.areas < high)).sum()) for name, (low, high) in AREAS.items()}
    first, second = np.nonzero(np.triu(together, k=1))
    order = np.argsort(-together[first, second], kind="stable")
    return {
        "format": dataset.format,
        "images": len(dataset),
        "images_without_objects": int((objects.counts == 0).sum()),
        "objects": len(objects.boxes),
        "crowds": int(crowds.sum()),
        "difficult": sum(int(record.difficult.sum()) for record in dataset.records),
        "classes": len(dataset.classes),
        "classes_without_objects": int((in_class == 0).sum()),
        "image_width": _spread(width),
        "image_height": _spread(height),
        "image_aspect_ratio": _spread(width / height),
        "objects_an_image": _spread(objects.counts),
        "classes_an_image": _spread(np.array([len(of_image) for of_image in labels])),
        "box_width": _spread(sides[:, 0]),
        "box_height": _spread(sides[:, 1]),
        "box_size": _spread(np.sqrt(sides.prod(axis=1))),
        "box_aspect_ratio": _spread(sides[:, 0] / sides[:, 1]),
        "box_share_of_image": _spread(sides.prod(axis=1) / own_image.prod(axis=1)),
        **small,
        "per_class": {
            name: {"objects": int(in_class[label]), "images": int(with_class[label]), "crowds": int(crowds[label])}
            for label, name in enumerate(dataset.classes)
        },
        "images_with_both": [
            [dataset.classes[first[k]], dataset.classes[second[k]], int(together[first[k], second[k]])] for k in order
        ],
        "repaired": _rules(dataset),
    }


def cooccurrence(dataset: Dataset) -> Int64[np.ndarray, "C C"]:
    """The number of images that show two classes; on the diagonal, of those that show one."""
    shown = np.zeros((len(dataset), len(dataset.classes)), dtype=np.float32)
    for place, record in enumerate(dataset.records):
        shown[place, record.labels[~record.crowd]] = 1
    return (shown.T @ shown).astype(np.int64)  # exact: float32 counts to 16 million


def _count(labels: Shaped[np.ndarray, " n"], dataset: Dataset) -> Int64[np.ndarray, " C"]:
    return np.bincount(labels.astype(np.int64), minlength=len(dataset.classes))


def _spread(values: Shaped[np.ndarray, " n"]) -> dict[str, float] | None:
    if not len(values):
        return None
    figures = {name: float(np.quantile(values, share)) for name, share in QUANTILES.items()}
    return figures | {"mean": float(values.mean())}


def _rules(dataset: Dataset) -> dict[str, int]:
    rules = [defect.rule for defect in dataset.repaired]
    return {rule: rules.count(rule) for rule in dict.fromkeys(rules)}


# ---------------------------------------------------------------------------------------------------------------- print


def print_statistics(figures: Mapping[str, Mapping[str, Any]], console: Console | None = None) -> None:
    """Prints two tables with a column for each split: the figures of the whole, and the objects of each class."""
    console = console or Console()
    console.print(_whole(figures))
    console.print()
    console.print(_by_class(figures))


def _whole(figures: Mapping[str, Mapping[str, Any]]) -> Table:
    table = _table("", figures)

    def row(title: str, value: Any) -> None:
        table.add_row(title, *(value(one) for one in figures.values()))

    row("images", lambda one: _number(one["images"]))
    row("  without object", lambda one: _with_share(one["images_without_objects"], one["images"]))
    row("  width", lambda one: _range(one["image_width"]))
    row("  height", lambda one: _range(one["image_height"]))
    row("  width / height", lambda one: _range(one["image_aspect_ratio"], 2))
    row("objects", lambda one: _number(one["objects"]))
    row("  in an image", lambda one: _range(one["objects_an_image"]))
    for name, (low, high) in AREAS.items():
        bounds = f"≥ {low**0.5:.0f}²" if high == np.inf else f"< {high**0.5:.0f}²"
        row(f"  {name} {bounds}", lambda one, name=name: _with_share(one[name], one["objects"]))
    row("  √(w · h)", lambda one: _range(one["box_size"]))
    row("  width / height", lambda one: _range(one["box_aspect_ratio"], 2))
    row("  difficult", lambda one: _with_share(one["difficult"], one["objects"]))
    row("crowds", lambda one: _number(one["crowds"]))
    row("classes", lambda one: _number(one["classes"]))
    row("  without object", lambda one: _number(one["classes_without_objects"]))
    row("repaired", lambda one: _number(sum(one["repaired"].values())))
    table.caption = "three numbers are minimum, median and maximum; sizes are in pixels"
    return table


def _by_class(figures: Mapping[str, Mapping[str, Any]]) -> Table:
    """The classes with the most objects first, by the first split."""
    table = _table("objects of the class", figures)
    names = dict.fromkeys(name for one in figures.values() for name in one["per_class"])
    counts = {
        name: [one["per_class"].get(name, {"objects": 0})["objects"] for one in figures.values()] for name in names
    }
    totals = [one["objects"] for one in figures.values()]
    order = sorted(counts, key=lambda name: counts[name], reverse=True)
    for name in order[:SHOWN]:
        table.add_row(Text(short(name)), *map(_with_share, counts[name], totals))
    if rest := order[SHOWN:]:
        sums = [sum(column) for column in zip(*(counts[name] for name in rest), strict=True)]
        table.add_row(f"{len(rest)} more classes", *map(_with_share, sums, totals))
    return table


def _table(title: str, figures: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, caption_justify="left")
    table.add_column(title, no_wrap=True, min_width=16)
    for split in figures:
        table.add_column(Text(one_line(split)), justify="right")
    return table


def short(name: str, length: int = 32) -> str:
    """A name from a file for a table or a picture: one line, and not longer than this."""
    shown = one_line(name[: length + 1])
    return shown if len(shown) <= length else f"{shown[: length - 1]}…"


def _number(value: float, digits: int = 0) -> str:
    return f"{value:,.{digits}f}"


def _with_share(count: int, total: int) -> str:
    return f"{_number(count)} {count / total:6.1%}" if total else _number(count)


def _range(spread: Mapping[str, float] | None, digits: int = 0) -> str:
    """Minimum, median and maximum, or the one number that all three are."""
    if spread is None:
        return "–"
    shown = [_number(spread[name], digits) for name in ("min", "median", "max")]
    return " ".join(dict.fromkeys(shown)) if shown[0] == shown[2] else " ".join(shown)
