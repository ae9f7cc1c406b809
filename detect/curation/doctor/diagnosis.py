"""Findings of the data set check, and their rules with severity and advice."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from detect.data.defects import RULES
from detect.data.masks import Mask
from detect.errors import one_line

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


class Check(NamedTuple):
    """A rule. An `error` harms training or metrics, a `warning` may do so, a `note` is information."""

    severity: Severity
    advice: str
    repaired: bool = False
    """True if `write_repaired_copy` fixes it."""


_REPAIRED_BY_READER = {
    "zero-area": "draw the box or remove it; the reader leaves it out",
    "negative-size": "swap its corners if it is an object; the reader leaves it out",
    "outside-image": "draw it again or remove it; the reader leaves it out",
    "clipped": "clip it at the image's edge, as the reader does",
    "size-mismatch": "correct the size in the file, or restore the image that it describes",
    "missing-label": "add the file, empty for an image without objects",
    "unknown-image": "list its image or remove it",
    "implied-box": "write the box of the polygon or mask",
    "id-not-number": "write whole numbers",
    "duplicate-annotation-id": "renumber the annotations",
    "missing-area": "write the area of its box",
    "broken-mask": "draw the mask again; the reader leaves it out and keeps the box",
    "mask-size": "write the mask in the size of its image; the reader leaves it out",
    "short-polygon": "remove it: a polygon has at least three corners",
    "masks-elsewhere": "write polygons in pixels of the image, x before y; the reader leaves all masks out",
    "missing-iscrowd": "write 0 for an object, 1 for a region of many objects",
}
_MISTAKES = {
    "corners-for-sizes": "write width and height where the file has the right and lower edge",
    "sizes-for-corners": "write the right and lower edge where the file has width and height",
    "corner-for-centre": "write the centre of the box where the file has its upper left corner",
    "fractions-for-pixels": "multiply x and width by the image's width, y and height by its height",
    "pixels-for-fractions": "divide x and width by the image's width, y and height by its height",
    "scaled-images": "scale the boxes like the images",
    "swapped-axes": "write x before y",
    "keypoint-lines": "write kpt_shape into the YAML, which tells keypoints from polygons",
    "12-bit-images": "multiply the values by 16; otherwise the images are nearly black",
}
_REFUSED_BUT_REPAIRED = {
    *("missing-image", "unreadable-image", "missing-annotation", "nan-box", "duplicate-image"),
    *_MISTAKES,
}
# Advice without the command line options, which `detect data check` does not have.
_WITHOUT_OPTION = _MISTAKES | {
    "missing-image": "restore it or remove its entry",
    "unreadable-image": "replace the image or leave it out",
    "embedded-image": "save it as a file of this name beside the annotations, for example with labelme_export_json",
    "path-outside-root": "name files by their path within the data folder, and put them there instead of a link",
}
_OF_READERS = {
    name: Check("error", _WITHOUT_OPTION.get(name, rule.action), name in _REFUSED_BUT_REPAIRED)
    if rule.verdict == "refused"
    else Check("warning", _REPAIRED_BY_READER.get(name, rule.action), True)
    for name, rule in RULES.items()
}
_OWN = {
    "empty-image": Check("error", "restore the file or leave it out", True),
    "truncated-image": Check("error", "restore the file or leave it out: decoders fill the rest with grey", True),
    "huge-image": Check("error", "make it smaller or leave it out", True),
    "oversized-file": Check("error", "no data set needs a file of this size: split it, or remove it"),
    "special-file": Check("error", "only files and folders belong here: remove it"),
    "leaked-image": Check("error", "keep it in one split only: a model cannot be evaluated on its training data", True),
    "near-leak": Check("warning", "look at the pair: if both show the same, keep it in one split only", True),
    "duplicate-pixels": Check("warning", "keep one of them, with the boxes of both", True),
    "duplicate-box": Check("warning", "keep one of them", True),
    "class-conflict": Check("warning", "if both are the same object, remove the wrong one"),
    "empty-mask": Check("warning", "draw the mask again or remove it: it has no pixel to learn from"),
    "mask-unlike-box": Check("warning", "correct the box or the mask: they belong to different places"),
    "mask-outside-box": Check("warning", "enlarge the box or correct the mask: what is outside the box is not learned"),
    "no-mask": Check("warning", "draw the missing masks: only their boxes are learned"),
    "tiny-box": Check("warning", "remove it, or train with larger images: it is too small to learn from"),
    "exif-unrotated": Check("warning", "draw the boxes again on the upright image, or remove the EXIF orientation"),
    "similar-classes": Check("warning", "use one spelling for both"),
    "empty-class": Check("warning", "add boxes of it or remove it from the classes"),
    "missing-class": Check("warning", "split the images again, so that every split has every class"),
    "shared-annotation": Check("warning", "give every image a name and an annotation of its own"),
    "unlisted-image": Check("warning", "list it in a split, or remove it", True),
    "orphan-annotation": Check("warning", "restore its image, or remove it", True),
    "anchors": Check("warning", "choose anchors that fit, such as the proposed ones"),
    "absent-split": Check("note", "correct or remove the entry, if the split should exist"),
    "near-duplicate": Check("note", "look at the pair: many similar images add little to training"),
    "exif-rotated": Check("note", "the boxes fit the upright image; other tools may not rotate it", True),
    "pixel-mode": Check("note", "it is read as 8-bit RGB"),
    "whole-image-box": Check("note", "correct if one object fills the image, otherwise a label of the whole image"),
    "scattered-mask": Check("note", "if the pieces are several objects, give each its own annotation, or iscrowd 1"),
    "zero-id": Check("note", "count from 1: pycocotools takes annotation 0 for no match; `detect` renumbers"),
    "no-boxes": Check("note", "correct for background, otherwise annotate them"),
    "imbalance": Check("note", "expect lower metrics for rare classes, or add images of them"),
}
CHECKS: dict[str, Check] = _OF_READERS | _OWN
"""All rules: first the rules of the readers, then the rules of this check only."""

_ORDER = {name: (SEVERITIES.index(check.severity), rank) for rank, (name, check) in enumerate(CHECKS.items())}
_PLACE = re.compile(
    r"(line \d+( column \d+)?|object \d+|annotation (-?\d+|without id|\S+) of image -?\d+"
    r"|((image|task) \d+, )?(annotation|shape|region|result|label|task) \d+"
    r"|(images|annotations|categories)\[\d+\]|(image|images) -?\d+)"
)


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem or noteworthy fact of the data."""

    rule: str
    """A key of `CHECKS`."""
    path: Path
    """File with the problem."""
    what: str
    """The problem in one line."""
    place: str = ""
    """Location in the file: a line, an object, an annotation id. Empty for the file as a whole."""
    split: str = ""
    """First split with the problem; empty if it does not belong to a split."""
    images: tuple[Path, ...] = ()
    """Images that show the problem; two for a pair."""
    boxes: tuple[tuple[float, ...], ...] = ()
    """Boxes to draw on the first image, xyxy in pixels."""
    masks: tuple[Mask, ...] = field(default=(), repr=False, compare=False)
    """Masks to draw on the first image."""

    @property
    def severity(self) -> Severity:
        """`error`, `warning` or `note`."""
        return CHECKS[self.rule].severity

    @property
    def advice(self) -> str:
        """Remedy."""
        return CHECKS[self.rule].advice


def place_in(detail: str) -> str:
    """Return the location named in a reader's message: a line, an object or an annotation id."""
    match = _PLACE.search(detail)
    return match[0] if match else ""


@dataclass(frozen=True, slots=True)
class Report:
    """Result of the check of a data set."""

    root: Path
    format: str
    """A key of `formats.FORMATS`; empty if nothing could be read."""
    splits: dict[str, int]
    """Number of images in each checked split."""
    boxes: int
    """Number of valid boxes in all splits; boxes of images that splits share are counted once."""
    findings: tuple[Finding, ...]
    """Findings by severity, then by rule."""
    seconds: float
    survey: Any = field(default=None, repr=False, compare=False)
    """Content of the data set (`examine.Survey`), for `write_repaired_copy`."""
    anchors: dict[str, Any] | None = field(default=None, repr=False)
    """Recall of a config's anchors, and better anchors, if a config was given."""

    def __str__(self) -> str:
        """Return a line for each rule with its first case, and the counts in the last line."""
        cases = [
            f"{found[0].severity} {rule} × {len(found):,}, first {found[0].path}: {found[0].what}"
            for rule, found in self.by_rule()
        ]
        return "\n".join([*map(one_line, cases), self.headline])

    @property
    def headline(self) -> str:
        """The data set and the counts in one line."""
        count = self.count()
        splits = ", ".join(f"{split} {number:,}" for split, number in self.splits.items())
        counts = ", ".join(f"{count[name]:,} {name}{'s' * (count[name] != 1)}" for name in SEVERITIES)
        data = f"{self.root} ({self.format or 'not read'}; {splits or 'no split'}): {self.boxes:,} boxes"
        return one_line(f"{data}; {counts}; {self.seconds:.1f} s")

    def by_rule(self) -> Iterator[tuple[str, list[Finding]]]:
        """Yield the findings of each rule, the most severe rule first."""
        groups: dict[str, list[Finding]] = {}
        for finding in self.findings:
            groups.setdefault(finding.rule, []).append(finding)
        yield from groups.items()

    def count(self) -> Counter[str]:
        """Return the number of findings per severity."""
        return Counter(finding.severity for finding in self.findings)

    @property
    def clean(self) -> bool:
        """True if all findings are notes."""
        return all(finding.severity == "note" for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as a JSON document."""
        return {
            "root": str(self.root),
            "format": self.format,
            "splits": self.splits,
            "boxes": self.boxes,
            "seconds": round(self.seconds, 2),
            "count": {severity: self.count()[severity] for severity in SEVERITIES},
            "rules": {rule: len(findings) for rule, findings in self.by_rule()},
            "findings": [_as_dict(finding) for finding in self.findings],
        } | ({"anchors": self.anchors} if self.anchors else {})


def sort(findings: list[Finding]) -> tuple[Finding, ...]:
    """Return the findings by severity, without repetitions, which occur if two splits share a problem."""
    seen: dict[tuple[str, Path, str], Finding] = {}
    for finding in findings:
        seen.setdefault((finding.rule, finding.path, finding.what), finding)
    return tuple(sorted(seen.values(), key=lambda finding: _ORDER[finding.rule]))


def _as_dict(finding: Finding) -> dict[str, Any]:
    return {
        "severity": finding.severity,
        "rule": finding.rule,
        "split": finding.split,
        "file": str(finding.path),
        "place": finding.place,
        "what": finding.what,
        "advice": finding.advice,
        "images": list(map(str, finding.images)),
        "boxes": [list(box) for box in finding.boxes],
    }
