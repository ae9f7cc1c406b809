"""Writers of a run's result files, one result at a time: COCO JSON files and CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from detect.data.masks import RLE
from detect.data.outlines import trace
from detect.files.atomic import atomic_write
from detect.prediction.result import Result

Masks = Sequence[RLE] | None
WriteResult = Callable[[int, Result, Masks], None]
"""Function that appends a result, given its image id, from 1, and its masks, if any."""

_COLUMNS = ("path", "index", "x1", "y1", "x2", "y2", "score", "label", "name")


@contextmanager
def coco_writer(out: Path, drafts: Path, classes: Sequence[str], category_ids: Sequence[int]) -> Iterator[WriteResult]:
    """Write `predictions.json` with COCO results, and `images.json` with their images and categories.

    Args:
        out: folder of the files.
        drafts: folder of their drafts, on the same disk.
        classes: class names.
        category_ids: category id of each class.
    """
    categories = [{"id": number, "name": name} for number, name in zip(category_ids, classes, strict=True)]
    with (
        atomic_write(out / "images.json", drafts) as images_draft,
        atomic_write(out / "predictions.json", drafts) as results_draft,
        images_draft.open("w", encoding="ascii") as images_file,
        results_draft.open("w", encoding="ascii") as results_file,
    ):
        images_file.write(f'{{"categories": {json.dumps(categories)},\n"annotations": [],\n"images": [')
        results_file.write("[")
        write_images, write_results = _list_writer(images_file), _list_writer(results_file)

        def write(image_id: int, result: Result, masks: Masks = None) -> None:
            frame = {} if result.index is None else {"index": result.index}
            height, width = result.size
            write_images([{"id": image_id, "file_name": result.path, **frame, "width": width, "height": height}])
            entries = result.to_coco(image_id)
            for entry, mask in zip(entries, masks or (), strict=False):
                entry["segmentation"] = mask.segmentation()
            write_results(entries)

        yield write
        images_file.write("\n]}\n")
        results_file.write("\n]\n")


def _list_writer(file: TextIO) -> Callable[[Sequence[Mapping[str, Any]]], None]:
    """Return a function that appends the objects of a list to a JSON list, on one line."""
    start = "\n"

    def write(items: Sequence[Mapping[str, Any]]) -> None:
        nonlocal start
        if items:
            file.write(start + json.dumps(items)[1:-1])
            start = ",\n"

    return write


@contextmanager
def csv_writer(out: Path, drafts: Path, has_masks: bool = False) -> Iterator[WriteResult]:
    """Write `predictions.csv` with a row per detection; file names that are not valid text keep their bytes.

    Args:
        out: folder of the file.
        drafts: folder of its draft, on the same disk.
        has_masks: add a column with the polygons of each mask: a JSON list of lists x, y, x, y, … in pixels.
    """
    with (
        atomic_write(out / "predictions.csv", drafts) as draft,
        draft.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        rows = csv.writer(file)  # lines end in \r\n as in RFC 4180; with others a lone \r in a name would not be quoted
        rows.writerow((*_COLUMNS, "polygons") if has_masks else _COLUMNS)

        def write(image_id: int, result: Result, masks: Masks = None) -> None:
            # numpy formats a float32 as the shortest text from which the same number is read.
            boxes, scores = result.boxes.astype(str).tolist(), result.scores.astype(str).tolist()
            polygons = [(_polygons(mask),) for mask in masks or ()] if has_masks else [()] * len(result)
            columns = zip(boxes, scores, result.labels.tolist(), result.names, polygons, strict=True)
            for box, score, label, name, outlines in columns:
                name = name.encode("utf-8", "replace").decode()
                rows.writerow((result.path, result.index, *box, score, label, name, *outlines))

        yield write


def _polygons(mask: RLE) -> str:
    outlines = trace(mask.bitmap(mask.height, mask.width))
    # The corners of pixels are whole numbers.
    return json.dumps([outline.astype(int).ravel().tolist() for outline in outlines], separators=(",", ":"))
