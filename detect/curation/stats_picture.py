"""Statistics of a split as one picture with ten plots of classes, images and boxes."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float64, Shaped

from detect.curation.objects import AREAS, Objects, cooccurrence, objects_of, shorten
from detect.data.dataset import Dataset
from detect.errors import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.image import AxesImage

BARS, MATRIX = 40, 20
"""Maximum number of classes in the bar chart and in the matrix, which show the most frequent ones."""
GRID = 48
"""Number of cells on each side of a heat map."""
INK, MUTED, PALE = "#1f2933", "#7b8794", "#e4e7eb"
BLUE, TEAL, AMBER = "#2f6fde", "#1a9c8c", "#e8973a"
MAP = "viridis"


def draw_statistics(path: Path, dataset: Dataset) -> None:
    """Draw the statistics of a split, without crowds, into an image file of 2400 × 1500 pixels."""
    from matplotlib.figure import Figure  # late, because it takes a second to import

    objects = objects_of(dataset)
    figure = Figure(figsize=(16, 10), facecolor="white")
    name = one_line(f"{dataset.root.resolve().name} · {dataset.split}")[:80]
    counts = f"{len(dataset):,} images · {len(objects.boxes):,} objects · {len(dataset.classes):,} classes"
    figure.suptitle(f"{name}\n{counts}", parse_math=False, color=INK)
    left = figure.add_gridspec(1, 1, left=0.11, right=0.25, top=0.9, bottom=0.06)
    right = figure.add_gridspec(3, 3, left=0.30, right=0.98, top=0.9, bottom=0.09, wspace=0.28, hspace=0.42)
    plots = [figure.add_subplot(right[cell]) for cell in range(9)]
    _draw_classes(figure.add_subplot(left[0]), dataset, objects)
    drawings = (
        _draw_image_sizes,
        _draw_image_aspects,
        _draw_counts,
        _draw_sizes,
        _draw_sides,
        _draw_aspects,
        _draw_centres,
        _draw_cover,
    )
    for axes, draw in zip(plots, drawings, strict=False):
        draw(axes, objects)
    _draw_cooccurrence(plots[-1], dataset, objects)
    with warnings.catch_warnings():  # the font has no glyphs for some scripts
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        figure.savefig(path, dpi=150)


# -------------------------------------------------------------------------------------------------------------- classes


def _draw_classes(axes: Axes, dataset: Dataset, objects: Objects) -> None:
    """Plot the number of objects per class in descending order, with one grey bar for the remaining classes."""
    chosen, counts = _most_frequent(dataset, objects, BARS)
    names = [shorten(dataset.classes[label], 22) for label in chosen]
    colours = [BLUE] * len(names)
    if rest := len(dataset.classes) - len(chosen):
        names.append(f"{rest} more classes")
        counts = np.append(counts, len(objects.boxes) - counts.sum())
        colours.append(MUTED)
    rows = np.arange(len(names))
    axes.barh(rows, counts, color=colours, height=0.72)
    for row, count in zip(rows, counts, strict=True):
        axes.annotate(f" {count:,}", (count, row), va="center", fontsize="small", color=MUTED)
    axes.set_yticks(rows, names, fontsize="small", parse_math=False)
    axes.set_ylim(max(len(names), 8) - 0.4, -0.6)
    axes.set_xlim(0, 1.18 * max(counts.max(initial=0), 1))
    _style(axes, "objects per class", "")
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)


def _draw_cooccurrence(axes: Axes, dataset: Dataset, objects: Objects) -> None:
    """Plot the share of the images with the row's class that also have the column's class."""
    chosen, _ = _most_frequent(dataset, objects, MATRIX)
    counts = cooccurrence(dataset)[np.ix_(chosen, chosen)]
    shares = counts / np.maximum(np.diag(counts)[:, None], 1)
    np.fill_diagonal(shares, np.nan)
    _style(axes, "co-occurrence of classes", "", frame=True)
    if len(chosen) < 2:
        return _show_text(axes, "one class" if len(chosen) else "no class")
    picture = axes.imshow(shares, cmap=MAP, vmin=0, vmax=max(np.nanmax(shares), 1e-9), aspect="auto")
    names = [shorten(dataset.classes[label], 14) for label in chosen]
    size = "x-small" if len(chosen) <= 10 else 6
    axes.set_xticks(np.arange(len(names)), names, rotation=90, fontsize=size, parse_math=False)
    axes.set_yticks(np.arange(len(names)), names, fontsize=size, parse_math=False)
    _colour_bar(axes, picture, percent=True)
    return None


def _most_frequent(
    dataset: Dataset, objects: Objects, limit: int
) -> tuple[Shaped[np.ndarray, " k"], Shaped[np.ndarray, " k"]]:
    """Return the labels with the most objects, and their numbers of objects."""
    counts = np.bincount(objects.labels, minlength=len(dataset.classes))
    chosen = np.argsort(-counts, kind="stable")[:limit]
    return chosen, counts[chosen]


# --------------------------------------------------------------------------------------------------------------- images


def _draw_image_sizes(axes: Axes, objects: Objects) -> None:
    _style(axes, "sizes of the images", "width", "height")
    if not len(objects.sizes):
        return _show_text(axes, "no image")
    sizes, counts = np.unique(objects.sizes, axis=0, return_counts=True)
    largest = sizes.max()
    axes.plot([0, 1.1 * largest], [0, 1.1 * largest], color=PALE, zorder=0)
    axes.scatter(sizes[:, 0], sizes[:, 1], s=12 + 600 * counts / counts.sum(), color=BLUE, alpha=0.45, linewidths=0)
    axes.set(xlim=(0, 1.1 * largest), ylim=(0, 1.1 * largest))
    return None


def _draw_image_aspects(axes: Axes, objects: Objects) -> None:
    width, height = objects.sizes.T
    _draw_ratios(axes, width / height, "aspect ratios of the images", "images")


def _draw_counts(axes: Axes, objects: Objects) -> None:
    _style(axes, "objects in an image", "objects", "images")
    if not len(objects.sizes):
        return _show_text(axes, "no image")
    largest = int(objects.counts.max())
    step = max(1, int(np.ceil((largest + 1) / 40)))
    axes.hist(objects.counts, (np.arange(0, largest + 1 + step, step) - 0.5).tolist(), color=BLUE, rwidth=0.9)
    _mark(axes, float(np.median(objects.counts)), "median {:.0f}")
    return None


# ---------------------------------------------------------------------------------------------------------------- boxes


def _draw_sizes(axes: Axes, objects: Objects) -> None:
    """Plot the square roots of the areas, coloured by COCO's three sizes."""
    _style(axes, "sizes of the objects", "√area, pixels", "objects")
    if not len(objects.areas):
        return _show_text(axes, "no object")
    sizes = np.sqrt(np.maximum(objects.areas, 1e-2))
    bins = np.geomspace(min(sizes.min(), 16), max(sizes.max(), 192) * 1.01, 48)
    for (name, (low, high)), colour in zip(AREAS.items(), (AMBER, TEAL, BLUE), strict=True):
        chosen = (low <= objects.areas) & (objects.areas < high)
        label = f"{name} {chosen.mean():.0%}"
        axes.hist(sizes[chosen], bins.tolist(), color=colour, label=label, rwidth=0.9)
    for bound in (32, 96):
        axes.axvline(bound, color=MUTED, linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    _round_ticks(axes.xaxis)
    axes.legend(frameon=False, fontsize="small", labelcolor=INK, handlelength=1)
    return None


def _draw_sides(axes: Axes, objects: Objects) -> None:
    _style(axes, "width and height of the boxes", "width", "height")
    if not len(objects.boxes):
        return _show_text(axes, "no object")
    low, high = objects.sides.min() * 0.9, objects.sides.max() * 1.1
    bins = np.geomspace(low, high, 49)
    counts = np.histogram2d(objects.sides[:, 0], objects.sides[:, 1], [bins, bins])[0].T
    axes.pcolormesh(bins, bins, np.ma.masked_equal(counts, 0), cmap=MAP, norm="log")
    axes.plot([low, high], [low, high], color=MUTED, linewidth=0.8, linestyle=":")
    axes.set(xscale="log", yscale="log")
    _round_ticks(axes.xaxis)
    _round_ticks(axes.yaxis)
    return None


def _draw_aspects(axes: Axes, objects: Objects) -> None:
    _draw_ratios(axes, objects.sides[:, 0] / objects.sides[:, 1], "aspect ratios of the boxes", "objects")


def _draw_centres(axes: Axes, objects: Objects) -> None:
    _style(axes, "positions of the centres", "", frame=True)
    if not len(objects.boxes):
        return _show_text(axes, "no object")
    centres = (objects.boxes[:, :2] + objects.boxes[:, 2:]) / 2 / objects.sizes[objects.image]
    # Cells so large that several objects per cell average out noise.
    cells = int(np.clip(np.sqrt(len(centres)) / 2, 8, GRID))
    edges = np.linspace(0, 1, cells + 1)
    counts = np.histogram2d(centres[:, 0], centres[:, 1], [edges, edges])[0]
    _colour_bar(axes, axes.imshow(counts.T, cmap=MAP, extent=(0, 1, 1, 0), aspect="auto", vmin=0))
    _label_edges(axes)
    return None


def _draw_cover(axes: Axes, objects: Objects) -> None:
    _style(axes, "coverage: objects per image at each position", "", frame=True)
    if not len(objects.boxes):
        return _show_text(axes, "no object")
    picture = axes.imshow(coverage(objects), cmap=MAP, extent=(0, 1, 1, 0), aspect="auto", vmin=0)
    _colour_bar(axes, picture)
    _label_edges(axes)
    return None


def coverage(objects: Objects) -> Float64[np.ndarray, "GRID GRID"]:
    """Return the mean number of objects per image that cover the centre of each cell.

    Each box adds 1 at its first cell and subtracts it after its last one, so that cumulative sums fill the boxes.
    """
    shares = objects.boxes / np.tile(objects.sizes[objects.image], 2)
    first, last = np.split(np.ceil(shares * GRID - 0.5).astype(np.int64), 2, axis=1)
    changes = np.zeros((GRID + 1, GRID + 1))
    for x, y, change in ((first, first, 1), (last, last, 1), (first, last, -1), (last, first, -1)):
        np.add.at(changes, (y[:, 1], x[:, 0]), change)
    return changes.cumsum(axis=0).cumsum(axis=1)[:GRID, :GRID] / len(objects.sizes)


# ---------------------------------------------------------------------------------------------------------------- parts


def _draw_ratios(axes: Axes, ratios: Shaped[np.ndarray, " n"], title: str, of: str) -> None:
    """Plot width over height on a logarithmic axis, on which 1:2 and 2:1 are equally far from the square."""
    _style(axes, title, "width / height", of)
    if not len(ratios):
        return _show_text(axes, f"no {of.removesuffix('s')}")
    bound = max(2.0, float(np.max(np.abs(np.log2(ratios)))) * 1.05)
    axes.hist(ratios, (2 ** np.linspace(-bound, bound, 49)).tolist(), color=BLUE, rwidth=0.9)
    axes.axvline(1, color=MUTED, linewidth=0.8, linestyle=":")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}" if value >= 1 else f"1/{1 / value:g}")
    _mark(axes, float(np.median(ratios)), "median {:.2f}")
    return None


def _style(axes: Axes, title: str, x: str, y: str = "", *, frame: bool = False) -> None:
    axes.set_title(title, loc="left", fontsize="medium", fontweight="bold", color=INK)
    axes.set_xlabel(x, color=MUTED, fontsize="small")
    axes.set_ylabel(y, color=MUTED, fontsize="small")
    axes.tick_params(colors=MUTED, labelsize="small", length=0)
    axes.tick_params(which="minor", length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(not frame and side == "bottom")
        spine.set_color(PALE)
    axes.set_axisbelow(True)
    if y and not frame:
        axes.grid(axis="y", color=PALE, linewidth=0.6)


def _show_text(axes: Axes, text: str) -> None:
    """Show a text instead of an empty plot."""
    axes.set(xticks=[], yticks=[])
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=MUTED)


def _mark(axes: Axes, value: float, text: str) -> None:
    """Draw a vertical line with its value next to the upper end."""
    axes.axvline(value, color=AMBER, linewidth=1.2)
    transform, box = axes.get_xaxis_transform(), {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1}
    text = f" {text.format(value)}"
    axes.text(value, 0.97, text, transform=transform, va="top", fontsize="small", color=AMBER, bbox=box)


def _colour_bar(axes: Axes, picture: AxesImage, *, percent: bool = False) -> None:
    """Draw the colour bar of an image."""
    assert axes.figure is not None
    bar = axes.figure.colorbar(picture, ax=axes, pad=0.02, aspect=30, format="{x:.0%}" if percent else None)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=MUTED, labelsize="small", length=0)


def _round_ticks(axis: Axis) -> None:
    """Set the ticks of a logarithmic axis to plain numbers, a few per decade."""
    low, high = axis.get_view_interval()
    ticks = [step * 10**power for power in range(-3, 6) for step in (1, 2, 5)]
    shown = [tick for tick in ticks if low <= tick <= high]
    axis.set_ticks(shown[:: 1 + len(shown) // 9], minor=False)
    axis.set_ticks([], minor=True)
    axis.set_major_formatter("{x:g}")


def _label_edges(axes: Axes) -> None:
    axes.set_xticks([0, 1], ["left", "right"])
    axes.set_yticks([0, 1], ["top", "bottom"])
