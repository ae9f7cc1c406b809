"""Writer of repaired YOLO label files, lists and `data.yaml`."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import yaml
from jaxtyping import Float64

from detect.curation.doctor.repair.plan import Plan
from detect.data.defects import DefectLog
from detect.data.formats.yolo import describe, load_yaml, read_lines
from detect.data.formats.yolo_lines import find_keypoints
from detect.data.mistakes import Reading


def write_yolo(plan: Plan, draft: Path) -> None:
    """Write `data.yaml`, the label file of each remaining image, and a list for each split that needs one."""
    tree = plan.survey.tree
    description = describe(tree, DefectLog(tree.root, ""))
    is_yaml = description.file.suffix in (".yaml", ".yml")
    document = load_yaml(description.file, tree.fence) if is_yaml else {}
    for key in ("path", "nc", *description.splits):
        document.pop(key, None)
    document["names"] = description.names
    if keypoints := description.keypoints or _undeclared_keypoints(plan):
        document["kpt_shape"] = list(keypoints)
        if description.keypoints is None:
            plan.report(f"data.yaml: kpt_shape {list(keypoints)} added")
    copied = {path for split in plan.survey.parsed for path in plan.kept(split)}
    for split, parsed in plan.survey.parsed.items():
        kept = plan.kept(split)
        index_of = {path: index for index, path in enumerate(parsed.paths)}
        for path in kept:
            _write_labels(plan, split, index_of[path], draft)
        # If a split consists of all images of some folders, name these folders, otherwise write a list.
        folders = dict.fromkeys(path.parent for path in parsed.paths)
        below = {path for path in copied if any(path.is_relative_to(folder) for folder in folders)}
        if kept and below == set(kept) and not _are_nested(folders):
            names = [plan.relative(folder).as_posix() for folder in folders if any(p.parent == folder for p in kept)]
            document[split] = names[0] if len(names) == 1 else names
        else:
            lines = "".join(f"{plan.relative(path).as_posix()}\n" for path in kept)
            (draft / f"{split}.txt").write_text(lines, encoding="utf-8")
            document[split] = f"{split}.txt"
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    (draft / "data.yaml").write_text(text, encoding="utf-8")


def _undeclared_keypoints(plan: Plan) -> tuple[int, int] | None:
    """Return the shape of the keypoints if the reader has recognised some without `kpt_shape`."""
    log = DefectLog(plan.survey.root, "")
    for parsed in plan.survey.parsed.values():
        lines = [values for source in parsed.sources for *_, values in read_lines(source, log)]
        if found := find_keypoints(lines):
            return found
    return None


def _are_nested(folders: Mapping[Path, None]) -> bool:
    """Return whether a folder contains another one, whose images would be listed twice."""
    return any(a != b and a.is_relative_to(b) for a in folders for b in folders)


def _write_labels(plan: Plan, split: str, index: int, draft: Path) -> None:
    """Write the label file of an image, or copy it if it has no defect."""
    annotations = plan.survey.parsed[split]
    source = annotations.sources[index]
    target = draft / plan.relative(source)
    if target.exists():  # written for another split, or for a second image with the same label file
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if not source.is_file():
        plan.report(f"{split}: {plan.relative(source)}: written, without a box")
        target.write_text("", encoding="utf-8")
        return
    rows = {int(annotations.places[row].split()[1]): row for row in plan.rows[split][index]}
    boxes = plan.boxes[split]
    if all(row in boxes and boxes[row] is None for row in rows.values()):
        shutil.copyfile(source, target)
        return
    lines, size = [], plan.survey.images[annotations.paths[index]].size
    for number, line in enumerate(source.read_text(encoding="utf-8-sig").splitlines(), start=1):
        row = rows.get(number)
        if row is None:  # lines that the reader cannot interpret are kept for the user to correct
            lines.append(line)
        elif row in boxes and split in plan.survey.mistakes:
            lines.append(_convert(line, boxes[row], size, plan.survey.mistakes[split].reading))
        elif row in boxes:
            lines.append(line if boxes[row] is None else _clip(line))
    target.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _convert(line: str, box: Float64[np.ndarray, " 4"] | None, size: tuple[int, int], reading: Reading) -> str:
    """Return a line with its box in YOLO's numbers, or the corners of its polygon as fractions."""
    category, *words = line.split()
    sides = np.array(size, dtype=np.float64)
    numbers = np.array(words, dtype=np.float64)
    if len(numbers) == 4:
        assert box is not None
        numbers = np.hstack([(box[:2] + box[2:]) / 2 / sides, (box[2:] - box[:2]) / sides])
    elif not reading.fractions:
        numbers = (numbers.reshape(-1, 2) / sides).clip(0, 1).reshape(-1)
    return " ".join([category, *(f"{number:.10g}" for number in numbers)])


def _clip(line: str) -> str:
    """Return a line of a label file with its box, or the corners of its polygon, clipped to the image."""
    category, *words = line.split()
    numbers = [float(word) for word in words]
    if len(numbers) == 4:
        x, y, width, height = numbers
        left, right = max(x - width / 2, 0.0), min(x + width / 2, 1.0)
        top, bottom = max(y - height / 2, 0.0), min(y + height / 2, 1.0)
        numbers = [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]
    else:
        numbers = [min(max(number, 0.0), 1.0) for number in numbers]
    return " ".join([category, *(f"{number:.8g}" for number in numbers)])
