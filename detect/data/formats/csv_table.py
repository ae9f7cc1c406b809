"""Tables of boxes: CSV files with one row for each box, separated by commas, semicolons or tabs.

    train_labels.csv  val_labels.csv      one file for each split, named after it or in a folder named after it
    labels.csv                            or a column `split`; otherwise one split, `all`

    filename,width,height,class,xmin,ymin,xmax,ymax     TensorFlow, Roboflow; names and order of the columns vary
    image_id,width,height,bbox,source                   Kaggle; the box is "[x, y, width, height]"
    filename,…,region_shape_attributes,region_attributes    VGG Image Annotator (VIA): shapes as JSON
    a.jpg,x1,y1,x2,y2,class                             keras-retinanet, without header; classes.csv has class,id
    a.jpg,x1,y1,x2,y2,class,width,height                SKU-110K, without header
    class,x,y,w,h,a.jpg,width,height                    Make Sense, without header
    TRAIN,gs://…/a.jpg,class,x1,y1,,,x2,y2,,            Google AutoML, without header; fractions of the image's size

A row whose box is empty is an image without objects. Pixels are counted from 0 and xmax - xmin is the width. Boxes are
fractions of the image's size if no number in the data set exceeds 2 and not all are whole.
Formats: https://cloud.google.com/vision/automl/object-detection/docs/csv-format and
https://github.com/fizyr/keras-retinanet#csv-datasets.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from detect.data.annotations import Annotations
from detect.data.defects import DefectLog
from detect.data.formats import openimages
from detect.data.formats.csv_layout import (
    UNASSIGNED,
    Box,
    Layout,
    ShapeWithoutAreaError,
    attribute,
    find_layout,
    header,
    number,
    rows,
)
from detect.data.formats.labelled import LabelledBox, LabelledImage, image_path, sorted_names, to_annotations
from detect.data.tree import ALL, REST, Tree, split_word, usual_split
from detect.errors import UserError, one_line

LOOKED_FOR = "*.csv with columns of images and boxes"
_ONLY_CLASS = "object"
_EMPTY = ("", "nan", "{}")
"""Cells of an image without objects, as pandas and VIA write them."""
_MAX_SPLITS = 20
_MAX_NAME = 60
"""Letters in the name of a split."""
_FRACTIONS = 2.0
"""No number exceeds this in a data set whose boxes are fractions, even if some leave their images."""


class Table(NamedTuple):
    """A file of boxes."""

    path: Path
    layout: Layout


def splits(tree: Tree) -> tuple[str, ...]:
    """Return the splits that the tables' names or columns name."""
    log = DefectLog(tree.root, "")
    names: set[str] = set()
    for table in _tables(tree):
        if table.layout.split is None:
            names.add(_split_of(tree, table))
        else:
            names.update(_split(tree, table, cells) for _, cells in _rows(table, log))
        if len(names) > _MAX_SPLITS:
            problem = f"its column for the split has more than {_MAX_SPLITS} different values"
            raise UserError(one_line(f"{table.path}: {problem}; write train, val or test there, or rename the column"))
    return (ALL,) if names == {REST} else tuple(sorted(names))


def parse(tree: Tree, split: str, classes: Sequence[str] | None, log: DefectLog) -> Annotations:
    """Parse the tables of a split. `classes`: see `read`; by default those of `classes.csv`, or all names, sorted."""
    reader = _Reader(tree, split, _listed_classes(tree), log)
    for table in _tables(tree):
        reader.read(table)
    listed = list(reader.listed.values())
    names = sorted_names(reader.names) if reader.names.isdisjoint(listed) else listed
    boxes = np.array(reader.boxes, dtype=np.float64)
    finite = boxes[np.isfinite(boxes)]
    normalised = bool(len(finite) and finite.max() <= _FRACTIONS and (finite % 1 != 0).any())
    return to_annotations(list(reader.images.values()), names, classes, log, normalised=normalised)


@dataclass(slots=True)
class _Reader:
    """Images of one split, and the classes and boxes of all splits, which decide labels and unit."""

    tree: Tree
    split: str
    listed: dict[str, str]
    log: DefectLog
    images: dict[Path, LabelledImage] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    boxes: list[Box] = field(default_factory=list)
    _found: dict[str, LabelledImage | None] = field(default_factory=dict)

    def read(self, table: Table) -> None:
        """Read all rows of a table; log those that are invalid and in the split."""
        layout, home = table.layout, _split_of(self.tree, table)
        self._found.clear()
        for line, cells in _rows(table, self.log):
            is_wanted = self._is_wanted(home if layout.split is None else _split(self.tree, table, cells))
            try:
                image = self._image(table, cells) if is_wanted else None
                labelled = self._box(layout, line, cells)
            except ShapeWithoutAreaError:
                if is_wanted:
                    self.log.add("shape-without-area", table.path, f"line {line}: {','.join(cells)[:100]}")
                continue
            except (ValueError, IndexError, RecursionError):
                if is_wanted:
                    what = f"line {line} has no image, class and box where the first line has them"
                    self.log.add("broken-file", table.path, f"{what}: {','.join(cells)[:100]}")
                continue
            if labelled is not None:
                self.names.add(labelled.name)
                self.boxes.append(labelled.box)
                if image is not None:
                    image.boxes.append(labelled)

    def _is_wanted(self, split: str) -> bool:
        return split == self.split or (split == REST and self.split == ALL)

    def _image(self, table: Table, cells: list[str]) -> LabelledImage | None:
        name = cells[table.layout.image].strip()
        if name not in self._found:
            if not name:
                raise ValueError("no image")
            self._found[name] = self._find(table, name, cells)
        return self._found[name]

    def _find(self, table: Table, name: str, cells: list[str]) -> LabelledImage | None:
        folder, usual = table.path.parent, usual_split(self.split)
        found = self.tree.image(name, [folder, self.tree.root], usual)
        path = image_path(found, name, table.path, self.log)
        if path is None:
            return None
        size = None
        if table.layout.size is not None and all(cells[index].strip() for index in table.layout.size):
            size = tuple(number(cells[index]) for index in table.layout.size)
        return self.images.setdefault(path, LabelledImage(path, table.path, size))

    def _box(self, layout: Layout, line: int, cells: list[str]) -> LabelledBox | None:
        """Return the box of a row, or None for an image without objects."""
        values = [cells[index].strip() for index in layout.box]
        if all(value.lower() in _EMPTY for value in values):
            return None
        box = layout.to_box(values)
        name = _ONLY_CLASS if layout.label is None else cells[layout.label].strip()
        name = attribute(name) if layout.in_json else name
        if not name:
            raise ValueError("no class")
        name = name if name in self.listed.values() else self.listed.get(name, name)
        return LabelledBox(name, box, f"line {line}")


def _tables(tree: Tree) -> Iterator[Table]:
    for path in tree.annotation_files(".csv", ".tsv"):
        head = tree.head(path)
        if not openimages.fits(head) and (layout := find_layout(head)) is not None:
            yield Table(path, layout)


def _rows(table: Table, log: DefectLog) -> Iterator[tuple[int, list[str]]]:
    """Yield line and cells of each row below the header; log a file that cannot be read."""
    content = log.read(table.path)
    if content is None:
        return
    line, is_header = 0, table.layout.has_header
    try:
        for line, cells in rows(content, table.layout.delimiter):
            if not is_header:
                yield line, cells
            is_header = False
    except csv.Error as error:
        log.add("broken-file", table.path, f"line {line + 1}: it is not CSV: {error}")
    except UnicodeError as error:
        log.add("broken-file", table.path, f"line {line + 1}: it is not UTF-8 ({error}); save it as CSV in UTF-8")


def _split_of(tree: Tree, table: Table) -> str:
    """Return the split that a table's name or folder names."""
    return split_word(table.path.stem) or tree.split_of(table.path) or REST


def _split(tree: Tree, table: Table, cells: list[str]) -> str:
    """Return the split in a row."""
    index = table.layout.split
    value = cells[index].strip().lower() if index is not None and index < len(cells) else ""
    return REST if value in ("", UNASSIGNED, ALL) or len(value) > _MAX_NAME else value


def _listed_classes(tree: Tree) -> dict[str, str]:
    """Return the name of each class by its name and by its id, from a file with `name,id` in each line."""
    for path in tree.files:
        if path.suffix.lower() != ".csv" or "class" not in path.stem.lower():
            continue
        lines = [header(line) for line in tree.head(path).splitlines() if line.strip()]
        lines = lines[1:] if lines and not any(cell.isdecimal() for cell in lines[0]) else lines
        pairs = {cells[1]: cells[0] for cells in lines if len(cells) == 2 and cells[1].isdecimal() and cells[0]}
        if pairs and len(pairs) == len(lines) and len({*pairs.values()}) == len(pairs):
            return dict(sorted(pairs.items(), key=lambda pair: (len(pair[0]), pair[0])))
    return {}
