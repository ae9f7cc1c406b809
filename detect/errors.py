"""The exception for mistakes that the user can fix."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_IN_TRACEBACK = "detect.errors.UserError: "


def one_line(text: str) -> str:
    """Replace control characters and line breaks, for example of file names, by question marks."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def listed(names: Iterable[str], limit: int = 10) -> str:
    """Return the first `limit` names in one line, separated by commas, and the number of the others."""
    shown = [one_line(name) for name in names]
    rest = len(shown) - limit
    return ", ".join([*shown[:limit], f"… and {rest} more"] if rest > 0 else shown)


def class_names(names: Sequence[str]) -> str:
    """Return the number of classes and the names of the first ones, such as "2 classes: cat, dog"."""
    return f"{len(names)} class{'es' * (len(names) != 1)}: {listed(names)}"


class UserError(Exception):
    """Mistake in the user's input. Its text is one line: the file or option, what is wrong, and the remedy.

    The command prints that line and exits with code 2. Every other exception is a bug and keeps its traceback.
    """

    def __str__(self) -> str:
        """Return the line, without the traceback that a worker of torch's DataLoader adds."""
        return one_line(super().__str__().rpartition(_IN_TRACEBACK)[2].strip())


def install_command(extra: str) -> str:
    """Return the command that installs an optional package, by the name of its extra in pyproject.toml."""
    return f"pip install 'rcnn-family[{extra}]'"


def reason(error: BaseException, limit: int = 200) -> str:
    """Return the text of an exception in one line of at most `limit` characters, without repeated white space."""
    return " ".join(str(error).split())[:limit]
