"""Self-contained HTML page of an evaluation or of a comparison of several.

The page consists of the files in the folder `web`: a shell (`page.html`) around the body of each kind of page, a style
sheet, and JavaScript modules that build everything else in the browser from the data. The modules are joined into one
script, in the order below. The data are embedded as JSON, and their text becomes text on the page, never markup. The
page's Content-Security-Policy allows its own style and script, identified by their hashes, and embedded images;
injected content is neither run nor loaded.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from importlib import resources
from string import Template
from typing import Any

SHARED = ("base.js", "charts.js", "table.js", "score.js", "pictures.js")
SECTIONS = ("findings.js", "curves.js", "confusion.js", "boundary.js", "calibration.js", "gallery.js")
REPORT = (*SHARED, *SECTIONS, "report.js")
COMPARISON = (*SHARED, "comparison.js")

_MODULE_SYNTAX = re.compile(r"^import [^;]*;\n|^export ", re.MULTILINE)


def render_report(data: dict[str, Any]) -> str:
    """Return the page of one evaluation.

    Args:
        data: content of the page; shares are fractions in 0 … 1, unknown values None, boxes xyxy in pixels.
            `title`, `subject` and `metrics` are required. A section is left out if its key (`classes`, `curves`,
            `thresholds`, `confusion`, `errors`, `masks`, `slices`, `calibration`, `proposals`, `oracles`, `gallery`,
            `training`, `config`) is missing, None or empty.

    Raises:
        ValueError: a number is not finite, which JSON cannot express.
    """
    return _page("report.html", REPORT, data)


def render_comparison(data: dict[str, Any]) -> str:
    """Return the page that compares evaluations on the same images with the first of them.

    Args:
        data: `title`, `score` at which the slider starts, `runs` (name, subject and metrics of each), `pairs`
            (differences from the first run with their intervals; `run` is the index in `runs`) and `images` (those that
            differ most; `run` as in `pairs`).

    Raises:
        ValueError: a number is not finite, which JSON cannot express.
    """
    return _page("comparison.html", COMPARISON, data)


def _page(body: str, modules: tuple[str, ...], data: dict[str, Any]) -> str:
    style = _read("page.css")
    script = "\n".join(_MODULE_SYNTAX.sub("", _read(name)) for name in modules)
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
    """Return the source expression of an inline style or script for the Content-Security-Policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _json(data: dict[str, Any]) -> str:
    r"""Return JSON that is safe within `<script>`.

    `</script>` would end the element, `<!--` would begin a comment, and older parsers take U+2028 and U+2029 for line
    ends. These characters occur only in JSON strings, where each can be written as `\u…`.
    """
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
