"""The `detect` command, in a file for each of its parts.

Nothing heavy is imported before a command needs it: help comes at once.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from detect.cli import compare, data, evaluate, model, predict, propose, report, ship, train
from detect.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; a user's mistake is one line on stderr and exit code 2, an interrupt 130."""
    parser = _parser()
    words = list(sys.argv[1:] if arguments is None else arguments)
    options, overrides = parser.parse_known_args(_one_word_each(words) if words[:1] == ["compare"] else words)
    if overrides and not options.takes_overrides:
        parser.error(f"unrecognised: {' '.join(overrides)}")
    options.command = shlex.join(["detect", *words])
    try:
        return options.run(options, overrides) or 0
    except KeyboardInterrupt as interrupt:
        print(f"detect: {interrupt}" if interrupt.args else "detect: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        message = _user_message(error)
        if message is None:
            raise
        print(f"detect: error: {message}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="detect", description="The R-CNN family: train, evaluate, ship.", epilog="example: detect demo"
    )
    parser.add_argument("--version", action=_Version)
    parser.set_defaults(takes_overrides=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for part in (train, evaluate, predict, ship, report, compare, propose, model, data):
        part.add(commands)
    return parser


class _Version(argparse.Action):
    """Prints the versions of what figures depend on."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="versions of detect and of what its figures depend on")

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        names = ("detect", "torch", "torchvision", "lightning", "pycocotools")
        print(", ".join(f"{name} {version(name)}" for name in names))
        parser.exit()


def _one_word_each(words: Sequence[str]) -> list[str]:
    """`--section.key VALUE` as `--section.key=VALUE`, so that no value is taken for an argument of the command."""
    joined, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        separate = word.startswith("--") and "." in word and "=" not in word and rest
        joined.append(f"{word}={rest.pop(0)}" if separate else word)
    return joined


def _user_message(error: Exception) -> str | None:
    """The one line of a `UserError`, also where a worker wraps it in its traceback; None for a bug of ours."""
    if not isinstance(error, UserError):
        return None
    return str(error).strip().splitlines()[-1].rpartition("detect.errors.UserError: ")[2]
