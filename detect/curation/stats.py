"""Statistics of a data set: images, objects and classes per split.

Crowds are counted separately and are not objects.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped
from rich.console import Console
from rich.table import Table
from rich.text import Text

from detect.curation.objects import AREAS, Objects, cooccurrence, objects_of, shorten
from detect.data.dataset import Dataset
from detect.data.read import read_all
from detect.errors import UserError, one_line
from detect.files.atomic import new_folder
from detect.terminal import fits

MAX_CLASSES = 30
"""Maximum number of classes in the terminal; all others are summed up in one row."""
QUANTILES = {"min": 0.0, "p5": 0.05, "median": 0.5, "p95": 0.95, "max": 1.0}


def stats(
    root: Path | str,
    names: Sequence[str] | None = None,
    out: Path | str | None = None,
    *,
    format: str | None = None,
    follow_links: bool = False,
    console: Console | None = None,
    progress: bool = True,
) -> dict[str, dict[str, Any]]:
    """Print the statistics of a data set, and write them as `stats.json` with a picture `SPLIT.png` per split.

    Args:
        root: folder of the data set.
        names: names of the splits; by default all.
        out: new folder for the files; by default none are written.
        format: one of `formats.FORMATS`; by default it is recognised by the content of the files.
        follow_links: follow links that lead out of the folder.
        console: where to print; by default the terminal.
        progress: show a progress bar while the images are checked.

    Returns:
        The `statistics` of each split.

    Raises:
        UserError: the data cannot be read, or `out` is not empty or cannot be written.
    """
    by_split = read_all(root, names, format=format, follow_links=follow_links, progress=progress)
    result = {split: statistics(dataset) for split, dataset in by_split.items()}
    print_statistics(result, console)
    if out is not None:
        from detect.curation.stats_picture import draw_statistics  # late, because matplotlib takes a second to import

        try:
            with new_folder(Path(out)) as draft:
                text = json.dumps({"root": str(root), "splits": result}, indent=1, ensure_ascii=True)
                (draft / "stats.json").write_text(text + "\n", encoding="utf-8")
                for split, dataset in by_split.items():
                    draw_statistics(draft / f"{split}.png", dataset)
        except OSError as error:
            raise UserError(f"{error.filename or out}: {error.strerror}; fix that or choose another --out") from error
    return result


def statistics(dataset: Dataset) -> dict[str, Any]:
    """Return the statistics of a split as a JSON document.

    Distributions are given as minimum, 5 %, median, mean, 95 % and maximum, or None if there are no values. Sides and
    sizes are in pixels, and aspect ratios are width over height. The `size` of a box is the root of width × height.
    """
    objects = objects_of(dataset)
    labels = [np.unique(record.labels[~record.crowd]) for record in dataset.records]
    crowds = _count(np.concatenate([[], *(record.labels[record.crowd] for record in dataset.records)]), dataset)
    in_class, with_class = _count(objects.labels, dataset), _count(np.concatenate([[], *labels]), dataset)
    return {
        "format": dataset.format,
        "images": len(dataset),
        "images_without_objects": int((objects.counts == 0).sum()),
        "objects": len(objects.boxes),
        "crowds": int(crowds.sum()),
        "difficult": sum(int(record.difficult.sum()) for record in dataset.records),
        "classes": len(dataset.classes),
        "classes_without_objects": int((in_class == 0).sum()),
        **_image_statistics(objects, labels),
        **_box_statistics(objects),
        **_mask_statistics(dataset),
        "per_class": {
            name: {"objects": int(in_class[label]), "images": int(with_class[label]), "crowds": int(crowds[label])}
            for label, name in enumerate(dataset.classes)
        },
        "images_with_both": _pairs(dataset),
        "mended": _count_rules(dataset),
    }


def _image_statistics(objects: Objects, labels: Sequence[Shaped[np.ndarray, " _"]]) -> dict[str, Any]:
    width, height = objects.sizes.T.astype(np.float64)
    return {
        "image_width": _spread(width),
        "image_height": _spread(height),
        "image_aspect_ratio": _spread(width / height),
        "objects_an_image": _spread(objects.counts),
        "classes_an_image": _spread(np.array([len(of_image) for of_image in labels])),
    }


def _box_statistics(objects: Objects) -> dict[str, Any]:
    sides = objects.sides
    image_sizes = objects.sizes[objects.image].astype(np.float64)
    return {
        "box_width": _spread(sides[:, 0]),
        "box_height": _spread(sides[:, 1]),
        "box_size": _spread(np.sqrt(sides.prod(axis=1))),
        "box_aspect_ratio": _spread(sides[:, 0] / sides[:, 1]),
        "box_share_of_image": _spread(sides.prod(axis=1) / image_sizes.prod(axis=1)),
        **{name: int(((low <= objects.areas) & (objects.areas < high)).sum()) for name, (low, high) in AREAS.items()},
    }


def _mask_statistics(dataset: Dataset) -> dict[str, Any]:
    """Return the number of objects with a mask, and which share of its box a mask covers."""
    shares = []
    for record in dataset.records:
        areas = (record.boxes[:, 2:] - record.boxes[:, :2]).prod(axis=1).tolist()
        for mask, area, crowd in zip(record.masks or [None] * len(areas), areas, record.crowd, strict=True):
            if mask is not None and not crowd:
                shares.append(mask.rle(record.height, record.width).area() / area)
    return {"masks": len(shares), "mask_share_of_box": _spread(np.array(shares))}


def _pairs(dataset: Dataset) -> list[list[Any]]:
    """Return the pairs of classes that occur in the same image, with the number of images, most frequent first."""
    counts = cooccurrence(dataset)
    first, second = np.nonzero(np.triu(counts, k=1))
    order = np.argsort(-counts[first, second], kind="stable")
    return [[dataset.classes[first[k]], dataset.classes[second[k]], int(counts[first[k], second[k]])] for k in order]


def _count(labels: Shaped[np.ndarray, " n"], dataset: Dataset) -> Int64[np.ndarray, " C"]:
    return np.bincount(labels.astype(np.int64), minlength=len(dataset.classes))


def _spread(values: Shaped[np.ndarray, " n"]) -> dict[str, float] | None:
    if not len(values):
        return None
    quantiles = {name: float(np.quantile(values, share)) for name, share in QUANTILES.items()}
    return quantiles | {"mean": float(values.mean())}


def _count_rules(dataset: Dataset) -> dict[str, int]:
    rules = [defect.rule for defect in dataset.repaired]
    return {rule: rules.count(rule) for rule in dict.fromkeys(rules)}


# ---------------------------------------------------------------------------------------------------------------- print


def print_statistics(splits: Mapping[str, Mapping[str, Any]], console: Console | None = None) -> None:
    """Print two tables with a column per split: overall statistics, and objects per class.

    Splits that do not fit the width of the console follow in further tables.
    """
    console = console or Console()
    for number, part in enumerate(_parts(splits, console)):
        if number:
            console.print()
        console.print(_overall(part))
        console.print()
        console.print(_by_class(part))


def _parts(splits: Mapping[str, Mapping[str, Any]], console: Console) -> Iterator[dict[str, Mapping[str, Any]]]:
    """Yield the splits in groups whose tables fit the width of the console."""
    part: dict[str, Mapping[str, Any]] = {}
    for name, split in splits.items():
        wider = {**part, name: split}
        if part and not (fits(_overall(wider), console) and fits(_by_class(wider), console)):
            yield part
            wider = {name: split}
        part = wider
    yield part


def _overall(splits: Mapping[str, Mapping[str, Any]]) -> Table:
    table = _table("", splits)

    def row(title: str, value: Any) -> None:
        table.add_row(title, *(value(one) for one in splits.values()))

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
    if any(one["masks"] for one in splits.values()):
        row("  with mask", lambda one: _with_share(one["masks"], one["objects"]))
        row("  mask / box", lambda one: _range(one["mask_share_of_box"], 2))
    row("  difficult", lambda one: _with_share(one["difficult"], one["objects"]))
    row("crowds", lambda one: _number(one["crowds"]))
    row("classes", lambda one: _number(one["classes"]))
    row("  without object", lambda one: _number(one["classes_without_objects"]))
    row("repaired", lambda one: _number(sum(one["mended"].values())))
    table.caption = "three numbers are minimum, median and maximum; sizes are in pixels"
    return table


def _by_class(splits: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return the table of classes, by descending number of objects in the first split."""
    table = _table("objects of the class", splits)
    names = dict.fromkeys(name for one in splits.values() for name in one["per_class"])
    counts = {
        name: [one["per_class"].get(name, {"objects": 0})["objects"] for one in splits.values()] for name in names
    }
    totals = [one["objects"] for one in splits.values()]
    order = sorted(counts, key=lambda name: counts[name], reverse=True)
    for name in order[:MAX_CLASSES]:
        table.add_row(Text(shorten(name)), *map(_with_share, counts[name], totals))
    if rest := order[MAX_CLASSES:]:
        sums = [sum(column) for column in zip(*(counts[name] for name in rest), strict=True)]
        table.add_row(f"{len(rest)} more classes", *map(_with_share, sums, totals))
    return table


def _table(title: str, splits: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, caption_justify="left")
    table.add_column(title, no_wrap=True, min_width=16)
    for split in splits:
        table.add_column(Text(one_line(split)), justify="right")
    return table


def _number(value: float, digits: int = 0) -> str:
    return f"{value:,.{digits}f}"


def _with_share(count: int, total: int) -> str:
    return f"{_number(count)} {count / total:6.1%}" if total else _number(count)


def _range(spread: Mapping[str, float] | None, digits: int = 0) -> str:
    """Format minimum, median and maximum, or one number if they are equal."""
    if spread is None:
        return "–"
    shown = [_number(spread[name], digits) for name in ("min", "median", "max")]
    return " ".join(dict.fromkeys(shown)) if shown[0] == shown[2] else " ".join(shown)
