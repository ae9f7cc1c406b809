"""Open Images: a table of boxes for each split, with ids of images and classes.

    train-annotations-bbox.csv         ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,…,IsGroupOf,…
    class-descriptions-boxable.csv     /m/01g317,Person
    train/0001eeaf4aed83f9.jpg

Format: https://storage.googleapis.com/openimages/web/download_v7.html. Boxes are fractions of the image's size. A box
of a group of objects (`IsGroupOf`) is a crowd. Often only some of the images are downloaded: if fewer than half of
those in a table exist, the others are left out.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from detect.data.annotations import Annotations
from detect.data.defects import DefectLog
from detect.data.formats.csv_layout import header
from detect.data.formats.labelled import LabelledBox, LabelledImage, names_of_boxes, to_annotations
from detect.data.tree import Tree, group_by_split, split_word, usual_split
from detect.errors import UserError, one_line

LOOKED_FOR = "*-annotations-bbox.csv (Open Images)"
_CORNERS = ("XMin", "YMin", "XMax", "YMax")


def fits(head: bytes) -> bool:
    """Return whether a table that begins with `head` has the columns of Open Images."""
    names = header(head)
    return names[:1] == ["ImageID"] and {"LabelName", *_CORNERS} <= {*names}


def splits(tree: Tree) -> tuple[str, ...]:
    """Return the splits that the tables are named after."""
    return tuple(_tables(tree))


def parse(tree: Tree, split: str, classes: Sequence[str] | None, log: DefectLog) -> Annotations:
    """Parse the tables of a split. `classes`: see `read`; by default those of all images that are there, sorted."""
    tables = _tables(tree)
    if not tree.images:
        raise UserError(one_line(f"{tables[split][0]}: there are no images; put them into folders such as train/"))
    labelled = _read(tree, split, tables[split], log)
    others: list[LabelledImage] = []
    if classes is None:  # they must not depend on the split
        for other in tables.keys() - {split}:
            others += _read(tree, other, tables[other], DefectLog(tree.root, other))
    return to_annotations(labelled, names_of_boxes([*labelled, *others]), classes, log, normalised=True)


def _tables(tree: Tree) -> dict[str, list[Path]]:
    """Return the tables of each split."""
    paths = (path for path in tree.annotation_files(".csv") if fits(tree.head(path)))
    return group_by_split((split_word(path.stem) or tree.split_of(path), path) for path in paths)


def _present(tree: Tree, split: str) -> dict[str, Path]:
    """Return the images of a split by their ids, which are their stems."""
    fitting = (None, usual_split(split))
    return {
        path.stem: path for path in tree.images if usual_split(tree.split_of(path)) in fitting or fitting[1] is None
    }


def _descriptions(tree: Tree) -> dict[str, str]:
    """Return the name of each class id, from tables with an id and a name in each line."""
    names: dict[str, str] = {}
    for path in tree.files:
        if path.suffix.lower() == ".csv" and len(header(head := tree.head(path))) == 2:
            pairs = (header(line) for line in head.splitlines())
            names |= {
                cells[0]: cells[1] for cells in pairs if len(cells) == 2 and cells[0].startswith(("/m/", "/g/", "/t/"))
            }
    return names


def _read(tree: Tree, split: str, paths: Sequence[Path], log: DefectLog) -> list[LabelledImage]:
    """Return the images of a split's tables; only those that are there if these are fewer than half."""
    present, descriptions = _present(tree, split), _descriptions(tree)
    images: dict[str, LabelledImage] = {}
    for path in paths:
        absent: set[str] = set()
        columns: list[str] = []
        for line, text in _lines(path, log):
            id = text.partition(",")[0]
            if not columns:
                columns = header(text.encode())
            elif id not in present:
                absent.add(id)
            else:
                image = images.setdefault(id, LabelledImage(present[id], path))
                cells = dict(zip(columns, text.rstrip("\r\n").split(","), strict=False))
                if (box := _box(cells, descriptions, line)) is None:
                    log.add("broken-file", path, f"line {line} has no class and box: {text.strip()[:100]}")
                else:
                    image.boxes.append(box)
        if len(absent) > len(images):
            log.add("partial-download", path, f"{len(absent)} of {len(absent) + len(images)} images are not there")
        else:
            images |= {id: LabelledImage(path.parent / f"{id}.jpg", path) for id in sorted(absent)}
    return list(images.values())


def _box(cells: dict[str, str], descriptions: dict[str, str], line: int) -> LabelledBox | None:
    try:
        box = tuple(float(cells[name]) for name in _CORNERS)
    except (ValueError, KeyError):
        return None
    id = cells.get("LabelName")
    if not id:
        return None
    return LabelledBox(descriptions.get(id, id), box, f"line {line}", crowd=cells.get("IsGroupOf") == "1")


def _lines(path: Path, log: DefectLog) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line that is not empty; log a file that cannot be read."""
    content, line = log.read(path), 0
    if content is None:
        return
    try:  # The training table has 15 million lines; none has quotes.
        for line, text in enumerate(io.TextIOWrapper(io.BytesIO(content), "utf-8-sig"), start=1):
            if text.strip():
                yield line, text
    except UnicodeError as error:
        log.add("broken-file", path, f"line {line + 1}: it is not UTF-8: {error}")
