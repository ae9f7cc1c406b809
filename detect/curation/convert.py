"""A detection data set from any format that `read` knows to COCO, VOC or YOLO, or to crops for a classifier.

    to="coco"         OUT/annotations/instances_SPLIT.json, OUT/SPLIT/IMAGE
    to="voc"          OUT/JPEGImages/IMAGE, OUT/Annotations/IMAGE.xml, OUT/ImageSets/Main/SPLIT.txt
    to="yolo"         OUT/data.yaml, OUT/images/SPLIT/IMAGE, OUT/labels/SPLIT/IMAGE.txt
    to="imagefolder"  OUT/SPLIT/CLASS/IMAGE_k.jpg, by `detect.curation.crops`

Image files are copied byte by byte. What is read of a data set are its boxes with class, area, `iscrowd` and
`difficult`; masks, key points, poses and the like stay behind. What of the rest a format cannot hold is counted.
"""

from __future__ import annotations

import filecmp
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal
from xml.etree.ElementTree import Element, ParseError, fromstring, tostring

import numpy as np
from jaxtyping import Bool
from PIL import Image
from rich.console import Console
from rich.progress import track

from detect.curation.crops import Crops, safe_name, to_imagefolder
from detect.curation.writers import voc_boxes, write_coco, write_voc, write_yaml, write_yolo
from detect.data.dataset import VALIDATION, Dataset, Record
from detect.data.decode import SUFFIXES, orientation
from detect.data.defects import RULES
from detect.data.read import image_ids, read_all
from detect.errors import UserError, one_line
from detect.files.atomic import new_folder, refuse_within

Format = Literal["coco", "voc", "yolo"]

_NOT_READ = "boxes are all that is converted: masks, key points, poses and the like are not read"
_YOLO_SPLIT = re.compile(rf"(train|{'|'.join(VALIDATION)}|test)(\d{{4}})?")


@dataclass(slots=True)
class Conversion:
    """What became of a data set."""

    images: Counter[str] = field(default_factory=Counter)
    """Images written, by split."""
    boxes: Counter[str] = field(default_factory=Counter)
    """Boxes written, by split."""
    changed: Counter[str] = field(default_factory=Counter)
    """What the new format cannot hold and what was repaired on the way: how often, by what happened."""
    unreadable: list[str] = field(default_factory=list)
    """Images left out, with the reason."""
    classes: tuple[str, ...] = ()
    """The classes of the new data set, in its order."""

    def lines(self) -> list[str]:
        """What to tell the user."""
        written = [f"{split}: {self.images[split]} images, {self.boxes[split]} boxes" for split in self.images]
        changed = [f"{number} × {what}" for what, number in self.changed.items() if number]
        return [*written, f"{len(self.classes)} classes", *changed, _NOT_READ]


def convert(
    source: Path | str,
    out: Path | str,
    to: Literal["coco", "voc", "yolo", "imagefolder"],
    names: Sequence[str] | None = None,
    *,
    margin: float | None = None,
    limit: int | None = None,
    follow_links: bool = False,
    progress: bool = True,
) -> Conversion | Crops:
    """Writes a data set, or some splits of it, in another format.

    Args:
        source: the folder of the data set.
        out: the new folder; it appears complete or not at all.
        to: the format.
        names: the splits; by default all.
        margin: for `imagefolder`, as for `to_imagefolder`; 0.1 if not given.
        limit: take the first so many images of each split.
        follow_links: read what links out of the source lead to.
        progress: show bars.

    Returns:
        What was written, and what was lost; its `lines()` tell it.

    Raises:
        UserError: `source` cannot be read, `out` is not empty, lies in `source` or cannot be written, an option makes
            no sense, or the format knows no such split or class.
    """
    refuse_within(source, out, "--out")
    if to == "imagefolder":
        margin = 0.1 if margin is None else margin
        return to_imagefolder(
            source, Path(out), names, margin=margin, limit=limit, follow_links=follow_links, progress=progress
        )
    if margin is not None:
        raise UserError(f"--margin: only crops (--to imagefolder) have one; leave it out with --to {to}")
    if limit is not None and limit < 1:
        raise UserError(f"--limit: {limit}; convert 1 image at least")
    done = Conversion()
    by_split = read_all(source, names, follow_links=follow_links, progress=progress)
    datasets = _agree([_first(dataset, limit, done) for dataset in by_split.values()])
    if to == "yolo":
        datasets = _yolo_splits(datasets, chosen=names is not None, done=done)
    datasets = [_held(dataset, to, done) for dataset in datasets]
    done.classes = _classes(datasets, to, done)
    try:
        with new_folder(Path(out)) as draft:
            _write(datasets, draft, to, progress, done)
    except OSError as error:
        raise UserError(f"{error.filename or out}: {error.strerror}; fix that or choose another --out") from error
    return done


# ----------------------------------------------------------------------------------------------------------------- read


def _first(dataset: Dataset, limit: int | None, done: Conversion) -> Dataset:
    """The first images of a split; what was repaired in all of it is counted."""
    for defect in dataset.repaired:
        if defect.rule in ("missing-image", "unreadable-image"):
            done.unreadable.append(f"{defect.path}: {defect.detail}")
        else:
            done.changed[f"{defect.rule}: {RULES[defect.rule].action}"] += 1
    return replace(dataset, records=dataset.records[:limit])


def _agree(datasets: Sequence[Dataset]) -> list[Dataset]:
    """The splits with the same classes: those of all, sorted by id as the reader of COCO has them.

    COCO lists the classes of each split, and two splits may disagree. Ids that do are counted anew.
    """
    id_of: dict[str, int] = {}
    for dataset in datasets:
        for name, id in zip(dataset.classes, dataset.category_ids, strict=True):
            id_of.setdefault(name, id)
    if len(set(id_of.values())) < len(id_of):
        id_of = {name: id for id, name in enumerate(id_of, start=1)}
    classes = tuple(sorted(id_of, key=id_of.__getitem__))
    return [_relabel(dataset, classes, tuple(id_of[name] for name in classes)) for dataset in datasets]


def _relabel(dataset: Dataset, classes: tuple[str, ...], category_ids: tuple[int, ...]) -> Dataset:
    place = np.array([classes.index(name) for name in dataset.classes], dtype=np.int64)
    records = tuple(replace(record, labels=place[record.labels]) for record in dataset.records)
    return replace(dataset, classes=classes, category_ids=category_ids, records=records)


# ----------------------------------------------------------------------------------------------- what a format can hold


def _yolo_splits(datasets: Sequence[Dataset], *, chosen: bool, done: Conversion) -> list[Dataset]:
    """The splits under YOLO's names. One without such a name is left out if the others have all of its images."""
    known = [dataset for dataset in datasets if _YOLO_SPLIT.fullmatch(dataset.split)]
    there = {record.path for dataset in known for record in dataset.records}
    renamed: dict[str, Dataset] = {}
    for dataset in datasets:
        match = _YOLO_SPLIT.fullmatch(dataset.split)
        if match:
            name = "val" if match[1] in VALIDATION else match[1]
            if name in renamed:
                both = f"the splits {renamed[name].split} and {dataset.split} would both be YOLO's {name}"
                raise UserError(f"{dataset.root}: {both}; name one of them with --split")
            renamed[name] = dataset
        elif chosen or not there or not all(record.path in there for record in dataset.records):
            what = f"YOLO knows train, val and test, but no split {dataset.split}"
            raise UserError(one_line(f"{dataset.root}: {what}; name others with --split"))
        else:
            done.changed[f"split {dataset.split} is left out: YOLO has none, and the others have its images"] += 1
    return [replace(dataset, split=name) for name, dataset in renamed.items()]


def _held(dataset: Dataset, to: Format, done: Conversion) -> Dataset:
    """The split with only those boxes that a format can hold; what it cannot hold is counted."""
    crowd, difficult, areas = (_column(dataset, name) for name in ("crowd", "difficult", "areas"))
    boxes = np.concatenate([np.zeros((0, 4), np.float32), *(record.boxes for record in dataset.records)])
    kept = np.ones(len(boxes), dtype=bool)
    if to != "coco":
        done.changed[f"crowd left out: {to.upper()} knows single objects only"] += int(crowd.sum())
        kept &= ~crowd
    if to == "voc":
        corners = voc_boxes(dataset)
        thin = ~(corners[:, :2] < corners[:, 2:]).all(axis=1)
        done.changed["box left out: in VOC one no wider or no higher than a pixel has no area"] += int(
            (thin & kept).sum()
        )
        kept &= ~thin
    else:
        count = int(difficult.sum())
        done.changed[f"object is no longer marked difficult: {to.upper()} has no such mark"] += count
    if to != "coco":
        own = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        other = ~np.isclose(areas, own, rtol=1e-5, atol=0) & kept
        done.changed[f"area is now that of the box: {to.upper()} has no other"] += int(other.sum())
    parts = np.split(kept, np.cumsum([len(record.boxes) for record in dataset.records]))
    return replace(dataset, records=tuple(map(_select, dataset.records, parts)))


def _column(dataset: Dataset, name: str) -> np.ndarray:
    kind = np.float64 if name == "areas" else bool
    return np.concatenate([np.zeros(0, kind), *(getattr(record, name) for record in dataset.records)])


def _select(record: Record, kept: Bool[np.ndarray, " n"]) -> Record:
    if kept.all():
        return record
    columns = ("boxes", "labels", "crowd", "difficult", "areas")
    return replace(record, **{name: getattr(record, name)[kept] for name in columns})


def _classes(datasets: Sequence[Dataset], to: Format, done: Conversion) -> tuple[str, ...]:
    """The classes that the reader of a format finds, in their order; what that changes is counted."""
    classes = datasets[0].classes
    before = dict(zip(classes, datasets[0].category_ids, strict=True))
    after = before
    if to == "yolo":
        after = {name: label for label, name in enumerate(classes)}
        for name in classes:
            if not _is_utf8(name):
                raise _class_refused(name, to, datasets[0])
    if to == "voc":
        used = {label for dataset in datasets for record in dataset.records for label in record.labels.tolist()}
        found = sorted(classes[label] for label in used)
        for name in found:
            if not _is_xml(name):
                raise _class_refused(name, to, datasets[0])
        done.changed["class without an object is gone: VOC has no list of classes"] += len(classes) - len(found)
        after = {name: id for id, name in enumerate(found, start=1)}
    if datasets[0].format == "coco":
        changed = sum(before[name] != id for name, id in after.items())
        done.changed[f"category gets another id: {to.upper()} counts them by itself"] += changed
    return tuple(after)


def _is_xml(name: str) -> bool:
    """Whether a name comes back from an XML file as it is; the reader takes off what is blank around it."""
    element = Element("name")
    element.text = name
    try:
        return bool(name) and fromstring(tostring(element, encoding="utf-8")).text == name == name.strip()
    except (ParseError, UnicodeEncodeError):
        return False


def _is_utf8(name: str) -> bool:
    """Whether a name can be written at all: JSON may hold halves of letters."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def _class_refused(name: str, to: Format, dataset: Dataset) -> UserError:
    what = f"{to.upper()} cannot hold the class {name[:60]!a}"
    return UserError(one_line(f"{dataset.root}: {what}; give it another name in the annotations"))


# ---------------------------------------------------------------------------------------------------------------- write


def _write(datasets: Sequence[Dataset], draft: Path, to: Format, progress: bool, done: Conversion) -> None:
    """Copies the images of all splits and writes their boxes."""
    console = Console(stderr=True)
    shown = progress and console.is_terminal
    names = _Names(per_split=to != "voc")
    for dataset in datasets:
        folder = draft / {"coco": dataset.split, "voc": "JPEGImages", "yolo": f"images/{dataset.split}"}[to]
        folder.mkdir(parents=True, exist_ok=True)
        files = []
        for record in track(dataset.records, f"Writing {dataset.split}", console=console, disable=not shown):
            name, new = names.choose(record, dataset.split)
            files.append(name)
            if new:
                shutil.copyfile(record.path, folder / name)
                done.changed["image renamed: another has its name, or some systems forbid it"] += (
                    name != record.path.name
                )
                turned = orientation(record.path) != 1
                done.changed["image is stored turned (EXIF): its boxes are those of the upright image"] += turned
        if to != "coco" and dataset.format == "coco":
            ids = zip(dataset.records, image_ids([Path(name) for name in files]), strict=True)
            what = f"image gets another id: {to.upper()} has only the digits of its name"
            done.changed[what] += sum(record.id != id for record, id in ids)
        write = {"coco": write_coco, "voc": write_voc, "yolo": write_yolo}[to]
        write(draft, dataset.split, files, dataset)
        done.images[dataset.split] = len(dataset)
        done.boxes[dataset.split] = sum(len(record.boxes) for record in dataset.records)
    if to == "yolo":
        write_yaml(draft, [dataset.split for dataset in datasets], datasets[0].classes)


class _Names:
    """The names of the image files: as they were, but safe everywhere, and no two in a folder with the same stem.

    VOC has one folder for all splits, in which an image of several splits lies once.
    """

    def __init__(self, *, per_split: bool):
        self._per_split = per_split
        self._taken: set[tuple[str, str]] = set()
        self._chosen: dict[tuple[str, str], list[tuple[Record, str]]] = {}

    def choose(self, record: Record, split: str) -> tuple[str, bool]:
        """The name of a record's image, and whether it is a new one."""
        folder = split if self._per_split else ""
        others = self._chosen.setdefault((folder, record.path.name), [])
        for other, name in others:
            if not self._per_split and _same(record, other):
                return name, False
        suffix = record.path.suffix if record.path.suffix.lower() in SUFFIXES else _suffix(record.path)
        first = safe_name(record.path.name.removesuffix(suffix)) or "image"
        if first.lower().endswith(SUFFIXES):  # the list of VOC may hold names with their ending, which goes
            first = "_".join(first.rsplit(".", 1))
        stem, number = first, 1
        while (folder, stem.casefold()) in self._taken:
            number += 1
            stem = f"{first}_{number}"
        self._taken.add((folder, stem.casefold()))
        others.append((record, stem + suffix))
        return stem + suffix, True


def _same(one: Record, other: Record) -> bool:
    """Whether two records are one image with the same boxes."""
    columns = ("boxes", "labels", "difficult")
    boxes = all(np.array_equal(getattr(one, name), getattr(other, name)) for name in columns)
    return boxes and (one.path == other.path or filecmp.cmp(one.path, other.path, shallow=False))


def _suffix(path: Path) -> str:
    """The usual ending of a file's format, for one that has none."""
    with Image.open(path) as image:
        return {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif"}.get(image.format or "", f".{image.format}".lower())
