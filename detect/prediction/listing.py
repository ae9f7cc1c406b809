"""All that a long run is to predict on, listed ahead: names, the parts of the work, and where each picture goes."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path, PurePath

from detect.errors import UserError
from detect.prediction.sources import VIDEO_SUFFIXES, Stream, count, unread

_PART, _PARTS = 256, 64
"""A part has about so many images at most, and there are so many parts at least: a few shards have equal work."""

_LONGEST = 255
"""Bytes of a file's name."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The images, videos and cameras of some sources, each once, in their order."""

    names: tuple[str, ...]
    """As `frames` takes them."""
    streams: frozenset[str]
    """Those that are videos or cameras."""
    cameras: tuple[str, ...]
    files: frozenset[str]
    """The true folder and the name of each file, by which they are told apart."""
    root: str
    """The lowest folder that all files are in."""

    @property
    def digest(self) -> str:
        """Of all names in their order."""
        state = blake2b(digest_size=16)
        for name in self.names:
            state.update(os.fsencode(name) + b"\0")
        return state.hexdigest()

    def size(self, batch: int) -> int:
        """The most images that a part should have, a multiple of those that go through the network together."""
        fair = max(1, min(_PART, -(-len(self.names) // _PARTS)))
        return -(-fair // batch) * batch

    def parts(self, size: int) -> list[list[str]]:
        """The names of each part of the work: at most `size` images that follow each other, or a video or camera."""
        parts: list[list[str]] = []
        for name in self.names:
            if not parts or len(parts[-1]) == size or not self.streams.isdisjoint((name, parts[-1][0])):
                parts.append([])
            parts[-1].append(name)
        return parts

    def count(self, part: Sequence[str]) -> int | None:
        """How many images a part has, as far as the headers of videos tell."""
        return count(part[0]) if part[0] in self.streams else len(part)

    def target(self, name: str, *suffixes: str) -> PurePath:
        """Where the picture or video made of a name goes, relative to the folder of all of them.

        They lie to each other as the sources do. x.jpg stays x.jpg, and x.png is x.png.jpg: no two have one target.
        An address, a camera and a name that is too long get one with a digest in it.

        Args:
            name: of an image or a video.
            suffixes: how the target may end, in lower case; where the name does not, the first is added.
        """
        if not _is_file(name) or len(os.fsencode(Path(name).name + suffixes[0])) > _LONGEST:
            plain = re.sub(r"[^a-zA-Z0-9.-]", "_", name)[-100:]
            return PurePath(f"{blake2b(os.fsencode(name), digest_size=8).hexdigest()}-{plain}{suffixes[0]}")
        target = _true(name)
        if not target.lower().endswith(suffixes):
            target += suffixes[0]
            while target in self.files:
                target += suffixes[0]
        return PurePath(target).relative_to(self.root)


def listing(sources: Sequence[str | Path], out: Path, download: bool = False) -> Listing:
    """Lists sources, but what is in the folder `out`: pictures of the run itself.

    Raises `UserError` where one of them is none.
    """
    names: dict[str, str] = {}
    streams: set[str] = set()
    own = os.path.realpath(out) + os.sep
    for source in sources:
        for item in unread(source, download):
            key = _true(item.name) if _is_file(item.name) else item.name
            if not key.startswith(own):
                names.setdefault(key, item.name)
                if isinstance(item, Stream):
                    streams.add(names[key])
    if not names:
        raise UserError(f"{' '.join(map(str, sources))}: all that is there is in {out}; give others, or another --out")
    files = frozenset(key for key, name in names.items() if _is_file(name))
    return Listing(
        names=tuple(names.values()),
        streams=frozenset(streams),
        cameras=tuple(name for name in streams if not _is_file(name)),
        files=files,
        root=os.path.commonpath({os.path.dirname(file) for file in files}) if files else "",  # noqa: PTH120
    )


def _is_file(name: str) -> bool:
    return "://" not in name and not (name.startswith("camera:") and not name.lower().endswith(VIDEO_SUFFIXES))


def _true(name: str) -> str:
    """The folder without links, and the name in it."""
    folder, file = os.path.split(name)
    return os.path.join(_real(folder), file)  # noqa: PTH118 - a million paths are told apart here


@lru_cache(4096)
def _real(folder: str) -> str:
    return os.path.realpath(folder)
