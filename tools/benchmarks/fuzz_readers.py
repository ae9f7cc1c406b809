"""Read thousands of damaged data sets; each must be read, or refused in one line.

    python tools/benchmarks/fuzz_readers.py --count 20000

Each case damages one file of a small data set in one of the formats: its bytes, its structure, or one of its
values. A case fails if the reader raises anything but `UserError`, prints more than one printable line, warns, opens a
file outside of the folder, or takes more than a second of processor time. `--only N` repeats case N and shows it.
"""

from __future__ import annotations

import argparse
import codecs
import encodings.aliases
import json
import os
import random
import re
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuzz_layouts import FILES, IMAGES, OBJECT, SIZE
from PIL import Image

from detect.data.read import read, splits
from detect.errors import UserError

LIMIT = 1.0
"""Maximum processor time of a case, in seconds."""
CLASSES = ["cat", "dog", "car", "pedestrian", "face"]
DEEP = 100_000
TEXTS = [
    *("", " ", ".", "..", "/", "~", "./", "../../etc/passwd", "/etc/passwd", "images", "train", "1.png", "./1.png"),
    *("\0", "a\nb", "a\rb", "\x1b[31m", "\u2028", "\x85", "\ufeff", "\u202e", "é", "e\u0301", "猫", "🐈", "\ud800"),
    *("x" * 300, "x" * 5000, "x/" * 3000, "con", "a\\b", "C:\\a", "%s", "{0}", "[red]", "null", "1 1", "1 -1", "1.jpg"),
]
NUMBERS = [
    *("0", "-0", "-1", "1e-400", "1e308", "-1e308", "1e400", "NaN", "nan", "Infinity", "-inf", "0x10", "1_0", "٣"),
    *("1,5",),
    *("9223372036854775807", "9223372036854775808", "9" * 400, "9" * 5000, "0." + "0" * 5000 + "1", "0x" + "f" * 6000),
    *("1e", "--1", "+1", ".", ".5", "5.", "0b1", "1:1", ":".join(["59"] * 300), ":".join(["59"] * 300) + ".5"),
]
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1.5, 2**31, 2**53, 2**63, -(2**63), 10**400, 1e308, -1e308, 5e-324),
    *(float("nan"), float("inf"), -float("inf"), [], {}, [None], [[]], {"a": 1}, [1, 2, 3], [1] * 4, [1e308] * 4),
    *({"id": 1}, [0] * 5000, {str(k): k for k in range(2000)}, *TEXTS),
]
BOMB = '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">{}]>'.format(
    "".join(f'<!ENTITY c{k} "{"&b;" * 50 if k == 0 else f"&c{k - 1};" * 50}">' for k in range(9))
)
TAGS = ("int", "float", "bool", "timestamp", "binary", "null", "pairs", "omap", "set")
TAGGED = ("''", "abc", "[]", "{}", "[a]", "2001-99-99", "2001-01-01t25:61:61+99:99", "-", "0x", "1:")
SNIPPETS = {
    "json": ['{"images": [', "]", "}", '"id": 1,', "null", "/* */", "'", "\\u0000", "\\ud800", "[" * DEEP],
    "xml": [
        *(OBJECT, "<object/>", "<object><name/></object>", "<bndbox/>", "</object>", "<annotation>", "<![CDATA[ 3 ]]>"),
        *(BOMB, BOMB + "<annotation>&c8;</annotation>", "&c8;", "&lt;", "&#0;", "&#xD800;", "&nbsp;", "<?php x ?>"),
        *('<!DOCTYPE a SYSTEM "file:///etc/passwd">', '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>', "&x;"),
        *("<!-- ", "-->", "<a>" * DEEP, "<a " + 'b="c" ' * 2000 + "/>", "<object>" * 500, "<x:y/>", "<a xmlns='b'/>"),
    ],
    "yaml": [
        *("- a", "? b", "a: &a [x, x]", "b: *a", "c: &c [*c]", "<<: {nc: 3}", "<<: *a", "<<: 1", "---", "...", "%TAG"),
        *("\t", "names: [cat]", "nc: 3", "path: /", "path: ..", "path: images", "train: []", "train: [a, {b: c}]"),
        *("train: 5", "train: ''", "train: .", "train: ..", "train: /etc", "train: {a: b}", "train: 2001-01-01"),
        *("val: /etc/passwd", "val: [[val.txt]]", "train: data.yaml", "test: ../../x", "a: " + "[" * 5000, "names: {}"),
        *("names: [yes, no]", "names: [1, 1.0]", "names: {0: 1, 1: 2001-01-01}", "names: {0: !!binary YQ==}"),
        *("names: {-1: a}", "names: {1.0: a}", "names: {? [a] : b}", "names: !!set {a}", "names: !!omap [0: a]"),
        *(f"x: !!{tag} {value}" for tag in TAGS for value in TAGGED),
        *("x: !!python/object/apply:os.getcwd []", "x: !!python/name:os.system", "x: !a b", "names: [" + "a, " * 3000),
    ],
    "csv": [
        *("a,b", ",,,,,,,,,,", '"', '""', "filename,class,xmin,ymin,xmax,ymax", "1.png,cat,1,2,3,4"),
        *("1.png,1,2,3,4,cat", "1.png,nan,nan,nan,nan,cat", "1.png,9,9,1,1,cat", "'a'", "\t\t\t", ";;;", "{"),
        *("[" * DEEP, '"' + "x" * 200_000 + '"', "# a", "sep=;", "a" * 200_000, "1.png," * 3000),
        *('"' + "[" * DEEP + '"', '"{""a"":' * 500, "=cmd|' /C calc'!A0"),
    ],
    "txt": ["0 0.5 0.5 1 1", "0", "1 1", "-1 0.5 0.5 1 1", "0.5 0 0 0 0", "0 1 2 3 4 5", "# a", "0," * 5, "0 " * 9999],
}  # fmt: skip
CODECS = sorted({*encodings.aliases.aliases.values(), "undefined", "nonsense", "utf-7", "\u00e9"})
ENCODINGS = ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-7", "latin-1", "cp037", "utf-8-sig")
SNIPPETS["jsonl"] = SNIPPETS["json"]
TOKEN = re.compile(r"[^\s<>,:\[\]{}\"]+")


@dataclass(frozen=True, slots=True)
class Case:
    """A damaged data set: the layout, the file, its new content and the kind of damage."""

    layout: str
    file: str
    content: bytes
    damage: str


def make_case(seed: int, number: int) -> Case:
    """Return case `number`, deterministically."""
    draw = random.Random(f"{seed} {number}")
    layout = draw.choice(list(FILES))
    file = draw.choice(list(FILES[layout]))
    text = FILES[layout][file]
    kind = file.rpartition(".")[2]
    damages: list[Callable[[random.Random, str, str], str | bytes]]
    damages = [_token, _token, _snippet, _lines, _bytes, _encoded]
    of_json = [_value, _value, _value, _duplicate_key]
    damages += {"json": of_json, "jsonl": of_json, "xml": [_declared, _element]}.get(kind, [])
    damage = draw.choice(damages)
    content = damage(draw, text, kind)
    if draw.random() < 0.2 and isinstance(content, str):  # two at once
        content = _bytes(draw, content, kind)
    data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    return Case(layout, file, data, damage.__name__.strip("_"))


def _token(draw: random.Random, text: str, kind: str) -> str:
    """Replace a word or number by an unusual one."""
    tokens = list(TOKEN.finditer(text))
    if not tokens:
        return draw.choice(TEXTS + NUMBERS)
    match = draw.choice(tokens)
    return text[: match.start()] + draw.choice(TEXTS + NUMBERS) + text[match.end() :]


def _snippet(draw: random.Random, text: str, kind: str) -> str:
    """Insert a snippet of the format in the wrong place."""
    lines = (
        text.splitlines(keepends=True)
        if draw.random() < 0.7
        else [text[: (at := draw.randint(0, len(text)))], text[at:]]
    )
    lines.insert(draw.randint(0, len(lines)), draw.choice(SNIPPETS[kind]) + draw.choice(["", "\n"]))
    return "".join(lines)


def _lines(draw: random.Random, text: str, kind: str) -> str:
    """Repeat, remove or shuffle lines, or change their ends."""
    lines = text.splitlines() or [""]
    match draw.randrange(5):
        case 0:
            lines.insert(draw.randint(0, len(lines)), draw.choice(lines))
        case 1:
            lines.remove(draw.choice(lines))
        case 2:
            draw.shuffle(lines)
        case 3:
            lines *= 300
    return draw.choice(["\n", "\r\n", "\r", "\0", "\x0b", "\u2028"]).join(lines)


def _bytes(draw: random.Random, text: str, kind: str) -> bytes:
    """Flip bits, insert, remove or repeat bytes, or cut off the end."""
    data = bytearray(text.encode("utf-8", "surrogatepass"))
    for _ in range(draw.choice([1, 1, 2, 8])):
        start, length = draw.randint(0, len(data)), draw.choice([1, 1, 2, 30])
        match draw.randrange(6):
            case 0 if start < len(data):
                data[start] ^= 1 << draw.randrange(8)
            case 1:
                data[start:start] = draw.randbytes(length)
            case 2:
                del data[start : start + length]
            case 3:
                data[start:start] = data[start : start + length] * draw.choice([1, 50])
            case 4:
                del data[start:]
            case 5:
                data[start : start + 1] = draw.choice([b"\0", b"\xff", b"\xef\xbb\xbf", b"\xc0\x80", b"\xed\xa0\x80"])
    return bytes(data)


def _encoded(draw: random.Random, text: str, kind: str) -> bytes:
    """Encode the file differently, with or without a byte order mark."""
    mark = draw.choice([b"", codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE])
    return mark + text.replace("cat", draw.choice(["cat", "é", "猫"])).encode(draw.choice(ENCODINGS), "replace")


def _declared(draw: random.Random, text: str, kind: str) -> str:
    """Declare a wrong encoding in an XML file."""
    return text.replace('encoding="utf-8"', f'encoding="{draw.choice(CODECS)}"')


def _element(draw: random.Random, text: str, kind: str) -> str:
    """Remove, repeat, wrap or rename an XML element."""
    matches = list(re.finditer(r"<(\w+)>[^<]*</\1>", text))
    if not matches:
        return text + text
    match = draw.choice(matches)
    new = draw.choice(["", match[0] * 2, f"<a>{match[0]}</a>", match[0] * 5000, match[0].replace(match[1], "name")])
    return text[: match.start()] + new + text[match.end() :]


def _value(draw: random.Random, text: str, kind: str) -> str:
    """Replace a value of a JSON file by one of another type, remove it, or move it."""
    document = [json.loads(text)]
    places = list(_places(document))
    holder, key = draw.choice(places)
    match draw.randrange(5):
        case 0:
            del holder[key]
        case 1:
            other, its = draw.choice(places)
            holder[key] = deepcopy(other[its])
        case 2 if isinstance(holder, list):
            holder *= draw.choice([2, 300])
        case _:
            holder[key] = draw.choice(VALUES)
    written = json.dumps(document[0] if document else None)
    return written if draw.random() < 0.9 else written.replace("null", draw.choice(["[" * 900 + "]" * 900, "[" * DEEP]))


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the container and key of each value of a JSON document."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def _duplicate_key(draw: random.Random, text: str, kind: str) -> str:
    """Repeat a key of a JSON file with another value."""
    match = draw.choice(list(re.finditer(r'"\w+": ', text)))
    value = json.dumps(draw.choice(VALUES))
    return f"{text[: match.start()]}{match[0]}{value}, {text[match.start() :]}"


# ---- reading ---------------------------------------------------------------------------------------------------------


class Reader:
    """Reads damaged data sets below a folder and records which files are opened."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._opened: list[str] | None = None
        for layout, files in FILES.items():
            for place, file in enumerate((*files, *(f"{IMAGES[layout]}{number}.png" for number in (1, 2)))):
                path = self._folder / layout / file
                path.parent.mkdir(parents=True, exist_ok=True)
                if place < len(files):
                    path.write_text(files[file])
                else:
                    Image.new("RGB", SIZE).save(path)
        for codec in CODECS:  # looked up now, so that Python does not search its folders during a case
            with suppress(LookupError):
                codecs.lookup(codec)
        sys.addaudithook(self._record)  # it cannot be removed, and is inactive outside of `_recording`

    def _record(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._opened is None or event not in ("open", "os.listdir", "os.scandir"):
            return
        if arguments and isinstance(arguments[0], (str, bytes, Path)):
            self._opened.append(os.fsdecode(arguments[0]))

    @contextmanager
    def _recording(self) -> Iterator[list[str]]:
        opened: list[str] = []
        self._opened = opened
        try:
            yield opened
        finally:
            self._opened = None

    def outcome(self, case: Case) -> tuple[str, str]:
        """Return `read`, `refused` or the kind of failure, with details."""
        root = self._folder / case.layout
        path = root / case.file
        path.write_bytes(case.content)
        started = time.process_time()
        try:
            with warnings.catch_warnings(), self._recording() as opened:
                warnings.simplefilter("error")
                error = _read(root, case)
        finally:
            path.write_text(FILES[case.layout][case.file])
        seconds = time.process_time() - started
        kind, details = _classify(error)
        if outside := [name for name in opened if self._is_outside(name, root)]:
            return "outside", outside[0]
        return ("slow", f"{seconds:.1f} s, {kind}") if seconds > LIMIT else (kind, details)

    def _is_outside(self, name: str, root: Path) -> bool:
        """Return whether a file lies outside of the data folder and does not belong to Python."""
        path, package = Path(name).absolute(), Path(__file__).parents[2] / "detect"
        python = Path(sys.prefix), Path(sys.base_prefix), Path(json.__file__).parent.parent, package
        return not path.is_relative_to(root) and not any(path.is_relative_to(folder.resolve()) for folder in python)


def _read(root: Path, case: Case) -> Exception | None:
    """Read all splits; return the exception, if any."""
    try:
        for split in splits(root):
            read(root, split, classes=CLASSES if len(case.content) % 3 == 0 else None, progress=False)
    except Exception as error:
        return error
    return None


def _classify(error: Exception | None) -> tuple[str, str]:
    if error is None:
        return "read", ""
    if isinstance(error, UserError):
        text = error.args[0]  # the raw text: str(error) is always one line
        return ("refused", text) if text.isprintable() and 10 < len(text) < 5000 else ("many lines", ascii(text))
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "detect" in Path(frame.filename).parts]
    return "crashed", f"{type(error).__name__}: {str(error)[:40]} ({Path(ours[-1].filename).name}:{ours[-1].lineno})"


def main() -> None:
    """Run the cases; print how many were read, refused and failed, and the first failures of each kind."""
    parser = argparse.ArgumentParser(description="read damaged data sets")
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="run one case and print its content")
    options = parser.parse_args()
    outcomes: Counter[str] = Counter()
    damages: Counter[tuple[str, str]] = Counter()
    failures: dict[str, list[int]] = {}
    slowest = (0.0, 0)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        reader = Reader(Path(folder))
        for number in [options.only] if options.only is not None else range(options.count):
            case = make_case(options.seed, number)
            case_started = time.process_time()
            kind, details = reader.outcome(case)
            slowest = max(slowest, (time.process_time() - case_started, number))
            outcomes[kind] += 1
            damages[case.damage, kind] += 1
            if kind not in ("read", "refused"):
                failures.setdefault(f"{kind}: {details}" if kind == "crashed" else kind, []).append(number)
            if options.only is not None:
                print(case.layout, case.file, case.damage, case.content[:2000], kind, details, sep="\n")
    seconds = time.perf_counter() - started
    print(
        f"{outcomes.total()} cases in {seconds:.0f} s:",
        ", ".join(f"{number} {kind}" for kind, number in outcomes.items()),
    )
    print(f"the slowest took {slowest[0]:.2f} s: case {slowest[1]}")
    for name in sorted({damage for damage, _ in damages}):
        print(
            f"  {name:14}", ", ".join(f"{count} {kind}" for (damage, kind), count in damages.items() if damage == name)
        )
    for failure, numbers in failures.items():
        print(f"{len(numbers)} × {failure}; cases {', '.join(map(str, numbers[:5]))}")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
