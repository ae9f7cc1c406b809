"""Files of a data folder, and the images that its annotation files mean."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple, TypeVar

from detect.data.decode import SUFFIXES
from detect.errors import UserError
from detect.files.fence import Fence, as_utf8, inside, is_file, is_folder

SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev"), "test": ("test", "testing")}
"""Synonyms of the usual splits."""
ALL = "all"
"""Name of the only split of a data set that is not divided."""
REST = "rest"
"""Name of the split of all files that belong to no other split."""

_ANNOTATION_FOLDERS = (
    "annotation",
    "annotations",
    "annots",
    "ann",
    "label",
    "label_2",
    "labels",
    "xml",
    "xmls",
    "json",
)
_NO_DATA = re.compile(r"\..*|__MACOSX|Thumbs\.db|desktop\.ini|(README|LICEN[CS]E)\b.*", re.IGNORECASE)
"""Names of files and folders that systems and archives add."""
_SPLIT = re.compile(rf"({'|'.join(name for names in SPLITS.values() for name in names)})[-_]?(\d{{4}})?", re.IGNORECASE)
_HEAD = 2**16
_SAMPLES = 20
T = TypeVar("T")


class FoundImage(NamedTuple):
    """Image that an annotation file means."""

    path: Path
    """The image, which may not exist."""
    renamed: bool = False
    """Whether the file has the name in another spelling, such as with `\\`, an absolute path or another case."""


class Tree:
    """Files below a data folder, listed when they are first needed.

    Hidden files and folders are left out, as are folders behind links unless `follow_links` is set.

    Args:
        place: the data folder, or one of its annotation files, which is then the only one that is read.
        follow_links: as for `Fence`.

    Raises:
        UserError: the folder or file does not exist.
    """

    def __init__(self, place: Path, follow_links: bool = False) -> None:
        self.entry = place if is_file(place) else None
        if self.entry is None and not is_folder(place):
            raise UserError(f"{place}: there is no such folder or file; check the path of the data")
        self.root = place if self.entry is None else folder_of(place)
        self.fence = Fence(self.root, follow_links)
        self._follow_links = follow_links
        self._heads: dict[Path, bytes] = {}
        self._names: dict[Path, dict[str, list[str]]] = {}

    # ---- annotation files ----

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """All files, sorted."""
        seen, files = set(), []
        for folder, folders, names in os.walk(self.root, followlinks=self._follow_links):
            real = os.path.realpath(folder)
            visible = sorted(name for name in folders if not name.startswith("."))
            folders[:] = [] if real in seen else visible  # a link may lead to a folder above it
            files += [Path(folder, name) for name in sorted(names) if not name.startswith(".") and real not in seen]
            seen.add(real)
        return tuple(sorted(files))

    def annotation_files(self, *suffixes: str) -> list[Path]:
        """Return the files with one of these suffixes (in lower case), or the one that the user named."""
        if self.entry is not None:
            return [self.entry] if self.entry.suffix.lower() in suffixes else []
        chosen = [self._by_suffix.get(suffix, []) for suffix in suffixes]
        return chosen[0][:] if len(chosen) == 1 else sorted(path for paths in chosen for path in paths)

    @cached_property
    def _by_suffix(self) -> dict[str, list[Path]]:
        """Files by suffix, in lower case: every format looks for its own."""
        return _index(self.files, lambda path: path.suffix)

    def samples(self, *suffixes: str) -> list[Path]:
        """Return at most 20 annotation files of each folder: enough to recognise one file for each of many images."""
        counts: dict[Path, int] = defaultdict(int)
        chosen = []
        for path in self.annotation_files(*suffixes):
            counts[path.parent] += 1
            if counts[path.parent] <= _SAMPLES:
                chosen.append(path)
        return chosen

    def head(self, path: Path) -> bytes:
        """Return the first 64 KiB of a file; nothing if it may not or cannot be read."""
        if path not in self._heads:
            self._heads[path] = b""
            try:
                if path.is_file() and self.fence.admits(path):
                    with path.open("rb") as file:
                        self._heads[path] = as_utf8(file.read(_HEAD), "ignore").removeprefix(b"\xef\xbb\xbf")
            except OSError:  # reported when the file is read
                pass
        return self._heads[path]

    def spelled(self, path: Path) -> Path:
        """Return a path as the disk has it, without regard to case and to the composition of accented letters.

        It is returned unchanged if it exists, is outside of the root, or has no or several spellings.
        """
        if os.path.exists(path) or not path.is_relative_to(self.root):  # noqa: PTH110  never raises
            return path
        found = self.root
        for part in path.relative_to(self.root).parts:
            spellings = [part] if os.path.exists(found / part) else self._spellings(found, part)  # noqa: PTH110
            if len(spellings) != 1:
                return path
            found /= spellings[0]
        return found

    def _spellings(self, folder: Path, name: str) -> list[str]:
        if folder not in self._names:
            names = os.listdir(folder) if is_folder(folder) else ()  # noqa: PTH208
            self._names[folder] = _index(names, lambda entry: entry)
        return self._names[folder].get(_fold(name), [])

    def by_split(self, paths: Iterable[Path]) -> dict[str, list[Path]]:
        """Group files by the split that their folders are named after; `all` if there is no such folder."""
        return group_by_split((self.split_of(path), path) for path in paths)

    def split_of(self, path: Path) -> str | None:
        """Return the first folder of a file that is named after a split, such as `train2017`."""
        return split_in(path.parent.relative_to(self.root).parts if path.is_relative_to(self.root) else ())

    # ---- images ----

    @cached_property
    def images(self) -> tuple[Path, ...]:
        """All files with the suffix of an image."""
        return tuple(path for path in self.files if path.suffix.lower() in SUFFIXES)

    def image(self, name: str, folders: Sequence[Path] = (), split: str | None = None) -> FoundImage | None:
        """Return the image that an annotation file calls `name`.

        That is the file of this name in the first of `folders` that has it, by default in the root. Otherwise it is the
        only image whose path ends like `name`, by as many folders as possible, without regard to case, to the kind of
        slash, to the composition of accented letters and, if nothing else fits, to the suffix. An image in the folder
        of another split than `split` is not taken. If there is no such image, the path in the first folder is returned,
        or None if that is outside of the root.
        """
        folders = folders or (self.root,)
        first = None
        for folder in folders:
            path = inside(self.root, folder, name)
            if path is not None and is_file(path):
                return FoundImage(path)
            first = first or path
        parts = _folded_parts(name)
        if parts and (path := self._by_tail(parts, split)) is not None:
            spellings = path.as_posix(), path.with_suffix("").as_posix()  # a name without suffix may be an id
            return FoundImage(path, renamed=not any(text.endswith(name.removeprefix("./")) for text in spellings))
        return FoundImage(first) if first else None

    def image_of(self, annotation: Path) -> Path | None:
        """Return the image of an annotation file with the same stem (`a.xml` or `a.jpg.xml`), or None.

        Of several, it is the one in the same folder, or else in the nearest one, such as `../images`. An image in the
        folder of another split is not taken.
        """
        stem, split = _fold(annotation.stem), usual_split(self.split_of(annotation))
        candidates = self._images_by_stem.get(stem, []) + self._images_by_name.get(stem, [])
        candidates = [path for path in candidates if self._may_be_in(path, split)]
        home = annotation.parent.parts

        def nearness(path: Path) -> tuple[bool, int, int]:
            folders = path.parent.parts
            return folders == home, _common(home, folders), len({*home} & {*folders})

        best = max(map(nearness, candidates), default=None)
        nearest = [path for path in candidates if nearness(path) == best]
        return nearest[0] if len(nearest) == 1 else None

    @cached_property
    def _images_by_name(self) -> dict[str, list[Path]]:
        return _index(self.images, lambda path: path.name)

    @cached_property
    def _images_by_stem(self) -> dict[str, list[Path]]:
        return _index(self.images, lambda path: path.stem)

    def _by_tail(self, parts: Sequence[str], split: str | None) -> Path | None:
        name, (stem, suffix) = parts[-1], os.path.splitext(parts[-1])  # noqa: PTH122  also of names such as "..."
        candidates = self._images_by_name.get(name) or self._images_by_stem.get(name, [])
        if not candidates and suffix in SUFFIXES:
            candidates = self._images_by_stem.get(stem, [])
        named = usual_split(split_in(parts[:-1])) or _only_split(split or "")
        lengths: dict[int, list[Path]] = defaultdict(list)
        for path in candidates:
            if self._may_be_in(path, named):
                tail = [*map(_fold, path.relative_to(self.root).parts[:-1])]
                lengths[_common(tail[::-1], parts[-2::-1])].append(path)
        best = lengths[max(lengths)] if lengths else []
        return best[0] if len(best) == 1 else None

    def _may_be_in(self, image: Path, split: str | None) -> bool:
        """Return whether an image is not in the folder of another of the usual splits."""
        home = usual_split(self.split_of(image))
        return split is None or home is None or split == home


def unwrapped(root: Path) -> Path:
    """Return the data folder in a folder that contains nothing but one folder, as archives often do.

    A folder that is named after a split or holds annotations is a part of the data set, not the data set.
    """
    entries = [path for path in root.iterdir() if not _NO_DATA.fullmatch(path.name)] if is_folder(root) else []
    if len(entries) != 1 or not is_folder(entries[0]) or entries[0].is_symlink():
        return root
    name = entries[0].name
    return root if usual_split(name) or name.lower() in _ANNOTATION_FOLDERS else unwrapped(entries[0])


def group_by_split(pairs: Iterable[tuple[str | None, Path]]) -> dict[str, list[Path]]:
    """Group files by their split. Files without one are the split `rest`, or `all` if no file has one."""
    groups: dict[str, list[Path]] = defaultdict(list)
    for split, path in pairs:
        groups[split or REST].append(path)
    return {ALL: groups[REST]} if set(groups) == {REST} else dict(sorted(groups.items()))


def split_in(words: Iterable[str]) -> str | None:
    """Return the first word that is the name of a usual split, such as `train2017` or `Validation`."""
    return next((word for word in words if _SPLIT.fullmatch(word)), None)


def split_word(name: str) -> str | None:
    """Return the first word of a name that is the name of a usual split, such as `train` in `train_labels`."""
    return split_in(words(name))


def _only_split(name: str) -> str | None:
    """Return the usual split that a name such as `val_coco` has, or None if it has none or several."""
    usual = {found for word in words(name) if (found := usual_split(word))}
    return usual.pop() if len(usual) == 1 else None


def words(name: str) -> list[str]:
    """Return the parts of a file name between dots, spaces, `-` and `_`."""
    return re.split(r"[-_. ]+", name)


def usual_split(name: str | None) -> str | None:
    """Return `train`, `val` or `test` for one of their synonyms, also with a year; otherwise None."""
    match = _SPLIT.fullmatch(name or "")
    return match and next(usual for usual, names in SPLITS.items() if match[1].lower() in names)


def _index(paths: Iterable[T], key: Callable[[T], str]) -> dict[str, list[T]]:
    index: dict[str, list[T]] = defaultdict(list)
    for path in paths:
        index[_fold(key(path))].append(path)
    return index


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the number of equal words at the start of both lists."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _folded_parts(name: str) -> list[str]:
    return [_fold(part) for part in re.split(r"[/\\]", name) if part not in ("", ".", "..")]


def folder_of(file: Path) -> Path:
    """Return the data folder of an annotation file: the folder above `annotations`, or else the file's own."""
    folder = file.parent
    if folder.absolute().name.lower() not in _ANNOTATION_FOLDERS:
        return folder
    return folder.absolute().parent if folder == Path() else folder.parent
