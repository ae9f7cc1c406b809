"""Conversion of a detection data set from any readable format to COCO, VOC or YOLO, or to crops for a classifier.

    to="coco"         OUT/annotations/instances_SPLIT.json, OUT/SPLIT/IMAGE
    to="voc"          OUT/JPEGImages/IMAGE, OUT/Annotations/IMAGE.xml, OUT/ImageSets/Main/SPLIT.txt
    to="yolo"         OUT/data.yaml, OUT/images/SPLIT/IMAGE, OUT/labels/SPLIT/IMAGE.txt
    to="imagefolder"  OUT/SPLIT/CLASS/IMAGE_k.jpg, by `detect.curation.crops`

Image files are copied byte by byte. Boxes are converted with class, area, `iscrowd`, `difficult` and mask; keypoints
and poses are not read. Losses due to the limits of a format are counted. YOLO has one polygon per object: several
pieces and holes are joined by lines, see `detect.data.outlines`.
"""

from __future__ import annotations

import filecmp
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from xml.etree.ElementTree import Element, ParseError, fromstring, tostring

import numpy as np
from PIL import Image

from detect.curation.crops import Crops, safe_name, to_imagefolder
from detect.curation.mask_limits import BOX_AMONG_POLYGONS, fit_masks
from detect.curation.writers import voc_boxes, write_coco, write_voc, write_yaml, write_yolo
from detect.data.dataset import Dataset
from detect.data.decode import SUFFIXES, orientation
from detect.data.defects import RULES
from detect.data.merge import unify_classes
from detect.data.read import image_ids, read_all
from detect.data.records import Record
from detect.data.tree import ALL, usual_split
from detect.errors import UserError, one_line
from detect.files.atomic import new_folder, refuse_within
from detect.terminal import track

Format = Literal["coco", "voc", "yolo"]

_NOT_READ = "only boxes are converted: keypoints and poses are not read"
_WITH_MASKS = "boxes and masks are converted: keypoints and poses are not read"


@dataclass(slots=True)
class Conversion:
    """Result of a conversion."""

    images: Counter[str] = field(default_factory=Counter)
    """Number of images written per split."""
    boxes: Counter[str] = field(default_factory=Counter)
    """Number of boxes written per split."""
    masks: Counter[str] = field(default_factory=Counter)
    """Number of masks written per split."""
    changed: Counter[str] = field(default_factory=Counter)
    """Number of losses due to the new format and of repaired defects, by description."""
    unreadable: list[str] = field(default_factory=list)
    """Images left out, with the reason."""
    classes: tuple[str, ...] = ()
    """Classes of the new data set, in its order."""

    def lines(self) -> list[str]:
        """Return the lines to print."""
        masks = {split: f", {count} masks" for split, count in self.masks.items() if count}
        written = [
            f"{split}: {self.images[split]} images, {self.boxes[split]} boxes{masks.get(split, '')}"
            for split in self.images
        ]
        changed = [f"{number} × {what}" for what, number in self.changed.items() if number]
        return [*written, f"{len(self.classes)} classes", *changed, _WITH_MASKS if masks else _NOT_READ]


def convert(
    source: Path | str,
    out: Path | str,
    to: Literal["coco", "voc", "yolo", "imagefolder"],
    names: Sequence[str] | None = None,
    *,
    margin: float | None = None,
    limit: int | None = None,
    format: str | None = None,
    follow_links: bool = False,
    progress: bool = True,
) -> Conversion | Crops:
    """Write a data set, or some of its splits, in another format.

    Args:
        source: folder of the data set.
        out: new folder; it appears complete or not at all.
        to: format of the new data set.
        names: names of the splits; by default all.
        margin: for `imagefolder`, as for `to_imagefolder`; by default 0.1.
        limit: convert only the first `limit` images of each split.
        format: one of `formats.FORMATS`; by default it is recognised by the content of the files.
        follow_links: follow links that lead out of the source.
        progress: show progress bars on a terminal.

    Returns:
        Counts of written images and boxes, and of losses.

    Raises:
        UserError: `source` cannot be read; `out` is not empty, is in `source` or cannot be written; an option is
            invalid; or the format cannot represent a split or class.
    """
    refuse_within(source, out, "--out")
    reading: dict[str, Any] = {"format": format, "follow_links": follow_links, "progress": progress}
    if to == "imagefolder":
        margin = 0.1 if margin is None else margin
        return to_imagefolder(source, Path(out), names, margin=margin, limit=limit, **reading)
    if margin is not None:
        raise UserError(f"--margin: only crops (--to imagefolder) have one; leave it out with --to {to}")
    if limit is not None and limit < 1:
        raise UserError(f"--limit: {limit}; convert 1 image at least")
    datasets = read_all(source, names, **reading).values()
    limited = [replace(dataset, records=dataset.records[:limit]) for dataset in datasets]
    return write_datasets(limited, Path(out), to, chosen=names is not None, progress=progress)


def write_datasets(
    datasets: Sequence[Dataset], out: Path, to: Format, *, chosen: bool, progress: bool = True
) -> Conversion:
    """Write splits as a data set into a new folder, which appears complete or not at all.

    Args:
        datasets: the splits.
        out: the folder.
        to: format of the new data set.
        chosen: the user has named the splits, so none may be left out.
        progress: show progress bars on a terminal.

    Raises:
        UserError: `out` is not empty or cannot be written, or the format cannot represent a split or class.
    """
    result = Conversion()
    for defect in (defect for dataset in datasets for defect in dataset.repaired):
        if defect.rule in ("missing-image", "unreadable-image"):
            result.unreadable.append(f"{defect.path}: {defect.detail}")
        elif defect.rule == "absent-split":
            result.changed[one_line(f"absent split: {defect.path}: {defect.detail}")] += 1
        else:
            result.changed[f"{defect.rule}: {RULES[defect.rule].action}"] += 1
    adapted = _adapt(datasets, to, chosen=chosen, result=result)
    try:
        with new_folder(out) as draft:
            _write(adapted, draft, to, progress, result)
    except OSError as error:
        raise UserError(f"{error.filename or out}: {error.strerror}; fix that or choose another --out") from error
    return result


# ----------------------------------------------------------------------------------------------- limits of the format


def _adapt(datasets: Sequence[Dataset], to: Format, *, chosen: bool, result: Conversion) -> list[Dataset]:
    """Return the splits in a form that the new format can store; `chosen` is true if the user named the splits."""
    adapted = unify_classes(datasets)
    if to == "yolo":
        adapted = _yolo_splits(adapted, chosen=chosen, result=result)
    adapted = [_supported(dataset, to, result) for dataset in adapted]
    result.classes = _classes(adapted, to, result)
    return adapted


def _yolo_splits(datasets: Sequence[Dataset], *, chosen: bool, result: Conversion) -> list[Dataset]:
    """Rename the splits to YOLO's names. A split with another name is left out if the others have all its images."""
    known = [dataset for dataset in datasets if _yolo_split(dataset.split)]
    images = {record.path for dataset in known for record in dataset.records}
    renamed: dict[str, Dataset] = {}
    for dataset in datasets:
        name = _yolo_split(dataset.split)
        if name:
            if name in renamed:
                both = f"the splits {renamed[name].split} and {dataset.split} would both be YOLO's {name}"
                raise UserError(f"{dataset.root}: {both}; name one of them with --split")
            renamed[name] = dataset
        elif chosen or not images or not all(record.path in images for record in dataset.records):
            what = f"YOLO has only train, val and test, not the split {dataset.split}"
            raise UserError(one_line(f"{dataset.root}: {what}; name others with --split"))
        else:
            what = f"split {dataset.split} left out: YOLO has no such split, and the others have its images"
            result.changed[what] += 1
    return [replace(dataset, split=name) for name, dataset in renamed.items()]


def _yolo_split(name: str) -> str | None:
    """Return YOLO's name of a split; data that is not divided is for training."""
    return "train" if name == ALL else usual_split(name)


def _supported(dataset: Dataset, to: Format, result: Conversion) -> Dataset:
    """Return the split with only the boxes that a format supports, and count losses."""
    crowd, difficult = _column(dataset, "crowd"), _column(dataset, "difficult")
    kept = np.ones(len(crowd), dtype=bool)
    if to != "coco":
        result.changed[f"crowd left out: {to.upper()} has only single objects"] += int(crowd.sum())
        kept &= ~crowd
    if to == "voc":
        corners = voc_boxes(dataset)
        thin = ~(corners[:, :2] < corners[:, 2:]).all(axis=1)
        what = "box left out: in VOC a box at most one pixel wide or high has no area"
        result.changed[what] += int((thin & kept).sum())
        kept &= ~thin
    else:
        result.changed[f"difficult flag lost: {to.upper()} has none"] += int(difficult.sum())
    per_image = np.split(kept, np.cumsum([len(record.boxes) for record in dataset.records]))
    records = zip(dataset.records, per_image, strict=False)  # `split` returns an empty array at the end
    selected = [record.select(one) for record, one in records]
    fitted = [fit_masks(record, to, result.changed) for record in selected]
    if to == "yolo" and any(record.masks for record in fitted):
        boxes = sum(len(record.boxes) for record in selected if not any(record.masks or ()))
        result.changed[BOX_AMONG_POLYGONS] += boxes
    if to != "coco":
        _count_areas(fitted, to, result)
    return replace(dataset, records=tuple(fitted))


def _count_areas(records: Sequence[Record], to: Format, result: Conversion) -> None:
    """Count the areas that the new format replaces by those of masks and boxes."""
    for record in records:
        areas = (record.boxes[:, 2:] - record.boxes[:, :2]).prod(axis=1).astype(np.float64)
        masks = np.array([mask is not None for mask in record.masks or (None,) * len(areas)], bool)
        areas[masks] = [mask.area() for mask in record.masks or () if mask is not None]
        changed = ~np.isclose(record.areas, areas, rtol=1e-5, atol=0)
        for what, rows in (("box", ~masks), ("mask", masks)):
            result.changed[f"area replaced by the area of the {what}: {to.upper()} has no areas"] += int(
                (changed & rows).sum()
            )


def _column(dataset: Dataset, name: str) -> np.ndarray:
    return np.concatenate([np.zeros(0, bool), *(getattr(record, name) for record in dataset.records)])


def _classes(datasets: Sequence[Dataset], to: Format, result: Conversion) -> tuple[str, ...]:
    """Return the classes in the new format, in its reader's order, and count the changes."""
    classes = datasets[0].classes
    before = dict(zip(classes, datasets[0].category_ids, strict=True))
    after = before
    if to == "yolo":
        after = {name: label for label, name in enumerate(classes)}
        for name in classes:
            if not name or not _is_utf8(name):
                raise _class_refused(name, to, datasets[0])
    if to == "voc":
        used = {label for dataset in datasets for record in dataset.records for label in record.labels.tolist()}
        present = sorted(classes[label] for label in used)
        for name in present:
            if not _is_xml(name):
                raise _class_refused(name, to, datasets[0])
        result.changed["class without objects lost: VOC has no list of classes"] += len(classes) - len(present)
        after = {name: id for id, name in enumerate(present, start=1)}
    if datasets[0].format == "coco":
        changed = sum(before[name] != id for name, id in after.items())
        result.changed[f"category gets a new id: {to.upper()} numbers its categories"] += changed
    return tuple(after)


def _is_xml(name: str) -> bool:
    """Return whether a name can be stored in XML and read back; the reader strips white space."""
    element = Element("name")
    element.text = name
    try:
        return bool(name) and fromstring(tostring(element, encoding="utf-8")).text == name == name.strip()
    except (ParseError, UnicodeEncodeError):
        return False


def _is_utf8(name: str) -> bool:
    """Return whether a name can be encoded as UTF-8; names from JSON may contain lone surrogates."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def _class_refused(name: str, to: Format, dataset: Dataset) -> UserError:
    what = f"{to.upper()} cannot store the class {name[:60]!a}"
    return UserError(one_line(f"{dataset.root}: {what}; rename it in the annotations"))


# ---------------------------------------------------------------------------------------------------------------- write


def _write(datasets: Sequence[Dataset], draft: Path, to: Format, progress: bool, result: Conversion) -> None:
    """Copy the images of all splits and write their boxes."""
    names = _FileNames(per_split=to != "voc")
    for dataset in datasets:
        folder = draft / {"coco": dataset.split, "voc": "JPEGImages", "yolo": f"images/{dataset.split}"}[to]
        folder.mkdir(parents=True, exist_ok=True)
        files = []
        for record in track(dataset.records, f"Writing {dataset.split}", shown=progress):
            name, new = names.choose(record, dataset.split)
            files.append(name)
            if new:
                shutil.copyfile(record.path, folder / name)
                renamed, rotated = name != record.path.name, orientation(record.path) != 1
                result.changed["image renamed: its name is taken or not allowed on some systems"] += renamed
                result.changed["image is stored rotated (EXIF): its boxes refer to the upright image"] += rotated
        if to != "coco" and dataset.format == "coco":
            ids = zip(dataset.records, image_ids([Path(name) for name in files]), strict=True)
            what = f"image gets a new id: {to.upper()} has only file names"
            result.changed[what] += sum(record.id != id for record, id in ids)
        write = {"coco": write_coco, "voc": write_voc, "yolo": write_yolo}[to]
        write(draft, dataset.split, files, dataset)
        result.images[dataset.split] = len(dataset)
        result.boxes[dataset.split] = sum(len(record.boxes) for record in dataset.records)
        masks = (mask for record in dataset.records for mask in record.masks or ())
        result.masks[dataset.split] = sum(mask is not None for mask in masks)
    if to == "yolo":
        write_yaml(draft, [dataset.split for dataset in datasets], datasets[0].classes)


class _FileNames:
    """Names of the image files: unchanged if possible, safe on all systems, and with unique stems per folder.

    VOC has one folder for all splits, in which an image of several splits is stored once.
    """

    def __init__(self, *, per_split: bool):
        self._per_split = per_split
        self._taken: set[tuple[str, str]] = set()
        self._chosen: dict[tuple[str, str], list[tuple[Record, str]]] = {}

    def choose(self, record: Record, split: str) -> tuple[str, bool]:
        """Return the name of a record's image, and whether the file is not written yet."""
        folder = split if self._per_split else ""
        others = self._chosen.setdefault((folder, record.path.name), [])
        for other, name in others:
            if not self._per_split and _are_equal(record, other):
                return name, False
        suffix = record.path.suffix if record.path.suffix.lower() in SUFFIXES else _suffix(record.path)
        first = safe_name(record.path.name.removesuffix(suffix)) or "image"
        if first.lower().endswith(SUFFIXES):  # the VOC reader strips suffixes from listed names
            first = "_".join(first.rsplit(".", 1))
        stem, number = first, 1
        while (folder, stem.casefold()) in self._taken:
            number += 1
            stem = f"{first}_{number}"
        self._taken.add((folder, stem.casefold()))
        others.append((record, stem + suffix))
        return stem + suffix, True


def _are_equal(a: Record, b: Record) -> bool:
    """Return whether two records are the same image with the same boxes."""
    return a.has_boxes_of(b) and (a.path == b.path or filecmp.cmp(a.path, b.path, shallow=False))


def _suffix(path: Path) -> str:
    """Return the usual suffix for an image file without an image's suffix."""
    with Image.open(path) as image:
        return {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif"}.get(image.format or "", f".{image.format}".lower())
