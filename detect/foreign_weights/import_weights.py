"""Import of another project's weights as a checkpoint, for `detect import`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from detect.checkpoint import Checkpoint, save_checkpoint
from detect.config import Config, TrainingOptions
from detect.data.options import DataOptions
from detect.errors import UserError
from detect.files.atomic import refuse_existing
from detect.foreign_weights import detectron2 as detectron2_weights
from detect.foreign_weights import torchvision as torchvision_weights
from detect.foreign_weights import yolox as yolox_weights
from detect.foreign_weights.coco_names import COCO_NAMES
from detect.foreign_weights.detectron2 import Style
from detect.foreign_weights.state_dicts import BATCHES, LeftOut, State, leave_out, read_content, state_dict
from detect.models import Detector, DetectorOptions

Project = Literal["torchvision", "detectron2", "yolox"]
DATA = DataOptions(short_side=(800,), long_side=1333)
"""Image size of torchvision and detectron2: a short side of 800 pixels, but a long side of at most 1333."""
TRAINING = TrainingOptions(learning_rate=0.0025)
"""Their learning rate of 0.02 is for 16 images a step; here a step has two."""

YOLOX_TRAINING = TrainingOptions(
    learning_rate=0.00125,
    nesterov=True,
    weight_decay=5e-4,
    warmup_epochs=1.0,
    warmup_curve="quadratic",
    schedule="cosine",
    final_lr_factor=0.05,
    ema=0.9998,
    ema_ramp=2000,
)
"""YOLOX's optimisation, with its learning rate for 8 images a step."""

ASSUMED_STYLE = (
    "the file has no pixel normalisation: detectron2's default, --style caffe2, is assumed; import weights that were "
    "trained from torchvision's ResNet with --style torchvision"
)
ASSUMED_EPS = (
    "files do not have the epsilon of frozen norms: 0 is assumed, as in torchvision's published detectors and models "
    "fine-tuned from them; import models trained from an ImageNet backbone with --frozen-eps 1e-5"
)
ASSUMED_PIXELS = (
    "the file has no pixel normalisation: none is assumed, as since YOLOX 0.1.1; older files, whose networks were "
    "trained on normalised RGB, give wrong detections"
)


@dataclass(frozen=True, slots=True)
class Imported:
    """Outcome of an import.

    Args:
        checkpoint: the converted detector.
        left_out: tensors of the file that the detector does not have.
        note: assumptions about values that the file does not have; empty without any.
    """

    checkpoint: Checkpoint
    left_out: tuple[LeftOut, ...]
    note: str

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Return rows of part, tensors, numbers and remark for the imported and the left out tensors."""
        parts: dict[str, list[int]] = {}
        for key, value in self.checkpoint.model.state_dict().items():
            parts.setdefault(part_of(key), []).append(value.numel())
        imported = [(part, str(len(sizes)), f"{sum(sizes):,}", "imported") for part, sizes in parts.items()]
        left_out = [
            (group.name, str(group.tensors), f"{group.numbers:,}", f"left out: {group.reason}")
            for group in self.left_out
        ]
        return imported + left_out


PARTS = {
    "backbone.": "backbone",
    "neck.": "neck",
    "rpn.": "RPN",
    "region_head.box_head.": "box head",
    "region_head.predictor.": "classes and boxes",
    "mask_head.": "mask head",
    "head.": "head",
}
"""Names of a detector's parts in the table, by prefix of their keys."""
STAGE = re.compile(r"^region_head\.stages\.\d+\.")
"""Prefix of the keys of a cascade's stage, each of which has a box head and a predictor."""


def part_of(key: str) -> str:
    """Return the name of the part that has a tensor; the stages of a cascade together are one region head."""
    key = STAGE.sub("region_head.", key)
    return next((name for prefix, name in PARTS.items() if key.startswith(prefix)), key.partition(".")[0])


def import_weights(
    project: Project,
    file: Path,
    out: Path,
    names: Sequence[str] = (),
    style: Style | None = None,
    frozen_eps: float | None = None,
) -> Imported:
    """Import a detector of another project as a checkpoint with equal outputs, without executing anything in the file.

    Args:
        project: project that wrote the file.
        file: a state dict, a training checkpoint or, for detectron2, a `.pkl` of its model zoo.
        out: checkpoint to write, which must not exist.
        names: class names, or a text file with one per line. The default is COCO's names if the number of classes is
            COCO's, else `class 0` and so on.
        style: pixel normalisation and strides of a detectron2 network; overrides the file, which may not have them.
        frozen_eps: epsilon of torchvision's frozen norms, which files do not have; by default 0, as in its published
            detectors.

    Raises:
        UserError: an option is invalid, the file cannot be read or has another network, or `out` cannot be written.
    """
    refuse_existing(out)
    if project != "detectron2" and style is not None:
        raise UserError(f"--style: {style}; only detectron2 has styles; leave it out")
    if project != "torchvision" and frozen_eps is not None:
        raise UserError(f"--frozen-eps: {frozen_eps}; {project}'s epsilon is fixed; leave it out")
    imported = convert(project, state_dict(read_content(file), file), file, names, style, frozen_eps)
    try:
        save_checkpoint(imported.checkpoint, out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); choose another file with --out") from None
    return imported


def convert(
    project: Project,
    state: State,
    file: Path,
    names: Sequence[str] = (),
    style: Style | None = None,
    frozen_eps: float | None = None,
) -> Imported:
    """Convert the state dict of `file` to a checkpoint in memory; see `import_weights`.

    Raises:
        UserError: the file has another network, or the names do not fit.
    """
    try:
        match project:
            case "torchvision":
                converted = _from_torchvision(state, frozen_eps)
            case "detectron2":
                converted = _from_detectron2(state, style)
            case "yolox":
                converted = _from_yolox(state)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    classes, category_ids = class_names(project, converted.model.num_classes, names)
    config = Config(model=converted.options, data=converted.data, training=converted.training)
    checkpoint = Checkpoint(converted.model, config, classes, category_ids)
    return Imported(checkpoint, converted.left_out, converted.note)


class _Converted(NamedTuple):
    """A converted network."""

    model: Detector
    options: DetectorOptions
    left_out: tuple[LeftOut, ...]
    note: str
    """Assumptions about values that the file does not have; empty without any."""
    data: DataOptions = DATA
    training: TrainingOptions = TRAINING


def _from_torchvision(state: State, frozen_eps: float | None) -> _Converted:
    state, left_out = leave_out(state, torchvision_weights.LEFT_OUT)
    model = torchvision_weights.detector_from_torchvision(state, frozen_eps or 0.0)
    assumed = frozen_eps is None and not any(key.endswith(BATCHES) for key in state)
    options = torchvision_weights.torchvision_options(state)
    return _Converted(model, options, left_out, ASSUMED_EPS if assumed else "")


def _from_detectron2(state: State, style: Style | None) -> _Converted:
    state, left_out = leave_out(state, detectron2_weights.LEFT_OUT)
    model = detectron2_weights.detector_from_detectron2(state, style)
    assumed = style is None and detectron2_weights.MEAN not in state
    options = detectron2_weights.detectron2_options(state, style)
    return _Converted(model, options, left_out, ASSUMED_STYLE if assumed else "")


def _from_yolox(state: State) -> _Converted:
    model, options = yolox_weights.detector_from_yolox(state), yolox_weights.yolox_options(state)
    size = yolox_weights.image_size(options)
    data = DataOptions(short_side=(size,), long_side=size, batch_size=8)
    return _Converted(model, options, (), ASSUMED_PIXELS, data, YOLOX_TRAINING)


def class_names(project: Project, count: int, names: Sequence[str] = ()) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the names and category ids of an imported detector's classes.

    COCO's names are used for 80 classes. torchvision's networks trained on COCO have a class for each category id up
    to 90, including ten that are unused.

    Args:
        project: project that wrote the file.
        count: number of classes.
        names: see `import_weights`.

    Raises:
        UserError: the number of names is not the number of classes, or a name is given twice.
    """
    ids = tuple(range(1, count + 1))
    if names:
        return _given_names(names, count), ids
    if count == len(COCO_NAMES):
        return tuple(COCO_NAMES.values()), tuple(COCO_NAMES)
    if project == "torchvision" and count == max(COCO_NAMES):
        return tuple(COCO_NAMES.get(number, f"unused {number}") for number in ids), ids
    return tuple(f"class {label}" for label in range(count)), ids


def _given_names(names: Sequence[str], count: int) -> tuple[str, ...]:
    """Return the names, or the lines of the file if a file is given."""
    if len(names) == 1 and Path(names[0]).is_file():
        try:
            lines = Path(names[0]).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError):
            raise UserError(f"--names: {names[0]}: not a readable text file; give one with a name per line") from None
        names = [line.strip() for line in lines if line.strip()]
    if len(names) != count:
        raise UserError(f"--names: {len(names)} names for {count} classes; give one per class, in the network's order")
    if len(set(names)) != count:
        repeated = next(name for name in names if list(names).count(name) > 1)
        raise UserError(f"--names: {repeated!r} is given twice; give every class its own name")
    return tuple(names)
