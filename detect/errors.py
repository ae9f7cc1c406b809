"""The one exception that means "the user can mend this"."""


class UserError(Exception):
    """A mistake in what the user gave: a file, an option, a box. Its text is one line with the place and the remedy.

    The command prints that line and exits with code 2; every other exception is a bug of ours and keeps its traceback.
    """
