"""What is read of a data folder that a stranger made: files below its root, of bounded size."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import yaml

MAX_BYTES = {".json": 2**31, ".xml": 2**24, ".txt": 2**26, ".yaml": 2**20}
"""Bytes of the largest annotation file of each kind; parsing takes several times as much memory. LVIS has 2**30."""

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml where it is there: a thousand names take Python a second."""

_MAX_DEPTH = 16


class OutsideError(Exception):
    """A link leads out of the data folder."""

    def __init__(self) -> None:
        super().__init__("it is a link, or lies behind one, that leads out of the data folder")


class Fence:
    """Around a data folder: what is behind a link that leads out of it is not read.

    Args:
        root: the folder. It may itself be a link, or lie behind one: that is where its owner keeps it.
        follow_links: follow links wherever they lead, as those that the user has made.
    """

    def __init__(self, root: Path, follow_links: bool = False) -> None:
        self._root, self._follow_links = os.path.realpath(root), follow_links
        self._folders: dict[str, bool] = {}

    def admits(self, path: Path) -> bool:
        """Whether the file or folder, as links lead to it, is below the root; it need not be there."""
        if self._follow_links:
            return True
        folder = os.path.dirname(path)  # noqa: PTH120  many images share theirs, and are asked for one by one
        if folder not in self._folders:
            self._folders[folder] = self._is_below(folder)
        if self._folders[folder] and not os.path.islink(path):  # noqa: PTH114
            return True
        return self._is_below(path)

    def read(self, path: Path) -> bytes:
        """The content of an annotation file.

        Raises `OutsideError`; `ValueError` where it is no file, or larger than `MAX_BYTES`; `OSError`.
        """
        if not self.admits(path):
            raise OutsideError
        return read_bounded(path, MAX_BYTES[path.suffix.lower()])

    def _is_below(self, path: str | Path) -> bool:
        try:
            real = os.path.realpath(path)
        except (OSError, ValueError):  # no file can have this name
            return False
        return real == self._root or real.startswith(os.path.join(self._root, ""))  # noqa: PTH118


def read_bounded(path: Path, most: int) -> bytes:
    """The content of a file. Raises `ValueError` where it is no file or larger than `most` bytes, and `OSError`."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):  # to open a pipe would wait for ever
        raise ValueError("it is a pipe or a device, and no file")
    if status.st_size > most:
        raise ValueError(f"it has {status.st_size / 2**20:,.0f} MiB, at most {most / 2**20:,.0f} are read")
    return path.read_bytes()


def is_yaml_bomb(text: str, aliases: int) -> bool:
    """Whether YAML has more aliases than that, of which a few lines make gigabytes, or nesting that takes hours.

    Raises `yaml.YAMLError` for what is no YAML.
    """
    depth = 0
    for event in yaml.parse(text, LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        aliases -= isinstance(event, yaml.AliasEvent)
        if depth > _MAX_DEPTH or aliases < 0:
            return True
    return False
