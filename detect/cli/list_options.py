"""`detect options`: list all options of configs, or write their JSON schema."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from detect.cli.shared import add_command
from detect.errors import UserError

if TYPE_CHECKING:
    from detect.config.documentation import Option

WIDTH = 80


def add(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "options",
        _options,
        "list the options of configs with type, default and meaning",
        "detect options training\n\n"
        "Editors with support for YAML complete and check configs by the schema:\n"
        "  detect options --schema > detect.schema.json\n"
        "and, as the first line of a config: # yaml-language-server: $schema=detect.schema.json",
    )
    chosen = parser.add_mutually_exclusive_group()
    section = "a section or an option, such as data or model.rpn (default: all)"
    chosen.add_argument("section", nargs="?", metavar="SECTION", help=section)
    chosen.add_argument("--schema", action="store_true", help="print a JSON schema of configs instead")


def _options(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from detect.config.documentation import json_schema

    if options.schema:
        text = json.dumps(json_schema(), indent=2, ensure_ascii=False)
    else:
        text = "\n\n".join(map(_describe, _chosen(options.section)))
    try:
        print(text, flush=True)
    except BrokenPipeError:  # `detect options | head`
        sys.stdout = None  # nothing is left to flush at exit


def _chosen(section: str | None) -> list[Option]:
    """Return the options of a section, or those of a name. Raise `UserError` if there are none."""
    from detect.config.documentation import all_options
    from detect.config.reading import suggest

    found = all_options()
    if section is None:
        return found
    wanted = section.removeprefix("--")
    within = [option for option in found if f"{option.key}.".startswith(f"{wanted}.")]
    named = [option for option in found if option.key.endswith(f".{wanted}")]
    if not within and not named:
        raise UserError(f"{section}: there is no such section or option{suggest(wanted)}")
    return within or named


def _describe(option: Option) -> str:
    """Return name, type, default and meaning of an option in lines of at most `WIDTH` characters."""
    details = option.kind + _default(option)
    if not option.everywhere:
        details += f" (only {_owners(option)})"
    head = f"{option.key}  {details}"
    lines = [head] if len(head) <= WIDTH else [option.key, *_wrap(details)]
    meaning = option.meaning[:1].upper() + option.meaning[1:] if " " in option.meaning else option.meaning
    return "\n".join([*lines, *_wrap(meaning)])


def _wrap(text: str) -> list[str]:
    indent = " " * 4
    return textwrap.wrap(
        text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _owners(option: Option) -> str:
    from detect.models import model_names

    return "detectors" if set(option.defaults) == set(model_names()) else ", ".join(option.defaults)


def _default(option: Option) -> str:
    """Return the default, with those of other models that differ; an empty text for a section."""
    from detect.config.documentation import REQUIRED

    owners: dict[str, list[str]] = {}
    for owner, value in option.defaults.items():
        if value is REQUIRED:
            return ", required"
        owners.setdefault(_text(value), []).append(owner)
    first, *others = owners
    differing = ", ".join(f"{text} for {' and '.join(owners[text])}" for text in others)
    return (f", default {first}" if first else "") + (f" ({differing})" if differing else "")


def _text(value: Any) -> str:
    """Return a default as it is written in YAML."""
    if isinstance(value, str | PurePath):
        return str(value)
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value, default=asdict)
