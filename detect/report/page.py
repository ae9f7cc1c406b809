"""An evaluation, or a comparison of several, as one HTML page that needs nothing else.

The page is put together from the files of the folder `web`: one shell (`page.html`) around the body of each kind of
page, one style sheet, and plain scripts that build everything else in the browser from the data. The data stand in the
page as JSON, and their text becomes text on the page, never markup. The page's Content-Security-Policy allows its own
style and script, known by their hashes, and images within the page; whatever else got into it would neither run nor
load.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from importlib import resources
from string import Template
from typing import Any

SHARED = ("base.js", "charts.js", "table.js", "score.js", "pictures.js")
SECTIONS = ("findings.js", "curves.js", "confusion.js", "calibration.js", "gallery.js")
REPORT = (*SHARED, *SECTIONS, "report.js")
COMPARISON = (*SHARED, "comparison.js")


def render_report(data: dict[str, Any]) -> str:
    """The page of one evaluation.

    Args:
        data: what the page shows; shares are fractions in 0 … 1, what is unknown is None, boxes are xyxy in pixels.
            `title`, `subject` and `figures` must be there. A section whose key (`classes`, `curves`, `thresholds`,
            `confusion`, `errors`, `slices`, `calibration`, `proposals`, `oracles`, `gallery`, `training`, `config`) is
            missing, None or empty is left out.

    Raises:
        ValueError: a number that is not finite, which JSON does not know.
    """
    return _page("report.html", REPORT, data)


def render_comparison(data: dict[str, Any]) -> str:
    """The page of several evaluations on the same images, each against the first.

    Args:
        data: `title`, `runs` (name, subject and figures of each), `pairs` (differences to the first run with their
            intervals; `run` is the place in `runs`) and `images` (where they differ most; `run` as in `pairs`).

    Raises:
        ValueError: a number that is not finite, which JSON does not know.
    """
    return _page("comparison.html", COMPARISON, data)


def _page(body: str, scripts: tuple[str, ...], data: dict[str, Any]) -> str:
    style = _read("page.css")
    script = '"use strict";\n' + "\n".join(_read(name) for name in scripts)
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return Template(_read("page.html")).substitute(
        policy=policy,
        title=html.escape(str(data["title"])),
        style=style,
        body=_read(body),
        data=_json(data),
        script=script,
    )


def _read(name: str) -> str:
    return (resources.files("detect.report") / "web" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """The source expression by which a Content-Security-Policy knows an inline style or script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _json(data: dict[str, Any]) -> str:
    r"""JSON that may stand within `<script>`.

    There `</script>` would end it, `<!--` would begin a comment, and U+2028 and U+2029 are line ends to older readers.
    Within JSON's strings each of them can be written as `\u…`, and outside of strings none occurs.
    """
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
