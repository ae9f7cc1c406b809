"""Truths and results of anybody, in COCO's JSON, for figures that equal pycocotools' on the same files to the last bit.

Other than the readers of `detect.data`, which make training data good, this changes no number: boxes stay float64, and
images need not be there.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypeVar

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from detect.data.dataset import Dataset, Record
from detect.data.defects import inside
from detect.errors import UserError
from detect.evaluation.coco import Prediction

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
class Documents:
    """A truth and the results on it, as pycocotools wants them and as our own evaluators do."""

    truth: dict[str, Any]
    results: list[dict[str, Any]]
    dataset: Dataset
    predictions: list[Prediction]
    left_out: int
    """Annotations of images that the file does not list, which pycocotools looks over."""


def read_documents(truth: Path, results: Path, images: Path | None = None) -> Documents:
    """Reads `instances.json` and `results.json`; `images` is the folder of the pictures, where there are any to draw.

    Annotations are numbered anew from 1, as pycocotools takes number 0 for "not matched"; one without `area` gets its
    box's, one without `iscrowd` is one object. All this changes no figure that pycocotools computes without an error.

    Raises:
        UserError: a file cannot be read, is not of this form, has a number that is not finite, or names an unknown
            category or image, or one image or category twice.
    """
    content, found = _load(truth, _TRUTH), _load(results, _RESULTS)
    names = _unique(truth, "category", ((entry["id"], entry["name"]) for entry in content["categories"]))
    if twice := [name for name, count in Counter(names.values()).items() if count > 1]:
        raise UserError(f"{truth}: two categories are called {twice[0]!r}; give each a name of its own")
    _unique(truth, "image", ((entry["id"], entry) for entry in content["images"]))
    listed = {entry["id"] for entry in content["images"]}
    annotations = [
        {"area": entry["bbox"][2] * entry["bbox"][3], "iscrowd": 0, **entry, "id": number}
        for number, entry in enumerate((one for one in content["annotations"] if one["image_id"] in listed), start=1)
    ]
    _refuse_unknown(truth, "annotation", annotations, names, listed)
    _refuse_unknown(results, "result", found, names, listed)

    category_ids = tuple(sorted(names))
    label_of = {id: label for label, id in enumerate(category_ids)}
    records = _records(content["images"], annotations, label_of, truth, images)
    root = images or truth.parent
    return Documents(
        truth={**content, "info": {}, "annotations": annotations},
        results=[dict(one) for one in found],
        dataset=Dataset(root, truth.stem, "coco", tuple(names[id] for id in category_ids), category_ids, records),
        predictions=_predictions(found, label_of),
        left_out=len(content["annotations"]) - len(annotations),
    )


def _load(file: Path, form: TypeAdapter) -> Any:
    try:
        return form.validate_json(file.read_bytes())
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; name a JSON file") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        what = f"{place}: {first['msg']}" if place else first["msg"]
        wanted = "a COCO annotation file" if form is _TRUTH else "a list of COCO results with bbox and score"
        raise UserError(f"{file}: {what}; wanted is {wanted}") from None


def _unique(file: Path, what: str, entries: Iterable[tuple[int, T]]) -> dict[int, T]:
    by_id: dict[int, T] = {}
    for id, entry in entries:
        if id in by_id:
            raise UserError(f"{file}: {what} {id} is there twice; give each an id of its own")
        by_id[id] = entry
    return by_id


def _refuse_unknown(
    file: Path, what: str, entries: Sequence[Any], categories: dict[int, str], images: set[int]
) -> None:
    for number, entry in enumerate(entries, start=1):
        if entry["category_id"] not in categories:
            known = ", ".join(map(str, sorted(categories)[:5])) or "none"
            about = f"{what} {number} has the category {entry['category_id']}"
            raise UserError(f"{file}: {about}, which is not in categories ({known} …); correct it there")
        if entry["image_id"] not in images:
            about = f"{what} {number} is for the image {entry['image_id']}"
            raise UserError(f"{file}: {about}, which is not in the truth's images; give results of the same images")


def _records(
    images: Sequence[_Image],
    annotations: Sequence[dict[str, Any]],
    label_of: dict[int, int],
    truth: Path,
    folder: Path | None,
) -> tuple[Record, ...]:
    of_image = defaultdict(list)
    for annotation in annotations:
        of_image[annotation["image_id"]].append(annotation)
    records = []
    for image in images:
        own = of_image[image["id"]]
        boxes = _xyxy(own)
        name = image.get("file_name", str(image["id"]))
        path = inside(folder, folder, name) if folder else Path(name)
        if path is None:
            raise UserError(f"{truth}: the file_name of image {image['id']} leads out of {folder}; correct it there")
        # Sizes are for drawing only: where the file is silent, as large as the boxes need.
        width, height = np.ceil(boxes[:, 2:].max(axis=0, initial=1.0)).astype(int).tolist()
        records.append(
            Record(
                image["id"],
                path,
                image.get("width", width),
                image.get("height", height),
                boxes,
                np.array([label_of[one["category_id"]] for one in own], np.int64),
                np.array([one["iscrowd"] == 1 for one in own], bool),
                np.zeros(len(own), bool),
                np.array([one["area"] for one in own], np.float64),
            )
        )
    return tuple(records)


def _predictions(results: Sequence[_Result], label_of: dict[int, int]) -> list[Prediction]:
    of_image = defaultdict(list)
    for result in results:
        of_image[result["image_id"]].append(result)
    return [
        Prediction(
            id,
            _xyxy(own),
            np.array([one["score"] for one in own], np.float64),
            np.array([label_of[one["category_id"]] for one in own], np.int64),
        )
        for id, own in of_image.items()
    ]


def _xyxy(entries: Sequence[Any]) -> np.ndarray:
    boxes = np.array([entry["bbox"] for entry in entries], np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
