"""Repaired copy of a data set, with all changes that need no human decision.

COCO, VOC and YOLO keep their format; every other format is written as COCO. Other problems, such as the wrong class of
a box, are not changed. The original is never changed.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from PIL import Image

from detect.curation.doctor.diagnosis import Report
from detect.curation.doctor.repair.coco import write_coco
from detect.curation.doctor.repair.other import write_as_coco
from detect.curation.doctor.repair.plan import Plan, make_plan, refuse_losses
from detect.curation.doctor.repair.voc import write_voc
from detect.curation.doctor.repair.yolo import write_yolo
from detect.data.decode import decode
from detect.data.deep_images import FACTOR, write_scaled
from detect.errors import UserError
from detect.files.atomic import new_folder, refuse_within

LOG = "MENDED.txt"
"""File in the copy that lists the changes."""
_QUALITY: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "PNG": {},
    "WEBP": {"lossless": True},
}
"""Options for writing rotated images, by format."""


def write_repaired_copy(report: Report, out: Path) -> list[str]:
    """Write a repaired copy of a data set into a new folder, which appears complete or not at all.

    The copy leaves out images that cannot be read, that repeat another image of their split, or that a later split
    (validation, test) also has; and boxes that the readers leave out, or that repeat another box. Boxes are clipped,
    sizes corrected, ids and missing fields filled in, and images with an EXIF orientation whose boxes fit the upright
    image are written upright. Mistakes that all boxes of a split share are converted, and images of 12 bits are scaled
    to the 16 of their files. All other images are copied byte by byte; images that no split lists are not copied.

    Args:
        report: the report of `examine`.
        out: the new folder.

    Returns:
        One line per change; the file `MENDED.txt` in the copy has the same lines.

    Raises:
        UserError: a split cannot be read, or would lose more than half of its images or boxes; or `out` is not empty,
            is in the data set or cannot be written.
    """
    survey = report.survey
    unread = [finding for finding in report.findings if finding.split and finding.split not in report.splits]
    if survey is None or unread or not survey.parsed:
        first = next((finding for finding in (*unread, *report.findings)), None)
        problem = f"{first.path}: {first.what}" if first else f"{report.root}: it has no split"
        raise UserError(f"{problem}; correct that by hand before --fix")
    out = Path(out)
    refuse_within(report.root, out, "--fix")
    plan = make_plan(survey)
    refuse_losses(plan)
    write = {"coco": write_coco, "voc": write_voc, "yolo": write_yolo}.get(survey.format, write_as_coco)
    upright = {finding.path for finding in report.findings if finding.rule == "exif-rotated"}
    dark = {path for split in _splits_with(report, "12-bit-images") for path in survey.parsed[split].paths}
    try:
        with new_folder(out) as draft:
            _copy_images(plan, draft, upright, dark)
            write(plan, draft)
            (draft / LOG).write_text("".join(f"{line}\n" for line in plan.log), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{error.filename or out}: {error.strerror}; fix that or choose another --fix") from error
    return plan.log


def _splits_with(report: Report, rule: str) -> set[str]:
    return {finding.split for finding in report.findings if finding.rule == rule}


def _copy_images(plan: Plan, draft: Path, upright: set[Path], dark: set[Path]) -> None:
    """Copy the images, those in `upright` rotated and those in `dark` brightened, and the readme and licence files."""
    for path in dict.fromkeys(path for split in plan.survey.parsed for path in plan.kept(split)):
        target = draft / plan.relative(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path in upright and _write_upright(path, target):
            plan.report(f"{plan.relative(path)}: written upright")
        elif path in dark and write_scaled(path, target):
            plan.report(f"{plan.relative(path)}: values multiplied by {FACTOR}")
        else:
            shutil.copyfile(path, target)
    for path in sorted(plan.survey.root.iterdir()):
        if path.name.upper().startswith(("README", "LICEN")) and path.is_file() and not path.is_symlink():
            shutil.copyfile(path, draft / path.name)


def _write_upright(path: Path, target: Path) -> bool:
    with Image.open(path) as image:
        format = "JPEG" if image.format == "MPO" else image.format or ""
    if format not in _QUALITY:
        return False
    Image.fromarray(decode(path)).save(target, format=format, **_QUALITY[format])
    return True
