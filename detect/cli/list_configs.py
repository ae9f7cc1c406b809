"""`detect configs`: list the configs of the package."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from detect.cli.shared import add_command


def add(commands: Any) -> None:
    """Add the command."""
    add_command(
        commands,
        "configs",
        _configs,
        "list the configs that come with detect, by name",
        "detect configs\n\nThe end of a name is enough if it is unique: detect train -c faster_rcnn_r50_fpn",
    )


def _configs(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from detect.config.included import included_configs

    table = Table("config", "trains", "result", box=None, pad_edge=False)
    table.columns[0].no_wrap = table.columns[2].no_wrap = True
    for config in included_configs():
        table.add_row(config.name, escape(config.title), config.result or "not measured")
    Console().print(table)
