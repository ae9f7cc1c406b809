"""Self-contained HTML page with the findings, without scripts."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from detect.curation.doctor.diagnosis import CHECKS, SEVERITIES, Finding, Report
from detect.data.decode import decode
from detect.errors import UserError, one_line

ROWS = 200
"""Maximum number of findings per rule in the tables; the JSON file has all."""
PICTURES = 6
"""Maximum number of findings with pictures per rule."""
_MAX_HEIGHT, _MAX_WIDTH = 170, 380  # of a picture, in pixels
_BOX_COLOUR = (255, 40, 90)


def write_page(path: Path, report: Report) -> None:
    """Write the page.

    Args:
        path: the HTML file.
        report: the report of `examine`.
    """
    count = report.count()
    cards: list[tuple[int, str, str]] = [(count[name], name + "s" * (count[name] != 1), name) for name in SEVERITIES]
    cards += [(sum(report.splits.values()), "images in all splits", ""), (report.boxes, "boxes", "")]
    splits = ", ".join(f"{split} {number:,}" for split, number in report.splits.items())
    page = Template(files("detect.curation.doctor").joinpath("page.html").read_text(encoding="utf-8")).substitute(
        title=_text(f"Findings in {report.root}"),
        subtitle=_text(f"{report.format or 'not read'}; {splits or 'no split'}; {report.seconds:.1f} s"),
        counts="".join(f'<div><b class="{kind}">{number:,}</b>{label}</div>' for number, label, kind in cards),
        rules="\n".join(_rule(report, rule, findings) for rule, findings in report.by_rule()) or "<p>No findings.</p>",
        anchors=_anchors(report.anchors) if report.anchors else "",
    )
    path.write_text(page, encoding="utf-8")


def _text(value: object) -> str:
    return escape(one_line(str(value)))


def _rule(report: Report, rule: str, findings: list[Finding]) -> str:
    check = CHECKS[rule]
    rows = "".join(
        f"<tr><td>{_text(_short(report, finding.path))}</td><td>{_text(finding.place)}</td>"
        f"<td>{_text(finding.what)}</td></tr>"
        for finding in findings[:ROWS]
    )
    more = f"<p class=soft>and {len(findings) - ROWS:,} more</p>" if len(findings) > ROWS else ""
    shown = [finding for finding in findings if finding.images][:PICTURES]
    pictures = "".join(filter(None, map(_picture, shown)))
    return (
        f"<details{'' if check.severity == 'note' else ' open'}><summary>"
        f'<b class="{check.severity}">{check.severity}</b> {rule} × {len(findings):,} '
        f"<span class=soft>– {_text(check.advice)}{'; --fix does' if check.repaired else ''}</span></summary><div>"
        f"<div class=pictures>{pictures}</div>"
        f"<table><tr><th>file</th><th>location</th><th>problem</th></tr>{rows}</table>{more}</div></details>"
    )


def _picture(finding: Finding) -> str:
    """Return the images of a finding side by side, the first with its boxes; an empty string if one is unreadable."""
    try:
        pictures = [decode(path) for path in finding.images]
    except UserError:
        return ""
    jpegs = [
        _thumbnail(picture, () if k else finding.boxes) for k, picture in enumerate(_with_masks(pictures, finding))
    ]
    images = " ".join(f'<img src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}" alt="">' for jpeg in jpegs)
    return f"<figure>{images}<figcaption>{_text(finding.what)}</figcaption></figure>"


def _with_masks(pictures: list[UInt8[np.ndarray, "H W 3"]], finding: Finding) -> list[UInt8[np.ndarray, "H W 3"]]:
    """Return the pictures of a finding, the first with its masks in colour."""
    for mask in finding.masks:
        first = pictures[0] = pictures[0].copy()
        shown = mask.bitmap(*first.shape[:2]).astype(bool)
        first[shown] = first[shown] // 2 + np.array(_BOX_COLOUR, np.uint8) // 2
    return pictures


def _thumbnail(pixels: UInt8[np.ndarray, "H W 3"], boxes: tuple[tuple[float, ...], ...]) -> bytes:
    height, width = pixels.shape[:2]
    scale = min(_MAX_HEIGHT / height, _MAX_WIDTH / width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = np.ascontiguousarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)[..., ::-1])
    for box in boxes:
        # The numbers in a file may have any value.
        corners = (np.nan_to_num(box).clip(-1, 2**20) * scale).clip(-1, 2**14).round().astype(int)
        cv2.rectangle(small, corners[:2].tolist(), corners[2:].tolist(), _BOX_COLOUR[::-1], 2)
    return bytes(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 75])[1])


def _anchors(anchors: Mapping[str, Any]) -> str:
    proposed = anchors["proposed"] or {}
    rows = ""
    for name, row in anchors["ceiling"].items():
        cells = "".join(
            f"<td class=number>{row[key]:.1%}" + (f" → {proposed[name][key]:.1%}" if name in proposed else "") + "</td>"
            for key in ("0.5", "0.7", "mean")
        )
        rows += f"<tr><td>{_text(name)}</td><td class=number>{row['truths']:,.0f}</td>{cells}</tr>"
    head = "".join(f"<th class=number>{name}</th>" for name in ("number", "IoU ≥ 0.5", "IoU ≥ 0.7", "mean IoU"))
    config = f"<pre>{_text_lines(anchors['yaml'])}</pre>" if anchors["yaml"] else ""
    return (
        "<h2>Ground truths matched by an anchor</h2><p class=soft>Share matched by an anchor of the config → "
        f"by a proposed anchor.</p><table><tr><th>ground truths</th>{head}</tr>{rows}</table>{config}"
    )


def _text_lines(text: str) -> str:
    return "\n".join(map(_text, text.splitlines()))


def _short(report: Report, path: Path) -> Path:
    return path.relative_to(report.root) if path.is_relative_to(report.root) else path
