"""The doctor of data: everything that is wrong with a data set, in every split, at once.

files ── strays: links, devices, what nothing names
  │ parse, with the readers' rules          annotations of every split
  │ look_at_images: every pixel decoded     sizes, how they are stored, digests
  │ mend, with the readers' rules           good boxes
  └ checks: boxes, classes, duplicates, leaks → Report
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from types import ModuleType

import numpy as np
from jaxtyping import Int64

from detect.curation.doctor import duplicates
from detect.curation.doctor.box_checks import check_boxes, check_classes
from detect.curation.doctor.diagnosis import Finding, Report, place_in, sort
from detect.curation.doctor.image_checks import Look, look_at_images
from detect.curation.doctor.unused_files import Folder, orphans, unlisted, walk
from detect.data.annotations import Annotations, repair
from detect.data.dataset import Defect
from detect.data.defects import DefectLog, as_json
from detect.data.formats import coco, voc, yolo
from detect.data.transforms import Resize
from detect.errors import UserError, one_line

FORMATS: dict[str, ModuleType] = {"coco": coco, "voc": voc, "yolo": yolo}
_BOX = re.compile(r": box \(([^()]*)\) in (.*), \d+ × \d+$")


@dataclass(slots=True)
class Survey:
    """All that was read of a data set."""

    root: Path
    format: str
    folder: Folder
    parsed: dict[str, Annotations]
    """What the files of each split say."""
    looks: dict[Path, Look]
    """Of each image that a split lists."""
    repaired: dict[str, Annotations]
    """The good boxes of each split, in pixels."""
    whole: set[str]
    """The splits that are made of others."""
    same: list[list[Path]]
    """Groups of images with the same pixels."""
    alike: list[duplicates.Pair]
    """Images that are nearly the same."""

    def members(self) -> dict[Path, set[str]]:
        """The splits of each image."""
        members: dict[Path, set[str]] = defaultdict(set)
        for split, parsed in self.parsed.items():
            for path in parsed.paths:
                members[path].add(split)
        return members

    def lists(self) -> dict[str, set[Path]]:
        """The images of each split."""
        return {split: set(parsed.paths) for split, parsed in self.parsed.items()}

    def sizes(self, split: str) -> Int64[np.ndarray, "i 2"]:
        """Width and height of each image, 0 where it cannot be read."""
        sizes = [self.looks[path].size for path in self.parsed[split].paths]
        return np.array(sizes, dtype=np.int64).reshape(-1, 2)


def check(
    root: Path | str,
    splits: Sequence[str] | None = None,
    *,
    resize: Resize | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Report:
    """Looks at every file, box and pixel of a data set in COCO, VOC or YOLO layout, and never stops at a defect.

    Args:
        root: the data folder.
        splits: some of its splits; by default all. What no split lists is looked for only with all of them.
        resize: how images reach the network; tiny boxes are then those that it sees as such.
        workers: threads that decode, by default as many as Python thinks fit.
        progress: show a bar on a terminal.

    Raises:
        UserError: there is no such folder, no data set of a known format in it, or no such split.
    """
    started = perf_counter()
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: there is no such folder; check the path of the data")
    folder = walk(root)
    findings = folder.findings
    if not folder.may_parse():
        return Report(root, "", {}, 0, sort(findings), perf_counter() - started)
    format, names = _format(root, findings)
    chosen = _chosen(root, splits, names)
    survey = Survey(root, format, folder, {}, {}, {}, set(), [], [])
    for split in chosen:
        _parse(survey, split, findings)
    paths = list(dict.fromkeys(path for annotations in survey.parsed.values() for path in annotations.paths))
    survey.looks = look_at_images([path for path in paths if folder.may_open(path)], workers, progress)
    for path in paths:  # those behind a link out of the root: their finding is the link's
        survey.looks.setdefault(path, Look(path, rule="path-outside-root", detail="a link leads out of the root"))

    for split in survey.parsed:
        findings += _check_images(survey, split)
        findings += _check_annotations(survey, split, resize)
    _find_duplicates(survey)
    findings += _duplicates(survey)
    if survey.parsed:
        findings += _check_classes(survey, whole=len(chosen) == len(names))
    if len(survey.parsed) == len(names):
        sources = [source for annotations in survey.parsed.values() for source in annotations.sources]
        findings += [*unlisted(folder, paths), *orphans(folder, format, sources)]
    counted = {split: len(annotations.paths) for split, annotations in survey.parsed.items()}
    return Report(root, format, counted, _boxes(survey), sort(findings), perf_counter() - started, survey)


# -------------------------------------------------------------------------------------------------------------- reading


class _All(DefectLog):
    """Keeps all that a reader finds, also what stops it."""

    def __init__(self, root: Path, split: str) -> None:
        super().__init__(root, split)
        self.all: list[Defect] = []

    def add(self, rule: str, path: Path, detail: str) -> None:
        super().add(rule, path, detail)
        self.all.append(Defect(rule, path, detail))


def _format(root: Path, findings: list[Finding]) -> tuple[str, tuple[str, ...]]:
    """The format and the names of its splits; none where the file that tells them is broken, which is a finding."""
    for name, module in FORMATS.items():
        try:
            if splits := module.splits(root):
                return name, splits
        except UserError as error:
            findings.append(_stopped(root, "", error))
            return name, ()
    wanted = ", ".join(module.LOOKED_FOR for module in FORMATS.values())
    raise UserError(f"{root}: no data set of a known format: looked for {wanted}")


def _chosen(root: Path, splits: Sequence[str] | None, names: tuple[str, ...]) -> tuple[str, ...]:
    if unknown := [split for split in splits or () if split not in names]:
        raise UserError(f"{root}: there is no split {unknown[0]}; name one of {', '.join(names)}")
    return tuple(dict.fromkeys(splits or names))


def _parse(survey: Survey, split: str, findings: list[Finding]) -> None:
    found = _All(survey.root, split)
    before = len(findings)
    try:
        survey.parsed[split] = FORMATS[survey.format].parse(survey.root, split, None, found)
    except UserError as error:
        if not found.all:  # else the last of them is what stopped the reader
            findings.append(_stopped(survey.root, split, error))
    except Exception as error:  # a bug of the reader, which must not keep the doctor from the rest
        what = f"split {split} cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        findings.append(Finding("broken-file", survey.root, one_line(what), split=split))
    findings[before:before] = (_finding(defect, split, {}) for defect in found.all)


def _stopped(root: Path, split: str, error: UserError) -> Finding:
    """The finding of a reader that stops with a line of its own: the file, what is wrong and the remedy."""
    file, _, what = str(error).partition(": ")
    return Finding("broken-file", Path(file) if what else root, one_line(what or file), place_in(what), split)


def _finding(defect: Defect, split: str, images: Mapping[str, Path]) -> Finding:
    """A reader's defect; with the picture and the box where its words name these."""
    detail = one_line(defect.detail)
    match = _BOX.search(defect.detail)
    finding = Finding(defect.rule, defect.path, detail, place_in(detail), split)
    if match and match[2] in images:
        box = tuple(float(number) for number in match[1].split(", "))
        return replace(finding, images=(images[match[2]],), boxes=(box,))
    return finding


# --------------------------------------------------------------------------------------------------------------- checks


def _check_images(survey: Survey, split: str) -> Iterator[Finding]:
    annotations = survey.parsed[split]
    for path, source, declared in zip(annotations.paths, annotations.sources, annotations.declared, strict=True):
        look = survey.looks[path]
        if look.rule:
            what = look.detail + ("" if source == path else f"; its boxes are in {source.name}")
            yield Finding(look.rule, path, one_line(what), split=split)
            continue
        if look.mode:
            yield Finding("pixel-mode", path, f"it is stored with {look.mode}", split=split, images=(path,))
        yield from _check_size(look, source, declared, split)


def _check_size(look: Look, source: Path, declared: tuple | None, split: str) -> Iterator[Finding]:
    width, height = look.size
    turned = look.orientation >= 5 and width != height
    if turned and declared is not None and tuple(declared) == (height, width):
        what = f"{look.path.name} is {width} × {height} upright, not {height} × {width}, as before it is turned"
        yield Finding("exif-unrotated", source, one_line(what), look.path.name, split, (look.path,))
        return
    if look.orientation != 1:
        yield Finding("exif-rotated", look.path, f"EXIF orientation {look.orientation}", "", split, (look.path,))
    if declared is not None and tuple(declared) != look.size:
        said = " × ".join(f"{side:g}" if isinstance(side, float) else as_json(side) for side in declared)
        what = f"{look.path.name} is {width} × {height}, not {said}"
        yield Finding("size-mismatch", source, one_line(what), one_line(look.path.name), split, (look.path,))


def _check_annotations(survey: Survey, split: str, resize: Resize | None) -> Iterator[Finding]:
    annotations, sizes = survey.parsed[split], survey.sizes(split)
    found = _All(survey.root, split)
    survey.repaired[split] = kept = repair(annotations, sizes, found)
    images = {path.name: path for path in annotations.paths}
    yield from (_finding(defect, split, images) for defect in found.all)
    yield from check_boxes(split, kept, sizes, resize)
    readable = np.flatnonzero(sizes.all(axis=1))
    empty = np.setdiff1d(readable, annotations.image)
    if len(empty):
        names = ", ".join(annotations.paths[place].name for place in empty[:3]) + (" …" if len(empty) > 3 else "")
        what = f"split {split}: {len(empty)} of {len(annotations.paths)} images have no box: {names}"
        yield Finding("no-boxes", annotations.sources[empty[0]], one_line(what), split=split)
    if survey.format == "coco":
        yield from _zero_ids(annotations, split)
    if survey.format == "yolo":
        for source, count in Counter(annotations.sources).items():
            if count > 1:
                yield Finding("shared-annotation", source, f"{count} images have this file", split=split)


def _zero_ids(annotations: Annotations, split: str) -> Iterator[Finding]:
    where = {
        "an image": 0 in (annotations.ids or ()),
        "a category": 0 in annotations.category_ids,
        "an annotation": any(place.startswith("annotation 0 ") for place in annotations.places),
    }
    if annotations.sources:
        for place in (place for place, there in where.items() if there):
            yield Finding("zero-id", annotations.sources[0], f"the id of {place} is 0", place, split)


def _check_classes(survey: Survey, whole: bool) -> Iterator[Finding]:
    counts, files = {}, {}
    for split, kept in survey.repaired.items():
        labels = np.bincount(kept.labels[kept.labels >= 0], minlength=len(kept.classes))
        counts[split] = dict(zip(kept.classes, labels.tolist(), strict=True))
        files[split] = _home(survey, split)
    parts = {split: count for split, count in counts.items() if split not in survey.whole} or counts
    yield from check_classes(parts, files, whole)
    reference = "train" if "train" in counts else next(iter(counts))
    for split, of_split in counts.items():
        for name in of_split.keys() - counts[reference].keys():
            if of_split[name]:
                what = f"split {split} has {of_split[name]} boxes of {name}, a class that {reference} does not have"
                yield Finding("unknown-class", files[split], one_line(what), split=split)


def _home(survey: Survey, split: str) -> Path:
    """The file that stands for a split."""
    if survey.format == "yolo":
        return survey.root / "data.yaml"
    annotations = survey.parsed[split]
    if survey.format == "coco":
        official = survey.root / "annotations" / f"instances_{split}.json"
        return annotations.sources[0] if annotations.sources else official
    lists = sorted(survey.root.rglob(f"ImageSets/Main/{split}.txt"))
    return lists[0] if lists else survey.root


def _boxes(survey: Survey) -> int:
    """The good boxes of all splits, those of a shared image once."""
    seen: dict[Path, int] = {}
    for kept in survey.repaired.values():
        counts = np.bincount(kept.image, minlength=len(kept.paths))
        seen.update(zip(kept.paths, counts.tolist(), strict=True))
    return sum(seen.values())


# ----------------------------------------------------------------------------------------------------------- duplicates


def _find_duplicates(survey: Survey) -> None:
    looks = list(survey.looks.values())
    survey.whole = duplicates.unions(survey.lists())
    survey.same, survey.alike = duplicates.exact(looks), duplicates.near(looks)


def _duplicates(survey: Survey) -> Iterator[Finding]:
    lists = survey.lists()
    splits = survey.members()

    def leak(first: Path, second: Path) -> tuple[str, str] | None:
        return duplicates.leaks(splits[first], splits[second], survey.whole, lists)

    for path in splits:
        if between := leak(path, path):
            what = f"splits {between[0]} and {between[1]} both have it"
            yield Finding("leaked-image", path, what, split=between[0], images=(path,))
    for group in survey.same:
        kinds = {frozenset(splits[path]): path for path in reversed(group)}.values()  # one image of each set of splits
        for other in group[1:]:
            # A member may be no leak beside the first one, and be one beside another.
            beside = next((one for one in kinds if one != other and leak(one, other)), None)
            one = beside or group[0]
            between = leak(one, other) if beside else None
            rule = "leaked-image" if between else "duplicate-pixels"
            what = f"the same pixels as {_short(survey, one)}" + _between(between)
            yield Finding(rule, other, one_line(what), split=min(splits[other]), images=(one, other))
    for pair in survey.alike:
        between = leak(pair.first, pair.second)
        what = f"nearly the same as {_short(survey, pair.first)} (correlation {pair.correlation:.3f})"
        rule = "near-leak" if between else "near-duplicate"
        found_in = min(splits[pair.second])
        what = one_line(what + _between(between))
        yield Finding(rule, pair.second, what, split=found_in, images=(pair.first, pair.second))


def _between(splits: tuple[str, str] | None) -> str:
    return f": one is in {splits[0]}, the other in {splits[1]}" if splits else ""


def _short(survey: Survey, path: Path) -> str:
    return str(path.relative_to(survey.root)) if path.is_relative_to(survey.root) else str(path)
