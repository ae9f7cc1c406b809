"""An exported detector in use: ONNX Runtime and numpy, no torch."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from detect.errors import UserError
from detect.prediction.result import Result, labels_of
from detect.prediction.sources import Frame, frames

if TYPE_CHECKING:
    from detect.data.dataset import Dataset
    from detect.evaluation.coco import Prediction

_ELSEWHERE = re.compile(rb"(\x08|\x88\x80*\x00)location")
"""The key of a tensor's entry that names another file: its length, as any of protobuf's ways to write 8, and itself."""
OUTPUTS = ("boxes", "scores", "labels", "count")
"""What the graph gives for `images`, uint8 [B, H, W, 3]: float32 [B, D, 4], float32 [B, D], int64 [B, D], int64 [B]."""


class OnnxModel:
    """A detector that `detect export --format onnx` wrote, on as many threads as there are cores for it.

    Args:
        path: the file. Nothing in it is executed but the operators of ONNX.

    Raises:
        UserError: onnxruntime is not installed, or the file is none of ours.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._session = _session(self.path)
        known = self._session.get_modelmeta().custom_metadata_map
        try:
            self.classes: tuple[str, ...] = tuple(map(str, json.loads(known["classes"])))
            self.category_ids: tuple[int, ...] = tuple(map(int, json.loads(known["category_ids"])))
            self.score = float(json.loads(known["score"]))
            self.config: dict[str, Any] = dict(json.loads(known["config"]))
            outputs = {one.name for one in self._session.get_outputs()}
            ours = outputs == set(OUTPUTS) and len(self.category_ids) == len(self.classes)
        except (KeyError, ValueError, TypeError):
            ours = False
        if not ours or [one.name for one in self._session.get_inputs()] != ["images"]:
            raise UserError(f"{path}: this ONNX file is not of detect export, which writes the classes into it")

    def predict(
        self,
        source: object,
        *,
        score: float | None = None,
        classes: str | int | Iterable[str | int] | None = None,
        batch_size: int = 1,
        download: bool = False,
        workers: int = 1,
        on_error: Callable[[str, UserError], None] | None = None,
    ) -> Iterator[Result]:
        """What is in each image of a source, in its order, one result after the other as they are asked for.

        Args:
            source, download, workers, on_error: see `detect.prediction.sources.frames`.
            score: detections below this are dropped; at least the threshold that the model was exported with.
            classes: only these, by name or label.
            batch_size: images that go through the network together; only such as follow each other and have one size.

        Raises:
            UserError: as `frames` does, and for options of no meaning.
        """
        wanted = None if classes is None else labels_of(classes, self.classes)
        if batch_size < 1:
            raise UserError(f"batch_size: {batch_size}; give 1 or more")
        if score is not None and not self.score <= score <= 1:
            raise UserError(
                f"score: {score}; {self.path} was exported with {self.score}: give a number from there to 1, or export "
                "the checkpoint with a lower --model.detections.score"
            )
        stream = frames(source, download=download, workers=workers, on_error=on_error)
        results = (result for batch in _batches(stream, batch_size) for result in self(batch))
        return (result.filter(score=score, classes=wanted) for result in results)

    def __call__(self, batch: list[Frame]) -> Iterator[Result]:
        """What is in each of some frames of one size."""
        pixels = np.stack([frame.pixels for frame in batch])
        outputs = self._session.run(OUTPUTS, {"images": pixels})
        height, width = size = pixels.shape[1], pixels.shape[2]
        for frame, boxes, scores, labels, count in zip(batch, *outputs, strict=True):
            if not (labels[:count] < len(self.classes)).all():
                raise UserError(f"{self.path}: finds more classes than it names; export it again")
            yield Result(
                boxes=boxes[:count].clip(0, np.array([width, height, width, height], np.float32)),
                scores=scores[:count],
                labels=labels[:count].astype(np.int64),  # numpy has two types of 64 bits, and this is the other
                classes=self.classes,
                category_ids=self.category_ids,
                size=size,
                path=frame.path,
                index=frame.index,
                pixels=None if frame.again else frame.pixels,
            )


def predictions(model: OnnxModel, dataset: Dataset) -> Iterator[Prediction]:
    """What the model finds in each image of a split, for `detect.evaluation`."""
    from detect.evaluation.coco import Prediction  # it needs torch

    if dataset.classes != model.classes:
        names = ", ".join(model.classes)
        raise UserError(
            f"{dataset.root}: its classes are not those of {model.path}: {names}; read the split with these"
        )
    results = model.predict([record.path for record in dataset.records])
    for record, result in zip(dataset.records, results, strict=True):
        yield Prediction(record.id, result.boxes, result.scores, result.labels)


def _batches(stream: Iterator[Frame], batch_size: int) -> Iterator[list[Frame]]:
    """Frames of one size that follow each other, at most `batch_size`."""
    for _, same in groupby(stream, key=lambda frame: frame.pixels.shape):
        batch: list[Frame] = []
        for frame in same:
            batch.append(frame)
            if len(batch) == batch_size:
                yield batch
                batch = []
        if batch:
            yield batch


def _session(path: Path) -> Any:
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise UserError(f"{path}: ONNX Runtime is not installed: pip install 'detect[onnx]'") from None
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give a file of detect export --format onnx") from None
    # We write weights into the file itself; another one could name any file of this machine as theirs.
    if _ELSEWHERE.search(content):
        raise UserError(f"{path}: keeps its weights in other files, as no model of detect export does")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = physical_cores()
    options.log_severity_level = 3  # errors; they are raised, too
    there = onnxruntime.get_available_providers()
    providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in there]
    try:
        return onnxruntime.InferenceSession(content, options, providers=providers)
    except Exception as error:  # onnxruntime has an exception for each of its codes, and no base of them
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: no ONNX model, or a damaged one ({reason}); export it again") from None


def physical_cores() -> int:
    """The cores that this process may run on; two threads of one core, which share its arithmetic, count once."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cores = set()
    for cpu in os.sched_getaffinity(0):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings.read_text() if siblings.exists() else cpu)
    return len(cores)
