"""A comparison of several detectors: a file, tables for the terminal, and a plot of accuracy against time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from math import cos, pi, sin
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from detect.files.atomic import write_text
from detect.terminal import table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

Row = dict[str, Any]

_STAGES = {"proposals": "proposals", "features": "features", "heads": "heads", "postprocessing": "post"}
"""Title of the column of each stage of detection."""

MARKER_SIZE = 7.0
"""Diameter of a marker in points."""


def read_comparison(file: Path) -> dict[str, Any] | None:
    """Return the content of a file of `write_comparison`; None if there is no such file."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and "rows" in content else None


def write_comparison(file: Path, rows: Sequence[Row], finished: bool, about: Mapping[str, Any]) -> None:
    """Write the rows and the setting of the measurement, atomically."""
    write_text(file, json.dumps({"rows": rows, "finished": finished, **about}, indent=2, allow_nan=False))


def print_comparison(rows: Sequence[Row], about: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the metrics in per cent, the costs, and the setting of the measurement."""
    console = console or Console()
    recall = next(name for name in rows[0] if name.startswith("recall@"))
    masks = {"mask_AP": "mask AP"} if any("mask_AP" in row for row in rows) else {}
    columns = {"config": "config", "detector": "detector", "AP": "AP", "AP50": "AP50", **masks, "VOC07": "VOC07"}
    columns[recall] = "recall"
    metrics = [
        (*(row.get(key) for key in columns), _seconds(row["training_seconds"]), _bytes(row["peak_memory_bytes"]))
        for row in rows
    ]
    console.print(table((*columns.values(), "training", "memory"), metrics))
    console.print()
    stages = _STAGES | ({"masks": "masks"} if any("masks" in row["test_seconds"] for row in rows) else {})
    costs = [_costs(row, stages) for row in rows]
    console.print(table(("config", "image", *stages.values(), "disk", "store"), costs))
    console.print()
    machine = about["machine"]
    _, iou, limit = recall.split("@")
    for line in (
        f"{about['data']} {about['split']}, {about['images']} images. VOC07: mAP at 11 recalls.",
        f"recall: of the best {limit} proposals at IoU {iou}. training: seconds. memory: {about['memory']}.",
        f"image: seconds per image at batch size 1, median of {about['timed_images']} images after a warm-up, and its "
        "stages, without decoding, resizing and copying. The time of stored proposals is that of computing them.",
        "disk: the checkpoint file, including the optimizer state of a detector trained by gradients. store: the "
        "proposals of one image.",
        f"{machine['cpu']}, {machine['threads']} of {machine['cores']} cores, {machine['device']}.",
    ):
        console.print(line, markup=False, highlight=False)


def _costs(row: Row, stages: Iterable[str]) -> tuple[str, ...]:
    times = [row["test_seconds_per_image"], *(row["test_seconds"].get(stage) for stage in stages)]
    disk = (_bytes(row["checkpoint_bytes"]), _bytes(row["proposals_bytes_per_image"]))
    return row["config"], *map(_seconds, times), *disk


def _bytes(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value / 1e6:,.0f} MB" if value >= 1e7 else f"{value / 1e3:,.0f} kB"


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3f}"


# ---- the plot --------------------------------------------------------------------------------------------------------


def draw_comparison(path: Path, rows: Sequence[Row], title: str) -> None:
    """Draw AP50 and AP of each detector against its seconds per image to an image file, with names at AP50."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # here, because the import takes a second
    from matplotlib.ticker import FuncFormatter, NullFormatter

    figure = Figure(figsize=(7, 5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize="medium")
    axes = figure.subplots()
    for number, row in enumerate(rows):
        seconds, colour = row["test_seconds_per_image"], f"C{number % 10}"
        ap50, ap = (row[name] or 0.0 for name in ("AP50", "AP"))
        axes.plot([seconds, seconds], [ap50, ap], color=colour, linewidth=0.8, alpha=0.5)
        axes.plot(seconds, ap50, "o", color=colour, markersize=MARKER_SIZE)
        axes.plot(seconds, ap, "o", color=colour, markersize=MARKER_SIZE, markerfacecolor="white")
    for name, fill in (("AP50", "0.4"), ("AP", "white")):
        axes.plot([], [], "o", color="0.4", markerfacecolor=fill, markersize=MARKER_SIZE, label=name)
    times = [row["test_seconds_per_image"] for row in rows]
    low, high = min(times), max(times)
    # The axis spans at least a decade, so that small differences do not appear large.
    margin = max(1.6, (10 * low / high) ** 0.5)
    axes.set(xscale="log", xlim=(low / margin, high * margin), ylim=(0, 1.05))
    axes.set(xlabel="seconds per image", ylabel="average precision")
    ticks = [digit * 10.0**power for power, digit in product(range(-6, 6), (1, 2, 5))]
    axes.set_xticks([tick for tick in ticks if low / margin <= tick <= high * margin])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="lower right")
    points = [(row["test_seconds_per_image"], row["AP50"] or 0.0) for row in rows]
    name_points(axes, points, [row["config"] for row in rows], [f"C{number % 10}" for number in range(len(rows))])
    figure.savefig(path)


def name_points(
    axes: Axes, points: Sequence[tuple[float, float]], names: Sequence[str], colours: Sequence[str]
) -> list[Bbox]:
    """Label each point without covering labels, lines, markers, the legend or the border of the axes.

    A label is placed as near to its point as possible; a line connects distant ones.

    Args:
        axes: the plot, whose layout is fixed by this call.
        points: x and y in data coordinates.
        names: label of each point.
        colours: colour of each label.

    Returns:
        Boxes of the labels in pixels of the canvas.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # keep the layout computed so far
    pixel = figure.dpi / 72  # pixels per point
    taken = _occupied(axes, pixel)
    boxes: list[Bbox] = []
    for point, name, colour in zip(points, names, colours, strict=True):
        style: dict[str, Any] = {"fontsize": "small", "va": "center", "color": colour, "parse_math": False}
        text = axes.annotate(name, point, (0, 0), textcoords="offset points", **style)
        boxes.append(_place(axes, text, [*taken, *boxes], pixel))
        x, y = axes.transData.transform(point)
        right = (min(max(x, boxes[-1].x0), boxes[-1].x1) - x) / pixel
        up = (min(max(y, boxes[-1].y0), boxes[-1].y1) - y) / pixel
        if right**2 + up**2 > (2 * MARKER_SIZE) ** 2:
            arrow = {"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0}
            axes.annotate("", point, (right, up), textcoords="offset points", arrowprops=arrow)
    return boxes


def _occupied(axes: Axes, pixel: float) -> list[Bbox]:
    """Return the boxes of the legend and of the lines with their markers."""
    from matplotlib.transforms import Bbox

    legend = axes.get_legend()
    boxes = [] if legend is None else [legend.get_window_extent()]
    for line in axes.get_lines():
        ends = axes.transData.transform(line.get_xydata())
        half = pixel * (MARKER_SIZE if line.get_marker() == "o" else 1) / 2
        if len(ends):
            boxes.append(Bbox([ends.min(axis=0) - half, ends.max(axis=0) + half]))
    return boxes


def _place(axes: Axes, text: Annotation, taken: Sequence[Bbox], pixel: float) -> Bbox:
    """Move a label to the nearest of the offsets where it covers the smallest area, and return its box."""
    box, area = text.get_window_extent(), axes.get_window_extent()
    offsets = list(_offsets(box.width / pixel, box.height / pixel))
    moved = [box.translated(pixel * right, pixel * up) for right, up in offsets]
    covered = [
        sum(_shared_area(candidate, other) for other in taken)
        + candidate.width * candidate.height
        - _shared_area(candidate, area)
        for candidate in moved
    ]
    # Up to a hundredth of a pixel may be covered, because of rounding.
    best = next((index for index, pixels in enumerate(covered) if pixels < 0.01), covered.index(min(covered)))
    text.set_position(offsets[best])
    return moved[best]


def _offsets(width: float, height: float) -> Iterator[tuple[float, float]]:
    """Yield offsets of a label on rings around its point, nearest ring first, each ring from the right."""
    for distance in range(6, 150, 6):
        for step in range(16):
            angle = step * pi / 8
            right = cos(angle) * distance - width / 2 + cos(angle) * width / 2
            yield right, sin(angle) * (distance + height / 2)


def _shared_area(a: Bbox, b: Bbox) -> float:
    return max(0.0, min(a.x1, b.x1) - max(a.x0, b.x0)) * max(0.0, min(a.y1, b.y1) - max(a.y0, b.y0))
