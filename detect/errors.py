"""The exception for mistakes that the user can fix."""

_IN_TRACEBACK = "detect.errors.UserError: "


def one_line(text: str) -> str:
    """Replace control characters and line breaks, for example of file names, by question marks."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


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
