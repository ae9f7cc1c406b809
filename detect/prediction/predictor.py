"""Predictor: from images of any source to results of a trained detector."""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from numbers import Integral, Real
from pathlib import Path
from threading import Lock
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from detect.allocator import keep_pages
from detect.checkpoint import Checkpoint
from detect.data.canvases import Size, enclosing_canvas
from detect.data.transforms import Resize, resize
from detect.devices import choose_device, multiplies_bf16, start_copy, to_device
from detect.errors import UserError, class_names
from detect.models import Detector
from detect.prediction.prepare import Precision, prepare
from detect.prediction.result import Result, class_labels
from detect.prediction.sources import Frame, frames
from detect.prediction.test_time_augmentation import (
    Augmentation,
    augmentations,
    flip_boxes,
    flip_detections,
    merge_detections,
)
from detect.proposals.selective_search import MAX_PIXELS, MAX_SIDE, selective_search
from detect.structures import Detections, Images, Proposals, to_file_pixels

PADDING = 1.25
"""Images share a batch if its canvas is at most this many times as large as each image's own canvas."""


class Predictor:
    """Prediction with a trained detector; `predict` may be called from several threads at the same time.

    Args:
        checkpoint: the detector with its class names and config. It is copied for each device and precision.
        path: the file that it was loaded from, if any.
    """

    def __init__(self, checkpoint: Checkpoint, path: Path | None = None) -> None:
        self.checkpoint, self.path = checkpoint, path
        self.classes, self.category_ids = checkpoint.classes, checkpoint.category_ids
        self._resize = Resize.for_evaluation(checkpoint.config.data)
        self._prepared: dict[tuple[torch.device, Precision, bool], Detector] = {}
        self._lock = Lock()

    def __repr__(self) -> str:
        options = self.checkpoint.config.model
        return f"Predictor({options.name}, backbone {options.backbone.name}, {class_names(self.classes)})"

    @property
    def predicts_masks(self) -> bool:
        """True if the results have masks."""
        return self.checkpoint.config.model.predicts_masks

    @property
    def score(self) -> float:
        """Score threshold of the checkpoint's config."""
        return self.checkpoint.model.postprocessing.score_threshold

    @property
    def min_score(self) -> float:
        """Lowest score threshold that `predict` takes."""
        return 0.0

    def canvas(self, height: int, width: int) -> Size:
        """Return height and width of the network's input, with its padding, for an image of this size."""
        return enclosing_canvas([self._resize.size(height, width)])

    def predict(
        self,
        source: object,
        *,
        score: float | None = None,
        classes: str | int | Iterable[str | int] | None = None,
        batch_size: int = 1,
        device: str | torch.device = "auto",
        precision: Precision | Literal["auto"] = "fp32",
        compile: bool = False,
        flip: bool = False,
        scales: Sequence[float] = (1.0,),
        download: bool = False,
        workers: int = 1,
        on_error: Callable[[str, UserError], None] | None = None,
    ) -> Iterator[Result]:
        """Detect objects in the images of a source, lazily, in order and in constant memory.

        Args:
            source: a path, pattern, bytes, PIL image, array, tensor, video, camera, or a list or iterator of these; see
                `detect.prediction.sources.frames`.
            score: score threshold; by default the one in the checkpoint's config.
            classes: names or labels of the classes to keep; all by default.
            batch_size: maximum number of images per batch. A batch has consecutive images of similar size.
            device: such as `cpu` or `cuda:1`; `auto` is a GPU if there is one.
            precision: `fp32` or `bf16` weights; `auto` is bf16 if the device has instructions for it.
            compile: run the backbone through `torch.compile`. This takes minutes per canvas size and pays off on a GPU
                for many images of few sizes.
            flip: also detect in the flipped image, and merge (test-time augmentation).
            scales: detect at these factors of the config's image size, and merge (test-time augmentation).
            download: allow web addresses to be downloaded.
            workers: number of threads that decode images ahead while the network runs.
            on_error: called with the name and the error of each image that cannot be read; by default it is raised.

        Returns:
            An iterator of one result per image.

        Raises:
            UserError: an option is invalid, or an image cannot be read.
        """
        labels = None if classes is None else class_labels(classes, self.classes)
        self.check_options(
            score=score, batch_size=batch_size, device=device, precision=precision, flip=flip, scales=scales
        )
        model = _with_score(self.prepared_model(device, precision, compile), score)
        stream = frames(source, download=download, workers=workers, on_error=on_error)
        results = self._results(model, stream, batch_size, augmentations(flip, scales))
        return results if labels is None else (result.filter(classes=labels) for result in results)

    def check_options(
        self,
        *,
        score: float | None = None,
        classes: str | int | Iterable[str | int] | None = None,
        batch_size: int = 1,
        device: str | torch.device = "auto",
        precision: Precision | Literal["auto"] = "fp32",
        compile: bool = False,
        flip: bool = False,
        scales: Sequence[float] = (1.0,),
    ) -> None:
        """Raise `UserError` if an option of `predict` is invalid."""
        if classes is not None:
            class_labels(classes, self.classes)
        if score is not None and not (isinstance(score, Real) and 0 <= score <= 1):
            raise UserError(f"score: {score}; give a number from 0 to 1")
        if not (isinstance(batch_size, Integral) and batch_size >= 1):
            raise UserError(f"batch_size: {batch_size}; give a whole number of 1 or more")
        if precision not in ("fp32", "bf16", "auto"):
            raise UserError(f"precision: {precision}; give fp32, bf16 or auto")
        resolve_device(device)
        augmentations(flip, scales)

    def prepared_model(
        self,
        device: str | torch.device = "auto",
        precision: Precision | Literal["auto"] = "fp32",
        compile: bool = False,
    ) -> Detector:
        """Return the network that `predict` runs on a device. It is prepared once and cached."""
        resolved = resolve_device(device)
        if precision == "auto":
            precision = "bf16" if multiplies_bf16(resolved) else "fp32"
        with self._lock:
            key = resolved, precision, compile
            if key not in self._prepared:
                if resolved.type == "cpu":
                    keep_pages()
                self._prepared[key] = prepare(copy.deepcopy(self.checkpoint.model).to(resolved), precision, compile)
            return self._prepared[key]

    def _results(
        self, model: Detector, stream: Iterator[Frame], batch_size: int, augmented: Sequence[Augmentation]
    ) -> Iterator[Result]:
        device = next(model.buffers()).device
        in_flight = 2 if device.type == "cuda" else 0
        running: deque[tuple[list[Frame], Detections, Callable[[], None]]] = deque()
        for batch in self._batches(stream, batch_size):
            detections = self._detect(model, batch, augmented)
            (copied,), wait = start_copy(device, detections)
            running.append((batch, copied, wait))
            # While a GPU processes two batches, the one before is converted to results and the next one is decoded.
            if len(running) > in_flight:
                yield from self._batch_results(*running.popleft())
        for entry in running:
            yield from self._batch_results(*entry)

    def _batches(self, stream: Iterator[Frame], batch_size: int) -> Iterator[list[Frame]]:
        """Group consecutive frames that need little padding on a common canvas into batches of at most `batch_size`."""
        batch: list[Frame] = []
        for frame in stream:
            if batch and not _share_canvas([self._input_size(member) for member in (*batch, frame)]):
                yield batch
                batch = []
            batch.append(frame)
            if len(batch) == batch_size:
                yield batch
                batch = []
        if batch:
            yield batch

    def _input_size(self, frame: Frame, scale: float = 1.0) -> Size:
        """Return height and width of a frame in the network's input."""
        resize = Resize(round(self._resize.short_side * scale), round(self._resize.long_side * scale))
        return resize.size(*frame.pixels.shape[:2])

    @torch.no_grad()
    def _detect(self, model: Detector, batch: Sequence[Frame], augmented: Sequence[Augmentation]) -> Detections:
        """Return the detections of a batch in pixels of the frames, on the model's device."""
        searched = [self._search(frame) for frame in batch] if model.proposals == "given" else None
        detections = [self._detect_augmented(model, batch, searched, augmentation) for augmentation in augmented]
        return detections[0] if len(detections) == 1 else merge_detections(detections, model.postprocessing)

    def _detect_augmented(
        self, model: Detector, batch: Sequence[Frame], searched: Sequence[Tensor] | None, augmentation: Augmentation
    ) -> Detections:
        device = next(model.buffers()).device
        sizes = [self._input_size(frame, augmentation.scale) for frame in batch]
        pixels = [resize(frame.pixels, size) for frame, size in zip(batch, sizes, strict=True)]
        images = to_device(_on_canvas([image[:, ::-1] for image in pixels] if augmentation.flip else pixels), device)
        in_file = to_device(torch.tensor([frame.pixels.shape[:2] for frame in batch]), device)
        scales = (images.sizes / in_file).flip(-1)
        given = None if searched is None else to_device(_pad(searched), device)
        if given is not None:
            boxes = flip_boxes(given.boxes, in_file[:, 1]) if augmentation.flip else given.boxes
            given = replace(given, boxes=boxes * scales.repeat(1, 2)[:, None])
        detections = to_file_pixels(model.detect(images, given), scales)
        return flip_detections(detections, in_file[:, 1]) if augmentation.flip else detections

    def _search(self, frame: Frame) -> Tensor:
        """Return the selective search proposals of a frame; large images are searched at a smaller size."""
        height, width = frame.pixels.shape[:2]
        scale = min(1.0, MAX_SIDE / max(height, width), math.sqrt(MAX_PIXELS / (height * width)))
        size = max(1, int(height * scale)), max(1, int(width * scale))
        boxes = selective_search(resize(frame.pixels, size))[: self.checkpoint.config.data.max_proposals]
        return torch.from_numpy(boxes * np.array([width / size[1], height / size[0]] * 2, np.float32))

    def _batch_results(
        self, batch: Sequence[Frame], detections: Detections, wait: Callable[[], None]
    ) -> Iterator[Result]:
        wait()
        for row, frame in enumerate(batch):
            valid, (height, width) = detections.valid[row], frame.pixels.shape[:2]
            limits = np.array([width, height, width, height], np.float32)
            masks = None if detections.masks is None else detections.masks[row, valid].float().numpy()
            yield Result(
                boxes=detections.boxes[row, valid].numpy().clip(0, limits),
                scores=detections.scores[row, valid].numpy(),
                labels=detections.labels[row, valid].numpy(),
                classes=self.classes,
                category_ids=self.category_ids,
                size=(height, width),
                path=frame.path,
                index=frame.index,
                pixels=None if frame.reloadable else frame.pixels,
                mask_probabilities=masks,
            )


def resolve_device(name: str | torch.device) -> torch.device:
    """Return the device with this name. Raise `UserError` if it does not exist."""
    if name == "auto":
        return choose_device()
    try:
        device = torch.empty(0, device=name).device
        if device.type == "meta":
            raise RuntimeError("it has no memory")
        return device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device: {name}: {str(error).splitlines()[0]}; give cpu, cuda, or auto") from None


def _with_score(model: Detector, score: float | None) -> Detector:
    """Return the same network with another score threshold."""
    if score is None:
        return model
    model = copy.copy(model)
    model.postprocessing = replace(model.postprocessing, score_threshold=score)
    return model


def _share_canvas(sizes: Sequence[Size]) -> bool:
    """Return whether images of these sizes may share a batch."""
    canvas = enclosing_canvas(sizes)
    return all(
        canvas[0] * canvas[1] <= PADDING * height * width
        for height, width in (enclosing_canvas([size]) for size in sizes)
    )


def _on_canvas(pixels: Sequence[UInt8[np.ndarray, "_h _w 3"]]) -> Images:
    """Return images on one canvas, channels last in memory."""
    sizes = [(image.shape[0], image.shape[1]) for image in pixels]
    canvas = np.zeros((len(pixels), *enclosing_canvas(sizes), 3), np.uint8)
    for row, (image, (height, width)) in enumerate(zip(pixels, sizes, strict=True)):
        canvas[row, :height, :width] = image
    return Images(torch.from_numpy(canvas).permute(0, 3, 1, 2), torch.tensor(sizes))


def _pad(lists: Sequence[Float[Tensor, "_r 4"]]) -> Proposals:
    """Pad the boxes of several images to one tensor. Scores are 1, since selective search has none."""
    boxes = torch.nn.utils.rnn.pad_sequence([*lists], batch_first=True)
    valid = torch.arange(boxes.shape[1]) < torch.tensor([[len(boxes_of_image)] for boxes_of_image in lists])
    return Proposals(boxes, valid.float(), valid)
