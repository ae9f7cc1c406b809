"""A repaired copy of a data set, in its own format: what the doctor can put right without asking.

What he cannot know, such as the right class of a box, stays as it is. The original is only read.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, tostring

import numpy as np
import yaml
from defusedxml.ElementTree import fromstring
from jaxtyping import Float64
from PIL import Image

from detect.curation.doctor import duplicates
from detect.curation.doctor.box_checks import repeats
from detect.curation.doctor.diagnosis import Report
from detect.curation.doctor.examine import Survey
from detect.data.annotations import Annotations, repair
from detect.data.dataset import VALIDATION
from detect.data.decode import decode
from detect.data.defects import DefectLog
from detect.data.formats import coco, yolo
from detect.errors import UserError, one_line
from detect.files.atomic import new_folder, refuse_within
from detect.files.fence import Fence

LOG = "MENDED.txt"
_ROUNDING = 0.01  # pixels, as in `defects`: what differs by less is the file's rounding
_QUALITY: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "PNG": {},
    "WEBP": {"lossless": True},
}
"""How images are written that are turned upright."""


def fix(report: Report, out: Path) -> list[str]:
    """Writes a repaired copy of a data set into a new folder, which appears complete or not at all.

    Images that cannot be read, that repeat another one of their split, or that a later split (validation, test) has
    too, are left out with their boxes; so are boxes that the readers would leave out or that stand there twice. Boxes
    are cut at the edges, sizes corrected, ids and missing fields filled in, and images whose EXIF orientation the
    boxes follow are written upright. All other images are copied byte by byte, and what no split lists is not.

    Returns the changes, a line each, which `MENDED.txt` in the copy tells, too.

    Raises:
        UserError: a split could not be read at all, `out` is not empty, lies in the data set, or cannot be written.
    """
    survey = report.survey
    unread = [finding for finding in report.findings if finding.split and finding.split not in report.splits]
    if survey is None or unread or not survey.parsed:
        first = next((finding for finding in (*unread, *report.findings)), None)
        where = f"{first.path}: {first.what}" if first else f"{report.root}: it has no split"
        raise UserError(f"{where}; mend that by hand before --fix")
    out = Path(out)
    refuse_within(report.root, out, "--fix")
    work = _plan(survey)
    work.upright = {finding.path for finding in report.findings if finding.rule == "exif-rotated"}
    try:
        with new_folder(out) as draft:
            {"coco": _write_coco, "voc": _write_voc, "yolo": _write_yolo}[survey.format](work, draft)
            (draft / LOG).write_text("".join(f"{line}\n" for line in work.log), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{error.filename or out}: {error.strerror}; fix that or choose another --fix") from error
    return work.log


# ----------------------------------------------------------------------------------------------------------------- plan


@dataclass(slots=True)
class _Work:
    """What is to be written."""

    survey: Survey
    lists: dict[str, set[Path]]
    """The images of each split."""
    dropped: dict[str, dict[Path, str]]
    """Of each split the images that are left out, and why."""
    rows: dict[str, list[list[int]]]
    """Of each split and image the rows of its boxes in `Annotations`."""
    counts: Counter[Path] = field(default_factory=Counter)
    """The boxes of each image."""
    boxes: dict[str, dict[int, Float64[np.ndarray, " 4"] | None]] = field(default_factory=dict)
    """Of each split the rows of `Annotations` that stay; None where the box stays as it is."""
    upright: set[Path] = field(default_factory=set)
    log: list[str] = field(default_factory=list)

    def kept(self, split: str) -> list[Path]:
        """The images of a split that stay, each once."""
        return [path for path in dict.fromkeys(self.survey.parsed[split].paths) if path not in self.dropped[split]]

    def relative(self, path: Path) -> Path:
        return path.absolute().relative_to(self.survey.root.absolute())

    def say(self, line: str) -> None:
        self.log.append(one_line(line))


def _plan(survey: Survey) -> _Work:
    dropped = {split: _unusable(survey, split) for split in survey.parsed}
    work = _Work(survey, survey.lists(), dropped, {split: _rows(one) for split, one in survey.parsed.items()})
    for split, parsed in survey.parsed.items():
        work.counts |= Counter({path: len(rows) for path, rows in zip(parsed.paths, work.rows[split], strict=True)})
    members = survey.members()
    for path in (path for path, splits in members.items() if len(splits) > 1):
        _take_leaks_out(work, [path])
    for group in survey.same:
        _take_leaks_out(work, group)
        _keep_one(work, group)
    for pair in survey.alike:
        _take_leaks_out(work, [pair.first, pair.second])
    for split in survey.whole:
        for path in work.kept(split):
            parts = members[path] - survey.whole
            if parts and all(path in work.dropped[part] for part in parts):
                work.dropped[split][path] = "it was taken out of the part of this split that has it"
    for split in work.dropped:
        for path, why in work.dropped[split].items():
            work.say(f"{split}: left out image {work.relative(path)}: {why}")
        work.boxes[split] = _boxes(work, split)
    return work


def _rows(annotations: Annotations) -> list[list[int]]:
    rows: list[list[int]] = [[] for _ in annotations.paths]
    for row, image in enumerate(annotations.image.tolist()):
        rows[image].append(row)
    return rows


def _unusable(survey: Survey, split: str) -> dict[Path, str]:
    """The images that cannot be read, or of which nobody knows what is on them."""
    annotations = survey.parsed[split]
    dropped = {path: survey.looks[path].detail for path in annotations.paths if survey.looks[path].rule}
    if survey.format == "voc":
        for path, source in zip(annotations.paths, annotations.sources, strict=True):
            if not source.is_file():
                dropped.setdefault(path, "it has no annotation")
    return dropped


def _rank(split: str) -> tuple[int, str]:
    """Which split keeps what two have: that which judges."""
    if split.startswith("test"):
        return 2, split
    return (1, split) if split.startswith(VALIDATION) else (0, split)


def _take_leaks_out(work: _Work, group: list[Path]) -> None:
    """Leaves images that are the same only in the split that judges most."""
    lists, dropped = work.lists, work.dropped
    present = [one for one in lists if any(path in lists[one] and path not in dropped[one] for path in group)]
    for split in present:
        for other in present:
            if _rank(other) > _rank(split) and duplicates.leaks({split}, {other}, work.survey.whole, lists):
                for path in group:
                    if path in lists[split]:
                        dropped[split].setdefault(path, f"split {other} has the same picture")


def _keep_one(work: _Work, group: list[Path]) -> None:
    """Of images with the same pixels each split keeps one: that of a judging split, else that with most boxes."""

    def has(split: str, path: Path) -> bool:
        return path in work.lists[split] and path not in work.dropped[split]

    def worth(path: Path) -> tuple[tuple[int, str], int]:
        return max(_rank(split) for split in work.lists if has(split, path)), work.counts[path]

    for split in work.lists:
        there = [path for path in group if has(split, path)]
        if len(there) < 2:
            continue
        best = max(there, key=worth)
        for path in there:
            if path != best:
                work.dropped[split][path] = f"it has the same pixels as {work.relative(best)}"


def _boxes(work: _Work, split: str) -> dict[int, Float64[np.ndarray, " 4"] | None]:
    """The rows that stay; those of an image that is listed twice are put together."""
    survey, annotations = work.survey, work.survey.parsed[split]
    sizes = survey.sizes(split)
    numbered = replace(annotations, places=[str(row) for row in range(len(annotations.boxes))])
    good = repair(numbered, sizes, DefectLog(survey.root, split))
    first = {path: place for place, path in reversed(list(enumerate(annotations.paths)))}
    images = np.array([first[annotations.paths[place]] for place in good.image], dtype=np.int64)
    keys = np.where(good.labels < 0, -1, images * len(annotations.classes) + good.labels)
    again = repeats(good.boxes, keys)
    limits = np.tile(sizes, 2) if annotations.normalised else np.ones((len(sizes), 4))
    kept: dict[int, Float64[np.ndarray, " 4"] | None] = {}
    for place, row in enumerate(map(int, good.places)):
        path = annotations.paths[good.image[place]]
        if path in work.dropped[split]:
            continue
        where = f"{split}: {work.relative(annotations.sources[good.image[place]])}, {annotations.places[row]}"
        if again[place]:
            work.say(f"{where}: left out, the same box stands there before")
            continue
        before = annotations.boxes[row] * limits[good.image[place]]
        changed = np.abs(before - good.boxes[place]).max() > _ROUNDING
        kept[row] = good.boxes[place] if changed else None
        if changed:
            work.say(f"{where}: cut at the edge of its image")
    _tell_lost(work, split, set(map(int, good.places)))
    return kept


def _tell_lost(work: _Work, split: str, good: set[int]) -> None:
    annotations = work.survey.parsed[split]
    for row, image in enumerate(annotations.image.tolist()):
        if row not in good and annotations.paths[image] not in work.dropped[split]:
            source = work.relative(annotations.sources[image])
            work.say(f"{split}: {source}, {annotations.places[row]}: left out, no box within its image")


# --------------------------------------------------------------------------------------------------------------- images


def _copy_images(work: _Work, draft: Path) -> None:
    """The images that some split keeps, and the notes and licences beside them."""
    for path in dict.fromkeys(path for split in work.survey.parsed for path in work.kept(split)):
        target = draft / work.relative(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path not in work.upright or not _write_upright(path, target):
            shutil.copyfile(path, target)
        else:
            work.say(f"{work.relative(path)}: written upright")
    for path in sorted(work.survey.root.iterdir()):
        if path.name.upper().startswith(("README", "LICEN")) and path.is_file() and not path.is_symlink():
            shutil.copyfile(path, draft / path.name)


def _write_upright(path: Path, target: Path) -> bool:
    with Image.open(path) as image:
        format = "JPEG" if image.format == "MPO" else image.format or ""
    if format not in _QUALITY:
        return False
    Image.fromarray(decode(path)).save(target, format=format, **_QUALITY[format])
    return True


# ----------------------------------------------------------------------------------------------------------------- COCO


def _write_coco(work: _Work, draft: Path) -> None:
    _copy_images(work, draft)
    for split, parsed in work.survey.parsed.items():
        source = coco.locate(work.survey.root, split)[0]
        document = json.loads(source.read_bytes())
        _mend_coco(work, split, parsed, document)
        target = draft / work.relative(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(document), encoding="utf-8")


def _mend_coco(work: _Work, split: str, annotations: Annotations, document: dict[str, Any]) -> None:
    """Changes a document of COCO in place."""
    silent = DefectLog(work.survey.root, split)
    source = Path()
    ids = annotations.ids or []
    path_of = dict(zip(ids, annotations.paths, strict=True))
    first = {path: id for id, path in reversed(path_of.items())}
    kept = {id for id in ids if path_of[id] not in work.dropped[split]}
    entries = coco.entries(document, "images", source, silent, id=coco.ID, file_name=coco.TEXT)
    listed: dict[int, dict[str, Any]] = {}
    for entry in entries:
        listed.setdefault(entry["id"], entry)
    images = [entry for id, entry in listed.items() if id in kept and first[path_of[id]] == id]
    for entry in images:
        _correct_size(work, split, entry, path_of[entry["id"]])
    for entry in entries:
        if entry["id"] in path_of and entry is not listed[entry["id"]]:
            work.say(f"{split}: left out a second image {entry['id']}, {entry['file_name']}")
    outside = [entry for id, entry in listed.items() if id not in path_of]
    document["images"] = images + outside + _broken(document["images"], entries)

    good = coco.entries(document, "annotations", source, silent, image_id=coco.ID, category_id=coco.ID, bbox=coco.BOX)
    rows = [entry for entry in good if entry["image_id"] in path_of]
    chosen = []
    used = {entry["id"] for entry in rows if coco.ID.test(entry.get("id"))}
    next_id, seen = max([0, *used]) + 1, set()
    for row, box in sorted(work.boxes[split].items()):
        entry = rows[row]
        entry["image_id"] = first[path_of[entry["image_id"]]]
        if not coco.ID.test(entry.get("id")) or entry["id"] in seen:
            work.say(f"{split}: annotation {entry.get('id')} of image {entry['image_id']}: has the id {next_id} now")
            entry["id"], next_id = next_id, next_id + 1
        seen.add(entry["id"])
        _mend_entry(entry, box)
        chosen.append(entry)
    document["annotations"] = chosen + _broken(document["annotations"], good)


def _broken(entries: list, good: list) -> list:
    """What the reader cannot make sense of stays for a person to look at."""
    known = set(map(id, good))
    return [entry for entry in entries if id(entry) not in known]


def _correct_size(work: _Work, split: str, entry: dict[str, Any], path: Path) -> None:
    look = work.survey.looks[path]
    declared = entry.get("width"), entry.get("height")
    unrotated = look.orientation >= 5 and declared == look.size[::-1]
    if None not in declared and declared != look.size and not unrotated:
        work.say(f"{split}: image {entry['id']}: is {look.size[0]} × {look.size[1]} now, as its file")
        entry["width"], entry["height"] = look.size


def _mend_entry(entry: dict[str, Any], box: Float64[np.ndarray, " 4"] | None) -> None:
    x, y, width, height = entry["bbox"]
    if box is not None:
        x, y = map(_short, box[:2])
        width, height = map(_short, box[2:] - box[:2])
        entry["bbox"] = [x, y, width, height]
        if not entry.get("segmentation"):
            entry["area"] = width * height
    area = entry.get("area")
    if not coco.is_number(area) or not 0 <= float(area) < np.inf:  # type: ignore[arg-type]
        entry["area"] = width * height
    if entry.get("iscrowd") not in (0, 1):
        entry["iscrowd"] = 0


def _short(number: float) -> float:
    """A number as a person would write it."""
    rounded = round(float(number), 4)
    return int(rounded) if rounded.is_integer() else rounded


# ------------------------------------------------------------------------------------------------------------------ VOC


def _write_voc(work: _Work, draft: Path) -> None:
    _copy_images(work, draft)
    written: set[Path] = set()
    for split, parsed in work.survey.parsed.items():
        kept = set(work.kept(split))
        stems = []
        for place, (path, source) in enumerate(zip(parsed.paths, parsed.sources, strict=True)):
            if path not in kept:
                continue
            stems.append(source.stem)
            if source not in written:
                written.add(source)
                _write_xml(work, split, place, draft / work.relative(source))
        base = parsed.sources[0].parent.parent if parsed.sources else work.survey.root
        target = draft / work.relative(base) / "ImageSets" / "Main" / f"{split}.txt"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("".join(f"{stem}\n" for stem in stems), encoding="utf-8")


def _write_xml(work: _Work, split: str, place: int, target: Path) -> None:
    annotations = work.survey.parsed[split]
    source, look = annotations.sources[place], work.survey.looks[annotations.paths[place]]
    target.parent.mkdir(parents=True, exist_ok=True)
    rows = work.rows[split][place]
    kept = {row: work.boxes[split][row] for row in rows if row in work.boxes[split]}
    declared = annotations.declared[place]
    wrong_size = declared is not None and tuple(declared) != look.size
    wrong_size &= not (look.orientation >= 5 and declared == look.size[::-1])
    if len(kept) == len(rows) and all(box is None for box in kept.values()) and not wrong_size:
        shutil.copyfile(source, target)
        return
    tree = fromstring(source.read_bytes())
    objects = tree.findall("object")
    for row in rows:
        element = objects[int(annotations.places[row].split()[1]) - 1]
        box = kept.get(row)
        if row not in kept or (box is not None and not _write_corners(element, box)):
            tree.remove(element)
    size = tree.find("size")
    if wrong_size and size is not None:
        work.say(f"{split}: {work.relative(source)}: the size is {look.size[0]} × {look.size[1]} now, as the image's")
        for name, side in zip(("width", "height"), look.size, strict=True):
            _text(size, name, side)
    target.write_text(tostring(tree, encoding="unicode") + "\n", encoding="utf-8")


def _write_corners(element: Element, box: Float64[np.ndarray, " 4"]) -> bool:
    """Writes a box as VOC counts. It cannot say that one is a pixel wide or less: then nothing is written."""
    bounds = element.find("bndbox")
    if bounds is None or (box[2:] - box[:2]).min() <= 1:
        return False
    for name, number in zip(("xmin", "ymin", "xmax", "ymax"), np.add(box, (1, 1, 0, 0)), strict=True):
        _text(bounds, name, number)
    return True


def _text(parent: Element, name: str, number: float) -> None:
    element = parent.find(name)
    if element is not None:
        element.text = str(_short(number))


# ----------------------------------------------------------------------------------------------------------------- YOLO


def _write_yolo(work: _Work, draft: Path) -> None:
    _copy_images(work, draft)
    root = work.survey.root
    document = yolo.load_yaml(root / "data.yaml", Fence(root))
    document.pop("path", None)
    for split in ("train", *VALIDATION, "test"):
        if split not in work.survey.parsed:
            document.pop(split, None)
    copied = {path for split in work.survey.parsed for path in work.kept(split)}
    for split, parsed in work.survey.parsed.items():
        kept = work.kept(split)
        place_of = {path: place for place, path in enumerate(parsed.paths)}
        for path in kept:
            _write_labels(work, split, place_of[path], draft)
        # Where the images of a split are all those of some folders, these name it; else a list does.
        folders = dict.fromkeys(path.parent for path in parsed.paths)
        below = {path for path in copied if any(path.is_relative_to(folder) for folder in folders)}
        if kept and below == set(kept) and not _nested(folders):
            names = [work.relative(folder).as_posix() for folder in folders if any(p.parent == folder for p in kept)]
            document[split] = names[0] if len(names) == 1 else names
        else:
            lines = "".join(f"{work.relative(path).as_posix()}\n" for path in kept)
            (draft / f"{split}.txt").write_text(lines, encoding="utf-8")
            document[split] = f"{split}.txt"
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    (draft / "data.yaml").write_text(text, encoding="utf-8")


def _nested(folders: Mapping[Path, None]) -> bool:
    """Whether one folder lies in another: the outer one's images are then not told apart."""
    return any(one != other and one.is_relative_to(other) for one in folders for other in folders)


def _write_labels(work: _Work, split: str, place: int, draft: Path) -> None:
    annotations = work.survey.parsed[split]
    source = annotations.sources[place]
    target = draft / work.relative(source)
    if target.exists():  # of another split, or of a second image with the same label file
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if not source.is_file():
        work.say(f"{split}: {work.relative(source)}: written, without a box")
        target.write_text("", encoding="utf-8")
        return
    rows = {int(annotations.places[row].split()[1]): row for row in work.rows[split][place]}
    boxes = work.boxes[split]
    if all(row in boxes and boxes[row] is None for row in rows.values()):
        shutil.copyfile(source, target)
        return
    lines = []
    for number, line in enumerate(source.read_text(encoding="utf-8-sig").splitlines(), start=1):
        row = rows.get(number)
        if row is None or row in boxes:  # lines that the reader cannot make sense of stay for a person to look at
            changed = row is not None and boxes[row] is not None
            lines.append(_inside(line) if changed else line)
    target.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _inside(line: str) -> str:
    """A line of a label file with its box, or the corners of its polygon, cut at the edges of the image."""
    category, *words = line.split()
    numbers = [float(word) for word in words]
    if len(numbers) == 4:
        x, y, width, height = numbers
        left, right = max(x - width / 2, 0.0), min(x + width / 2, 1.0)
        top, bottom = max(y - height / 2, 0.0), min(y + height / 2, 1.0)
        numbers = [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]
    else:
        numbers = [min(max(number, 0.0), 1.0) for number in numbers]
    return " ".join([category, *(f"{number:.8g}" for number in numbers)])
