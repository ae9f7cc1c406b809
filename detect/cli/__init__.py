"""The `detect` command: one file per subcommand.

Commands import packages when they run, so that `--help` is fast.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

from detect.cli import (
    compare,
    compress,
    data,
    evaluate,
    export,
    import_weights,
    list_configs,
    list_options,
    model,
    predict,
    propose,
    report,
    serve,
    train,
    weights,
)
from detect.cores import share_cores
from detect.errors import UserError
from detect.versions import versions

COMMANDS = (
    train,
    evaluate,
    predict,
    export,
    serve,
    import_weights,
    compress,
    report,
    compare,
    propose,
    model,
    list_configs,
    list_options,
    data,
    weights,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    After a mistake of the user, print one line on stderr and return 2; after an interruption return 130.
    """
    share_cores()
    parser = _parser()
    words = arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _check_command(parser, words)
        taken: list[str] = []
        if words[:1] in (["train"], ["compare"]):  # they have positional arguments and overrides
            arguments, taken = _take_overrides(words, _options_of(parser, words[0]))
        options, rest = parser.parse_known_args(arguments)
        overrides = [*taken, *rest]
        if overrides and not options.takes_overrides:
            options.parser.error(f"unrecognised: {' '.join(overrides)}{_meant(overrides[0])}")
        options.command = shlex.join(["detect", *words])
        return options.run(options, overrides) or 0
    except KeyboardInterrupt as interrupt:
        print(f"detect: {interrupt}" if interrupt.args else "detect: interrupted", file=sys.stderr)
        return 130
    except UserError as error:
        print(f"detect: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _parser() -> argparse.ArgumentParser:
    description = "The R-CNN family: train, evaluate, predict, export."
    parser = argparse.ArgumentParser(prog="detect", description=description, epilog="example: detect demo")
    parser.add_argument("--version", action=_Version)
    parser.set_defaults(takes_overrides=False)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(subparsers)
    return parser


def _check_command(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Raise `UserError` if the first word is not a command; argparse would print the usage and suggest nothing."""
    commands = _commands(parser)
    if words and not words[0].startswith("-") and words[0] not in commands:
        near = get_close_matches(words[0], commands, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"{words[0]}: there is no such command; {meant}`detect --help` lists them")


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    return next(action.choices for action in parser._actions if isinstance(action.choices, dict))


def _options_of(parser: argparse.ArgumentParser, command: str) -> list[str]:
    """Return the options of a command, such as `--out`."""
    return list(_commands(parser)[command]._option_string_actions)


def _meant(word: str) -> str:
    """Return the end of the message about an unknown option: the name here, if it is one of another package."""
    from detect.config.other_names import answer_other_name

    answer = answer_other_name(word.partition("=")[0])
    return f"; {answer}" if answer else ""


class _Version(argparse.Action):
    """Print the versions of detect and of the packages that metrics depend on."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="versions of detect and its main packages")

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        packages = versions("torch", "torchvision", "lightning", "pycocotools")
        print(*(f"{name} {version}" for name, version in packages.items()), sep=", ")
        parser.exit()


def _take_overrides(words: Sequence[str], known: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the words for argparse, and the overrides, each as `--section.key=VALUE`.

    Otherwise argparse would take the value of an override for a positional argument.

    Args:
        words: the command line.
        known: options of the command, which may be abbreviated.
    """
    kept, overrides, rest = [], [], list(words)
    while rest:
        word = rest.pop(0)
        name, equals, _ = word.partition("=")
        if not name.startswith("--") or any(option.startswith(name) for option in known):
            kept.append(word)
        else:
            overrides.append(word if equals or not rest else f"{word}={rest.pop(0)}")
    return kept, overrides
