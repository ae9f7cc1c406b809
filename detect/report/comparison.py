"""Detectors side by side: a table, a file, and a picture of accuracy against time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import product
from math import cos, pi, sin
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from detect.report.tables import table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox

Row = dict[str, Any]

SIZE = 7.0
"""Of a marker, in points."""


def read_comparison(file: Path) -> dict[str, Any] | None:
    """What `write_comparison` has written; None where there is no such file."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and "rows" in content else None


def write_comparison(file: Path, rows: Sequence[Row], finished: bool, about: Mapping[str, Any]) -> None:
    """Writes the rows and what they were measured on, whole or not at all."""
    draft = file.with_name(f".{file.name}.part")
    content = {"rows": rows, "finished": finished, **about}
    draft.write_text(json.dumps(content, indent=2, allow_nan=False), encoding="utf-8")
    draft.replace(file)


def print_comparison(rows: Sequence[Row], about: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints the figures in per cent, then what they cost, and under them what was measured and how."""
    console = console or Console()
    recall = next(name for name in rows[0] if name.startswith("recall@"))
    keys = ("config", "detector", "AP", "AP50", "VOC07", recall)
    figures = [
        (*(row[key] for key in keys), _seconds(row["training_seconds"]), _bytes(row["peak_memory_bytes"]))
        for row in rows
    ]
    console.print(table(("config", "detector", "AP", "AP50", "VOC07", "recall", "training", "memory"), figures))
    console.print()
    costs = [_costs(row) for row in rows]
    console.print(table(("config", "image", "proposals", "features", "heads", "post", "disk", "store"), costs))
    console.print()
    machine = about["machine"]
    _, iou, limit = recall.split("@")
    for line in (
        f"{about['data']} {about['split']}, {about['images']} images. VOC07: mAP at 11 recalls.",
        f"recall: of the best {limit} proposals at IoU {iou}. training: seconds. memory: {about['memory']}.",
        f"image: seconds at a batch of one, the median over {about['timed_images']} images after a warm-up, and how it "
        "divides; without decoding, resizing and copying. Proposals from a store were searched anew.",
        "disk: the checkpoint's file, in which training by gradients leaves the optimiser's state. store: the proposals"
        " of an image.",
        f"{machine['cpu']}, {machine['threads']} of {machine['cores']} cores, {machine['device']}.",
    ):
        console.print(line, markup=False, highlight=False)


def _costs(row: Row) -> tuple[str, ...]:
    stages = ("proposals", "features", "heads", "postprocessing")
    times = [row["test_seconds_per_image"], *(row["test_seconds"][stage] for stage in stages)]
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


# ---- the picture -----------------------------------------------------------------------------------------------------


def draw_comparison(path: Path, rows: Sequence[Row], title: str) -> None:
    """Draws AP50 and AP of each detector against its seconds an image, each named at its AP50, into an image file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # late, for it takes a second
    from matplotlib.ticker import FuncFormatter, NullFormatter

    figure = Figure(figsize=(7, 5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize="medium")
    axes = figure.subplots()
    for number, row in enumerate(rows):
        place, colour = row["test_seconds_per_image"], f"C{number % 10}"
        figures = [row[name] or 0.0 for name in ("AP50", "AP")]
        axes.plot([place, place], figures, color=colour, linewidth=0.8, alpha=0.5)
        axes.plot(place, figures[0], "o", color=colour, markersize=SIZE)
        axes.plot(place, figures[1], "o", color=colour, markersize=SIZE, markerfacecolor="white")
    for name, fill in (("AP50", "0.4"), ("AP", "white")):
        axes.plot([], [], "o", color="0.4", markerfacecolor=fill, markersize=SIZE, label=name)
    times = [row["test_seconds_per_image"] for row in rows]
    low, high = min(times), max(times)
    # A decade at least, so that a small difference does not look like a large one.
    margin = max(1.6, (10 * low / high) ** 0.5)
    axes.set(xscale="log", xlim=(low / margin, high * margin), ylim=(0, 1.05))
    axes.set(xlabel="seconds an image", ylabel="average precision")
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
    """Writes each point's name where it covers neither a name, a line, a marker, the legend nor the axes' border.

    The place nearest to the point is taken, and one further away is joined to it by a line. Returns the names' boxes in
    pixels of the canvas.
    """
    from matplotlib.transforms import Bbox

    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # what is laid out now stays
    area, pixel = axes.get_window_extent(), figure.dpi / 72
    legend = axes.get_legend()
    taken = [] if legend is None else [legend.get_window_extent()]
    for line in axes.get_lines():
        ends, half = (
            axes.transData.transform(line.get_xydata()),
            pixel * (SIZE if line.get_marker() == "o" else 1) / 2,
        )
        if len(ends):
            taken.append(Bbox([ends.min(axis=0) - half, ends.max(axis=0) + half]))
    boxes: list[Bbox] = []
    for (x, y), name, colour in zip(points, names, colours, strict=True):
        style: dict[str, Any] = {"fontsize": "small", "va": "center", "color": colour, "parse_math": False}
        text = axes.annotate(name, (x, y), (0, 0), textcoords="offset points", **style)
        box = text.get_window_extent()
        column, row = axes.transData.transform((x, y))

        width, height = box.width / pixel, box.height / pixel
        # On rings around the point, at this distance from the text, and on each of them first at the right.
        places = [
            (cos(angle) * distance - width / 2 + cos(angle) * width / 2, sin(angle) * (distance + height / 2))
            for distance in range(6, 150, 6)
            for angle in (step * pi / 8 for step in range(16))
        ]
        moved = [box.translated(pixel * right, pixel * up) for right, up in places]
        covered = [
            sum(_common(one, other) for other in [*taken, *boxes]) + one.width * one.height - _common(one, area)
            for one in moved
        ]
        # A hundredth of a pixel, for what is rounded.
        best = next((place for place, pixels in enumerate(covered) if pixels < 0.01), covered.index(min(covered)))
        text.set_position(places[best])
        boxes.append(moved[best])
        right = (min(max(column, boxes[-1].x0), boxes[-1].x1) - column) / pixel
        up = (min(max(row, boxes[-1].y0), boxes[-1].y1) - row) / pixel
        if right**2 + up**2 > (2 * SIZE) ** 2:
            arrow = {"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0}
            axes.annotate("", (x, y), (right, up), textcoords="offset points", arrowprops=arrow)
    return boxes


def _common(a: Bbox, b: Bbox) -> float:
    """The area that two boxes share."""
    return max(0.0, min(a.x1, b.x1) - max(a.x0, b.x0)) * max(0.0, min(a.y1, b.y1) - max(a.y0, b.y0))
