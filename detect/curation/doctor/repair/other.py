"""Writer of the repaired copy of a data set in a format without a writer of its own: as COCO."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64

from detect.curation.doctor.repair.plan import Plan
from detect.curation.writers import write_coco
from detect.data.dataset import Dataset
from detect.data.read import image_ids
from detect.data.records import Record


def write_as_coco(plan: Plan, draft: Path) -> None:
    """Write `annotations/instances_SPLIT.json` for each split, with the paths of the images in the data set."""
    for split, parsed in plan.survey.parsed.items():
        paths = plan.kept(split)
        dataset = Dataset(plan.survey.root, split, "coco", parsed.classes, parsed.category_ids, _records(plan, split))
        write_coco(draft, split, [plan.relative(path).as_posix() for path in paths], dataset)


def _records(plan: Plan, split: str) -> tuple[Record, ...]:
    """Return the remaining images with their boxes; boxes of unknown classes are left out and reported."""
    parsed, survey, paths = plan.survey.parsed[split], plan.survey, plan.kept(split)
    id_of = dict(zip(parsed.paths, image_ids(parsed.paths) if parsed.ids is None else parsed.ids, strict=True))
    valid = {row: np.asarray(parsed.boxes[row] if box is None else box) for row, box in plan.boxes[split].items()}
    rows_of: dict[Path, list[int]] = {path: [] for path in paths}
    for row in sorted(valid):
        path = parsed.paths[parsed.image[row]]
        if parsed.labels[row] >= 0:
            rows_of[path].append(row)
        else:
            plan.report(f"{split}: {plan.relative(path)}, {parsed.places[row]}: left out, its class is unknown")
    records = []
    for path in paths:
        rows, (width, height) = rows_of[path], survey.images[path].size
        limits = np.array([width, height] * 2) if parsed.normalised else np.ones(4)
        boxes = np.array([valid[row] if plan.boxes[split][row] is not None else valid[row] * limits for row in rows])
        boxes = boxes.reshape(-1, 4).clip(0, [width, height] * 2).astype(np.float32)
        areas = _areas(plan, split, rows, boxes)
        masks = tuple(plan.masks[split].get(row) for row in rows) if plan.masks[split] else None
        columns = (parsed.labels[rows], parsed.crowd[rows], parsed.difficult[rows], areas, masks)
        records.append(Record(id_of[path], path, width, height, boxes, *columns))
    return tuple(records)


def _areas(plan: Plan, split: str, rows: list[int], boxes: Float32[np.ndarray, "n 4"]) -> Float64[np.ndarray, " n"]:
    """Return the areas in the file, or else those of the masks, or else those of the boxes."""
    areas = (boxes[:, 2:].astype(np.float64) - boxes[:, :2]).prod(axis=1)
    for index, row in enumerate(rows):
        if (mask := plan.masks[split].get(row)) is not None:
            areas[index] = mask.area()
    given = plan.survey.parsed[split].areas[rows]
    return np.where(np.isnan(given), areas, given)
