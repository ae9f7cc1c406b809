"""Search for files in a data folder that readers must not open, or that no split uses."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from detect.curation.doctor.diagnosis import Finding
from detect.data.decode import SUFFIXES
from detect.data.formats import USUAL_FILES
from detect.data.formats.voc import MASK_FOLDERS
from detect.files.fence import MAX_BYTES


@dataclass(slots=True)
class Folder:
    """All files below a root, listed without following links."""

    root: Path
    images: list[Path] = field(default_factory=list)
    annotations: list[Path] = field(default_factory=list)
    """Files that a reader may parse."""
    blocked: set[Path] = field(default_factory=set)
    """Files and folders that must not be opened: links out of the root, special files, and files that are too large."""
    findings: list[Finding] = field(default_factory=list)

    def may_open(self, path: Path) -> bool:
        """Return whether neither the file nor a parent folder is blocked."""
        return self.blocked.isdisjoint((path, *path.parents))

    def may_parse(self) -> bool:
        """Return whether a reader can run safely: no file is too large, and all entry files are regular files."""
        too_large = any(finding.rule == "oversized-file" for finding in self.findings)
        patterns = (pattern for patterns in USUAL_FILES.values() for pattern in patterns)
        entry_files = (path for pattern in patterns for path in self.root.glob(pattern))
        return not too_large and all(self.may_open(path) and path.is_file() for path in entry_files)


def scan_folder(root: Path) -> Folder:
    """List everything below `root`."""
    folder = Folder(root)
    top = root.resolve()
    for parent, folders, files in os.walk(root):  # sorted below, so that reports are reproducible
        folders.sort()
        for name in sorted(files):
            _add_file(Path(parent, name), top, folder)
        for name in [name for name in folders if Path(parent, name).is_symlink()]:
            _check_link(Path(parent, name), top, folder)
    return folder


def _add_file(path: Path, top: Path, folder: Folder) -> None:
    if path.is_symlink() and not _check_link(path, top, folder):
        return
    try:
        status = path.stat()
    except OSError:  # a broken link, reported as a missing image if it is listed
        return
    if not stat.S_ISREG(status.st_mode):
        folder.blocked.add(path)
        folder.findings.append(Finding("special-file", path, "it is a pipe, a socket or a device, not a file"))
    elif _is_annotation(path):
        if status.st_size > MAX_BYTES[path.suffix.lower()]:
            folder.blocked.add(path)
            folder.findings.append(Finding("oversized-file", path, f"it has {status.st_size / 2**20:,.0f} MiB"))
        else:
            folder.annotations.append(path)
    elif path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
        folder.images.append(path)


def _check_link(path: Path, top: Path, folder: Folder) -> bool:
    """Return whether a link leads to a path below the root; otherwise report and block it."""
    try:
        real = path.resolve()
        if real.is_relative_to(top) and not real.is_symlink():
            return True
    except (OSError, RuntimeError):  # a link to itself, which Python 3.13 and later return unresolved
        pass
    folder.blocked.add(path)
    folder.findings.append(Finding("path-outside-root", path, "a link leads out of the data folder"))
    return False


def _is_annotation(path: Path) -> bool:
    """Return whether a reader may parse the file. JSON files must have the names of COCO's."""
    suffix = path.suffix.lower()
    if suffix == ".json":
        return path.name.startswith("instances_") or path.name == "_annotations.coco.json"
    return suffix in MAX_BYTES


def unlisted_images(folder: Folder, listed: Collection[Path]) -> Iterator[Finding]:
    """Yield a finding for each image that no split lists, except VOC's images of masks."""
    known = {path.absolute() for path in listed}
    for path in folder.images:
        if path.absolute() not in known and path.parent.name not in MASK_FOLDERS:
            yield Finding("unlisted-image", path, "no annotation and no list names it", images=(path,))


def orphaned_annotations(folder: Folder, format: str, sources: Collection[Path]) -> Iterator[Finding]:
    """Yield a finding for each annotation file of one image (VOC's XML, YOLO's labels) whose image is missing."""
    if format not in ("voc", "yolo"):
        return
    home, suffix, images = ("Annotations", ".xml", "JPEGImages") if format == "voc" else ("labels", ".txt", "images")
    existing = {path.relative_to(folder.root).with_suffix("") for path in folder.images}
    known = {path.absolute() for path in sources}
    for path in folder.annotations:
        parts = list(path.relative_to(folder.root).with_suffix("").parts)
        if path.suffix.lower() == suffix and home in parts and path.absolute() not in known:
            parts[len(parts) - 1 - parts[::-1].index(home)] = images
            if Path(*parts) not in existing:
                yield Finding("orphan-annotation", path, "its image is missing")
