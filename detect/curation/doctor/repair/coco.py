"""Writer of repaired COCO annotation files. Fields that the reader does not use are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from detect.curation.doctor.repair.plan import Plan, rounded
from detect.data.defects import DefectLog
from detect.data.formats import coco
from detect.data.formats.coco_entries import are_polygons, is_number
from detect.data.masks import Mask

_DONE = {"id-not-number": "the id is a whole number now", "implied-box": "it has the box of its polygon or mask"}


def write_coco(plan: Plan, draft: Path) -> None:
    """Write the repaired annotation file of each split."""
    for split in plan.survey.parsed:
        source = coco.locate(plan.survey.tree, split)
        log = DefectLog(plan.survey.root, split)
        document = coco.load(source, log)
        for defect in log.repaired:
            plan.report(f"{split}: {defect.detail}: {_DONE[defect.rule]}")
        annotations = plan.survey.parsed[split]
        path_of = dict(zip(annotations.ids or [], annotations.paths, strict=True))
        _repair_images(plan, split, document, path_of)
        _repair_annotations(plan, split, document, path_of)
        target = draft / plan.relative(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(document), encoding="utf-8")


def _repair_images(plan: Plan, split: str, document: dict[str, Any], path_of: dict[int, Path]) -> None:
    """Replace `document["images"]`, without images that are left out or listed twice, and with correct sizes."""
    log = DefectLog(plan.survey.root, split)
    first = _first_ids(path_of)
    kept = {id for id, path in path_of.items() if path not in plan.dropped[split]}
    entries = coco.entries(document, "images", Path(), log, id=coco.ID, file_name=coco.TEXT)
    listed: dict[int, dict[str, Any]] = {}
    for entry in entries:
        listed.setdefault(entry["id"], entry)
    images = [entry for id, entry in listed.items() if id in kept and first[path_of[id]] == id]
    for entry in images:
        _correct_size(plan, split, entry, path_of[entry["id"]])
    for entry in entries:
        if entry["id"] in path_of and entry is not listed[entry["id"]]:
            plan.report(f"{split}: left out a second image {entry['id']}, {entry['file_name']}")
    outside = [entry for id, entry in listed.items() if id not in path_of]
    document["images"] = images + outside + _invalid(document["images"], entries)


def _repair_annotations(plan: Plan, split: str, document: dict[str, Any], path_of: dict[int, Path]) -> None:
    """Replace `document["annotations"]` by the remaining annotations, with repaired boxes and unique ids."""
    log = DefectLog(plan.survey.root, split)
    first = _first_ids(path_of)
    fields = {"image_id": coco.ID, "category_id": coco.ID, "bbox": coco.BOX}
    valid = coco.entries(document, "annotations", Path(), log, **fields)
    rows = [entry for entry in valid if entry["image_id"] in path_of]
    used = {entry["id"] for entry in rows if coco.ID.test(entry.get("id"))}
    next_id, seen = max([0, *used]) + 1, set()
    chosen = []
    for row, box in sorted(plan.boxes[split].items()):
        entry = rows[row]
        entry["image_id"] = first[path_of[entry["image_id"]]]
        if not coco.ID.test(entry.get("id")) or entry["id"] in seen:
            plan.report(f"{split}: annotation {entry.get('id')} of image {entry['image_id']}: now has the id {next_id}")
            entry["id"], next_id = next_id, next_id + 1
        seen.add(entry["id"])
        mask = plan.masks[split].get(row)
        if entry.get("segmentation") and _repair_mask(entry, mask):
            what = "its mask is left out" if mask is None else "polygons with fewer than three corners are left out"
            plan.report(f"{split}: annotation {entry['id']} of image {entry['image_id']}: {what}")
        _repair_entry(entry, box, mask)
        if split in plan.survey.mistakes:
            _convert_entry(plan, split, entry, row)
        chosen.append(entry)
    document["annotations"] = chosen + _invalid(document["annotations"], valid)


def _first_ids(path_of: dict[int, Path]) -> dict[Path, int]:
    """Return the first id of each image; an image may be listed under several ids."""
    return {path: id for id, path in reversed(path_of.items())}


def _invalid(entries: list, valid: list) -> list:
    """Return the entries that the reader cannot interpret; they are kept for the user to correct."""
    known = set(map(id, valid))
    return [entry for entry in entries if id(entry) not in known]


def _correct_size(plan: Plan, split: str, entry: dict[str, Any], path: Path) -> None:
    image = plan.survey.images[path]
    declared = entry.get("width"), entry.get("height")
    unrotated = image.orientation >= 5 and declared == image.size[::-1]
    if None not in declared and declared != image.size and not unrotated:
        plan.report(f"{split}: image {entry['id']}: size corrected to {image.size[0]} × {image.size[1]}")
        entry["width"], entry["height"] = image.size


def _repair_mask(entry: dict[str, Any], mask: Mask | None) -> bool:
    """Leave out a mask that cannot be used, or polygons with fewer than three corners. Return whether it changed."""
    if mask is None:
        del entry["segmentation"]
        return True
    polygons = entry["segmentation"]
    if not isinstance(polygons, list) or are_polygons(polygons):
        return False
    entry["segmentation"] = [polygon for polygon in polygons if len(polygon) >= 6]
    return True


def _repair_entry(entry: dict[str, Any], box: Float64[np.ndarray, " 4"] | None, mask: Mask | None) -> None:
    x, y, width, height = entry["bbox"]
    if box is not None:
        x, y = map(rounded, box[:2])
        width, height = map(rounded, box[2:] - box[:2])
        entry["bbox"] = [x, y, width, height]
        if not entry.get("segmentation"):
            entry["area"] = width * height
    area = entry.get("area")
    if not is_number(area) or not 0 <= float(area) < np.inf:  # type: ignore[arg-type]
        entry["area"] = width * height if mask is None else rounded(mask.area())
    if entry.get("iscrowd") not in (0, 1):
        entry["iscrowd"] = 0


def _convert_entry(plan: Plan, split: str, entry: dict[str, Any], row: int) -> None:
    """Give an annotation of a mistaken split an area that fits its box, and its polygons the units of its box."""
    parsed, reading = plan.survey.parsed[split], plan.survey.mistakes[split].reading
    index = parsed.image[row]
    width, height = plan.survey.images[parsed.paths[index]].size
    area, polygons = parsed.areas[row], entry.get("segmentation")
    entry["area"] = entry["bbox"][2] * entry["bbox"][3] if np.isnan(area) else rounded(area)
    if reading.scaled:
        declared = parsed.declared[index]
        assert declared is not None
        factors = (width / declared[0], height / declared[1])
    elif reading.fractions and are_polygons(polygons) and max(map(max, polygons)) <= 1:
        factors = (width, height)
    else:
        return
    if are_polygons(polygons):
        entry["segmentation"] = [
            [rounded(number * factors[k % 2]) for k, number in enumerate(polygon)] for polygon in polygons
        ]
    elif polygons:
        plan.report(f"{split}: annotation {entry['id']} of image {entry['image_id']}: its mask is left out")
        del entry["segmentation"]
