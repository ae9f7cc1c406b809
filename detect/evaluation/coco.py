"""COCO metrics of boxes and masks (Lin et al. 2014, "Microsoft COCO", and the evaluation page of cocodataset.org).

Ground truths and detections are converted to COCO's JSON and evaluated by pycocotools, so the metrics are COCO's by
construction. Evaluating the same JSON read from disk gives the same metrics to the last bit: all numbers are Python
floats, which JSON stores exactly.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Float64, Int, Int64
from pycocotools import mask as coco_mask
from torch import Tensor

from detect.data.dataset import Dataset
from detect.data.masks import RLE, paste_all, segmentation
from detect.errors import UserError, install_command
from detect.structures import Detections, to_file_pixels

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""COCO's twelve metrics in COCO's order. Those of masks have the prefix `mask_`."""

Engine = Literal["pycocotools", "fast"]
"""`fast` is hotcoco: thirty times faster than pycocotools, with the same metrics to the last bit."""
Kind = Literal["bbox", "segm"]
"""COCO's names of the metrics of boxes and of masks."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """Detections in one image, in pixels of its file."""

    image_id: int
    boxes: Float[np.ndarray, "d 4"]
    """xyxy, float32; float64 if they were read from a results file."""
    scores: Float[np.ndarray, " d"]
    labels: Int64[np.ndarray, " d"]
    """0 … C-1, indices into `Dataset.classes`."""
    masks: tuple[RLE, ...] | None = None
    """Mask of each detection in the image file; None for a detector of boxes."""

    @classmethod
    def empty(cls, image_id: int) -> Prediction:
        """Return a prediction without detections."""
        return cls(image_id, np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.int64))


def from_detections(
    detections: Detections,
    ids: Int[Tensor, " B"],
    scales: Float[Tensor, "B 2"],
    sizes: Mapping[int, tuple[int, int]] | None = None,
) -> list[Prediction]:
    """Convert padded detections on the canvas to one `Prediction` per image, in pixels of the file.

    Args:
        detections: detections of a batch.
        ids: `ids` of the `Batch`.
        scales: `scales` of the `Batch`.
        sizes: height and width of each image file by its id, needed for masks.
    """
    in_file = to_file_pixels(detections, scales).to("cpu")
    # Numpy arrays, not tensors: a million small tensors take ten times the memory of their content.
    boxes, scores = in_file.boxes.float().numpy(), in_file.scores.float().numpy()
    labels, valid = in_file.labels.long().numpy(), in_file.valid.numpy()
    predictions = []
    for i, image_id in enumerate(ids.tolist()):
        columns = (boxes[i, valid[i]], scores[i, valid[i]], labels[i, valid[i]])
        masks = None
        if in_file.masks is not None and sizes is not None:
            masks = paste_all(in_file.masks[i].float().numpy()[valid[i]], columns[0], *sizes[image_id])
        predictions.append(Prediction(image_id, *columns, masks))
    return predictions


def select_classes(predictions: Sequence[Prediction], before: Sequence[str], after: Sequence[str]) -> list[Prediction]:
    """Return the detections of the classes `after`, with labels in their order; the given labels refer to `before`."""
    label_of = np.array([after.index(name) if name in after else -1 for name in before], np.int64)
    selected = []
    for prediction in predictions:
        labels = label_of[prediction.labels]
        kept = labels >= 0
        columns = (prediction.boxes[kept], prediction.scores[kept], labels[kept])
        masks = None if prediction.masks is None else tuple(prediction.masks[row] for row in np.flatnonzero(kept))
        selected.append(Prediction(prediction.image_id, *columns, masks))
    return selected


def have_masks(predictions: Sequence[Prediction]) -> bool:
    """Return whether the predictions are those of a detector of masks."""
    return any(prediction.masks is not None for prediction in predictions)


def by_image(predictions: Sequence[Prediction], dataset: Dataset) -> dict[int, Prediction]:
    """Return the predictions by image id.

    Raises:
        ValueError: an image is not in the data set, or was predicted twice. Uneven shards of a distributed run predict
            images twice, and their detections would count twice.
    """
    predicted = {prediction.image_id: prediction for prediction in predictions}
    if unknown := predicted.keys() - {record.id for record in dataset.records}:
        raise ValueError(f"image {min(unknown)} is not in {dataset.split} of {dataset.root}")
    if len(predicted) < len(predictions):
        repeated, _ = Counter(prediction.image_id for prediction in predictions).most_common(1)[0]
        raise ValueError(f"image {repeated} was predicted more than once")
    return predicted


def coco_ground_truth(dataset: Dataset) -> dict[str, Any]:
    """Return the data set as the content of a COCO annotation file.

    Boxes are x, y, width, height in pixels. Annotation ids start at 1, because pycocotools takes id 0 for "not
    matched". File names are relative to the root of the data set. COCO has no "difficult" flag: difficult objects
    become ordinary annotations. Masks are the file's polygons or run-length encodings.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for record in dataset.records:
        inside = record.path.is_relative_to(dataset.root)
        name = record.path.relative_to(dataset.root).as_posix() if inside else record.path.name
        images.append({"id": record.id, "file_name": name, "width": record.width, "height": record.height})
        columns = (xywh(record.boxes), record.labels, record.areas, record.crowd)
        masks = record.masks or (None,) * len(record.labels)
        for box, label, area, crowd, mask in zip(*(column.tolist() for column in columns), masks, strict=True):
            annotation = {
                "id": len(annotations) + 1,
                "image_id": record.id,
                "category_id": dataset.category_ids[label],
                "bbox": box,
                "area": area,
                "iscrowd": int(crowd),
            }
            if mask is not None:
                annotation["segmentation"] = segmentation(mask, record.height, record.width)
            annotations.append(annotation)
    categories = [{"id": id_, "name": name} for id_, name in zip(dataset.category_ids, dataset.classes, strict=True)]
    return {"info": {}, "images": images, "categories": categories, "annotations": annotations}


def coco_results(predictions: Sequence[Prediction], dataset: Dataset) -> list[dict[str, Any]]:
    """Return the predictions as the content of a COCO results file (`predictions.json`).

    Boxes are x, y, width, height in pixels, not rounded. Masks are run-length encoded.

    Raises:
        ValueError: an image is not in the data set, or was predicted twice.
    """
    results = []
    for image_id, prediction in by_image(predictions, dataset).items():
        masks = prediction.masks or (None,) * len(prediction.labels)
        columns = (xywh(prediction.boxes), prediction.labels, prediction.scores)
        for box, label, score, mask in zip(*(column.tolist() for column in columns), masks, strict=True):
            result = {"image_id": image_id, "category_id": dataset.category_ids[label], "bbox": box, "score": score}
            if mask is not None:
                result["segmentation"] = mask.segmentation()
            results.append(result)
    return results


def evaluate_coco(
    dataset: Dataset, predictions: Sequence[Prediction], *, engine: Engine = "pycocotools"
) -> dict[str, Any]:
    """Compute COCO's metrics of boxes and, if they are predicted, of masks: each in 0 … 1, or None without objects.

    An image without a prediction counts as an image without detections.

    Args:
        dataset: images with their ground truths. Detections in crowd regions are ignored.
        predictions: at most one per image; COCO evaluates the 100 highest scores of each class and image.
        engine: library that computes the metrics.

    Returns:
        `METRICS` by name, and `per_class`: AP, AP50, AP75, AR100 and the number of ground truths (`truths`) by class
        name. With masks, also `METRICS` with the prefix `mask_`, and such columns of `per_class`.

    Raises:
        UserError: the fast engine is not installed.
        ValueError: an image is not in the data set, or was predicted twice.
    """
    content, results = coco_ground_truth(dataset), coco_results(predictions, dataset)
    has_masks = any(prediction.masks is not None for prediction in predictions)
    return evaluate_coco_json(content, results, dataset, engine=engine, masks=has_masks)


def evaluate_coco_json(
    ground_truth: dict[str, Any],
    results: list[dict[str, Any]],
    dataset: Dataset,
    *,
    engine: Engine = "pycocotools",
    masks: bool = False,
) -> dict[str, Any]:
    """Compute COCO's metrics from the contents of an annotation file and of a results file.

    An object without a mask is ignored in the metrics of masks, and so are the detections within its box.

    Args:
        ground_truth: content of the annotation file.
        results: content of the results file.
        dataset: the same ground truths, for the names and the counts of the classes.
        engine: library that computes the metrics.
        masks: compute the metrics of masks, too.

    Returns:
        The same as `evaluate_coco`.

    Raises:
        UserError: the fast engine is not installed.
    """
    metrics = _evaluate(ground_truth, results, dataset, engine, "bbox")
    if masks:
        of_masks = _evaluate(_with_masks(ground_truth), results, dataset, engine, "segm")
        for name, columns in of_masks.pop("per_class").items():
            metrics["per_class"][name] |= {f"mask_{key}": value for key, value in columns.items() if key != "truths"}
        metrics |= {f"mask_{name}": value for name, value in of_masks.items()}
    return metrics


def _evaluate(
    ground_truth: dict[str, Any], results: list[dict[str, Any]], dataset: Dataset, engine: Engine, kind: Kind
) -> dict[str, Any]:
    """Return the metrics of boxes or of masks."""
    detections = {**ground_truth, "annotations": _as_annotations(results, kind)}
    with redirect_stdout(io.StringIO()):  # both engines print their progress and a table
        evaluation = (_pycocotools if engine == "pycocotools" else _hotcoco)(ground_truth, detections, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    metrics: dict[str, Any] = {
        name: None if value == -1 else float(value) for name, value in zip(METRICS, evaluation.stats, strict=True)
    }
    return metrics | {"per_class": _per_class(dataset, evaluation.eval["precision"], evaluation.eval["recall"])}


def mean_of_known(values: np.ndarray) -> float | None:
    """Return the mean of the values except -1, which means "no ground truth" in pycocotools; None without values."""
    known = values[values > -1]
    return float(known.mean()) if known.size else None


def xywh(boxes: Float[np.ndarray, "n 4"]) -> Float64[np.ndarray, "n 4"]:
    """Convert xyxy boxes to x, y, width, height in float64, where differences of float32 numbers are exact."""
    corners = boxes.astype(np.float64)
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)


def corners(box: Sequence[float]) -> list[float]:
    """Return the corners x, y of a box x, y, width, height, as a polygon of a COCO annotation."""
    x, y, width, height = box
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def _per_class(
    dataset: Dataset, precision: Float[np.ndarray, "T R C A M"], recall: Float[np.ndarray, "T C A M"]
) -> dict[str, dict[str, float | int | None]]:
    """Return the metrics of each class by name.

    Args:
        dataset: images with their ground truths.
        precision: pycocotools' table over T IoU thresholds, R recalls, classes, A area ranges and M limits on the
            number of detections.
        recall: pycocotools' table of recalls.
    """
    labels = [label for record in dataset.records for label in record.labels[~record.crowd].tolist()]
    counts = Counter(labels)
    row_of = {id_: row for row, id_ in enumerate(sorted(dataset.category_ids))}  # pycocotools sorts by id
    table = {}
    for label, (name, id_) in enumerate(zip(dataset.classes, dataset.category_ids, strict=True)):
        curves = precision[:, :, row_of[id_], 0, -1]  # all areas, 100 detections
        table[name] = {
            "AP": mean_of_known(curves),
            "AP50": mean_of_known(curves[0]),
            "AP75": mean_of_known(curves[5]),
            "AR100": mean_of_known(recall[:, row_of[id_], 0, -1]),
            "truths": counts[label],
        }
    return table


def _with_masks(ground_truth: dict[str, Any]) -> dict[str, Any]:
    """Return the annotation file with the box of an object without a mask as a region to ignore."""
    annotations = []
    for annotation in ground_truth["annotations"]:
        if not annotation.get("segmentation"):
            annotation = {**annotation, "segmentation": [corners(annotation["bbox"])], "iscrowd": 1}
        annotations.append(annotation)
    return {**ground_truth, "annotations": annotations}


def _as_annotations(results: list[dict[str, Any]], kind: Kind) -> list[dict[str, Any]]:
    """Convert results to annotations as pycocotools' `loadRes` does, which fails on an empty list.

    Of a result with a box and a mask, `loadRes` takes the area of the box also for the metrics of masks by size. Here
    it is the area of the mask.
    """
    if kind == "segm":
        # One at a time: pycocotools 2.0.11 fails on lists of more than 255 masks.
        areas = [float(coco_mask.area(result["segmentation"])) for result in results]
    else:
        areas = [result["bbox"][2] * result["bbox"][3] for result in results]
    return [
        {**result, "id": number, "area": area, "iscrowd": 0}
        for number, (result, area) in enumerate(zip(results, areas, strict=True), start=1)
    ]


def _pycocotools(ground_truth: dict[str, Any], detections: dict[str, Any], kind: Kind) -> Any:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    indexed = []
    for content in (ground_truth, detections):
        coco = COCO()
        coco.dataset = content
        coco.createIndex()
        indexed.append(coco)
    return COCOeval(*indexed, iouType=kind)


def _hotcoco(ground_truth: dict[str, Any], detections: dict[str, Any], kind: Kind) -> Any:
    try:
        from hotcoco import COCO, COCOeval
    except ImportError as error:
        raise UserError(f"the fast COCO engine is not installed: {install_command('hotcoco')}") from error
    return COCOeval(COCO(ground_truth), COCO(detections), kind)
