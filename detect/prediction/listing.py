"""List of all images, videos and cameras of a run, with the parts of the work and the output paths."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path, PurePath
from typing import Literal

from detect.errors import UserError
from detect.prediction.sources import VIDEO_SUFFIXES, StreamItem, count_frames, expand_source

_MAX_PART_IMAGES, _MIN_PARTS = 256, 64
"""Approximate maximum number of images per part, and minimum number of parts, which balances shards."""

_MAX_NAME_BYTES = 255
"""Maximum length of a file name in bytes."""


@dataclass(frozen=True, slots=True)
class Part:
    """Part of the work: consecutive images, or one video or camera."""

    names: list[str]
    """Sources for `frames`."""
    kind: Literal["images", "video", "camera"]
    drawings: list[str]
    """Path of the picture of each image, or of the video, in the folder of all of them; empty if none are drawn."""


@dataclass(frozen=True, slots=True)
class Listing:
    """Images, videos and cameras of some sources, each once, in the order of the sources."""

    names: tuple[str, ...]
    """Sources for `frames`."""
    streams: frozenset[str]
    """Names of the videos and cameras."""
    cameras: tuple[str, ...]
    """Names of the cameras."""
    files: frozenset[str]
    """Paths of the files, their folders resolved."""
    root: str
    """Deepest folder that contains all files."""

    @property
    def digest(self) -> str:
        """Digest of all names in order."""
        state = blake2b(digest_size=16)
        for name in self.names:
            state.update(os.fsencode(name) + b"\0")
        return state.hexdigest()

    def part_size(self, batch_size: int) -> int:
        """Return the maximum number of images of a part of the work, a multiple of the batch size."""
        balanced = max(1, min(_MAX_PART_IMAGES, -(-len(self.names) // _MIN_PARTS)))
        return -(-balanced // batch_size) * batch_size

    def parts(self, size: int) -> list[list[str]]:
        """Split the work into parts of at most `size` consecutive images, or of one video or camera."""
        parts: list[list[str]] = []
        for name in self.names:
            if not parts or len(parts[-1]) == size or not self.streams.isdisjoint((name, parts[-1][0])):
                parts.append([])
            parts[-1].append(name)
        return parts

    def part(self, names: Sequence[str], draws: bool) -> Part:
        """Return a part with these names, with the paths of its drawings if `draws`."""
        if names[0] in self.streams:
            drawings = [str(self.output_path(names[0], ".mp4"))] if draws else []
            return Part(list(names), "camera" if names[0] in self.cameras else "video", drawings)
        return Part(
            list(names), "images", [str(self.output_path(name, ".jpg", ".jpeg")) for name in names] if draws else []
        )

    def count_images(self, part: Sequence[str]) -> int | None:
        """Return the number of images of a part; for a video, the number in its header, or None without one."""
        return count_frames(part[0]) if part[0] in self.streams else len(part)

    def output_path(self, name: str, *suffixes: str) -> PurePath:
        """Return the path of the picture or video drawn for a source, relative to the folder of all of them.

        The folders are those of the sources. No two sources have the same path: x.jpg stays x.jpg, and x.png
        becomes x.png.jpg. Web addresses, cameras and names that would be too long get a name with a digest.

        Args:
            name: an image or a video of the listing.
            suffixes: allowed suffixes in lower case; the first is appended to a name that has none of them.
        """
        if not _is_file(name) or len(os.fsencode(Path(name).name + suffixes[0])) > _MAX_NAME_BYTES:
            plain = re.sub(r"[^a-zA-Z0-9.-]", "_", name)[-100:]
            return PurePath(f"{blake2b(os.fsencode(name), digest_size=8).hexdigest()}-{plain}{suffixes[0]}")
        path = _resolve_folder(name)
        if not path.lower().endswith(suffixes):
            path += suffixes[0]
            while path in self.files:
                path += suffixes[0]
        return PurePath(path).relative_to(self.root)


def list_sources(sources: Sequence[str | Path], out: Path, download: bool = False) -> Listing:
    """List the images, videos and cameras of some sources.

    Args:
        sources: paths, patterns, web addresses and cameras.
        out: folder of the run; files in it are left out, since they are results of the run itself.
        download: allow web addresses to be downloaded.

    Raises:
        UserError: a source does not exist, has no images, or has only files in `out`.
    """
    names: dict[str, str] = {}
    streams: set[str] = set()
    out_prefix = os.path.realpath(out) + os.sep
    for source in sources:
        for item in expand_source(source, download):
            key = _resolve_folder(item.name) if _is_file(item.name) else item.name
            if not key.startswith(out_prefix):
                names.setdefault(key, item.name)
                if isinstance(item, StreamItem):
                    streams.add(names[key])
    if not names:
        raise UserError(f"{' '.join(map(str, sources))}: all images are in {out}; give other sources or another --out")
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


def _resolve_folder(path: str) -> str:
    """Return the path with the links of its folder resolved; the file may still be a link."""
    folder, name = os.path.split(path)
    return os.path.join(_real_path(folder), name)  # noqa: PTH118  pathlib is slow for a million paths


@lru_cache(4096)
def _real_path(folder: str) -> str:
    return os.path.realpath(folder)
