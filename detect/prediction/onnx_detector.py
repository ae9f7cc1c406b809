"""Detector exported to ONNX, run by ONNX Runtime and numpy without importing torch."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from detect.errors import UserError, class_names, install_command
from detect.prediction.result import Result, class_labels
from detect.prediction.sources import Frame, frames

if TYPE_CHECKING:
    from detect.data.dataset import Dataset
    from detect.evaluation.coco import Prediction

_EXTERNAL_DATA = re.compile(rb"(\x08|\x88\x80*\x00)location")
"""Key of a tensor that is stored in another file: its length, in any of protobuf's encodings of 8, and its text."""
AXES = {
    "images": ("batch", "height", "width", "channels"),
    "boxes": ("batch", "detections", "corners"),
    "scores": ("batch", "detections"),
    "labels": ("batch", "detections"),
    "count": ("batch",),
    "masks": ("batch", "detections", "rows", "columns"),
}
"""Names of the axes of inputs and outputs; in a file, those of a fixed size have their size instead."""
OUTPUTS = ("boxes", "scores", "labels", "count")
"""Outputs for `images`, uint8 [B, H, W, 3]: float32 [B, D, 4], float32 [B, D], int64 [B, D] and int64 [B]."""
MASK_OUTPUTS = (*OUTPUTS, "masks")
"""Outputs of a detector with masks: also their probabilities, float32 [B, D, m, m], each in its box."""


class OnnxDetector:
    """Detector that `detect export --format onnx` wrote, on one thread per physical core or `OMP_NUM_THREADS` threads.

    Args:
        path: the ONNX file. Only ONNX operators in it are executed.

    Raises:
        UserError: onnxruntime is not installed, or the file was not written by `detect export`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._session = _open_session(self.path)
        metadata = self._session.get_modelmeta().custom_metadata_map
        try:
            self.classes: tuple[str, ...] = tuple(map(str, json.loads(metadata["classes"])))
            self.category_ids: tuple[int, ...] = tuple(map(int, json.loads(metadata["category_ids"])))
            self.score = float(json.loads(metadata["score"]))
            self.config: dict[str, Any] = dict(json.loads(metadata["config"]))
            outputs = {output.name for output in self._session.get_outputs()}
            self.predicts_masks = outputs == set(MASK_OUTPUTS)
            valid = (self.predicts_masks or outputs == set(OUTPUTS)) and len(self.category_ids) == len(self.classes)
        except (KeyError, ValueError, TypeError):
            valid = False
        if not valid or [item.name for item in self._session.get_inputs()] != ["images"]:
            raise UserError(f"{path}: not an ONNX file of detect export, which has the classes in its metadata")

    def __repr__(self) -> str:
        return f"OnnxDetector({str(self.path)!r}, score ≥ {self.score:g}, {class_names(self.classes)})"

    @property
    def min_score(self) -> float:
        """Lowest score threshold that `predict` takes: the graph drops detections with lower scores."""
        return self.score

    def canvas(self, height: int, width: int) -> tuple[int, int]:
        """Return the size of the network's input for an image of this size, which is the same: the graph resizes."""
        return height, width

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
        """Detect objects in the images of a source, lazily and in order.

        Args:
            source: images; see `detect.prediction.sources.frames`.
            score: score threshold, at least the threshold with which the model was exported, which is the default.
            classes: names or labels of the classes to keep; all by default.
            batch_size: maximum number of images per batch. A batch has consecutive images of one size.
            download: allow web addresses to be downloaded.
            workers: number of threads that decode images ahead.
            on_error: called with the name and the error of each image that cannot be read; by default it is raised.

        Returns:
            An iterator of one result per image.

        Raises:
            UserError: an option is invalid, or an image cannot be read.
        """
        self.check_options(score=score, classes=classes, batch_size=batch_size)
        labels = None if classes is None else class_labels(classes, self.classes)
        stream = frames(source, download=download, workers=workers, on_error=on_error)
        results = (result for batch in _batches(stream, batch_size) for result in self(batch))
        return (result.filter(score=score, classes=labels) for result in results)

    def check_options(
        self,
        *,
        score: float | None = None,
        classes: str | int | Iterable[str | int] | None = None,
        batch_size: int = 1,
    ) -> None:
        """Raise `UserError` if an option of `predict` is invalid."""
        if classes is not None:
            class_labels(classes, self.classes)
        if batch_size < 1:
            raise UserError(f"batch_size: {batch_size}; give 1 or more")
        if score is not None and not self.score <= score <= 1:
            raise UserError(
                f"score: {score}; {self.path} was exported with {self.score}: give a number from there to 1, or export "
                "the checkpoint with a lower --model.postprocess.score_threshold"
            )

    def __call__(self, batch: list[Frame]) -> Iterator[Result]:
        """Yield the result of each frame of a batch of one image size."""
        pixels = np.stack([frame.pixels for frame in batch])
        outputs = self._session.run(MASK_OUTPUTS if self.predicts_masks else OUTPUTS, {"images": pixels})
        height, width = size = pixels.shape[1], pixels.shape[2]
        for frame, boxes, scores, labels, count, *masks in zip(batch, *outputs, strict=True):
            if not (labels[:count] < len(self.classes)).all():
                raise UserError(f"{self.path}: detects more classes than it has names for; export it again")
            yield Result(
                boxes=boxes[:count].clip(0, np.array([width, height, width, height], np.float32)),
                scores=scores[:count],
                labels=labels[:count].astype(np.int64),  # numpy has two 64-bit types, this is the other one
                classes=self.classes,
                category_ids=self.category_ids,
                size=size,
                path=frame.path,
                index=frame.index,
                pixels=None if frame.reloadable else frame.pixels,
                mask_probabilities=masks[0][:count] if masks else None,
            )


def predict_dataset(detector: OnnxDetector, dataset: Dataset) -> Iterator[Prediction]:
    """Yield the detections in each image of a split, for `detect.evaluation`.

    Raises:
        UserError: the data set has other classes.
    """
    from detect.evaluation.coco import Prediction  # it imports torch

    if dataset.classes != detector.classes:
        names = class_names(detector.classes)
        raise UserError(f"{dataset.root}: {detector.path} has other classes, {names}; read the split with these")
    results = detector.predict([record.path for record in dataset.records])
    for record, result in zip(dataset.records, results, strict=True):
        yield Prediction(record.id, result.boxes, result.scores, result.labels, result.encoded_masks())


def _batches(stream: Iterator[Frame], batch_size: int) -> Iterator[list[Frame]]:
    """Group consecutive frames of one size into batches of at most `batch_size`."""
    for _, same_size in groupby(stream, key=lambda frame: frame.pixels.shape):
        batch: list[Frame] = []
        for frame in same_size:
            batch.append(frame)
            if len(batch) == batch_size:
                yield batch
                batch = []
        if batch:
            yield batch


def _open_session(path: Path) -> Any:
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise UserError(f"{path}: ONNX Runtime is not installed: {install_command('onnx')}") from None
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give a file of detect export --format onnx") from None
    # `detect export` stores weights in the file itself; a hostile file could use any file of this machine as weights.
    if _EXTERNAL_DATA.search(content):
        raise UserError(f"{path}: stores weights in other files, which detect export never does; export it again")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = thread_count()
    options.log_severity_level = 3  # errors only; they are raised as well
    available = onnxruntime.get_available_providers()
    providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in available]
    try:
        return onnxruntime.InferenceSession(content, options, providers=providers)
    except Exception as error:  # onnxruntime has an exception class per error code, without a common base
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not an ONNX model, or damaged ({reason}); export it again") from None


def thread_count() -> int:
    """Return `OMP_NUM_THREADS`, which also sets torch's threads, or else the number of physical cores."""
    threads = os.environ.get("OMP_NUM_THREADS", "")
    return int(threads) if threads.isdecimal() and int(threads) > 0 else physical_cores()


def physical_cores() -> int:
    """Return the number of cores that this process may use; two threads of one core count once."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cores = set()
    for cpu in os.sched_getaffinity(0):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings.read_text() if siblings.exists() else cpu)
    return len(cores)
