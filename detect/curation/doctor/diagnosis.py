"""What the doctor of data says: findings, each of one rule, and the rules with their severity and advice."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from detect.data.defects import RULES

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


class Check(NamedTuple):
    """What a finding of a rule means: an `error` spoils training or figures, a `warning` may, a `note` informs."""

    severity: Severity
    advice: str
    repaired: bool = False
    """Whether `mending.fix` removes it."""


_REPAIRED_BY_READER = {
    "zero-area": "draw the box or take it out; the reader leaves it out",
    "negative-size": "swap its corners if it means something; the reader leaves it out",
    "outside-image": "draw it anew or take it out; the reader leaves it out",
    "clipped": "cut it at the image's edge, as the reader does",
    "size-mismatch": "correct the size in the file, or restore the image that it speaks of",
    "missing-label": "add the file, empty for an image without objects",
    "unknown-image": "list its image or take it out",
    "duplicate-annotation-id": "number the annotations anew",
    "missing-area": "write the area of its box",
    "missing-iscrowd": "write 0 for an object, 1 for a region of many",
}
_REFUSED_BUT_REPAIRED = {"missing-image", "unreadable-image", "missing-annotation", "nan-box", "duplicate-image"}
_WITHOUT_OPTION = {
    "missing-image": "restore it or take its entry out",
    "unreadable-image": "replace the image or leave it out",
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
    "oversized-file": Check("error", "no data set needs that much: split it, or take it out"),
    "special-file": Check("error", "only files and folders belong here: take it out"),
    "leaked-image": Check("error", "keep it in one split alone: what is trained on cannot be judged by", True),
    "near-leak": Check("warning", "look at the pair: where both show the same, keep it in one split alone", True),
    "duplicate-pixels": Check("warning", "keep one of them, with the boxes of both", True),
    "duplicate-box": Check("warning", "keep one of them", True),
    "class-conflict": Check("warning", "where both mean one object, take the wrong one out"),
    "tiny-box": Check("warning", "take it out, or train with larger images: nothing can be seen in it"),
    "exif-unrotated": Check("warning", "draw the boxes anew on the upright image, or take the EXIF orientation out"),
    "similar-classes": Check("warning", "give both one spelling"),
    "empty-class": Check("warning", "add boxes of it or take it out of the classes"),
    "missing-class": Check("warning", "divide the images anew, so that every split has every class"),
    "shared-annotation": Check("warning", "give every image a name and an annotation of its own"),
    "unlisted-image": Check("warning", "list it in a split, or take it out", True),
    "orphan-annotation": Check("warning", "restore its image, or take it out", True),
    "anchors": Check("warning", "choose anchors that fit: see the proposal"),
    "near-duplicate": Check("note", "look at the pair: many of a kind teach little"),
    "exif-rotated": Check("note", "the boxes fit the upright image; other tools may not turn it", True),
    "pixel-mode": Check("note", "it is read as RGB of 8 bits"),
    "whole-image-box": Check("note", "right where one object fills the picture, else a label of the whole image"),
    "zero-id": Check("note", "count from 1: pycocotools takes annotation 0 for no match; `detect` numbers anew"),
    "no-boxes": Check("note", "right for background, else annotate them"),
    "imbalance": Check("note", "expect less of rare classes, or add images of them"),
}
CHECKS: dict[str, Check] = _OF_READERS | _OWN
"""Every kind of finding: first those that the readers have, too, then those that only the doctor looks for."""

_ORDER = {name: (SEVERITIES.index(check.severity), place) for place, (name, check) in enumerate(CHECKS.items())}
_PLACE = re.compile(
    r"(line \d+( column \d+)?|object \d+|annotation (-?\d+|without id|\S+) of image -?\d+"
    r"|(images|annotations|categories)\[\d+\]|(image|images) -?\d+)"
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, or worth knowing, with the data."""

    rule: str
    """A key of `CHECKS`."""
    path: Path
    """The file at fault."""
    what: str
    """What is wrong there, in one line."""
    place: str = ""
    """Where in the file: a line, an object, the id of an annotation. Empty where it is the file as a whole."""
    split: str = ""
    """The split in which it was found first, empty where it is of none."""
    images: tuple[Path, ...] = ()
    """The pictures that show it; two for a pair."""
    boxes: tuple[tuple[float, ...], ...] = ()
    """The boxes to draw on the first picture, xyxy in pixels."""

    @property
    def severity(self) -> Severity:
        """`error`, `warning` or `note`."""
        return CHECKS[self.rule].severity

    @property
    def advice(self) -> str:
        """What to do about it."""
        return CHECKS[self.rule].advice


def place_in(detail: str) -> str:
    """The place that a reader's words name: a line, an object, an annotation's id."""
    match = _PLACE.search(detail)
    return match[0] if match else ""


@dataclass(frozen=True, slots=True)
class Report:
    """All that the doctor found."""

    root: Path
    format: str
    """`coco`, `voc` or `yolo`; empty where nothing could be read."""
    splits: dict[str, int]
    """The images of each split that was looked at."""
    boxes: int
    """Good boxes in all splits together, those of a shared image once."""
    findings: tuple[Finding, ...]
    """The worst first, then by rule."""
    seconds: float
    survey: Any = field(default=None, repr=False, compare=False)
    """What was read, for `mending.fix`."""

    def by_rule(self) -> Iterator[tuple[str, list[Finding]]]:
        """The findings of each rule, the worst rule first."""
        groups: dict[str, list[Finding]] = {}
        for finding in self.findings:
            groups.setdefault(finding.rule, []).append(finding)
        yield from groups.items()

    def count(self) -> Counter[str]:
        """The number of findings of each severity."""
        return Counter(finding.severity for finding in self.findings)

    @property
    def clean(self) -> bool:
        """Whether there are notes at most."""
        return all(finding.severity == "note" for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "root": str(self.root),
            "format": self.format,
            "splits": self.splits,
            "boxes": self.boxes,
            "seconds": round(self.seconds, 2),
            "count": {severity: self.count()[severity] for severity in SEVERITIES},
            "rules": {rule: len(findings) for rule, findings in self.by_rule()},
            "findings": [_as_dict(finding) for finding in self.findings],
        }


def sort(findings: list[Finding]) -> tuple[Finding, ...]:
    """The worst first, each once: what two splits share is found in both."""
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
