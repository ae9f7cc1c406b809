"""The one exception that means "the user can mend this"."""

_IN_TRACEBACK = "detect.errors.UserError: "


def one_line(text: str) -> str:
    """A text in which anything may stand, names of files too, as one line without control characters."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


class UserError(Exception):
    """A mistake in what the user gave: a file, an option, a box. Its text is one line with the place and the remedy.

    The command prints that line and exits with code 2; every other exception is a bug of ours and keeps its traceback.
    """

    def __str__(self) -> str:
        """The line, whatever stands in a file's name. A worker of torch's has wrapped it in its own traceback."""
        return one_line(super().__str__().rpartition(_IN_TRACEBACK)[2].strip())


def reason(error: BaseException, limit: int = 200) -> str:
    """Return the text of an exception in one line of at most `limit` characters, without repeated white space."""
    return " ".join(str(error).split())[:limit]
