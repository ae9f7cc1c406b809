"""Writer of repaired VOC annotation files and lists. Elements that the reader does not use are kept."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from xml.etree.ElementTree import Element, tostring

import numpy as np
from defusedxml.ElementTree import fromstring
from jaxtyping import Float64

from detect.curation.doctor.repair.plan import Plan, rounded
from detect.curation.writers import label_image
from detect.data.annotations import Annotations
from detect.data.masks import LabelledPixels


def write_voc(plan: Plan, draft: Path) -> None:
    """Write the list of each split and the XML file of each remaining image."""
    written: set[Path] = set()
    for split, parsed in plan.survey.parsed.items():
        kept = set(plan.kept(split))
        stems = []
        for index, (path, source) in enumerate(zip(parsed.paths, parsed.sources, strict=True)):
            if path not in kept:
                continue
            stems.append(source.stem)
            if source not in written:
                written.add(source)
                _write_xml(plan, split, index, draft)
        base = parsed.sources[0].parent.parent if parsed.sources else plan.survey.root
        if not (base / "ImageSets").is_dir():  # the folders of the XML files are the splits
            continue
        target = draft / plan.relative(base) / "ImageSets" / "Main" / f"{split}.txt"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("".join(f"{stem}\n" for stem in stems), encoding="utf-8")


def _write_xml(plan: Plan, split: str, index: int, draft: Path) -> None:
    """Write the XML file of an image and the image of its masks, or copy them if they have no defect."""
    annotations = plan.survey.parsed[split]
    source, image = annotations.sources[index], plan.survey.images[annotations.paths[index]]
    target = draft / plan.relative(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    rows = plan.rows[split][index]
    kept = {row: plan.boxes[split][row] for row in rows if row in plan.boxes[split]}
    declared = annotations.declared[index]
    wrong_size = declared is not None and tuple(declared) != image.size
    wrong_size &= not (image.orientation >= 5 and declared == image.size[::-1])
    if len(kept) == len(rows) and all(box is None for box in kept.values()) and not wrong_size:
        shutil.copyfile(source, target)
        _write_masks(plan, split, {row: _number(annotations, row) for row in rows}, draft)
        return
    tree = fromstring(source.read_bytes())
    objects = tree.findall("object")
    for row in rows:
        element = objects[_number(annotations, row) - 1]
        box = kept.get(row)
        if row not in kept or (box is not None and not _write_corners(element, box)):
            tree.remove(element)
    size = tree.find("size")
    if wrong_size and size is not None:
        width, height = image.size
        plan.report(f"{split}: {plan.relative(source)}: size corrected to {width} × {height}")
        _set_number(size, "width", width)
        _set_number(size, "height", height)
    target.write_text(tostring(tree, encoding="unicode") + "\n", encoding="utf-8")
    number_of = {element: number for number, element in enumerate(tree.findall("object"), start=1)}
    elements = {row: objects[_number(annotations, row) - 1] for row in rows}
    left = {row: number_of[element] for row, element in elements.items() if element in number_of}
    _write_masks(plan, split, left, draft)


def _number(annotations: Annotations, row: int) -> int:
    """Return the number of a box in its XML file, from 1."""
    return int(annotations.places[row].split()[1])


def _write_masks(plan: Plan, split: str, numbers: Mapping[int, int], draft: Path) -> None:
    """Write the image of an image's masks, or copy it if no object gets another number.

    Args:
        plan: the plan of the copy.
        split: the split.
        numbers: new number of each row in the XML file.
        draft: folder of the copy.
    """
    annotations, usable = plan.survey.parsed[split], plan.masks[split]
    masks = annotations.masks or []
    files = {row: mask for row in numbers if row in usable and isinstance(mask := masks[row], LabelledPixels)}
    if not files:
        return
    row, first = next(iter(files.items()))
    target = draft / plan.relative(first.path)
    target.parent.mkdir(parents=True, exist_ok=True)
    if all(mask.value == numbers[row] for row, mask in files.items()):
        shutil.copyfile(first.path, target)
    else:
        width, height = plan.survey.images[annotations.paths[annotations.image[row]]].size
        label_image(height, width, {numbers[row]: usable[row] for row in files}).save(target)


def _write_corners(element: Element, box: Float64[np.ndarray, " 4"]) -> bool:
    """Write a box in VOC's coordinates. Return False if it is at most one pixel wide or high: VOC has no such boxes."""
    bounds = element.find("bndbox")
    if bounds is None or (box[2:] - box[:2]).min() <= 1:
        return False
    for name, number in zip(("xmin", "ymin", "xmax", "ymax"), np.add(box, (1, 1, 0, 0)), strict=True):
        _set_number(bounds, name, number)
    return True


def _set_number(parent: Element, name: str, number: float) -> None:
    element = parent.find(name)
    if element is not None:
        element.text = str(rounded(number))
