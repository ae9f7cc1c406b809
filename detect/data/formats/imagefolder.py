"""Images sorted into folders, one a class: `ROOT/SPLIT/CLASS/*.jpg`, as torchvision's ImageFolder and ImageNet have it.

A class has the name of its folder, and the classes are sorted by name. Images may lie at any depth below that folder.
What begins with a dot (`.ipynb_checkpoints`, macOS's `._1.jpg`) is no class and no image. Links that lead out of the
root are refused, unless `follow_links` says that they are the user's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from detect.data.dataset import VALIDATION, Defect
from detect.data.decode import SUFFIXES
from detect.data.defects import Findings
from detect.data.image_headers import check_images
from detect.errors import UserError


@dataclass(frozen=True, slots=True)
class ImageClasses:
    """One split of images with one label each."""

    root: str
    """The folder, or the name of a built-in set."""
    split: str
    classes: tuple[str, ...]
    images: tuple[Path, ...] | UInt8[np.ndarray, "n h w 3"]
    """Files, or the RGB pixels of a set that has none."""
    labels: Int64[np.ndarray, " n"]
    """0 … C-1, the place of the class in `classes`."""
    mended: tuple[Defect, ...] = ()
    """The images that were left out."""

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, place: int) -> str:
        """The file of an image; where there are no files, the image's place."""
        image = self.images[place]
        return str(image) if isinstance(image, Path) else str(place)


def read_imagefolder(
    root: Path | str,
    split: str,
    classes: Sequence[str] | None = None,
    skip_unreadable: bool = False,
    follow_links: bool = False,
) -> ImageClasses:
    """One split of a folder of images, class by class, with the header of every image looked at.

    Args:
        root: the folder of the splits.
        split: a folder in it; `val`, `valid` and `validation` mean the same where there is only one.
        classes: those of the training split or of a trained model, which the labels then follow; by default the
            folders' own. A class may then be without a folder here.
        skip_unreadable: leave damaged images out, and count them as mended.
        follow_links: read what links out of the root lead to.

    Raises:
        UserError: there is no such split, it has no class, a class has no image or is not among `classes`, or images
            are damaged.
    """
    folder = _folder_of(Path(root), split)
    folders = _folders(folder)
    if not folders:
        raise UserError(f"{folder}: holds no folder of a class; put the images of each class into one with its name")
    names = tuple(path.name for path in folders)
    chosen = names if classes is None else tuple(classes)
    labels = labels_of(names, chosen, folder)
    files = [_files(path) for path in folders]
    _refuse_empty(folders, list(map(len, files)), "has no image")

    paths = [path for of_class in files for path in of_class]
    place = np.repeat(np.arange(len(folders)), list(map(len, files)))
    findings = Findings(Path(root), folder.name, skip_unreadable=skip_unreadable, follow_links=follow_links)
    readable = _check(paths, findings)
    findings.raise_refused()
    _refuse_empty(folders, np.bincount(place[readable], minlength=len(folders)), "has no image that can be read")
    return ImageClasses(
        root=str(root),
        split=folder.name,
        classes=chosen,
        images=tuple(paths[index] for index in readable),
        labels=labels[place[readable]],
        mended=findings.mended,
    )


def labels_of(names: Sequence[str], classes: Sequence[str], where: object) -> Int64[np.ndarray, " n"]:
    """The label of each class found, in the order of `classes`. Raises `UserError` for one that is not among these."""
    label_of = {name: label for label, name in enumerate(classes)}
    if unknown := [name for name in names if name not in label_of]:
        raise UserError(
            f"{where}: {', '.join(unknown[:5])}{' …' if len(unknown) > 5 else ''} is not among the {len(classes)} "
            "classes of the training split or the trained model; add it there and train with it, or take it out here"
        )
    return np.array([label_of[name] for name in names], dtype=np.int64)


def summary(dataset: ImageClasses) -> str:
    """A few lines for people: the images, the classes with the fewest and the most of them, and what was left out."""
    counts = np.bincount(dataset.labels, minlength=len(dataset.classes))
    ends = (f"{counts[label]} ({dataset.classes[label]})" for label in (counts.argmin(), counts.argmax()))
    lines = [
        f"{dataset.root}, split {dataset.split}",
        f"  {len(dataset)} images of {len(dataset.classes)} classes, from {' to '.join(ends)} each",
    ]
    if dataset.mended:
        first = dataset.mended[0]
        lines.append(f"  {len(dataset.mended)} images are left out, first {first.path}: {first.detail}")
    return "\n".join("".join(letter if letter.isprintable() else "?" for letter in line) for line in lines)


def _folder_of(root: Path, split: str) -> Path:
    if not root.is_dir():
        raise UserError(f"{root}: there is no such folder; check the path of the data")
    there = [path.name for path in _folders(root)]
    same = VALIDATION if split in VALIDATION else (split,)
    names = [split] if split in there else [name for name in there if name in same]
    if len(names) != 1:
        listing = ", ".join(there[:10]) + (" …" if len(there) > 10 else "") or "no folder"
        raise UserError(
            f"{root}: there is no split {split} but {listing}; images are looked for in {root}/SPLIT/CLASS/; name "
            "one of these, or null for none"
        )
    return root / names[0]


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _files(folder: Path) -> list[Path]:
    images = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    return sorted(path for path in images if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _refuse_empty(folders: Sequence[Path], counts: Sequence[int] | np.ndarray, what: str) -> None:
    empty = [path for path, count in zip(folders, counts, strict=True) if not count]
    if empty:
        more = f" (nor have {len(empty) - 1} more)" if len(empty) > 1 else ""
        raise UserError(f"{empty[0]}: the class {what}{more}; add images ({' '.join(SUFFIXES)}) or remove the folder")


def _check(paths: Sequence[Path], findings: Findings) -> list[int]:
    """The places of the images that can be read; the others become defects."""
    readable = []
    for place, (size, rule, detail) in enumerate(check_images(paths, fence=findings.fence)):
        if size is None:
            findings.add(rule, paths[place], detail)
        else:
            readable.append(place)
    return readable
