"""Output folder of a run that can be interrupted and continued: part files, which are merged at the end.

    out/manifest.json                                settings of the run and, at the end, a summary
    out/parts/000042.jsonl                           one result per line, then one line per unreadable image
    out/parts/000042.000064.piece                    lines of a part that is computed in pieces, here from image 64
    out/listing.jsonl                                sources of one part per line, for the workers of an engine
    out/{predictions.json,images.json,predictions.csv}   all parts merged

A process that continues the run computes only the missing parts. Any number of processes may work in one folder, on
several machines, without communication: each writes its parts atomically, and merges all parts once they are complete.
If several processes merge, they write the same bytes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any, TextIO

import numpy as np

from detect.data.masks import RLE
from detect.errors import UserError
from detect.files.atomic import atomic_write, remove_drafts
from detect.prediction.listing import Part
from detect.prediction.result import Result
from detect.prediction.result_files import WriteResult, coco_writer, csv_writer

FORMAT = 1
"""Version of the folder's layout; a run with another version is not continued."""


class OutputFolder:
    """Output folder of a run.

    Args:
        out: a new or empty folder, or the folder of the same run.
        settings: all settings that affect the results, as JSON values.
        part_size: maximum number of images of a part. A run that is continued keeps its own.

    Raises:
        UserError: the folder has other files or the results of another run.
        OSError: the folder cannot be written.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any], part_size: int) -> None:
        self.out, self.parts, self._manifest = out, out / "parts", out / "manifest.json"
        self._listing = out / "listing.jsonl"
        self.settings: dict[str, Any] = json.loads(json.dumps({"format": FORMAT, **settings}, default=str))
        if out.is_file():
            raise UserError(f"{out}: this is a file; give another --out")
        out.mkdir(parents=True, exist_ok=True)
        has_files = any(not child.name.startswith(".") for child in out.iterdir())
        if not self._manifest.exists():  # checked after the files: the manifest is the first that a process writes
            if has_files:
                raise UserError(f"{out}: the folder has other files; give a new folder, or the folder of the same run")
            self._write_manifest({"asked": self.settings, "size": part_size}, keep_existing=True)
        manifest = self._read_manifest()
        if manifest["asked"] != self.settings:
            difference = _difference(manifest["asked"], self.settings)
            raise UserError(f"{out}: has predictions with {difference}; give the same options or another --out")
        self.part_size: int = manifest["size"]

    @property
    def summary(self) -> dict[str, Any] | None:
        """Numbers of `images` and `detections`, and `left_out`, a line per unreadable image; None until merged."""
        return self._read_manifest().get("done")

    @property
    def draws(self) -> bool:
        """True if pictures are written."""
        return "pictures" in self.settings["save"]

    def missing_parts(self, count: int) -> list[int]:
        """Return the indices of the missing parts out of `count` parts."""
        self.parts.mkdir(exist_ok=True)
        existing = set(os.listdir(self.parts))  # noqa: PTH208  only names are needed
        missing = [part for part in range(count) if self._part_name(part) not in existing]
        # Checked last: a merging process writes the summary before it removes the parts.
        return [] if self.summary else missing

    def write_listing(self, parts: Iterable[Part]) -> list[int]:
        """Write the sources of all parts, and return the offset of each, for `read_listing`."""
        offsets = []
        with atomic_write(self._listing) as draft, draft.open("wb") as file:
            for part in parts:
                offsets.append(file.tell())
                line = {"names": part.names, "kind": part.kind, "drawings": part.drawings}
                file.write(json.dumps(line).encode("ascii") + b"\n")
        return offsets

    def read_listing(self, offset: int) -> Part:
        """Return the sources of a part."""
        with self._listing.open("rb") as file:
            file.seek(offset)
            return Part(**json.loads(file.readline()))

    @contextmanager
    def write_part(self, part: int, start: int | None = None) -> Iterator[TextIO]:
        """Yield a file for the lines of a part, which appears when the block ends without an error.

        Args:
            part: index of the part.
            start: index of the first image, if only a piece of the part is written, for `join_pieces`.
        """
        path = self.parts / (self._part_name(part) if start is None else self._piece_name(part, start))
        with atomic_write(path, drafts=self.parts) as draft, draft.open("w", encoding="ascii") as file:
            yield file

    def join_pieces(self, part: int, starts: Sequence[int]) -> None:
        """Write a part from its pieces, given by their starts: all results, then the images that could not be read."""
        pieces = [self.parts / self._piece_name(part, start) for start in starts]
        lines = [line for piece in pieces for line in piece.read_text(encoding="ascii").splitlines(keepends=True)]
        with self.write_part(part) as file:
            file.writelines(sorted(lines, key=lambda line: "error" in json.loads(line)))
        for piece in pieces:
            piece.unlink()

    def merge(self, count: int, advance: Callable[[], None] = lambda: None) -> None:
        """Write the result files from all parts, in constant memory, and remove the parts.

        Args:
            count: number of parts.
            advance: called after each part.

        Raises:
            OSError: a file cannot be written, or another process has merged and removed the parts.
        """
        classes, category_ids = tuple(self.settings["classes"]), tuple(self.settings["category_ids"])
        writers: dict[str, Callable[[Path, Path], AbstractContextManager[WriteResult]]] = {
            "coco": partial(coco_writer, classes=classes, category_ids=category_ids),
            "csv": partial(csv_writer, has_masks=self.settings.get("masks", False)),
        }
        images = detections = 0
        left_out: list[str] = []
        with ExitStack() as stack:
            kinds = [kind for kind in self.settings["save"] if kind in writers]
            write = [stack.enter_context(writers[kind](self.out, self.parts)) for kind in kinds]
            for line in self._read_parts(count, advance):
                if "error" in line:
                    left_out.append(line["error"])
                    continue
                result = _result_from_json(line, classes, category_ids)
                images, detections = images + 1, detections + len(result)
                masks = _masks_from_json(line)
                for write_result in write:
                    write_result(images, result, masks)
        done = {"images": images, "detections": detections, "left_out": left_out}
        self._write_manifest({"asked": self.settings, "size": self.part_size, "done": done})
        self.remove_parts()

    def remove_parts(self) -> None:
        """Remove the parts of a merged run, and the drafts that killed processes have left."""
        shutil.rmtree(self.parts, ignore_errors=True)
        self._listing.unlink(missing_ok=True)
        remove_drafts(self.out, recursive=False)

    def _part_name(self, part: int) -> str:
        return f"{part:06}.jsonl"

    def _piece_name(self, part: int, start: int) -> str:
        return f"{part:06}.{start:06}.piece"

    def _read_parts(self, count: int, advance: Callable[[], None]) -> Iterator[dict[str, Any]]:
        for part in range(count):
            with (self.parts / self._part_name(part)).open(encoding="ascii") as file:
                yield from map(json.loads, file)
            advance()

    def _read_manifest(self) -> dict[str, Any]:
        try:
            manifest = json.loads(self._manifest.read_text(encoding="ascii"))
            return {"asked": dict(manifest["asked"]), "size": int(manifest["size"]), "done": manifest.get("done")}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{self._manifest}: not a manifest of detect predict; give another --out") from None

    def _write_manifest(self, manifest: Mapping[str, Any], keep_existing: bool = False) -> None:
        with atomic_write(self._manifest, keep_existing=keep_existing) as draft:
            draft.write_text(json.dumps(manifest, indent=1), encoding="ascii")


def _result_from_json(line: Mapping[str, Any], classes: tuple[str, ...], category_ids: tuple[int, ...]) -> Result:
    """Return the result that `Result.to_json` wrote, without its pixels."""
    detections: Sequence[Mapping[str, Any]] = line["detections"]
    return Result(
        boxes=np.array([detection["box"] for detection in detections], np.float32).reshape(-1, 4),
        scores=np.array([detection["score"] for detection in detections], np.float32),
        labels=np.array([detection["label"] for detection in detections], np.int64),
        classes=classes,
        category_ids=category_ids,
        size=(line["height"], line["width"]),
        path=line["path"],
        index=line["index"],
    )


def _masks_from_json(line: Mapping[str, Any]) -> list[RLE]:
    """Return the masks of a result that `Result.to_json` wrote; nothing without masks."""
    encoded = [detection["segmentation"] for detection in line["detections"] if "segmentation" in detection]
    return [RLE(one["size"][0], one["size"][1], one["counts"].encode()) for one in encoded]


def _difference(existing: Mapping[str, Any], requested: Mapping[str, Any]) -> str:
    """Describe the differences of the existing run's settings from the requested ones."""
    old, new = _flatten(existing), _flatten(requested)
    keys: Collection[str] = [key for key in new | old if old.get(key) != new.get(key)]
    return ", ".join(f"{key} {_short(old.get(key))} instead of {_short(new.get(key))}" for key in keys)


def _flatten(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {**settings, **settings.get("options", {}), "options": None}


def _short(value: object) -> str:
    return shorten(str(value), 40, placeholder=" …") if not isinstance(value, str) else value[:16]
