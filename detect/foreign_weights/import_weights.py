"""`detect import`: the weights of another project as a checkpoint of ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from detect.checkpoint import Checkpoint
from detect.config import Config
from detect.data.options import DataOptions
from detect.errors import UserError
from detect.export.compress import save
from detect.files.atomic import refuse_existing
from detect.foreign_weights import detectron2 as detectron2_weights
from detect.foreign_weights import torchvision as torchvision_weights
from detect.foreign_weights.coco_names import COCO_NAMES
from detect.foreign_weights.detectron2 import Style
from detect.foreign_weights.state_dicts import BATCHES, LeftOut, leave_out, read_content, state_dict

Project = Literal["torchvision", "detectron2"]
DATA = DataOptions(short_side=(800,), long_side=1333)
"""Both projects scale the short side of an image to 800 pixels, but the long one to 1333 at most."""


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of a file.

    Args:
        checkpoint: ours, as it was written.
        left_out: what the file has and ours has not.
        note: what was assumed, since the file does not tell it; empty where nothing was.
    """

    checkpoint: Checkpoint
    left_out: tuple[LeftOut, ...]
    note: str

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Part, tensors, numbers and remark, of what was taken and of what was left out."""
        parts: dict[str, list[int]] = {}
        for key, value in self.checkpoint.model.state_dict().items():
            parts.setdefault(PARTS[key.partition(".")[0]], []).append(value.numel())
        taken = [(part, str(len(sizes)), f"{sum(sizes):,}", "taken") for part, sizes in parts.items()]
        left = [(one.what, str(one.tensors), f"{one.numbers:,}", f"left out: {one.why}") for one in self.left_out]
        return taken + left


PARTS = {"backbone": "backbone", "rpn": "RPN", "trunk": "box head", "predictor": "classes and boxes"}
"""What the parts of a detector are called in the table."""


def import_weights(
    project: Project,
    file: Path,
    out: Path,
    names: Sequence[str] = (),
    style: Style | None = None,
    frozen_eps: float | None = None,
) -> Imported:
    """Writes a checkpoint with the network of another project's file, which gives the outputs that it gave there.

    Nothing in the file is executed.

    Args:
        project: that made the file.
        file: a state dict, a checkpoint of training, or of detectron2 also a `.pkl` of its model zoo.
        out: the checkpoint, which must not be there yet.
        names: of the classes, or a file that has one a line. By default COCO's where their number is COCO's, else
            `class 0` and so on.
        style: of detectron2's pixels and strides, where the file does not tell them or is not to be believed.
        frozen_eps: of torchvision's frozen norms, which no file tells; by default 0, as in its published detectors.

    Raises `UserError` with the file, what is wrong with it, and the remedy.
    """
    refuse_existing(out)
    if project == "torchvision" and style is not None:
        raise UserError(f"--style: {style}; only detectron2 has styles; leave it out")
    if project == "detectron2" and frozen_eps is not None:
        raise UserError(f"--frozen-eps: {frozen_eps}; detectron2's is always the same; leave it out")
    state = state_dict(read_content(file), file)
    note = ""
    try:
        if project == "torchvision":
            state, left_out = leave_out(state, torchvision_weights.LEFT_OUT)
            model = torchvision_weights.faster_rcnn_from_torchvision(state, frozen_eps or 0.0)
            if frozen_eps is None and not any(key.endswith(BATCHES) for key in state):
                note = FROZEN
            options = torchvision_weights.torchvision_options(state)
        else:
            state, left_out = leave_out(state, detectron2_weights.LEFT_OUT)
            model = detectron2_weights.faster_rcnn_from_detectron2(state, style)
            options = detectron2_weights.detectron2_options(state, style)
            if style is None and detectron2_weights.MEAN not in state:
                note = ASSUMED
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    classes, category_ids = class_names(project, model.num_classes, names)
    checkpoint = Checkpoint(model, Config(model=options, data=DATA), classes, category_ids)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        save(checkpoint, out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); choose another file with --out") from None
    return Imported(checkpoint, left_out, note)


ASSUMED = (
    "the file does not tell how pixels are normalised: taken for detectron2's default, --style caffe2; of weights that "
    "began from torchvision's ResNet, import with --style torchvision"
)


FROZEN = (
    "no file tells the epsilon of frozen norms: taken for 0, as in torchvision's published detectors and what began "
    "from them; of one that began from an ImageNet backbone alone, import with --frozen-eps 1e-5"
)


def class_names(project: Project, count: int, names: Sequence[str] = ()) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and category ids of so many classes; see `import_weights`.

    torchvision's networks that were trained on COCO have a class for each number up to 90, also for the ten that are
    not in use. Raises `UserError` where the names are not as many as the classes, or not all different.
    """
    numbers = tuple(range(1, count + 1))
    if names:
        return _given(names, count), numbers
    if count == len(COCO_NAMES):
        return tuple(COCO_NAMES.values()), tuple(COCO_NAMES)
    if project == "torchvision" and count == max(COCO_NAMES):
        return tuple(COCO_NAMES.get(number, f"unused {number}") for number in numbers), numbers
    return tuple(f"class {label}" for label in range(count)), numbers


def _given(names: Sequence[str], count: int) -> tuple[str, ...]:
    """The names, or the lines of the file that is named."""
    if len(names) == 1 and Path(names[0]).is_file():
        try:
            lines = Path(names[0]).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError):
            raise UserError(f"--names: {names[0]}: no readable text; give a file with a name a line") from None
        names = [line.strip() for line in lines if line.strip()]
    if len(names) != count:
        raise UserError(f"--names: {len(names)} names for {count} classes; give one for each, in the network's order")
    if len(set(names)) != count:
        twice = next(name for name in names if list(names).count(name) > 1)
        raise UserError(f"--names: {twice!r} is given twice; every class needs a name of its own")
    return tuple(names)
