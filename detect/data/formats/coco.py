"""COCO annotation files, in the layouts of the COCO project and of Roboflow.

Format: https://cocodataset.org/#format-data. A file holds `images`, `categories` and `annotations`. A bbox is x, y,
width and height, measured from the upper left corner of the image's first pixel.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from detect.data.annotations import Annotations, choose_classes
from detect.data.defects import DefectLog, as_json
from detect.data.formats.coco_entries import is_number, normalise
from detect.files.fence import inside, is_file

LOOKED_FOR = "annotations/instances_*.json or */_annotations.coco.json (COCO)"
_ROBOFLOW = "_annotations.coco.json"


class Kind(NamedTuple):
    """Requirement on a field: its description and its test."""

    expected: str
    test: Callable[[object], bool]


ID = Kind("a whole number", lambda value: type(value) is int and abs(value) < 2**63)
TEXT = Kind("a text", lambda value: type(value) is str and value != "")
NAME = Kind("a text", lambda value: value is not None)
BOX = Kind(
    "four numbers [x, y, width, height]",
    lambda value: type(value) is list and len(value) == 4 and all(map(is_number, value)),
)


def splits(root: Path, follow_links: bool = False) -> tuple[str, ...]:
    """Return the splits that have an annotation file below `root`, without opening the files."""
    official = [path.stem.removeprefix("instances_") for path in root.glob("annotations/instances_*.json")]
    roboflow = [path.parent.name for path in root.glob(f"*/{_ROBOFLOW}")]
    return tuple(sorted({*official, *roboflow}))


def parse(root: Path, split: str, classes: Sequence[str] | None, log: DefectLog) -> Annotations:
    """Parse the annotation file of a split. `classes`: see `read`; by default the file's, sorted by category id."""
    path, folders = locate(root, split)
    document = load(path, log)
    images = _images(document, root, folders, path, log)
    annotations = entries(document, "annotations", path, log, image_id=ID, category_id=ID, bbox=BOX)
    names = _categories(document, path, log, used={entry["category_id"] for entry in annotations})
    chosen, category_ids, label_of = choose_classes(names, classes)

    _check_ids(annotations, path, log)
    index_of = {entry["id"]: index for index, (entry, _) in enumerate(images)}
    rows = []
    for entry in annotations:
        place = f"annotation {as_json(entry['id']) if 'id' in entry else 'without id'} of image {entry['image_id']}"
        if entry["image_id"] in index_of:
            area = _check_entry(entry, place, names, label_of, path, log)
            rows.append((entry, index_of[entry["image_id"]], area, place))
        else:
            log.add("unknown-image", path, place)
    boxes = np.array([entry["bbox"] for entry, *_ in rows], dtype=np.float64).reshape(-1, 4)
    with np.errstate(over="ignore", invalid="ignore"):  # such boxes are reported by `repair`
        boxes[:, 2:] += boxes[:, :2]
    return Annotations(
        classes=chosen,
        category_ids=category_ids,
        paths=[image_path for _, image_path in images],
        sources=[path] * len(images),
        declared=[_declared(entry) for entry, _ in images],
        ids=[entry["id"] for entry, _ in images],
        boxes=boxes,
        image=np.array([image for _, image, *_ in rows], dtype=np.int64),
        labels=np.array([label_of.get(entry["category_id"], -1) for entry, *_ in rows], dtype=np.int64),
        crowd=np.array([entry.get("iscrowd") == 1 for entry, *_ in rows], dtype=bool),
        difficult=np.zeros(len(rows), dtype=bool),
        areas=np.array([area for *_, area, _ in rows], dtype=np.float64),
        places=[place for *_, place in rows],
        layout="sizes",
    )


def locate(root: Path, split: str) -> tuple[Path, list[Path]]:
    """Return the annotation file of a split and the folders that may contain its images, most likely first."""
    official = root / "annotations" / f"instances_{split}.json"
    if is_file(official):
        return official, [root / split, root / "images" / split, root / "images", root]
    return root / split / _ROBOFLOW, [root / split]


def load(path: Path, log: DefectLog) -> dict[str, Any]:
    """Return the content of an annotation file, with whole numbers as ids, and boxes of annotations with a mask.

    Raises:
        UserError: the file cannot be read or is not a JSON object.
    """
    content = log.need(path)
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        log.stop("broken-file", path, f"it is not JSON: {error}")
    if not isinstance(document, dict):
        log.stop("broken-file", path, "it is not a COCO file: it has no object with images, annotations and categories")
    normalise(document, path, log)
    return document


def entries(document: dict[str, Any], kind: str, path: Path, log: DefectLog, /, **fields: Kind) -> list[dict[str, Any]]:
    """Return the entries of a list whose fields pass their tests; log all others as defects."""
    items = document.get(kind)
    if not isinstance(items, list):
        log.stop("broken-file", path, f"it has no list of {kind}")
    valid = []
    for index, entry in enumerate(items):
        if not isinstance(entry, dict):
            log.add("broken-file", path, f"{kind}[{index}] is {as_json(entry)}, not an object")
            continue
        for field, (expected, test) in fields.items():
            if not test(entry.get(field)):
                value = as_json(entry[field]) if field in entry else "missing"
                log.add("broken-file", path, f"{kind}[{index}]: {field} is {value}, expected {expected}")
                break
        else:
            valid.append(entry)
    return valid


def _images(
    document: dict[str, Any], root: Path, folders: list[Path], path: Path, log: DefectLog
) -> list[tuple[dict[str, Any], Path]]:
    """Return entry and file of each image: in the first of `folders` that contains it, else in the first folder."""
    images = []
    seen = set()
    id_of: dict[Path, int] = {}
    for entry in entries(document, "images", path, log, id=ID, file_name=TEXT):
        name = entry["file_name"]
        default = inside(root, folders[0], name)
        if entry["id"] in seen:
            log.add("duplicate-image", path, f"image {name} has the id {entry['id']}, which another image has too")
        elif default is None:
            log.add("path-outside-root", path, f"the file_name of image {entry['id']} is {name}")
        else:
            candidates = (folder / name for folder in folders)
            image = next((file for file in candidates if is_file(file)), default)
            if image in id_of:
                log.add("duplicate-image", path, f"the images {id_of[image]} and {entry['id']} are both {name}")
            id_of[image] = entry["id"]
            images.append((entry, image))
        seen.add(entry["id"])
    return images


def _declared(entry: dict[str, Any]) -> tuple[Any, Any] | None:
    width, height = entry.get("width"), entry.get("height")
    return None if width is None or height is None else (width, height)


def _categories(document: dict[str, Any], path: Path, log: DefectLog, used: set[int]) -> dict[int, str]:
    """Return the name of each category id, sorted by id, without Roboflow's placeholder.

    Roboflow writes a category 0 without boxes, which is the supercategory of all other categories.
    """
    categories = entries(document, "categories", path, log, id=ID, name=NAME)
    names = {entry["id"]: str(entry["name"]) for entry in sorted(categories, key=lambda entry: entry["id"])}
    if len(set(names.values())) < len(categories):
        log.stop("broken-file", path, "two of its categories have the same id or the same name")
    others = [entry for entry in categories if entry["id"] != 0]
    if 0 not in used and others and all(entry.get("supercategory") == names.get(0) for entry in others):
        names.pop(0, None)
    return names


def _check_ids(annotations: list[dict[str, Any]], path: Path, log: DefectLog) -> None:
    """Log annotation ids that occur twice. Ids are not kept, because evaluation renumbers the annotations."""
    seen = set()
    for entry in annotations:
        id = entry.get("id")
        if not ID.test(id):
            continue
        if id in seen:
            log.add("duplicate-annotation-id", path, f"annotation {id} of image {entry['image_id']}")
        seen.add(id)


def _check_entry(
    entry: dict[str, Any],
    place: str,
    names: Mapping[int, str],
    label_of: Mapping[int, int],
    path: Path,
    log: DefectLog,
) -> float:
    """Log the defects of an annotation and return its area, NaN if the file has none."""
    category = entry["category_id"]
    if category not in label_of:
        rule = "unknown-class" if category in names else "unknown-category"
        log.add(rule, path, f"{place}: category {category} {names.get(category, '')}".rstrip())
    area = float(entry["area"]) if is_number(entry.get("area")) else np.nan
    if not 0 <= area < np.inf:
        log.add("missing-area", path, place)
        area = np.nan
    if entry.get("iscrowd") not in (0, 1):
        log.add("missing-iscrowd", path, place)
    return area
