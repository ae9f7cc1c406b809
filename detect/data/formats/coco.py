"""COCO's annotation files, as the COCO project names them and as Roboflow exports them.

Format: https://cocodataset.org/#format-data. A file holds `images`, `categories` and `annotations`, whose bbox is x, y,
width and height, counted from the upper left corner of the image's first pixel.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from detect.data.defects import Annotations, Findings, as_json, choose_classes, inside, is_file

LOOKED_FOR = "annotations/instances_*.json or */_annotations.coco.json (COCO)"
_ROBOFLOW = "_annotations.coco.json"


def splits(root: Path, follow_links: bool = False) -> tuple[str, ...]:
    """The splits that have an annotation file below `root`; none of these is opened."""
    official = [path.stem.removeprefix("instances_") for path in root.glob("annotations/instances_*.json")]
    roboflow = [path.parent.name for path in root.glob(f"*/{_ROBOFLOW}")]
    return tuple(sorted({*official, *roboflow}))


def parse(root: Path, split: str, classes: Sequence[str] | None, findings: Findings) -> Annotations:
    """What the annotation file of a split says. `classes` are as for `read`; the file's are sorted by category id."""
    path, folders = _locate(root, split)
    document = _load(path, findings)
    images = _images(document, root, folders, path, findings)
    annotations = _entries(document, "annotations", path, findings, image_id=_ID, category_id=_ID, bbox=_BOX)
    names = _categories(document, path, findings, used={entry["category_id"] for entry in annotations})
    chosen, category_ids, label_of = choose_classes(names, classes)
    place_of = {entry["id"]: place for place, (entry, _) in enumerate(images)}

    _check_ids(annotations, path, findings)
    boxes, image, labels, crowd, areas, places = [], [], [], [], [], []
    for entry in annotations:
        where = f"annotation {as_json(entry['id']) if 'id' in entry else 'without id'} of image {entry['image_id']}"
        if entry["image_id"] not in place_of:
            findings.add("unknown-image", path, where)
            continue
        category = entry["category_id"]
        if category not in label_of:
            rule = "unknown-class" if category in names else "unknown-category"
            findings.add(rule, path, f"{where}: category {category} {names.get(category, '')}".rstrip())
        area = float(entry["area"]) if _is_number(entry.get("area")) else np.nan
        if not 0 <= area < np.inf:
            findings.add("missing-area", path, where)
            area = np.nan
        if entry.get("iscrowd") not in (0, 1):
            findings.add("missing-iscrowd", path, where)
        x, y, width, height = map(float, entry["bbox"])
        boxes.append((x, y, x + width, y + height))
        image.append(place_of[entry["image_id"]])
        labels.append(label_of.get(category, -1))
        crowd.append(entry.get("iscrowd") == 1)
        areas.append(area)
        places.append(where)

    return Annotations(
        classes=chosen,
        category_ids=category_ids,
        paths=[image_path for _, image_path in images],
        sources=[path] * len(images),
        declared=[_declared(entry) for entry, _ in images],
        ids=[entry["id"] for entry, _ in images],
        boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        image=np.array(image, dtype=np.int64),
        labels=np.array(labels, dtype=np.int64),
        crowd=np.array(crowd, dtype=bool),
        difficult=np.zeros(len(boxes), dtype=bool),
        areas=np.array(areas, dtype=np.float64),
        places=places,
    )


def _locate(root: Path, split: str) -> tuple[Path, list[Path]]:
    """The annotation file of a split and the folders in which its images may lie, the likeliest first."""
    official = root / "annotations" / f"instances_{split}.json"
    if is_file(official):
        return official, [root / split, root / "images" / split, root / "images", root]
    return root / split / _ROBOFLOW, [root / split]


def _load(path: Path, findings: Findings) -> dict[str, Any]:
    content = findings.need(path)
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        findings.stop("broken-file", path, f"it is no JSON: {error}")
    if not isinstance(document, dict):
        findings.stop(
            "broken-file", path, "it is no COCO file: it holds no object with images, annotations and categories"
        )
    return document


class _Kind(NamedTuple):
    """What a field must hold."""

    wanted: str
    test: Callable[[object], bool]


def _is_number(value: object) -> bool:
    """A number that a float holds; JSON's integers have no bounds."""
    return type(value) is float or (type(value) is int and abs(value) < 2**63)


_ID = _Kind("a whole number", lambda value: type(value) is int and abs(value) < 2**63)
_TEXT = _Kind("a text", lambda value: type(value) is str and value != "")
_NAME = _Kind("a text", lambda value: value is not None)
_BOX = _Kind(
    "four numbers [x, y, width, height]",
    lambda value: type(value) is list and len(value) == 4 and all(map(_is_number, value)),
)


def _entries(
    document: dict[str, Any], kind: str, path: Path, findings: Findings, /, **fields: _Kind
) -> list[dict[str, Any]]:
    """The entries of a list whose fields pass their tests; each of the others is a defect."""
    entries = document.get(kind)
    if not isinstance(entries, list):
        findings.stop("broken-file", path, f"it has no list of {kind}")
    good = []
    for place, entry in enumerate(entries):
        if not isinstance(entry, dict):
            findings.add("broken-file", path, f"{kind}[{place}] is {as_json(entry)}, no object")
            continue
        for field, (wanted, test) in fields.items():
            if not test(entry.get(field)):
                value = as_json(entry[field]) if field in entry else "missing"
                findings.add("broken-file", path, f"{kind}[{place}]: {field} is {value}, wanted is {wanted}")
                break
        else:
            good.append(entry)
    return good


def _images(
    document: dict[str, Any], root: Path, folders: list[Path], path: Path, findings: Findings
) -> list[tuple[dict[str, Any], Path]]:
    """The entry and the file of each image: the first of `folders` that has it, else where it should be."""
    images = []
    seen = set()
    id_of: dict[Path, int] = {}
    for entry in _entries(document, "images", path, findings, id=_ID, file_name=_TEXT):
        name = entry["file_name"]
        likeliest = inside(root, folders[0], name)
        if entry["id"] in seen:
            findings.add("duplicate-image", path, f"image {name} has the id {entry['id']}, which another has too")
        elif likeliest is None:
            findings.add("path-outside-root", path, f"the file_name of image {entry['id']} is {name}")
        else:
            candidates = (folder / name for folder in folders)
            image = next((file for file in candidates if is_file(file)), likeliest)
            if image in id_of:
                findings.add("duplicate-image", path, f"the images {id_of[image]} and {entry['id']} are both {name}")
            id_of[image] = entry["id"]
            images.append((entry, image))
        seen.add(entry["id"])
    return images


def _declared(entry: dict[str, Any]) -> tuple[Any, Any] | None:
    width, height = entry.get("width"), entry.get("height")
    return None if width is None or height is None else (width, height)


def _categories(document: dict[str, Any], path: Path, findings: Findings, used: set[int]) -> dict[int, str]:
    """The name of each category id, sorted by id, without Roboflow's placeholder.

    Roboflow writes a category 0 that no box has and that all the others name as their supercategory.
    """
    entries = _entries(document, "categories", path, findings, id=_ID, name=_NAME)
    names = {entry["id"]: str(entry["name"]) for entry in sorted(entries, key=lambda entry: entry["id"])}
    if len(set(names.values())) < len(entries):
        findings.stop("broken-file", path, "two of its categories have the same id or the same name")
    others = [entry for entry in entries if entry["id"] != 0]
    if 0 not in used and others and all(entry.get("supercategory") == names.get(0) for entry in others):
        names.pop(0, None)
    return names


def _check_ids(annotations: list[dict[str, Any]], path: Path, findings: Findings) -> None:
    """Puts down ids that two annotations share. Nothing is kept of any id: evaluation numbers anew."""
    seen = set()
    for entry in annotations:
        id = entry.get("id")
        if not _ID.test(id):
            continue
        if id in seen:
            findings.add("duplicate-annotation-id", path, f"annotation {id} of image {entry['image_id']}")
        seen.add(id)
