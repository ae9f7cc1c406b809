"""Classification data in one folder per class, `ROOT/SPLIT/CLASS/*.jpg`, like torchvision's ImageFolder and ImageNet.

The classes are the folder names, sorted. Images may lie at any depth below the folder of their class. Names that start
with a dot (`.ipynb_checkpoints`, macOS's `._1.jpg`) are ignored. Links that lead out of the root are refused, unless
`follow_links` is set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from detect.data.dataset import VALIDATION, Defect
from detect.data.decode import SUFFIXES
from detect.data.defects import DefectLog
from detect.data.image_headers import check_images
from detect.errors import UserError, class_names, one_line


@dataclass(frozen=True, slots=True)
class ImageClasses:
    """One split of images with one label each."""

    root: str
    """The folder, or the name of a built-in data set."""
    split: str
    classes: tuple[str, ...]
    images: tuple[Path, ...] | UInt8[np.ndarray, "n h w 3"]
    """Files, or the RGB pixels of a data set without files."""
    labels: Int64[np.ndarray, " n"]
    """0 … C-1, the index of the class in `classes`."""
    repaired: tuple[Defect, ...] = ()
    """The images that were left out."""

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"ImageClasses({self.root!r}, {self.split}, {len(self):,} images, {class_names(self.classes)})"

    def name(self, index: int) -> str:
        """Return the file of an image, or its index if the data set has no files."""
        image = self.images[index]
        return str(image) if isinstance(image, Path) else str(index)


def read_imagefolder(
    root: Path | str,
    split: str,
    classes: Sequence[str] | None = None,
    skip_unreadable: bool = False,
    follow_links: bool = False,
) -> ImageClasses:
    """Read one split, class by class, and check the header of every image.

    Args:
        root: folder of the splits.
        split: a folder in `root`; `val`, `valid` and `validation` are synonyms if only one of them exists.
        classes: classes of the training split or of a trained model, which define the labels; some may have no folder
            here. By default the folder names.
        skip_unreadable: leave out damaged images, and report them as repaired.
        follow_links: follow links that lead out of the root.

    Raises:
        UserError: the split does not exist, it has no class, a class has no image or is not one of `classes`, or images
            are damaged.
    """
    folder = _folder_of(Path(root), split)
    folders = _folders(folder)
    if not folders:
        raise UserError(f"{folder}: it has no class folder; put the images of each class into a folder with its name")
    names = tuple(path.name for path in folders)
    chosen = names if classes is None else tuple(classes)
    labels = labels_of(names, chosen, folder)
    files = [_files(path) for path in folders]
    _refuse_empty(folders, list(map(len, files)), "has no image")

    paths = [path for of_class in files for path in of_class]
    folder_index = np.repeat(np.arange(len(folders)), list(map(len, files)))
    log = DefectLog(Path(root), folder.name, skip_unreadable=skip_unreadable, follow_links=follow_links)
    readable = _check(paths, log)
    log.raise_refused()
    _refuse_empty(folders, np.bincount(folder_index[readable], minlength=len(folders)), "has no readable image")
    return ImageClasses(
        root=str(root),
        split=folder.name,
        classes=chosen,
        images=tuple(paths[index] for index in readable),
        labels=labels[folder_index[readable]],
        repaired=log.repaired,
    )


def labels_of(names: Sequence[str], classes: Sequence[str], source: object) -> Int64[np.ndarray, " n"]:
    """Return the index of each name in `classes`. Raise `UserError` if one is missing there."""
    label_of = {name: label for label, name in enumerate(classes)}
    if unknown := [name for name in names if name not in label_of]:
        raise UserError(
            f"{source}: {', '.join(unknown[:5])}{' …' if len(unknown) > 5 else ''} is not among the {len(classes)} "
            "classes of the training split or the trained model; add it there and train with it, or remove it here"
        )
    return np.array([label_of[name] for name in names], dtype=np.int64)


def summary(dataset: ImageClasses) -> str:
    """Return a summary of a split: counts of images and classes, smallest and largest class, and images left out."""
    counts = np.bincount(dataset.labels, minlength=len(dataset.classes))
    ends = (f"{counts[label]} ({dataset.classes[label]})" for label in (counts.argmin(), counts.argmax()))
    lines = [
        f"{dataset.root}, split {dataset.split}",
        f"  {len(dataset)} images of {len(dataset.classes)} classes, from {' to '.join(ends)} each",
    ]
    if dataset.repaired:
        first = dataset.repaired[0]
        lines.append(f"  {len(dataset.repaired)} images are left out, first {first.path}: {first.detail}")
    return "\n".join(map(one_line, lines))


def _folder_of(root: Path, split: str) -> Path:
    if not root.is_dir():
        raise UserError(f"{root}: there is no such folder; check the path of the data")
    folders = [path.name for path in _folders(root)]
    synonyms = VALIDATION if split in VALIDATION else (split,)
    names = [split] if split in folders else [name for name in folders if name in synonyms]
    if len(names) != 1:
        listing = ", ".join(folders[:10]) + (" …" if len(folders) > 10 else "") or "no folder"
        raise UserError(
            f"{root}: there is no split {split}, only {listing}; images are expected in {root}/SPLIT/CLASS/; name "
            "one of these, or null for none"
        )
    return root / names[0]


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _files(folder: Path) -> list[Path]:
    images = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    return sorted(path for path in images if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _refuse_empty(folders: Sequence[Path], counts: Sequence[int] | np.ndarray, problem: str) -> None:
    empty = [path for path, count in zip(folders, counts, strict=True) if not count]
    if empty:
        more = f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""
        raise UserError(
            f"{empty[0]}: the class {problem}{more}; add images ({' '.join(SUFFIXES)}) or remove the folder"
        )


def _check(paths: Sequence[Path], log: DefectLog) -> list[int]:
    """Return the indices of the readable images, and log the others as defects."""
    readable = []
    for index, (size, rule, detail) in enumerate(check_images(paths, fence=log.fence)):
        if size is None:
            log.add(rule, paths[index], detail)
        else:
            readable.append(index)
    return readable
