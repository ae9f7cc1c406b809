"""The results of a long run as they come to a folder: in parts that are there whole or not at all, then merged.

    out/manifest.json                                what was asked for, and in the end what came of it
    out/parts/000042.jsonl                           a result a line, and a line for what could not be read
    out/{predictions.json,images.json,predictions.csv}   the parts together, once all of them are there

Whatever ends a process, the next one makes only the parts that are missing. Any number of processes may work in one
folder, on any number of machines, and need not know of each other: each writes a part under another name, flushes it
to the disk and renames it, and whoever finds all parts there merges them. Two that do so write the same bytes.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from textwrap import shorten
from typing import Any, TextIO

import numpy as np

from detect.errors import UserError
from detect.prediction.result import Result

FORMAT = 1
"""Of the folder; one that was begun by a version of another format is not gone on with."""

_DRAFT = ".draft-"
_COLUMNS = ("path", "index", "x1", "y1", "x2", "y2", "score", "label", "name")
_Sink = Callable[[int, Result], None]
"""Is given each result with its id, 1 and up."""


class Parts:
    """The folder of a run.

    Args:
        out: a new or empty folder, or that of the same run.
        asked: what the results depend on, as plain values.
        size: the most images that a part has, if the folder is new; else it keeps its own `size`.

    Raises:
        UserError: the folder holds something else, or the results of another run.
        OSError: it cannot be written.
    """

    def __init__(self, out: Path, asked: Mapping[str, Any], size: int) -> None:
        self.out, self.drafts, self._manifest = out, out / "parts", out / "manifest.json"
        self.asked: dict[str, Any] = json.loads(json.dumps({"format": FORMAT, **asked}, default=str))
        if out.is_file():
            raise UserError(f"{out}: this is a file; give another --out")
        out.mkdir(parents=True, exist_ok=True)
        holds_something = any(not child.name.startswith(".") for child in out.iterdir())
        if not self._manifest.exists():  # asked last: another process may be making it, before anything else
            if holds_something:
                raise UserError(f"{out}: the folder holds something else; give a new one, or that of the same run")
            self._put({"asked": self.asked, "size": size}, first=True)
        there = self._read()
        if there["asked"] != self.asked:
            difference = _difference(there["asked"], self.asked)
            raise UserError(f"{out}: holds predictions with {difference}; give the same options or another --out")
        self.size: int = there["size"]

    @property
    def done(self) -> dict[str, Any] | None:
        """How many images and detections there are, and a line for each file left out; None before the merging."""
        return self._read().get("done")

    def missing(self, count: int) -> list[int]:
        """The numbers of those of `count` parts that are still to be made, from 0."""
        self.drafts.mkdir(exist_ok=True)
        there = set(os.listdir(self.drafts))  # noqa: PTH208 - names alone
        missing = [part for part in range(count) if self._name(part) not in there]
        # Asked last: who merges says so before the parts go.
        return [] if self.done else missing

    @contextmanager
    def write(self, part: int) -> Iterator[TextIO]:
        """A file for the lines of a part, which is there once the context is left without an error."""
        with whole(self.drafts / self._name(part), self.drafts) as draft, draft.open("w", encoding="ascii") as file:
            yield file

    def merge(self, count: int, advance: Callable[[], None] = lambda: None) -> None:
        """Makes the files of all parts, in memory that does not grow with them, and removes the parts.

        Args:
            count: how many parts there are.
            advance: is called after each part.

        Raises:
            OSError: a file cannot be written, or another process has merged and removed the parts meanwhile.
        """
        images = detections = 0
        left_out: list[str] = []
        with ExitStack() as stack:
            sinks = [stack.enter_context(_SINKS[name](self)) for name in self.asked["save"] if name in _SINKS]
            for line in self._lines(count, advance):
                if "error" in line:
                    left_out.append(line["error"])
                    continue
                result = _result(line, tuple(self.asked["classes"]), tuple(self.asked["category_ids"]))
                images, detections = images + 1, detections + len(result)
                for sink in sinks:
                    sink(images, result)
        done = {"images": images, "detections": detections, "left_out": left_out}
        self._put({"asked": self.asked, "size": self.size, "done": done})
        self.sweep()

    def sweep(self) -> None:
        """Removes the parts and what killed processes have left, once `done`."""
        shutil.rmtree(self.drafts, ignore_errors=True)
        for draft in self.out.glob(f"{_DRAFT}*"):
            draft.unlink(missing_ok=True)

    def _name(self, part: int) -> str:
        return f"{part:06}.jsonl"

    def _lines(self, count: int, advance: Callable[[], None]) -> Iterator[dict[str, Any]]:
        for part in range(count):
            with (self.drafts / self._name(part)).open(encoding="ascii") as file:
                yield from map(json.loads, file)
            advance()

    def _read(self) -> dict[str, Any]:
        try:
            manifest = json.loads(self._manifest.read_text(encoding="ascii"))
            return {"asked": dict(manifest["asked"]), "size": int(manifest["size"]), "done": manifest.get("done")}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{self._manifest}: no manifest of detect predict; give another --out") from None

    def _put(self, manifest: Mapping[str, Any], first: bool = False) -> None:
        with whole(self._manifest, self.out, first) as draft:
            draft.write_text(json.dumps(manifest, indent=1), encoding="ascii")


@contextmanager
def whole(path: Path, drafts: Path, first: bool = False) -> Iterator[Path]:
    """Where to write what is to be at `path`, a file in the folder `drafts` with the same ending.

    When the context is left without an error it is flushed to the disk and renamed, and `path` is there, whole. Where
    nothing was written nothing is renamed. With `first`, what another process has put there meanwhile stays.
    """
    # Machines that share a disk have processes of the same number.
    draft = drafts / f"{_DRAFT}{token_hex(8)}{path.suffix}"
    try:
        yield draft
        if draft.exists():
            with draft.open("rb+") as file:
                os.fsync(file.fileno())
            path.parent.mkdir(parents=True, exist_ok=True)
            if not (first and _linked(draft, path)):
                draft.replace(path)
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def _linked(draft: Path, path: Path) -> bool:
    """Whether the file is at `path` now, or another one was before; some disks have no links."""
    try:
        path.hardlink_to(draft)
    except FileExistsError:
        pass
    except OSError:
        return False
    return True


@contextmanager
def _coco(parts: Parts) -> Iterator[_Sink]:
    """COCO's results, and the images and categories that they are of."""
    ids, names = parts.asked["category_ids"], parts.asked["classes"]
    categories = [{"id": number, "name": name} for number, name in zip(ids, names, strict=True)]
    with (
        whole(parts.out / "images.json", parts.drafts) as images_draft,
        whole(parts.out / "predictions.json", parts.drafts) as results_draft,
        images_draft.open("w", encoding="ascii") as images_file,
        results_draft.open("w", encoding="ascii") as results_file,
    ):
        images_file.write(f'{{"categories": {json.dumps(categories)},\n"annotations": [],\n"images": [')
        results_file.write("[")
        images, results = _list(images_file), _list(results_file)

        def sink(image_id: int, result: Result) -> None:
            frame = {} if result.index is None else {"index": result.index}
            height, width = result.size
            images([{"id": image_id, "file_name": result.path, **frame, "width": width, "height": height}])
            results(result.to_coco(image_id))

        yield sink
        images_file.write("\n]}\n")
        results_file.write("\n]\n")


def _list(file: TextIO) -> Callable[[Sequence[Mapping[str, Any]]], None]:
    """What writes more objects of a list, commas between them, as one line."""
    start = "\n"

    def write(items: Sequence[Mapping[str, Any]]) -> None:
        nonlocal start
        if items:
            file.write(start + json.dumps(items)[1:-1])
            start = ",\n"

    return write


@contextmanager
def _csv(parts: Parts) -> Iterator[_Sink]:
    """A detection a row; of names that are no text the bytes are kept."""
    with (
        whole(parts.out / "predictions.csv", parts.drafts) as draft,
        draft.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        rows = csv.writer(file)  # whose lines end as RFC 4180 has it: else a lone \r in a name would not be quoted
        rows.writerow(_COLUMNS)

        def sink(image_id: int, result: Result) -> None:
            # numpy's text of a float32 is the shortest that reads back as the same.
            boxes, scores = result.boxes.astype(str).tolist(), result.scores.astype(str).tolist()
            for box, score, label, name in zip(boxes, scores, result.labels.tolist(), result.names, strict=True):
                rows.writerow((result.path, result.index, *box, score, label, name.encode("utf-8", "replace").decode()))

        yield sink


_SINKS = {"coco": _coco, "csv": _csv}


def _result(line: Mapping[str, Any], classes: tuple[str, ...], category_ids: tuple[int, ...]) -> Result:
    """What `Result.to_json` was made of, but its pixels."""
    found: Sequence[Mapping[str, Any]] = line["detections"]
    return Result(
        boxes=np.array([one["box"] for one in found], np.float32).reshape(-1, 4),
        scores=np.array([one["score"] for one in found], np.float32),
        labels=np.array([one["label"] for one in found], np.int64),
        classes=classes,
        category_ids=category_ids,
        size=(line["height"], line["width"]),
        path=line["path"],
        index=line["index"],
    )


def _difference(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """In what two runs differ, that of the folder first."""
    one, other = _flat(there), _flat(wanted)
    keys: Collection[str] = [key for key in other | one if one.get(key) != other.get(key)]
    return ", ".join(f"{key} {_short(one.get(key))} and not {_short(other.get(key))}" for key in keys)


def _flat(asked: Mapping[str, Any]) -> dict[str, Any]:
    return {**asked, **asked.get("options", {}), "options": None}


def _short(value: object) -> str:
    return shorten(str(value), 40, placeholder=" …") if not isinstance(value, str) else value[:16]
