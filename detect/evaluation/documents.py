"""Truths and results of anybody, in COCO's JSON, for figures that equal pycocotools' on the same files to the last bit.

Other than the readers of `detect.data`, which make training data good, this changes no number: boxes stay float64, and
images need not be there.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypeVar

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from detect.data.dataset import Dataset, Record
from detect.errors import UserError
from detect.evaluation.coco import Prediction
from detect.files.fence import MAX_BYTES, Fence, inside, read_bounded

NOWHERE = Path(os.devnull)
"""Where pictures lie whose folder is not named: what others call a file must not choose which one is opened."""

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


@with_config(_FINITE)
class _Category(TypedDict):
    id: int
    name: str


class _Truth(TypedDict):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


@with_config(_FINITE)
class _Result(TypedDict):
    image_id: int
    category_id: int
    bbox: _Box
    score: float


_TRUTH = TypeAdapter(_Truth)
_RESULTS = TypeAdapter(list[_Result])


@dataclass(frozen=True, slots=True)
class Truth:
    """An annotation file as pycocotools wants it, and as our own evaluators do."""

    document: dict[str, Any]
    dataset: Dataset
    left_out: int
    """Annotations of images that the file does not list, which pycocotools looks over."""


def read_truth(file: Path, images: Path | None = None) -> Truth:
    """Reads an annotation file; `images` is the folder of the pictures, where there are any to draw.

    Annotations are numbered anew from 1, as pycocotools takes number 0 for "not matched"; one without `area` gets its
    box's, one without `iscrowd` is one object. All this changes no figure that pycocotools computes without an error.

    Raises:
        UserError: the file cannot be read, is not of this form, has a number that is not finite, names an unknown
            category, or an image or a category twice.
    """
    content = _load(file, _TRUTH, "a COCO annotation file")
    names = _unique(file, "category", ((entry["id"], entry["name"]) for entry in content["categories"]))
    if twice := [name for name, count in Counter(names.values()).items() if count > 1]:
        raise UserError(f"{file}: two categories are called {twice[0]!r}; give each a name of its own")
    listed = _unique(file, "image", ((entry["id"], entry) for entry in content["images"]))
    kept = [entry for entry in content["annotations"] if entry["image_id"] in listed]
    annotations = [
        {"area": entry["bbox"][2] * entry["bbox"][3], "iscrowd": 0, **entry, "id": number}
        for number, entry in enumerate(kept, start=1)
    ]
    category_ids = tuple(sorted(names))
    _refuse_unknown(file, "annotation", annotations, names, listed)
    records = _records(content["images"], annotations, category_ids, file, images)
    classes = tuple(names[id] for id in category_ids)
    return Truth(
        document={**content, "info": {}, "annotations": annotations},
        dataset=Dataset(images or file.parent, file.stem, "coco", classes, category_ids, records),
        left_out=len(content["annotations"]) - len(annotations),
    )


def read_results(file: Path, dataset: Dataset) -> tuple[list[dict[str, Any]], list[Prediction]]:
    """Reads a results file on a data set: its content, and the same as predictions.

    Raises:
        UserError: the file cannot be read, is not of this form, has a number that is not finite, or names an unknown
            category or image.
    """
    results = _load(file, _RESULTS, "a list of COCO results with bbox and score")
    _refuse_unknown(file, "result", results, set(dataset.category_ids), {record.id for record in dataset.records})
    label_of = {id: label for label, id in enumerate(dataset.category_ids)}
    of_image = defaultdict(list)
    for result in results:
        of_image[result["image_id"]].append(result)
    predictions = [
        Prediction(
            id,
            _xyxy(own),
            np.array([one["score"] for one in own], np.float64),
            np.array([label_of[one["category_id"]] for one in own], np.int64),
        )
        for id, own in of_image.items()
    ]
    return results, predictions


def _load(file: Path, form: TypeAdapter, wanted: str) -> Any:
    try:
        return form.validate_json(read_bounded(file, MAX_BYTES[".json"]))
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; name a JSON file") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        what = f"{place}: {first['msg']}" if place else first["msg"]
        raise UserError(f"{file}: {what}; wanted is {wanted}") from None
    except ValueError as error:  # of which pydantic's are, too
        raise UserError(f"{file}: {error}; wanted is {wanted}") from None


def _unique(file: Path, what: str, entries: Iterable[tuple[int, T]]) -> dict[int, T]:
    by_id: dict[int, T] = {}
    for id, entry in entries:
        if id in by_id:
            raise UserError(f"{file}: {what} {id} is there twice; give each an id of its own")
        by_id[id] = entry
    return by_id


def _refuse_unknown(
    file: Path, what: str, entries: Sequence[Any], categories: Collection[int], images: Collection[int]
) -> None:
    for number, entry in enumerate(entries, start=1):
        if entry["category_id"] not in categories:
            known = ", ".join(map(str, sorted(categories)[:5])) or "none"
            about = f"{what} {number} has the category {entry['category_id']}"
            raise UserError(f"{file}: {about}, which is not among the truth's ({known} …); correct it there")
        if entry["image_id"] not in images:
            about = f"{what} {number} is for the image {entry['image_id']}"
            raise UserError(f"{file}: {about}, which is not among the truth's; give results of the same images")


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
        own = of_image[image["id"]]
        boxes = _xyxy(own)
        name = image.get("file_name", str(image["id"]))
        path = inside(folder, folder, name) if folder else NOWHERE / Path(name).name
        if path is None or (fence and not fence.admits(path)):
            where = f"the file_name of image {image['id']} leads out of {folder}, by its name or by a link"
            raise UserError(f"{file}: {where}; correct it there, or give the folder in which the images lie")
        # Sizes are for drawing only: where the file is silent, as large as the boxes need.
        width, height = np.ceil(boxes[:, 2:].max(axis=0, initial=1.0)).astype(int).tolist()
        columns = (
            boxes,
            np.array([label_of[one["category_id"]] for one in own], np.int64),
            np.array([one["iscrowd"] == 1 for one in own], bool),
            np.zeros(len(own), bool),
            np.array([one["area"] for one in own], np.float64),
        )
        records.append(Record(image["id"], path, image.get("width", width), image.get("height", height), *columns))
    return tuple(records)


def _xyxy(entries: Sequence[Any]) -> np.ndarray:
    boxes = np.array([entry["bbox"] for entry in entries], np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
