"""Reading of COCO annotation and results files, so that metrics equal pycocotools' on the same files to the last bit.

Unlike the readers in `detect.data`, which repair training data, these functions change no number: boxes stay float64,
and images need not exist.
"""

from __future__ import annotations

import os
from codecs import BOM_UTF8
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypeVar

import numpy as np
from pycocotools import mask as coco_mask
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict  # pydantic requires this one before Python 3.12

from detect.data.dataset import Dataset
from detect.data.formats.coco_entries import valid_mask
from detect.data.masks import RLE, Mask
from detect.data.records import Record
from detect.errors import UserError
from detect.evaluation.coco import Prediction
from detect.evaluation.names import match_names
from detect.files.fence import MAX_BYTES, Fence, inside, is_file, read_bounded

NOWHERE = Path(os.devnull)
"""Folder of the images if none was given, so that file names in untrusted JSON do not choose which files are opened."""

_Box = Annotated[list[float], Field(min_length=4, max_length=4)]
_FINITE = ConfigDict(allow_inf_nan=False)
T = TypeVar("T")


@with_config(_FINITE)
class _Image(TypedDict):
    id: int
    file_name: NotRequired[str]
    width: NotRequired[int]
    height: NotRequired[int]


@with_config(_FINITE)
class _Annotation(TypedDict):
    image_id: int
    category_id: int
    bbox: _Box
    area: NotRequired[float]
    iscrowd: NotRequired[int]
    segmentation: NotRequired[Any]


@with_config(_FINITE)
class _Category(TypedDict):
    id: int
    name: str


class _AnnotationFile(TypedDict):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


@with_config(_FINITE)
class _Result(TypedDict):
    image_id: int
    category_id: int
    bbox: NotRequired[_Box]
    score: float
    segmentation: NotRequired[Any]


_ANNOTATION_FILE = TypeAdapter(_AnnotationFile)
_RESULTS_FILE = TypeAdapter(list[_Result])


@dataclass(frozen=True, slots=True)
class GroundTruthFile:
    """An annotation file, as pycocotools takes it and as a `Dataset`."""

    content: dict[str, Any]
    dataset: Dataset
    num_skipped: int
    """Number of annotations of images that the file does not list, which pycocotools skips."""
    masks_problem: str = ""
    """Reason why its masks are left out; it is raised with results that have masks."""


def read_ground_truth(file: Path, images: Path | None = None) -> GroundTruthFile:
    """Read a COCO annotation file.

    Annotation ids are replaced by 1, 2, …, because pycocotools takes id 0 for "not matched". A missing `area` becomes
    that of the box, a missing `iscrowd` 0. This changes no metric that pycocotools computes without an error. If a mask
    cannot be used, all are left out, because the metrics of boxes need none.

    Args:
        file: the annotation file.
        images: folder of the images, if they will be shown.

    Raises:
        UserError: the file cannot be read, is not a COCO annotation file, has a number that is not finite, has an
            unknown category id, or has two images or categories with one id or two categories with one name.
    """
    content = _load(file, _ANNOTATION_FILE, "a COCO annotation file")
    names = _unique(file, "category", ((entry["id"], entry["name"]) for entry in content["categories"]))
    if repeated := [name for name, count in Counter(names.values()).items() if count > 1]:
        raise UserError(f"{file}: two categories are named {repeated[0]!r}; give each its own name")
    listed = _unique(file, "image", ((entry["id"], entry) for entry in content["images"]))
    kept = [entry for entry in content["annotations"] if entry["image_id"] in listed]
    annotations = [
        {"area": entry["bbox"][2] * entry["bbox"][3], "iscrowd": 0, **entry, "id": number}
        for number, entry in enumerate(kept, start=1)
    ]
    category_ids = tuple(sorted(names))
    _refuse_unknown(file, "annotation", annotations, names, listed)
    sizes = {entry["id"]: (entry.get("height"), entry.get("width")) for entry in content["images"]}
    problem = _masks_problem("annotation", annotations, sizes)
    if problem:
        annotations = [{**entry, "segmentation": None} for entry in annotations]
    records = _records(content["images"], annotations, category_ids, file, images)
    classes = tuple(names[id] for id in category_ids)
    return GroundTruthFile(
        content={**content, "info": {}, "annotations": annotations},
        dataset=Dataset(images or file.parent, file.stem, "coco", classes, category_ids, records),
        num_skipped=len(content["annotations"]) - len(annotations),
        masks_problem=f"{file}: {problem}" if problem else "",
    )


@dataclass(frozen=True, slots=True)
class ResultsFile:
    """A results file with the ids of its ground truth, as pycocotools takes it and as predictions."""

    content: list[dict[str, Any]]
    predictions: list[Prediction]
    notes: tuple[str, ...] = ()
    """Remarks on images that only one of both files has."""


def read_results(file: Path, ground_truth: GroundTruthFile) -> ResultsFile:
    """Read a COCO results file.

    If `images.json` of `detect predict` lies beside it, images and classes are matched by name; see `match_names`.

    Raises:
        UserError: the file cannot be read, is not a COCO results file, has a number that is not finite, or has a
            category or an image that is not in the ground truth; or it has masks, and those of the ground truth cannot
            be used.
    """
    dataset = ground_truth.dataset
    notes: tuple[str, ...] = ()
    results = _load(file, _RESULTS_FILE, "a list of COCO results with bbox or segmentation, and score")
    images = file.with_name("images.json")
    if is_file(images):
        listed = _load(images, _ANNOTATION_FILE, "the one of detect predict, or remove it to match images by their ids")
        results, notes = match_names(results, file, listed, ground_truth.content)
    _refuse_unknown(file, "result", results, set(dataset.category_ids), {record.id for record in dataset.records})
    sizes = {record.id: (record.height, record.width) for record in dataset.records}
    if ground_truth.masks_problem and any(result.get("segmentation") for result in results):
        raise UserError(ground_truth.masks_problem)
    results = _with_boxes(file, results, sizes)
    label_of = {id: label for label, id in enumerate(dataset.category_ids)}
    of_image = defaultdict(list)
    for result in results:
        of_image[result["image_id"]].append(result)
    predictions = [
        Prediction(
            id,
            _xyxy(entries),
            np.array([entry["score"] for entry in entries], np.float64),
            np.array([label_of[entry["category_id"]] for entry in entries], np.int64),
            tuple(_rle(entry, *sizes[id]) for entry in entries) if has_masks(results) else None,
        )
        for id, entries in of_image.items()
    ]
    return ResultsFile(results, predictions, notes)


def has_masks(results: Sequence[dict[str, Any]]) -> bool:
    """Return whether results have masks. Raise no error: `read_results` has checked that all or none has one."""
    return any("segmentation" in result for result in results)


def _with_boxes(
    file: Path, results: list[dict[str, Any]], sizes: Mapping[int, tuple[int, int]]
) -> list[dict[str, Any]]:
    """Return the results with run-length encoded masks, and with the box of the mask where there is none.

    Raises:
        UserError: a result has neither box nor mask, or only some results have masks, or a mask is damaged.
    """
    with_masks = sum(bool(result.get("segmentation")) for result in results)
    if with_masks not in (0, len(results)):
        problem = f"{with_masks} of {len(results)} results have a segmentation"
        raise UserError(f"{file}: {problem}; give it for all results or for none")
    if problem := _masks_problem("result", results, sizes):
        raise UserError(f"{file}: {problem}")
    complete = []
    for number, result in enumerate(results, start=1):
        result = {key: value for key, value in result.items() if key != "segmentation" or value}
        if with_masks:
            rle = _rle(result, *sizes[result["image_id"]])
            result["segmentation"] = rle.segmentation()
            # Of no pixels, pycocotools may return a box of four billion pixels.
            result.setdefault("bbox", coco_mask.toBbox(rle.coco()).tolist() if rle.area() else [0.0] * 4)
        if "bbox" not in result:
            raise UserError(f"{file}: result {number} has neither bbox nor segmentation; add one of them")
        complete.append(result)
    return complete


def _masks_problem(
    kind: str, entries: Sequence[dict[str, Any]], sizes: Mapping[int, tuple[int | None, int | None]]
) -> str:
    """Return the problem of the first mask that is damaged or not of the size of its image; pycocotools would crash."""
    for number, entry in enumerate(entries, start=1):
        if not entry.get("segmentation"):
            continue
        mask, (height, width) = _mask(entry), sizes[entry["image_id"]]
        if None in (height, width):
            return f"image {entry['image_id']} has no height and width, which masks need; add them"
        size = (mask.height, mask.width) if isinstance(mask, RLE) else (height, width)
        if mask is None or size != (height, width):
            problem = "is damaged" if mask is None else f"is {size[1]} × {size[0]}, the image {width} × {height}"
            return f"the segmentation of {kind} {number} {problem}; correct or remove it"
    return ""


def _mask(entry: dict[str, Any]) -> Mask | None:
    return valid_mask(entry.get("segmentation"))


def _rle(result: dict[str, Any], height: int, width: int) -> RLE:
    mask = _mask(result)
    assert mask is not None
    return mask.rle(height, width)


def _load(file: Path, adapter: TypeAdapter, expected: str) -> Any:
    try:
        return adapter.validate_json(read_bounded(file, MAX_BYTES[".json"]).removeprefix(BOM_UTF8))
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; name a JSON file") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(map(str, first["loc"]))
        problem = f"{key}: {first['msg']}" if key else first["msg"]
        raise UserError(f"{file}: {problem}; give {expected}") from None
    except ValueError as error:  # after ValidationError, which is a ValueError, too
        raise UserError(f"{file}: {error}; give {expected}") from None


def _unique(file: Path, kind: str, entries: Iterable[tuple[int, T]]) -> dict[int, T]:
    by_id: dict[int, T] = {}
    for id, entry in entries:
        if id in by_id:
            raise UserError(f"{file}: {kind} {id} is listed twice; give each its own id")
        by_id[id] = entry
    return by_id


def _refuse_unknown(
    file: Path, kind: str, entries: Sequence[Any], categories: Collection[int], images: Collection[int]
) -> None:
    for number, entry in enumerate(entries, start=1):
        if entry["category_id"] not in categories:
            known = ", ".join(map(str, sorted(categories)[:5])) or "none"
            problem = f"{kind} {number} has category_id {entry['category_id']}"
            raise UserError(f"{file}: {problem}, which is not a category of the ground truth ({known} …); correct it")
        if entry["image_id"] not in images:
            problem = f"{kind} {number} has image_id {entry['image_id']}"
            raise UserError(
                f"{file}: {problem}, which is not an image of the ground truth; give results of the same images, "
                "and keep images.json of detect predict beside its results"
            )


def _records(
    images: Sequence[_Image],
    annotations: Sequence[dict[str, Any]],
    category_ids: Sequence[int],
    file: Path,
    folder: Path | None,
) -> tuple[Record, ...]:
    label_of = {id: label for label, id in enumerate(category_ids)}
    of_image = defaultdict(list)
    for annotation in annotations:
        of_image[annotation["image_id"]].append(annotation)
    fence = Fence(folder) if folder else None
    records = []
    for image in images:
        entries = of_image[image["id"]]
        boxes = _xyxy(entries)
        name = image.get("file_name", str(image["id"]))
        path = inside(folder, folder, name) if folder else NOWHERE / Path(name).name
        if path is None or (fence and not fence.admits(path)):
            problem = f"the file_name of image {image['id']} leads out of {folder}, by its name or by a link"
            raise UserError(f"{file}: {problem}; correct it, or give the folder that contains the images")
        # The size is for drawing only. If the file has none, it is the smallest that contains all boxes.
        width, height = np.ceil(boxes[:, 2:].max(axis=0, initial=1.0)).astype(int).tolist()
        columns = (
            boxes,
            np.array([label_of[entry["category_id"]] for entry in entries], np.int64),
            np.array([entry["iscrowd"] == 1 for entry in entries], bool),
            np.zeros(len(entries), bool),
            np.array([entry["area"] for entry in entries], np.float64),
        )
        masks = tuple(_mask(entry) for entry in entries)
        size = image.get("width", width), image.get("height", height)
        records.append(Record(image["id"], path, *size, *columns, masks if any(masks) else None))
    return tuple(records)


def _xyxy(entries: Sequence[Any]) -> np.ndarray:
    boxes = np.array([entry["bbox"] for entry in entries], np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
