"""Reading of untrusted data folders: only files below the root, and of limited size."""

from __future__ import annotations

import codecs
import os
import stat
from pathlib import Path

import yaml

MAX_BYTES = {
    **dict.fromkeys((".json", ".jsonl"), 2**31),
    **dict.fromkeys((".csv", ".tsv"), 2**31),
    ".xml": 2**27,
    **dict.fromkeys((".txt", ".names", ".labels"), 2**26),
    **dict.fromkeys((".yaml", ".yml", ".data"), 2**20),
}
"""Maximum size of an annotation file of each kind. Parsing takes several times as much memory; LVIS has 2**30 bytes."""

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml if it is available: the loader in Python takes a second for a thousand names."""

_MAX_DEPTH = 16


class OutsideError(Exception):
    """A link leads out of the data folder."""

    def __init__(self) -> None:
        super().__init__("a link leads out of the data folder")


class Fence:
    """Fence around a data folder: files outside of it that links lead to are not read.

    Args:
        root: data folder. It may itself be a link or be below one.
        follow_links: follow all links; for a user who trusts them.
    """

    def __init__(self, root: Path, follow_links: bool = False) -> None:
        self.root = root
        self._root, self._follow_links = os.path.realpath(root), follow_links
        self._folders: dict[str, bool] = {}

    def admits(self, path: Path) -> bool:
        """Return whether the path, with links resolved, is below the root. It need not exist."""
        if self._follow_links:
            return True
        folder = os.path.dirname(path)  # noqa: PTH120  cached: many images share a folder
        if folder not in self._folders:
            self._folders[folder] = self._is_below(folder)
        if self._folders[folder] and not os.path.islink(path):  # noqa: PTH114
            return True
        return self._is_below(path)

    def read(self, path: Path) -> bytes:
        """Return the content of an annotation file; UTF-16, except in XML, is returned as UTF-8.

        Raises:
            OutsideError: a link leads out of the root.
            ValueError: the path is not a regular file, the file is larger than `MAX_BYTES`, or it is broken UTF-16.
            OSError: the file cannot be read.
        """
        if not self.admits(path):
            raise OutsideError
        content = read_bounded(path, MAX_BYTES[path.suffix.lower()])
        return content if path.suffix.lower() == ".xml" else as_utf8(content)  # XML declares its encoding

    def _is_below(self, path: str | Path) -> bool:
        try:
            real = os.path.realpath(path)
        except (OSError, ValueError):  # not a valid file name
            return False
        return real == self._root or real.startswith(os.path.join(self._root, ""))  # noqa: PTH118


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """Return the content of a file of at most `max_bytes` bytes.

    Raises:
        ValueError: the path is not a regular file, or the file is larger.
        OSError: the file cannot be read.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):  # opening a pipe would block forever
        raise ValueError("it is a pipe or a device, not a file")
    if status.st_size > max_bytes:
        raise ValueError(f"it has {status.st_size / 2**20:,.0f} MiB, at most {max_bytes / 2**20:,.0f} are read")
    return path.read_bytes()


def as_utf8(content: bytes, errors: str = "strict") -> bytes:
    """Return text in UTF-16 with a byte order mark, as tools of Windows write it, in UTF-8; return the rest unchanged.

    Raises:
        ValueError: it is broken, and `errors` is "strict".
    """
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16", errors).encode() if is_utf16 else content


def is_yaml_bomb(text: str, aliases: int) -> bool:
    """Return whether YAML has more than `aliases` aliases or is nested too deeply.

    A few lines of aliases can expand to gigabytes, and deep nesting can take hours to parse.

    Raises:
        yaml.YAMLError: the text is not valid YAML.
    """
    depth = 0
    for event in yaml.parse(text, LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        aliases -= isinstance(event, yaml.AliasEvent)
        if depth > _MAX_DEPTH or aliases < 0:
            return True
    return False


def inside(root: Path, folder: Path, name: str) -> Path | None:
    """Return the path of `name` in `folder`, or None if the name leads out of `root`.

    Only the name is checked; `Fence` checks links.
    """
    path = Path(name)
    if "\0" in name or ".." in path.parts:
        return None
    if not path.is_absolute():
        return folder / path
    # The root may have been given in another form: with `..` or through a link.
    bases = root.absolute(), Path(os.path.realpath(root))
    return next((root / path.relative_to(base) for base in bases if path.is_relative_to(base)), None)


def is_file(path: Path) -> bool:
    """Return whether the file exists. Unlike `Path.is_file`, never raise, for example for a name that is too long."""
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: Path) -> bool:
    """Return whether the folder exists. Like `is_file`, never raise."""
    return os.path.isdir(path)  # noqa: PTH112
