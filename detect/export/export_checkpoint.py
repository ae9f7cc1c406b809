"""Export of a trained detector, with a check that the file gives the same detections.

onnx           from images of any size to boxes, for ONNX Runtime; see `detect.prediction.onnx_detector`
torch-export   the same as a program of torch.export; `import detect.export.exportable` before loading it
safetensors    weights, with config and classes as metadata; `detect.load` reads it like a checkpoint
"""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.export import Dim, ExportedProgram

from detect.backbones import TimmOptions
from detect.checkpoint import Checkpoint, load_checkpoint, model_card, save_safetensors
from detect.data.transforms import Resize
from detect.errors import UserError, install_command
from detect.export.equality import Equality, check_equality
from detect.export.exportable import Exportable
from detect.export.sample_images import Image
from detect.files.atomic import atomic_write
from detect.prediction.onnx_detector import AXES, MASK_OUTPUTS, OUTPUTS, OnnxDetector
from detect.prediction.predictor import Predictor
from detect.prediction.prepare import fold_norms
from detect.prediction.result import Result
from detect.prediction.sources import Frame
from detect.terminal import step

Format = Literal["onnx", "torch-export", "safetensors"]
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "torch-export": ".pt2", "safetensors": ".safetensors"}

Run = Callable[[list[Frame]], Any]
"""An exported model, as a function from frames of one size to results."""


def export_checkpoint(checkpoint: Checkpoint, out: Path, format: Format, images: Sequence[Image]) -> Equality | None:
    """Export a detector; the file is kept only if it gives the same detections as the checkpoint.

    Args:
        checkpoint: the detector.
        out: file to write.
        format: format of the file.
        images: images to compare the detections on; safetensors files are compared by their weights instead.

    Returns:
        Result of the comparison, or None for safetensors.

    Raises:
        UserError: the detections differ, the detector cannot be exported to this format, a package is missing, or the
            file cannot be written. No file is left.
    """
    check_exportable(checkpoint, format, out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(out) as draft:
            draft.touch()  # fails before the export, which takes a minute, if the file cannot be written
            if format == "safetensors":
                _write_safetensors(checkpoint, draft)
                equality = None
            else:
                with step("tracing the detector, about a minute for a large one"):
                    program = trace(checkpoint)
                with step(f"writing {format}"):
                    run = (_write_onnx if format == "onnx" else _write_pt2)(checkpoint, program, draft)
                equality = check_equality(Predictor(checkpoint), run, images)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{out}: cannot be written: {reason}; choose another file with --out") from None
    return equality


def check_exportable(checkpoint: Checkpoint, format: Format, out: Path) -> None:
    """Raise `UserError` if the detector cannot be exported to this format and file."""
    if out.suffix != SUFFIXES[format]:
        raise UserError(f"--out: {out}: a file of {format} ends in {SUFFIXES[format]}; change the suffix")
    if format == "safetensors":
        return
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if format == "onnx" and missing:
        raise UserError(f"--format onnx: {', '.join(missing)} not installed: {install_command('onnx')}")
    backbone = checkpoint.config.model.backbone
    if isinstance(backbone, TimmOptions) and backbone.is_swin:
        raise UserError(
            f"--format {format}: {backbone.model} takes too long to trace for images of any size; export a detector "
            "with a convolutional backbone, or only the weights with --format safetensors"
        )
    if checkpoint.model.proposals == "given":
        raise UserError(
            f"--format {format}: {checkpoint.config.model.name} needs proposals of selective search, which cannot be "
            "exported; export a faster_rcnn, or only the weights with --format safetensors"
        )


def trace(checkpoint: Checkpoint) -> ExportedProgram:
    """Trace the detector with its preprocessing, for batches of any number of images of any one size."""
    model = copy.deepcopy(checkpoint.model).eval().requires_grad_(False)
    fold_norms(model)
    model.to_memory_format(torch.contiguous_format)
    resizing = Resize.for_evaluation(checkpoint.config.data)
    # The tracer would assume that a dimension of 1 is constant, and that equal dimensions are always equal.
    images = torch.zeros(2, 3 * resizing.short_side // 2, resizing.short_side, 3, dtype=torch.uint8)
    shapes = (dict.fromkeys(range(3), Dim.DYNAMIC),)
    with torch.no_grad(), quiet():
        return torch.export.export(Exportable(model, resizing).eval(), (images,), dynamic_shapes=shapes, strict=False)


def _write_onnx(checkpoint: Checkpoint, program: ExportedProgram, path: Path) -> Run:
    from onnxscript.ir.passes.common import ClearMetadataAndDocStringPass

    from detect.export.onnx_operators import OPSET, translations

    with quiet():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=MASK_OUTPUTS if checkpoint.config.model.predicts_masks else OUTPUTS,
            custom_translation_table=translations(),
            verbose=False,
        )
    assert exported is not None
    ClearMetadataAndDocStringPass()(exported.model)  # they contain paths of source files
    _name_axes(exported.model.graph)
    exported.model.metadata_props.update(_metadata(checkpoint))
    exported.save(path, external_data=False)
    return OnnxDetector(path)


def _name_axes(graph: Any) -> None:
    """Give the axes of inputs and outputs that vary their names, instead of the tracer's symbols and formulas."""
    from onnxscript import ir

    for value in (*graph.inputs, *graph.outputs):
        pairs = zip(AXES[value.name], value.shape, strict=True)
        sizes = [name if isinstance(size, ir.SymbolicDim) else size for name, size in pairs]
        value.shape = ir.Shape(sizes)


def _write_pt2(checkpoint: Checkpoint, program: ExportedProgram, path: Path) -> Run:
    files = {f"{key}.json": text for key, text in _metadata(checkpoint).items()}
    torch.export.save(program, path, extra_files=files)
    with quiet():
        module = torch.export.load(path).module()

    def run(batch: list[Frame]) -> Iterator[Result]:
        height, width = size = batch[0].pixels.shape[0], batch[0].pixels.shape[1]
        limits = np.array([width, height, width, height], np.float32)
        outputs = module(torch.from_numpy(np.stack([frame.pixels for frame in batch])))
        for boxes, scores, labels, count, *masks in zip(*(output.numpy() for output in outputs), strict=True):
            detections = boxes[:count].clip(0, limits), scores[:count], labels[:count]
            result = Result(*detections, checkpoint.classes, checkpoint.category_ids, size)
            yield replace(result, mask_probabilities=masks[0][:count]) if masks else result

    return run


def _write_safetensors(checkpoint: Checkpoint, path: Path) -> None:
    save_safetensors(checkpoint, path)
    written, state = load_checkpoint(path), checkpoint.model.state_dict()
    if not all(torch.equal(value, state[name]) for name, value in written.model.state_dict().items()):
        raise UserError(f"{path}: the weights read back from the file differ; try another disk")


def _metadata(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the metadata of an exported file: JSON by key."""
    resizing = Resize.for_evaluation(checkpoint.config.data)
    card = model_card(checkpoint.config, checkpoint.classes, checkpoint.category_ids) | {
        "short_side": resizing.short_side,
        "long_side": resizing.long_side,
        "score": checkpoint.model.postprocessing.score_threshold,
    }
    return {key: json.dumps(value, ensure_ascii=False) for key, value in card.items()}


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the exporters' warnings and log messages, which are for developers."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
