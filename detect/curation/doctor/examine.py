"""Check of a whole data set: all problems in all splits at once, without stopping at a defect.

scan_folder: links, special files          files that must not be opened
  │ parse, with the rules of the readers   annotations of every split
  │ inspect_images: decode every pixel     sizes, pixel formats, digests
  │ repair, with the rules of the readers  valid boxes
  └ checks: boxes, masks, classes, duplicates, leaks, unused files → Report
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter

import numpy as np
from jaxtyping import Int64

from detect.curation.doctor import duplicates
from detect.curation.doctor.box_checks import check_boxes, check_classes
from detect.curation.doctor.diagnosis import Finding, Report, place_in, sort
from detect.curation.doctor.image_checks import ImageCheck, inspect_images
from detect.curation.doctor.mask_checks import check_masks
from detect.curation.doctor.unused_files import Folder, orphaned_annotations, scan_folder, unlisted_images
from detect.data.annotations import Annotations, repair
from detect.data.dataset import Defect
from detect.data.deep_images import log_12_bit
from detect.data.defects import DefectLog, as_json
from detect.data.formats import FORMATS, coco, yolo
from detect.data.mistakes import Mistake, corrected, find_mistake, log_pixel_boxes
from detect.data.read import Source, open_data
from detect.data.transforms import Resize
from detect.data.tree import Tree
from detect.errors import UserError, one_line, reason

_BOX = re.compile(r": box \(([^()]*)\) in (.*), \d+ × \d+$")


@dataclass(slots=True)
class Survey:
    """Content of a data set."""

    root: Path
    tree: Tree
    format: str
    folder: Folder
    parsed: dict[str, Annotations] = field(default_factory=dict)
    """Annotations of each split as its files contain them, but with the boxes that were meant (`mistakes`)."""
    mistakes: dict[str, Mistake] = field(default_factory=dict)
    """Mistake that all boxes of a split share."""
    images: dict[Path, ImageCheck] = field(default_factory=dict)
    """Check result of each image that a split lists."""
    repaired: dict[str, Annotations] = field(default_factory=dict)
    """Valid boxes of each split, in pixels."""
    unions: set[str] = field(default_factory=set)
    """Splits that are unions of other splits."""
    same: list[list[Path]] = field(default_factory=list)
    """Groups of images with the same pixels."""
    similar: list[duplicates.Pair] = field(default_factory=list)
    """Pairs of images that are nearly the same."""

    def members(self) -> dict[Path, set[str]]:
        """Return the splits of each image."""
        members: dict[Path, set[str]] = defaultdict(set)
        for split, parsed in self.parsed.items():
            for path in parsed.paths:
                members[path].add(split)
        return members

    def lists(self) -> dict[str, set[Path]]:
        """Return the images of each split."""
        return {split: set(parsed.paths) for split, parsed in self.parsed.items()}

    def sizes(self, split: str) -> Int64[np.ndarray, "i 2"]:
        """Return the width and height of each image, 0 if it cannot be read."""
        sizes = [self.images[path].size for path in self.parsed[split].paths]
        return np.array(sizes, dtype=np.int64).reshape(-1, 2)


def examine(
    root: Path | str,
    splits: Sequence[str] | None = None,
    *,
    format: str | None = None,
    resize: Resize | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Report:
    """Check every file, box and pixel of a data set in any readable format, without stopping at a defect.

    Args:
        root: data folder.
        splits: names of the splits; by default all. Unused files are searched only with all of them.
        format: one of `formats.FORMATS`; by default it is recognised by the content of the files.
        resize: scale of the network's input; if given, tiny boxes are those that are tiny in the network's input.
        workers: decoding threads; by default the number of `ThreadPoolExecutor`.
        progress: show a progress bar on a terminal.

    Raises:
        UserError: the folder or a split does not exist, or the folder has no data set of a known format.
    """
    started = perf_counter()
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: there is no such folder; check the path of the data")
    folder = scan_folder(root)
    findings = folder.findings
    if not folder.may_parse():
        return Report(root, "", {}, 0, sort(findings), perf_counter() - started)
    source = _open(root, format, findings)
    root, format, names = source.tree.root, source.format, source.splits
    chosen = _choose(root, splits, names)
    survey = Survey(root, source.tree, format, folder)
    for split in chosen:
        _parse(survey, split, findings)
    _inspect_images(survey, workers, progress)
    findings += _correct_mistakes(survey)
    findings += _check_everything(survey, resize, complete=len(chosen) == len(names))
    if len(survey.parsed) == len(names):
        sources = [source for annotations in survey.parsed.values() for source in annotations.sources]
        findings += [*unlisted_images(folder, survey.images), *orphaned_annotations(folder, format, sources)]
    counts = {split: len(annotations.paths) for split, annotations in survey.parsed.items()}
    return Report(root, format, counts, _count_boxes(survey), sort(findings), perf_counter() - started, survey)


# -------------------------------------------------------------------------------------------------------------- reading


class _FullLog(DefectLog):
    """Log that gives access to all defects, including refused ones."""

    def __init__(self, root: Path, split: str) -> None:
        super().__init__(root, split)
        self.all: list[Defect] = []

    def add(self, rule: str, path: Path, detail: str) -> None:
        super().add(rule, path, detail)
        self.all.append(Defect(rule, path, detail))


def _open(root: Path, format: str | None, findings: list[Finding]) -> Source:
    """Return the data set. If the file that names its splits is broken, add a finding and return no splits."""
    tree = Tree(root)
    for name, module in FORMATS.items():
        if format not in (None, name):
            continue
        try:
            module.splits(tree)
        except UserError as error:
            findings.append(_as_finding(root, "", error))
            return Source(tree, name, ())
    return open_data(root, format=format)


def _choose(root: Path, splits: Sequence[str] | None, names: tuple[str, ...]) -> tuple[str, ...]:
    if unknown := [split for split in splits or () if split not in names]:
        raise UserError(f"{root}: there is no split {unknown[0]}; name one of {', '.join(names)}")
    return tuple(dict.fromkeys(splits or names))


def _parse(survey: Survey, split: str, findings: list[Finding]) -> None:
    log = _FullLog(survey.root, split)
    before = len(findings)
    try:
        survey.parsed[split] = FORMATS[survey.format].parse(survey.tree, split, None, log)
    except UserError as error:
        if not log.all:  # otherwise the last defect has stopped the reader
            findings.append(_as_finding(survey.root, split, error))
    except Exception as error:  # a bug of the reader must not prevent the other checks
        what = f"split {split} cannot be read ({type(error).__name__}: {reason(error)})"
        findings.append(Finding("broken-file", survey.root, one_line(what), split=split))
    findings[before:before] = (_finding(defect, split, {}) for defect in log.all)


def _as_finding(root: Path, split: str, error: UserError) -> Finding:
    """Return the finding for an error that stops a reader, which has the file, the problem and the remedy."""
    file, _, what = str(error).partition(": ")
    return Finding("broken-file", Path(file) if what else root, one_line(what or file), place_in(what), split)


def _finding(defect: Defect, split: str, images: Mapping[str, Path]) -> Finding:
    """Return the finding for a reader's defect, with the image and the box if its text contains them."""
    detail = one_line(defect.detail)
    match = _BOX.search(defect.detail)
    finding = Finding(defect.rule, defect.path, detail, place_in(detail), split)
    if match and match[2] in images:
        box = tuple(float(number) for number in match[1].split(", "))
        return replace(finding, images=(images[match[2]],), boxes=(box,))
    return finding


def _inspect_images(survey: Survey, workers: int | None, progress: bool) -> None:
    paths = list(dict.fromkeys(path for annotations in survey.parsed.values() for path in annotations.paths))
    survey.images = inspect_images([path for path in paths if survey.folder.may_open(path)], workers, progress)
    for path in paths:  # images behind a link out of the root, for which the link is reported
        blocked = ImageCheck(path, rule="path-outside-root", detail="a link leads out of the root")
        survey.images.setdefault(path, blocked)


def _correct_mistakes(survey: Survey) -> Iterator[Finding]:
    """Correct mistakes that all boxes of a split share, so that the other checks see the boxes that were meant."""
    mistakes: dict[str, Mistake | None] = {}
    for split, parsed in survey.parsed.items():
        mistakes[split] = find_mistake(parsed, survey.sizes(split))
    expected = next((mistake.reading for mistake in mistakes.values() if mistake), None)
    for split, parsed in list(survey.parsed.items()):
        sizes, log = survey.sizes(split), _FullLog(survey.root, split)
        mistake = mistakes[split] or (find_mistake(parsed, sizes, expected) if expected else None)
        log_12_bit(parsed.paths, sizes, log)
        if mistake:
            survey.mistakes[split] = mistake
            survey.parsed[split] = corrected(parsed, sizes, mistake.reading)
            for rule in mistake.rules:
                log.add(rule, mistake.source, f"split {split}: {mistake.detail}")
        else:
            log_pixel_boxes(parsed, log)
        yield from (_finding(defect, split, {}) for defect in log.all)


# --------------------------------------------------------------------------------------------------------------- checks


def _check_everything(survey: Survey, resize: Resize | None, complete: bool) -> Iterator[Finding]:
    for split in survey.parsed:
        yield from _check_images(survey, split)
        yield from _check_annotations(survey, split, resize)
    images = list(survey.images.values())
    survey.unions = duplicates.unions(survey.lists())
    survey.same, survey.similar = duplicates.exact(images), duplicates.near(images)
    yield from _check_duplicates(survey)
    if survey.parsed:
        yield from _check_classes(survey, complete)


def _check_images(survey: Survey, split: str) -> Iterator[Finding]:
    annotations = survey.parsed[split]
    is_scaled = split in survey.mistakes and survey.mistakes[split].reading.scaled
    for path, source, declared in zip(annotations.paths, annotations.sources, annotations.declared, strict=True):
        image = survey.images[path]
        if image.rule:
            what = image.detail + ("" if source == path else f"; its boxes are in {source.name}")
            yield Finding(image.rule, path, one_line(what), split=split)
            continue
        if image.mode:
            yield Finding("pixel-mode", path, f"it is stored with {image.mode}", split=split, images=(path,))
        yield from _check_size(image, source, None if is_scaled else declared, split)


def _check_size(image: ImageCheck, source: Path, declared: tuple | None, split: str) -> Iterator[Finding]:
    width, height = image.size
    swapped = image.orientation >= 5 and width != height
    if swapped and declared is not None and tuple(declared) == (height, width):
        what = f"{image.path.name} is {width} × {height} upright, not {height} × {width}, as before its rotation"
        yield Finding("exif-unrotated", source, one_line(what), image.path.name, split, (image.path,))
        return
    if image.orientation != 1:
        yield Finding("exif-rotated", image.path, f"EXIF orientation {image.orientation}", "", split, (image.path,))
    if declared is not None and tuple(declared) != image.size:
        stated = " × ".join(f"{side:g}" if isinstance(side, float) else as_json(side) for side in declared)
        what = f"{image.path.name} is {width} × {height}, not {stated}"
        yield Finding("size-mismatch", source, one_line(what), one_line(image.path.name), split, (image.path,))


def _check_annotations(survey: Survey, split: str, resize: Resize | None) -> Iterator[Finding]:
    annotations, sizes = survey.parsed[split], survey.sizes(split)
    log = _FullLog(survey.root, split)
    survey.repaired[split] = kept = repair(annotations, sizes, log)
    images = {path.name: path for path in annotations.paths}
    yield from (_finding(defect, split, images) for defect in log.all)
    yield from check_boxes(split, kept, sizes, resize)
    yield from check_masks(split, kept, sizes)
    readable = np.flatnonzero(sizes.all(axis=1))
    empty = np.setdiff1d(readable, annotations.image)
    if len(empty):
        names = ", ".join(annotations.paths[index].name for index in empty[:3]) + (" …" if len(empty) > 3 else "")
        what = f"split {split}: {len(empty)} of {len(annotations.paths)} images have no box: {names}"
        yield Finding("no-boxes", annotations.sources[empty[0]], one_line(what), split=split)
    if survey.format == "coco":
        yield from _zero_ids(annotations, split)
    if survey.format == "yolo":
        for source, count in Counter(annotations.sources).items():
            if count > 1:
                yield Finding("shared-annotation", source, f"{count} images have this file", split=split)


def _zero_ids(annotations: Annotations, split: str) -> Iterator[Finding]:
    has_zero = {
        "an image": 0 in (annotations.ids or ()),
        "a category": 0 in annotations.category_ids,
        "an annotation": any(place.startswith("annotation 0 ") for place in annotations.places),
    }
    if annotations.sources:
        for kind in (kind for kind, is_present in has_zero.items() if is_present):
            yield Finding("zero-id", annotations.sources[0], f"the id of {kind} is 0", kind, split)


def _check_classes(survey: Survey, complete: bool) -> Iterator[Finding]:
    counts, files = {}, {}
    for split, kept in survey.repaired.items():
        labels = np.bincount(kept.labels[kept.labels >= 0], minlength=len(kept.classes))
        counts[split] = dict(zip(kept.classes, labels.tolist(), strict=True))
        files[split] = _main_file(survey, split)
    parts = {split: count for split, count in counts.items() if split not in survey.unions} or counts
    yield from check_classes(parts, files, complete)
    reference = "train" if "train" in counts else next(iter(counts))
    for split, of_split in counts.items():
        for name in of_split.keys() - counts[reference].keys():
            if of_split[name]:
                what = f"split {split} has {of_split[name]} boxes of {name}, a class that {reference} does not have"
                yield Finding("unknown-class", files[split], one_line(what), split=split)


def _main_file(survey: Survey, split: str) -> Path:
    """Return the file that represents a split in a finding."""
    if survey.format == "coco":
        return coco.locate(survey.tree, split)
    if survey.format == "yolo":
        return yolo.description_file(survey.tree) or survey.root
    lists = sorted(survey.root.rglob(f"ImageSets/Main/{split}.txt"))
    sources = survey.parsed[split].sources
    return lists[0] if lists else sources[0] if sources else survey.root


def _count_boxes(survey: Survey) -> int:
    """Return the number of valid boxes in all splits; boxes of images that splits share are counted once."""
    counts: dict[Path, int] = {}
    for kept in survey.repaired.values():
        of_split = np.bincount(kept.image, minlength=len(kept.paths))
        counts.update(zip(kept.paths, of_split.tolist(), strict=True))
    return sum(counts.values())


# ----------------------------------------------------------------------------------------------------------- duplicates


def _check_duplicates(survey: Survey) -> Iterator[Finding]:
    lists = survey.lists()
    splits = survey.members()

    def leak(first: Path, second: Path) -> tuple[str, str] | None:
        return duplicates.leaks(splits[first], splits[second], survey.unions, lists)

    for path in splits:
        if between := leak(path, path):
            what = f"splits {between[0]} and {between[1]} both have it"
            yield Finding("leaked-image", path, what, split=between[0], images=(path,))
    for group in survey.same:
        # One image per set of splits: `other` may leak into the splits of one image and not of another.
        representatives = {frozenset(splits[path]): path for path in reversed(group)}.values()
        for other in group[1:]:
            leaking = next((image for image in representatives if image != other and leak(image, other)), None)
            image = leaking or group[0]
            between = leak(image, other) if leaking else None
            rule = "leaked-image" if between else "duplicate-pixels"
            what = f"the same pixels as {_relative(survey, image)}" + _between(between)
            yield Finding(rule, other, one_line(what), split=min(splits[other]), images=(image, other))
    for pair in survey.similar:
        between = leak(pair.first, pair.second)
        what = f"nearly the same as {_relative(survey, pair.first)} (correlation {pair.correlation:.3f})"
        rule = "near-leak" if between else "near-duplicate"
        what = one_line(what + _between(between))
        yield Finding(rule, pair.second, what, split=min(splits[pair.second]), images=(pair.first, pair.second))


def _between(splits: tuple[str, str] | None) -> str:
    return f": one is in {splits[0]}, the other in {splits[1]}" if splits else ""


def _relative(survey: Survey, path: Path) -> str:
    return str(path.relative_to(survey.root)) if path.is_relative_to(survey.root) else str(path)
