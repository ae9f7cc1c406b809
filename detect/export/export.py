"""A trained detector as a file for others to run, and the proof that it finds the same.

onnx           photographs in, boxes out, for ONNX Runtime; see `onnx_model`
torch-export   the same as a program of torch.export; `import detect.export.exportable` before it is loaded
safetensors    the weights, with config and classes as metadata; `detect.load` reads it as a checkpoint
"""

from __future__ import annotations

import copy
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch.export import Dim, ExportedProgram

from detect.checkpoint import Checkpoint, load_checkpoint, model_card, save_safetensors
from detect.config import Config
from detect.curation.shapes import draw_scene
from detect.data.decode import decode
from detect.data.read import read, splits
from detect.data.transforms import Resize
from detect.errors import UserError
from detect.export.exportable import Exportable
from detect.models import RCNN
from detect.prediction.onnx_model import OUTPUTS, OnnxModel
from detect.prediction.predictor import Predictor
from detect.prediction.prepare import fold_norms
from detect.prediction.result import Result
from detect.prediction.sources import Frame

Format = Literal["onnx", "torch-export", "safetensors"]
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "torch-export": ".pt2", "safetensors": ".safetensors"}

MOST = 20
"""Photographs that an exported model is tried on."""
SCORE, IOU = 1e-4, 0.999
"""How much a score may differ, and how much of a box must be the same."""

Photograph = UInt8[np.ndarray, "H W 3"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What an exported model was tried on, and how near it came."""

    photographs: int
    batches: int
    """Of two photographs of one size, besides each photograph by itself."""
    detections: int
    score: float
    """The largest difference of two scores."""
    iou: float
    """The least IoU of two boxes."""


def export(checkpoint: Checkpoint, out: Path, format: Format, photographs: Sequence[Photograph]) -> Comparison | None:
    """Writes the file, once it has found the same as the checkpoint on photographs; of plain weights, None.

    Raises `UserError`, and leaves no file, where it did not, where the detector cannot be exported to this format, and
    where a package is missing or the file cannot be written.
    """
    refuse(checkpoint, format, out)
    draft = out.with_name(f".{os.getpid()}.{out.name}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        draft.touch()  # before the work, which takes a minute
        if format == "safetensors":
            _write_safetensors(checkpoint, draft)
            comparison = None
        else:
            program = trace(checkpoint)
            write = _write_onnx if format == "onnx" else _write_pt2
            comparison = compare(Predictor(checkpoint), write(checkpoint, program, draft), photographs)
        draft.replace(out)
    except OSError as error:
        why = error.strerror or error
        raise UserError(f"{out}: cannot be written: {why}; choose another file with --out") from None
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
    return comparison


def refuse(checkpoint: Checkpoint, format: Format, out: Path) -> None:
    """Raises `UserError` where no such file can be made of the detector."""
    if out.suffix != SUFFIXES[format]:
        raise UserError(f"--out: {out}: a file of {format} ends in {SUFFIXES[format]}")
    if format == "safetensors":
        return
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if format == "onnx" and missing:
        raise UserError(f"--format onnx: {', '.join(missing)} not installed: pip install 'detect[onnx]'")
    if checkpoint.model.rpn is None:
        name = "R-CNN" if isinstance(checkpoint.model, RCNN) else "Fast R-CNN"
        raise UserError(
            f"--format {format}: {name} takes its proposals from selective search, which is no part of a network; "
            "export a faster_rcnn, or the weights alone with --format safetensors"
        )


# ---- the three formats -----------------------------------------------------------------------------------------------


def trace(checkpoint: Checkpoint) -> ExportedProgram:
    """The detector with its pre-processing, for any number of photographs of any one size; see `Exportable`."""
    model = copy.deepcopy(checkpoint.model).eval().requires_grad_(False)
    fold_norms(model)
    model.lay_out(torch.contiguous_format)
    resizing = resizing_of(checkpoint.config)
    # 1 would be taken for a size that is always so, and sides that are equal for sides that are always equal.
    images = torch.zeros(2, 3 * resizing.short_side // 2, resizing.short_side, 3, dtype=torch.uint8)
    shapes = (dict.fromkeys(range(3), Dim.DYNAMIC),)
    with torch.no_grad(), _quiet():
        return torch.export.export(Exportable(model, resizing).eval(), (images,), dynamic_shapes=shapes, strict=False)


def resizing_of(config: Config) -> Resize:
    """How the network is given photographs in evaluation and prediction."""
    return Resize.for_evaluation(config.data)


def _write_onnx(checkpoint: Checkpoint, program: ExportedProgram, path: Path) -> Callable[[list[Frame]], Any]:
    from onnxscript.ir.passes.common import ClearMetadataAndDocStringPass

    from detect.export.onnx_operators import OPSET, translations

    with _quiet():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=OUTPUTS,
            custom_translation_table=translations(),
            verbose=False,
        )
    assert exported is not None
    ClearMetadataAndDocStringPass()(exported.model)  # where in our files each node is from
    exported.model.metadata_props.update(metadata(checkpoint))
    exported.save(path, external_data=False)
    return OnnxModel(path)


def _write_pt2(checkpoint: Checkpoint, program: ExportedProgram, path: Path) -> Callable[[list[Frame]], Any]:
    torch.export.save(program, path, extra_files={f"{key}.json": text for key, text in metadata(checkpoint).items()})
    with _quiet():
        module = torch.export.load(path).module()

    def run(batch: list[Frame]) -> Iterator[Result]:
        height, width = size = batch[0].pixels.shape[0], batch[0].pixels.shape[1]
        outputs = module(torch.from_numpy(np.stack([frame.pixels for frame in batch])))
        for boxes, scores, labels, count in zip(*(output.numpy() for output in outputs), strict=True):
            limits = np.array([width, height, width, height], np.float32)
            found = boxes[:count].clip(0, limits), scores[:count], labels[:count]
            yield Result(*found, checkpoint.classes, checkpoint.category_ids, size)

    return run


def _write_safetensors(checkpoint: Checkpoint, path: Path) -> None:
    save_safetensors(checkpoint, path)
    written, state = load_checkpoint(path), checkpoint.model.state_dict()
    if not all(torch.equal(value, state[name]) for name, value in written.model.state_dict().items()):
        raise UserError(f"{path}: does not hold what was written; try another disk")


def metadata(checkpoint: Checkpoint) -> dict[str, str]:
    """What an exported file says beside its graph, each as JSON."""
    resizing = resizing_of(checkpoint.config)
    card = model_card(checkpoint.config, checkpoint.classes, checkpoint.category_ids) | {
        "short_side": resizing.short_side,
        "long_side": resizing.long_side,
        "score": checkpoint.model.detections.score,
    }
    return {key: json.dumps(value, ensure_ascii=False) for key, value in card.items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters say to those who develop them."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


# ---- the proof -------------------------------------------------------------------------------------------------------


def photographs_of(config: Config, split: str | None, classes: Sequence[str]) -> list[Photograph]:
    """At most 20 images, evenly spread, of a split of the config's data: by default its test, else its val."""
    name = split or config.data.test or config.data.val
    if name is None:
        raise UserError("--split: the config names no test and no val split; name the one to compare on")
    data = config.data
    leniently = {"skip_unreadable": data.skip_unreadable, "follow_links": data.follow_links}
    records = read(data.root, name, classes=classes, **leniently).records
    if not records:
        raise UserError(f"{config.data.root}: the split {name} has no images; name another one")
    places = np.linspace(0, len(records) - 1, min(MOST, len(records))).round().astype(int)
    return [decode(records[place].path) for place in places]


def has_data(config: Config) -> bool:
    """Whether the config's data folder is there."""
    try:
        return bool(splits(config.data.root))
    except UserError:
        return False


def made_photographs() -> list[Photograph]:
    """Drawn scenes of several sizes, for want of photographs."""
    rng = np.random.default_rng(0)
    return [draw_scene(rng, sides)[0] for sides in ((300, 500), (500, 700), (1000, 1200))]


def compare(predictor: Predictor, run: Callable[[list[Frame]], Any], photographs: Sequence[Photograph]) -> Comparison:
    """Lets both look at each photograph alone and at batches of two of one size; raises `UserError` where they differ.

    Detections whose score is within 1e-4 of the threshold, or of the last of as many as there may be, may be missing.
    """
    options = predictor.checkpoint.config.model.detections
    batches = [[Frame(image)] for image in photographs] + [list(map(Frame, pair)) for pair in _pairs(photographs)]
    scores, ious, detections = [0.0], [1.0], 0
    for batch in batches:
        wanted = list(predictor.predict(batch, batch_size=len(batch), device="cpu"))
        for ours, theirs in zip(wanted, run(batch), strict=True):
            for one, other in ((ours, theirs), (theirs, ours)):
                floor = max([options.score, *(other.scores[-1:] if len(other) >= options.detections else [])])
                score, iou = _difference(one, other, floor + SCORE, len(batch))
                scores.append(score)
                ious.append(iou)
            detections += len(ours)
    pairs = len(batches) - len(photographs)
    return Comparison(len(photographs), pairs, detections, max(scores), min(ious))


def _pairs(photographs: Sequence[Photograph]) -> list[tuple[Photograph, Photograph]]:
    """Two photographs of each size that occurs twice; where none does, the first with its mirror image."""
    first: dict[tuple[int, ...], Photograph] = {}
    pairs: dict[tuple[int, ...], tuple[Photograph, Photograph]] = {}
    for image in photographs:
        if image.shape in first:
            pairs.setdefault(image.shape, (first[image.shape], image))
        first.setdefault(image.shape, image)
    mirrored = np.ascontiguousarray(photographs[0][:, ::-1])
    return list(pairs.values()) or [(photographs[0], mirrored)]


def _difference(one: Result, other: Result, floor: float, together: int) -> tuple[float, float]:
    """Difference of scores and IoU of the worst detection, of a score above `floor`, and its twin."""
    scores, ious = [0.0], [1.0]
    free = np.ones(len(other), bool)
    for box, score, label in zip(one.boxes, one.scores, one.labels, strict=True):
        if score <= floor:
            continue
        apart = np.abs(other.scores - score)
        overlap = _iou(box, other.boxes)
        fits = free & (other.labels == label) & (apart <= SCORE) & (overlap >= IOU)
        if not fits.any():
            raise UserError(
                f"the exported model differs: a {one.classes[label]} of score {score:.4f} at {box.round(1).tolist()} "
                f"in a photograph of {one.size[0]} × {one.size[1]}, {together} at a time, has no twin; nothing was "
                "written; please report it with the checkpoint"
            )
        twin = int(np.where(fits, overlap, -1).argmax())
        free[twin] = False
        scores.append(float(apart[twin]))
        ious.append(float(overlap[twin]))
    return max(scores), min(ious)


def _iou(box: Float[np.ndarray, " 4"], boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, " n"]:
    box, boxes = box.astype(np.float64), boxes.astype(np.float64)
    sides = (np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])).clip(0)
    shared = sides.prod(axis=1)
    whole = (box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) - shared
    return shared / whole.clip(1e-9)
