"""Table of a network's layers for the terminal."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import takewhile

from rich.box import HORIZONTALS
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from detect.models.summary import Layer, Summary
from detect.terminal import fits

_BEFORE_WORD = re.compile(r"\.(?!\d)")
"""Dots in the name of a module, except those before a number: `body`, `layer1.0` of `body.layer1.0`."""
_PREFIXES = ("", "k", "M", "G", "T", "P")


def print_summary(summary: Summary, title: str, console: Console | None = None) -> None:
    """Print layers and totals. On a narrow terminal the modules are a tree, so that no name is broken.

    Args:
        summary: the summary.
        title: line above the table.
        console: where to print; by default the terminal.
    """
    console = console or Console()
    first = next((layer for layer in summary.layers if layer.receptive_field and layer.receptive_field.of_region), None)
    details = [f"{summary.trainable:,} trainable"]
    if summary.unused:
        details.append(f"{summary.unused:,} not used in this run")
    exponent = min((len(str(summary.flops)) - 1) // 3, len(_PREFIXES) - 1)
    flops = f"{summary.flops / 1000**exponent:.3g} {_PREFIXES[exponent]}FLOP"
    lines = [
        f"{summary.parameters:,} parameters ({', '.join(details)}), {summary.bytes / 2**20:,.1f} MiB",
        f"{flops}: 2 for each multiply-add of convolutions and matrix products",
        "stride, field: pixels of the input from cell to cell, and along a side of a cell's receptive field",
    ]
    if any(layer.calls > 1 for layer in summary.layers):
        lines.append("n ×: called n times; output, stride and field are of the first call, cost is of all")
    if first is not None:
        lines.append(f"from {first.name} on: all regions together; stride and field in cells of a region")
    console.print(title, markup=False, highlight=False, soft_wrap=True)
    whole = _table(summary, first, nested=False)
    console.print(whole if fits(whole, console) else _table(summary, first, nested=True))
    console.print(*lines, sep="\n", markup=False, highlight=False, soft_wrap=True)


def _table(summary: Summary, first_of_region: Layer | None, nested: bool) -> Table:
    # With this unit the total has four to six digits before the point, so that no relevant layer is shown as 0.
    exponent = max(0, (len(str(summary.flops)) - 1) // 3 - 1)
    unit, decimals = 1000**exponent, 1 if exponent else 0
    table = Table(
        box=HORIZONTALS,
        padding=0 if nested else (0, 1),
        pad_edge=False,
        collapse_padding=True,
        show_footer=True,
        show_edge=False,
    )
    table.add_column("layer", "total", overflow="fold", no_wrap=nested)
    table.add_column("kind", overflow="fold")
    for head, foot in (
        ("output", ""),
        ("stride", ""),
        ("field", ""),
        ("parameters", f"{summary.parameters:,}"),
        (f"{_PREFIXES[exponent]}FLOP", f"{summary.flops / unit:,.{decimals}f}"),
    ):
        table.add_column(head, foot, justify="right", no_wrap=True)
    above: list[str] = []
    for layer in summary.layers:
        if layer is first_of_region:
            table.add_section()
        name = layer.name
        if nested:
            *parents, last = _BEFORE_WORD.split(layer.name)
            for depth in range(_common_length(parents, above), len(parents)):
                table.add_row("  " * depth + escape(parents[depth]))
            name, above = "  " * len(parents) + last, parents
        kind = f"{layer.calls} × {layer.kind}" if layer.calls > 1 else layer.kind
        seen = layer.receptive_field
        sides = (_sides(seen.stride), _sides(seen.size)) if seen else ("–", "–")
        flops = f"{layer.flops / unit:,.{decimals}f}" if layer.flops else ""
        table.add_row(
            escape(name),
            escape(kind),
            _shape(layer),
            *sides,
            f"{layer.parameters:,}" if layer.parameters else "",
            flops,
        )
    return table


def _common_length(one: Sequence[str], other: Sequence[str]) -> int:
    """Return the number of equal entries at the start of both."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _shape(layer: Layer) -> str:
    """Return the first shape, without the axis of a batch of one; … stands for further tensors."""
    if not layer.shapes:
        return "–"
    shape = layer.shapes[0]
    sides = shape[1:] if shape[:1] == (1,) and len(shape) > 1 else shape
    return "×".join(map(str, sides)) + (" …" if len(layer.shapes) > 1 else "")


def _sides(sides: Sequence[float]) -> str:
    """Return one number if all axes are equal, else one per axis; "all" stands for the whole input."""
    words = ["all" if math.isinf(side) else f"{side:g}" for side in sides]
    return words[0] if len(set(words)) == 1 else "×".join(words)
