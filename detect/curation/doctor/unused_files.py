"""What lies in a data folder: links out of it, devices, files too large to read, images that nothing names."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from detect.curation.doctor.diagnosis import Finding
from detect.data.decode import SUFFIXES

_MOST_BYTES = {".json": 2**31, ".xml": 2**24, ".txt": 2**26, ".yaml": 2**20}
"""Ten times what the largest public data sets have; parsing takes several times as much memory."""


_HEADS = (
    "annotations/instances_*.json",
    "*/_annotations.coco.json",
    "data.yaml",
    *(f"{base}ImageSets/Main/*.txt" for base in ("", "VOC*/", "VOCdevkit/VOC*/")),
)
"""The files that readers begin with."""


@dataclass(slots=True)
class Folder:
    """All files below a root, found without following links."""

    root: Path
    images: list[Path] = field(default_factory=list)
    annotations: list[Path] = field(default_factory=list)
    """Files that a reader may want to parse."""
    blocked: set[Path] = field(default_factory=set)
    """Files and folders that must not be opened: they lead out of the root, are no files, or are too large."""
    findings: list[Finding] = field(default_factory=list)

    def may_open(self, path: Path) -> bool:
        """Whether neither the file nor a folder on the way to it is blocked."""
        return self.blocked.isdisjoint((path, *path.parents))

    def may_parse(self) -> bool:
        """Whether a reader can be let loose: the files that it opens unseen are files, and none is too large."""
        too_large = any(finding.rule == "oversized-file" for finding in self.findings)
        heads = (path for pattern in _HEADS for path in self.root.glob(pattern))
        return not too_large and all(self.may_open(path) and path.is_file() for path in heads)


def walk(root: Path) -> Folder:
    """Everything below `root`."""
    folder = Folder(root)
    top = root.resolve()
    for parent, folders, files in os.walk(root):  # sorted, so that two runs tell the same
        folders.sort()
        for name in sorted(files):
            _sort_in(Path(parent, name), top, folder)
        for name in [name for name in folders if Path(parent, name).is_symlink()]:
            _check_link(Path(parent, name), top, folder)
    return folder


def _sort_in(path: Path, top: Path, folder: Folder) -> None:
    if path.is_symlink() and not _check_link(path, top, folder):
        return
    try:
        status = path.stat()
    except OSError:  # a link that leads nowhere: the image is missed where it is listed
        return
    if not stat.S_ISREG(status.st_mode):
        folder.blocked.add(path)
        folder.findings.append(Finding("special-file", path, "it is a pipe, a socket or a device, and no file"))
    elif _is_annotation(path):
        if status.st_size > _MOST_BYTES[path.suffix.lower()]:
            folder.blocked.add(path)
            folder.findings.append(Finding("oversized-file", path, f"it has {status.st_size / 2**20:,.0f} MiB"))
        else:
            folder.annotations.append(path)
    elif path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
        folder.images.append(path)


def _check_link(path: Path, top: Path, folder: Folder) -> bool:
    """Whether a link stays below the root; one that does not is a finding and is not followed."""
    try:
        real = path.resolve()
        if real.is_relative_to(top) and not real.is_symlink():
            return True
    except (OSError, RuntimeError):  # a link to itself, which Python from 3.13 on leaves as it is
        pass
    folder.blocked.add(path)
    folder.findings.append(Finding("path-outside-root", path, "it is a link that leads out of the data folder"))
    return False


def _is_annotation(path: Path) -> bool:
    """Whether some reader may parse it: JSON only where COCO has it, since much else is kept in JSON."""
    suffix = path.suffix.lower()
    if suffix == ".json":
        return path.name.startswith("instances_") or path.name == "_annotations.coco.json"
    return suffix in _MOST_BYTES


def unlisted(folder: Folder, listed: Collection[Path]) -> Iterator[Finding]:
    """The images that no split lists."""
    known = {path.absolute() for path in listed}
    for path in folder.images:
        if path.absolute() not in known:
            yield Finding("unlisted-image", path, "no annotation and no list names it", images=(path,))


def orphans(folder: Folder, format: str, sources: Collection[Path]) -> Iterator[Finding]:
    """The annotation files of single images, VOC's XML and YOLO's labels, whose image is not there."""
    if format == "coco":
        return
    home, suffix, images = ("Annotations", ".xml", "JPEGImages") if format == "voc" else ("labels", ".txt", "images")
    there = {path.relative_to(folder.root).with_suffix("") for path in folder.images}
    known = {path.absolute() for path in sources}
    for path in folder.annotations:
        parts = list(path.relative_to(folder.root).with_suffix("").parts)
        if path.suffix.lower() == suffix and home in parts and path.absolute() not in known:
            parts[len(parts) - 1 - parts[::-1].index(home)] = images
            if Path(*parts) not in there:
                yield Finding("orphan-annotation", path, "its image is not there")
