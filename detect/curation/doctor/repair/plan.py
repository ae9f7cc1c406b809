"""Plan of a repaired copy: the remaining images and boxes, and the changes of boxes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from detect.curation.doctor import duplicates
from detect.curation.doctor.box_checks import repeats
from detect.curation.doctor.examine import Survey
from detect.data.annotations import ROUNDING, Annotations, repair
from detect.data.dataset import VALIDATION
from detect.data.defects import DefectLog
from detect.data.masks import Mask
from detect.errors import UserError, one_line


@dataclass(slots=True)
class Plan:
    """Content of the repaired copy."""

    survey: Survey
    lists: dict[str, set[Path]]
    """The images of each split."""
    dropped: dict[str, dict[Path, str]]
    """The images of each split that are left out, with the reason."""
    rows: dict[str, list[list[int]]]
    """Rows in `Annotations` of each image of each split."""
    counts: Counter[Path] = field(default_factory=Counter)
    """Number of boxes of each image."""
    boxes: dict[str, dict[int, Float64[np.ndarray, " 4"] | None]] = field(default_factory=dict)
    """Rows of `Annotations` that remain in each split, with the new box, or None if it is as in the file."""
    masks: dict[str, dict[int, Mask]] = field(default_factory=dict)
    """Usable masks in pixels, by row of `Annotations` in each split."""
    valid: dict[str, list[int]] = field(default_factory=dict)
    """Rows of `Annotations` with a box within its image, in each split."""
    log: list[str] = field(default_factory=list)
    """One line per change."""

    def kept(self, split: str) -> list[Path]:
        """Return the remaining images of a split, each once."""
        return [path for path in dict.fromkeys(self.survey.parsed[split].paths) if path not in self.dropped[split]]

    def relative(self, path: Path) -> Path:
        """Return a path relative to the root of the data set."""
        return path.absolute().relative_to(self.survey.root.absolute())

    def report(self, line: str) -> None:
        """Add a change to the log."""
        self.log.append(one_line(line))


def make_plan(survey: Survey) -> Plan:
    """Return the plan of a data set's repaired copy."""
    dropped = {split: _unusable(survey, split) for split in survey.parsed}
    plan = Plan(survey, survey.lists(), dropped, {split: _rows(parsed) for split, parsed in survey.parsed.items()})
    for split, parsed in survey.parsed.items():
        plan.counts |= Counter({path: len(rows) for path, rows in zip(parsed.paths, plan.rows[split], strict=True)})
    members = survey.members()
    for path in (path for path, splits in members.items() if len(splits) > 1):
        _drop_leaks(plan, [path])
    for group in survey.same:
        _drop_leaks(plan, group)
        _drop_duplicates(plan, group)
    for pair in survey.similar:
        _drop_leaks(plan, [pair.first, pair.second])
    for split in survey.unions:
        for path in plan.kept(split):
            parts = members[path] - survey.unions
            if parts and all(path in plan.dropped[part] for part in parts):
                plan.dropped[split][path] = "it was left out of the part of this split that has it"
    for split in plan.dropped:
        for path, cause in plan.dropped[split].items():
            plan.report(f"{split}: left out image {plan.relative(path)}: {cause}")
        if mistake := survey.mistakes.get(split):
            plan.report(f"{split}: all boxes are converted ({', '.join(mistake.rules)}): {mistake.detail}")
        plan.boxes[split] = _boxes(plan, split)
    return plan


def refuse_losses(plan: Plan) -> None:
    """Raise `UserError` if a split would become empty, or lose more than half of its images or boxes to defects.

    Boxes and images that another one repeats are no loss, nor are images that a later split also has.
    """
    for split, parsed in plan.survey.parsed.items():
        paths, unusable = set(parsed.paths), _unusable(plan.survey, split)
        usable = sum(parsed.paths[index] not in unusable for index in parsed.image[plan.valid[split]])
        counts = {
            "images": (len(plan.kept(split)), len(paths) - len(unusable), len(paths)),
            "boxes": (len(plan.boxes[split]), usable, len(parsed.boxes)),
        }
        for what, (remaining, without_defects, before) in counts.items():
            if before and (not remaining or without_defects * 2 < before):
                problem = f"a repaired copy would have {remaining} of {before} {what} of split {split}"
                raise UserError(one_line(f"{plan.survey.root}: {problem}; correct the findings by hand before --fix"))


def rounded(number: float) -> float:
    """Round a number to four decimals, and to an integer if it is whole."""
    result = round(float(number), 4)
    return int(result) if result.is_integer() else result


# --------------------------------------------------------------------------------------------------------------- images


def _rows(annotations: Annotations) -> list[list[int]]:
    rows: list[list[int]] = [[] for _ in annotations.paths]
    for row, image in enumerate(annotations.image.tolist()):
        rows[image].append(row)
    return rows


def _unusable(survey: Survey, split: str) -> dict[Path, str]:
    """Return the images that cannot be read or have no annotation file, with the reason."""
    annotations = survey.parsed[split]
    dropped = {path: survey.images[path].detail for path in annotations.paths if survey.images[path].rule}
    if survey.format == "voc":
        for path, source in zip(annotations.paths, annotations.sources, strict=True):
            if not source.is_file():
                dropped.setdefault(path, "it has no annotation")
    return dropped


def _rank(split: str) -> tuple[int, str]:
    """Return the sort key of a split: test above validation above others. The highest split keeps shared images."""
    if split.startswith("test"):
        return 2, split
    return (1, split) if split.startswith(VALIDATION) else (0, split)


def _drop_leaks(plan: Plan, group: list[Path]) -> None:
    """Keep equal images in the highest-ranking split only."""
    lists, dropped = plan.lists, plan.dropped
    present = [name for name in lists if any(path in lists[name] and path not in dropped[name] for path in group)]
    for split in present:
        for other in present:
            if _rank(other) > _rank(split) and duplicates.leaks({split}, {other}, plan.survey.unions, lists):
                for path in group:
                    if path in lists[split]:
                        dropped[split].setdefault(path, f"split {other} has the same picture")


def _drop_duplicates(plan: Plan, group: list[Path]) -> None:
    """Keep one of several images with the same pixels in each split: from the highest split, then with most boxes."""

    def has(split: str, path: Path) -> bool:
        return path in plan.lists[split] and path not in plan.dropped[split]

    def priority(path: Path) -> tuple[tuple[int, str], int]:
        return max(_rank(split) for split in plan.lists if has(split, path)), plan.counts[path]

    for split in plan.lists:
        present = [path for path in group if has(split, path)]
        if len(present) < 2:
            continue
        best = max(present, key=priority)
        for path in present:
            if path != best:
                plan.dropped[split][path] = f"it has the same pixels as {plan.relative(best)}"


# ---------------------------------------------------------------------------------------------------------------- boxes


def _boxes(plan: Plan, split: str) -> dict[int, Float64[np.ndarray, " 4"] | None]:
    """Return the remaining rows with changed boxes; an image that is listed twice gets the boxes of both entries."""
    survey, annotations = plan.survey, plan.survey.parsed[split]
    sizes = survey.sizes(split)
    numbered = replace(annotations, places=[str(row) for row in range(len(annotations.boxes))])
    valid = repair(numbered, sizes, DefectLog(survey.root, split))
    first = {path: index for index, path in reversed(list(enumerate(annotations.paths)))}
    images = np.array([first[annotations.paths[index]] for index in valid.image], dtype=np.int64)
    keys = np.where(valid.labels < 0, -1, images * len(annotations.classes) + valid.labels)
    repeated = repeats(valid.boxes, keys, valid.masks)
    limits = np.tile(sizes, 2) if annotations.normalised else np.ones((len(sizes), 4))
    kept: dict[int, Float64[np.ndarray, " 4"] | None] = {}
    for index, row in enumerate(map(int, valid.places)):
        image = valid.image[index]
        if annotations.paths[image] in plan.dropped[split]:
            continue
        location = f"{split}: {plan.relative(annotations.sources[image])}, {annotations.places[row]}"
        if repeated[index]:
            plan.report(f"{location}: left out, it repeats another box")
            continue
        clipped = np.abs(annotations.boxes[row] * limits[image] - valid.boxes[index]).max() > ROUNDING
        kept[row] = valid.boxes[index] if clipped or split in survey.mistakes else None
        if clipped:
            plan.report(f"{location}: clipped at the edge of its image")
    plan.valid[split] = list(map(int, valid.places))
    masks = zip(plan.valid[split], valid.masks or (), strict=False)  # without masks there are rows only
    plan.masks[split] = {row: mask for row, mask in masks if mask is not None}
    _report_invalid(plan, split, set(plan.valid[split]))
    return kept


def _report_invalid(plan: Plan, split: str, valid: set[int]) -> None:
    annotations = plan.survey.parsed[split]
    for row, image in enumerate(annotations.image.tolist()):
        if row not in valid and annotations.paths[image] not in plan.dropped[split]:
            source = plan.relative(annotations.sources[image])
            plan.report(f"{split}: {source}, {annotations.places[row]}: left out, no box within its image")
