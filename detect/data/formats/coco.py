"""COCO: one JSON file for each split.

    annotations/instances_train.json  train/a.jpg     the COCO project; images may also be in images/train or images
    train/_annotations.coco.json  train/a.jpg         Roboflow
    labels.json  data/a.jpg                           FiftyOne; Label Studio, CVAT and others use other names

Any JSON file with images, annotations and categories is a split, named by the file; by its folder where the names of
several files are the same; or by all its folders and the file where those of several folders are.

Format: https://cocodataset.org/#format-data. A bbox is x, y, width and height, measured from the upper left corner of
the image's first pixel. Masks are read from `segmentation`: polygons, and run-length encodings with or without
compression.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from detect.data.annotations import Annotations, choose_classes, select
from detect.data.defects import DefectLog, as_json
from detect.data.formats.coco_entries import is_number, mask_of, normalise
from detect.data.formats.coco_stream import MIN_BYTES, Places, Regular, read_regular
from detect.data.formats.labelled import image_path
from detect.data.tree import Tree, folder_of
from detect.files.fence import MAX_BYTES, OutsideError

LOOKED_FOR = "a JSON file with images, annotations and categories (COCO)"
_ROBOFLOW = "_annotations.coco.json"
_KEYS = (b'"images"', b'"annotations"', b'"categories"')
_FIRST_KEY = re.compile(rb'\s*\{\s*"(info|licenses|images|annotations|categories|type|contributor|dataset)"')


class Kind(NamedTuple):
    """Requirement on a field: its description and its test."""

    expected: str
    test: Callable[[object], bool]


ID = Kind("a whole number", lambda value: type(value) is int and abs(value) < 2**63)
TEXT = Kind("a text", lambda value: type(value) is str and value != "")
NAME = Kind("a text", lambda value: type(value) in (str, int, float, bool) and str(value).strip() != "")
BOX = Kind(
    "four numbers [x, y, width, height]",
    lambda value: type(value) is list and len(value) == 4 and all(map(is_number, value)),
)


def splits(tree: Tree) -> tuple[str, ...]:
    """Return the splits that have an annotation file."""
    return tuple(sorted(_files(tree)))


def parse(tree: Tree, split: str, classes: Sequence[str] | None, log: DefectLog) -> Annotations:
    """Parse the annotation file of a split. `classes`: see `read`; by default the file's, sorted by category id."""
    path = locate(tree, split)
    if log.fence.admits(path) and MIN_BYTES <= path.stat().st_size <= MAX_BYTES[".json"]:
        regular = read_regular(path)
        if regular is not None:
            return _of_columns(regular, tree, split, path, classes, log)
    document = load(path, log)
    images = _images(document, tree, split, path, log)
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
    masks = [mask_of(entry.get("segmentation"), place, path, log) for entry, *_, place in rows]
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
        masks=masks if any(masks) else None,
    )


def _of_columns(
    regular: Regular, tree: Tree, split: str, path: Path, classes: Sequence[str] | None, log: DefectLog
) -> Annotations:
    """Return the annotations of a file whose entries have no defect."""
    document = {"images": regular.images, "categories": regular.categories}
    images = _images(document, tree, split, path, log)
    names = _categories(document, path, log, used=set(np.unique(regular.category_ids).tolist()))
    chosen, category_ids, label_of = choose_classes(names, classes)
    image = _looked_up(regular.image_ids, {entry["id"]: index for index, (entry, _) in enumerate(images)})
    places = Places(regular.ids, regular.image_ids)
    labels = _looked_up(regular.category_ids, label_of)
    for row in np.flatnonzero(labels < 0).tolist():  # a category that is not one of the chosen classes
        category = int(regular.category_ids[row])
        rule = "unknown-class" if category in names else "unknown-category"
        log.add(rule, path, f"{places[row]}: category {category} {names.get(category, '')}".rstrip())
    boxes = regular.boxes.copy()
    with np.errstate(over="ignore", invalid="ignore"):  # such boxes are reported by `repair`
        boxes[:, 2:] += boxes[:, :2]
    found = Annotations(
        classes=chosen,
        category_ids=category_ids,
        paths=[image_path for _, image_path in images],
        sources=[path] * len(images),
        declared=[_declared(entry) for entry, _ in images],
        ids=[entry["id"] for entry, _ in images],
        boxes=boxes,
        image=image,
        labels=labels,
        crowd=regular.crowd,
        difficult=np.zeros(len(boxes), dtype=bool),
        areas=regular.areas,
        places=places,
        layout="sizes",
        masks=regular.masks,
    )
    for row in np.flatnonzero(found.image < 0).tolist():  # of an image that was left out
        log.add("unknown-image", path, places[row])
    return select(found, found.image >= 0)


def _looked_up(ids: Int64[np.ndarray, " m"], place_of: Mapping[int, int]) -> Int64[np.ndarray, " m"]:
    """Return the place of each id, -1 for an unknown one."""
    different, inverse = np.unique(ids, return_inverse=True)
    places = [place_of.get(id, -1) for id in different.tolist()]
    return np.array(places, np.int64)[inverse]


def locate(tree: Tree, split: str) -> Path:
    """Return the annotation file of a split."""
    return _files(tree)[split]


def _files(tree: Tree) -> dict[str, Path]:
    """Return the annotation file of each split. Those with the names of COCO and Roboflow are not opened."""
    if tree.entry is None:
        official = {
            path.stem.removeprefix("instances_"): path for path in tree.root.glob("annotations/instances_*.json")
        }
        roboflow = {path.parent.name: path for path in tree.root.glob(f"*/{_ROBOFLOW}")}
        if official or roboflow:
            return roboflow | official
    folders = {path.parent for path in tree.samples(".json") if _is_coco(tree, path)}
    paths = [path for path in tree.annotation_files(".json") if path.parent in folders and _is_coco(tree, path)]
    # COCO has files of captions and of keypoints beside those of boxes.
    paths = [path for path in paths if path.stem.startswith("instances_")] or paths
    stems = [path.stem.removeprefix("instances_") for path in paths]
    homes = [path.parent.relative_to(tree.root).parts for path in paths]
    full = ["_".join([*home, stem]) for home, stem in zip(homes, stems, strict=True)]
    choices = (stems, [path.parent.name for path in paths])
    names = next((names for names in choices if len(set(names)) == len(paths)), full)
    return dict(zip(names, paths, strict=True))


def _is_coco(tree: Tree, path: Path) -> bool:
    if not _FIRST_KEY.match(tree.head(path)):
        return False
    try:
        content = tree.fence.read(path)
    except (OSError, OutsideError, ValueError):
        return False
    return all(key in content for key in _KEYS)


def load(path: Path, log: DefectLog) -> dict[str, Any]:
    """Return the content of an annotation file, with whole numbers as ids and a box for each annotation with a mask.

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
    document: dict[str, Any], tree: Tree, split: str, path: Path, log: DefectLog
) -> list[tuple[dict[str, Any], Path]]:
    """Return entry and file of each image."""
    home, root = folder_of(path), tree.root
    names = dict.fromkeys((split, path.stem.removeprefix("instances_")))
    places = [place for name in names for place in (name, f"images/{name}")]
    folders = [folder / place for folder in dict.fromkeys((home, root)) for place in (*places, "images", "data")]
    folders += [path.parent, root]
    images = []
    seen = set()
    id_of: dict[Path, int] = {}
    for entry in entries(document, "images", path, log, id=ID, file_name=TEXT):
        name = entry["file_name"]
        if entry["id"] in seen:
            log.add("duplicate-image", path, f"image {name} has the id {entry['id']}, which another image has too")
        elif (image := image_path(tree.image(name, folders, split), name, path, log)) is not None:
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
