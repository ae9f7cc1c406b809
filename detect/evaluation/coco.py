"""COCO's twelve figures (Lin et al. 2014, "Microsoft COCO", and the evaluation page of cocodataset.org).

The truths and the detections are turned into COCO's own JSON and handed to pycocotools, so that the figures are COCO's
by construction. Whoever reads the same JSON from disk gets the same figures to the last bit: both sides are Python
floats, which JSON keeps exactly.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int, Int64
from torch import Tensor

from detect.data.dataset import Dataset
from detect.errors import UserError
from detect.structures import Detections, to_file_pixels

FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""The twelve figures in COCO's order."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What was found in one image, in pixels of its file."""

    image_id: int
    boxes: Float[np.ndarray, "d 4"]
    """xyxy, as float32; as float64 where they are from a file of results."""
    scores: Float[np.ndarray, " d"]
    labels: Int64[np.ndarray, " d"]
    """0 … C-1, the place of the class in `Dataset.classes`."""


def from_detections(detections: Detections, ids: Int[Tensor, " B"], scales: Float[Tensor, "B 2"]) -> list[Prediction]:
    """Detections on the canvas as lists of boxes in pixels of the files, without the padding.

    `ids` and `scales` are those of the `Batch`.
    """
    in_file = to_file_pixels(detections, scales).to("cpu")
    # Of arrays, not of tensors: a million small tensors take ten times the memory of what they hold.
    boxes, scores = in_file.boxes.float().numpy(), in_file.scores.float().numpy()
    labels, valid = in_file.labels.long().numpy(), in_file.valid.numpy()
    return [
        Prediction(image_id, boxes[i, valid[i]], scores[i, valid[i]], labels[i, valid[i]])
        for i, image_id in enumerate(ids.tolist())
    ]


def by_image(predictions: Sequence[Prediction], dataset: Dataset) -> dict[int, Prediction]:
    """The predictions by image id.

    Raises:
        ValueError: an image that is not in the data set, or that was predicted twice, as uneven shards do, which would
            count its detections twice.
    """
    found = {prediction.image_id: prediction for prediction in predictions}
    if unknown := found.keys() - {record.id for record in dataset.records}:
        raise ValueError(f"image {min(unknown)} is not in {dataset.split} of {dataset.root}")
    if len(found) < len(predictions):
        twice, _ = Counter(prediction.image_id for prediction in predictions).most_common(1)[0]
        raise ValueError(f"image {twice} was predicted more than once")
    return found


def coco_truth(dataset: Dataset) -> dict[str, Any]:
    """The data set as the content of a COCO annotation file.

    Boxes are x, y, width, height in pixels. Annotations are numbered from 1, as pycocotools takes number 0 for "not
    matched". File names are relative to the root of the data set. COCO knows no "difficult": those are ordinary truths.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for record in dataset.records:
        inside = record.path.is_relative_to(dataset.root)
        name = record.path.relative_to(dataset.root).as_posix() if inside else record.path.name
        images.append({"id": record.id, "file_name": name, "width": record.width, "height": record.height})
        columns = zip(
            _xywh(record.boxes), record.labels.tolist(), record.areas.tolist(), record.crowd.tolist(), strict=True
        )
        for box, label, area, crowd in columns:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": record.id,
                    "category_id": dataset.category_ids[label],
                    "bbox": box,
                    "area": area,
                    "iscrowd": int(crowd),
                }
            )
    categories = [{"id": id_, "name": name} for id_, name in zip(dataset.category_ids, dataset.classes, strict=True)]
    return {"info": {}, "images": images, "categories": categories, "annotations": annotations}


def coco_results(predictions: Sequence[Prediction], dataset: Dataset) -> list[dict[str, Any]]:
    """The predictions as the content of a COCO results file (`predictions.json`).

    Boxes are x, y, width, height in pixels, unrounded.

    Raises:
        ValueError: an unknown image, or one that was predicted twice.
    """
    return [
        {"image_id": image_id, "category_id": dataset.category_ids[label], "bbox": box, "score": score}
        for image_id, one in by_image(predictions, dataset).items()
        for box, label, score in zip(_xywh(one.boxes), one.labels.tolist(), one.scores.tolist(), strict=True)
    ]


def evaluate_coco(
    dataset: Dataset, predictions: Sequence[Prediction], *, engine: Literal["pycocotools", "fast"] = "pycocotools"
) -> dict[str, Any]:
    """COCO's figures for boxes, each in 0 … 1, or None where no truth of that kind exists.

    An image without a prediction counts as one in which nothing was found.

    Args:
        dataset: the truths; crowd regions excuse the detections within them.
        predictions: at most one an image; COCO looks at the best 100 of each class.
        engine: `fast` is hotcoco, the same figures to the last bit, thirty times faster.

    Returns:
        `FIGURES` by name, and `per_class`: for each class name its AP, AP50, AP75, AR100 and the number of `truths`.

    Raises:
        UserError: the fast engine is not installed.
        ValueError: an unknown image, or one that was predicted twice.
    """
    return evaluate_documents(coco_truth(dataset), coco_results(predictions, dataset), dataset, engine=engine)


def evaluate_documents(
    truth: dict[str, Any],
    results: list[dict[str, Any]],
    dataset: Dataset,
    *,
    engine: Literal["pycocotools", "fast"] = "pycocotools",
) -> dict[str, Any]:
    """The same, of the content of an annotation file and of a results file; `dataset` names and counts the classes."""
    found = {**truth, "annotations": _as_annotations(results)}
    with redirect_stdout(io.StringIO()):  # both engines print their progress and a table
        evaluation = _pycocotools(truth, found) if engine == "pycocotools" else _hotcoco(truth, found)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    metrics: dict[str, Any] = {
        name: None if figure == -1 else float(figure) for name, figure in zip(FIGURES, evaluation.stats, strict=True)
    }
    return metrics | {"per_class": _per_class(dataset, evaluation.eval["precision"], evaluation.eval["recall"])}


def _per_class(
    dataset: Dataset, precision: Float[np.ndarray, "T R C A M"], recall: Float[np.ndarray, "T C A M"]
) -> dict[str, dict[str, float | int | None]]:
    """The figures of each class, from pycocotools' tables over T IoUs, R recalls, classes, A areas and M limits."""
    labels = [label for record in dataset.records for label in record.labels[~record.crowd].tolist()]
    truths = Counter(labels)
    place = {id_: row for row, id_ in enumerate(sorted(dataset.category_ids))}  # pycocotools sorts by id
    table = {}
    for label, (name, id_) in enumerate(zip(dataset.classes, dataset.category_ids, strict=True)):
        curves = precision[:, :, place[id_], 0, -1]  # all areas, 100 detections
        table[name] = {
            "AP": _mean(curves),
            "AP50": _mean(curves[0]),
            "AP75": _mean(curves[5]),
            "AR100": _mean(recall[:, place[id_], 0, -1]),
            "truths": truths[label],
        }
    return table


def _mean(values: np.ndarray) -> float | None:
    """The mean of what pycocotools filled in; it marks "no truth" by -1."""
    known = values[values > -1]
    return float(known.mean()) if known.size else None


def _xywh(boxes: Float[np.ndarray, "n 4"]) -> list[list[float]]:
    """x, y, width, height; in float64, where differences of float32 are exact."""
    corners = boxes.astype(np.float64)
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1).tolist()


def _as_annotations(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What pycocotools' `loadRes` would make of the results; itself it fails where there are none."""
    return [
        {**result, "id": number, "area": result["bbox"][2] * result["bbox"][3], "iscrowd": 0}
        for number, result in enumerate(results, start=1)
    ]


def _pycocotools(truth: dict[str, Any], found: dict[str, Any]) -> Any:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    sides = []
    for content in (truth, found):
        side = COCO()
        side.dataset = content
        side.createIndex()
        sides.append(side)
    return COCOeval(*sides, iouType="bbox")


def _hotcoco(truth: dict[str, Any], found: dict[str, Any]) -> Any:
    try:
        from hotcoco import COCO, COCOeval
    except ImportError as error:
        raise UserError("the fast COCO engine is not installed: pip install 'detect[all]'") from error
    return COCOeval(COCO(truth), COCO(found), "bbox")
