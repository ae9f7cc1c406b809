"""A trained detector that takes images as they come and gives what is in them."""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from numbers import Integral, Real
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
from detect.devices import multiplies_bf16
from detect.errors import UserError
from detect.models import Detector
from detect.prediction.prepare import Precision, prepare
from detect.prediction.result import Result, labels_of
from detect.prediction.sources import Frame, frames
from detect.prediction.test_time_augmentation import View, merge, mirror, views
from detect.proposals.selective_search import MAX_PIXELS, MAX_SIDE, selective_search
from detect.structures import Detections, Images, Proposals, to_file_pixels

PADDING = 1.25
"""Images share a batch while its canvas is at most so many times as large as each of them needs."""


class Predictor:
    """A trained detector; `predict` may be called from several threads at once.

    Args:
        checkpoint: the detector with its class names and config. It is copied for each device and precision.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.classes, self.category_ids = checkpoint.classes, checkpoint.category_ids
        data = checkpoint.config.data
        self._resize = Resize.for_evaluation(data)
        self._prepared: dict[tuple[torch.device, Precision, bool], Detector] = {}
        self._lock = Lock()

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
        """What is in each image of a source, in its order, one result after the other as they are asked for.

        Memory does not grow with the source: a folder, a video or a camera may be as long as it likes.

        Args:
            source: a path, a pattern, bytes, a PIL image, an array, a tensor, a video, a camera, or a list or iterator
                of these; see `detect.prediction.sources.frames`.
            score: detections below this are dropped; by default what the checkpoint's config says.
            classes: only these, by name or label.
            batch_size: images that go through the network together. A batch has images that follow each other and are
                of similar size.
            device: such as `cpu` or `cuda:1`; `auto` takes a GPU where there is one.
            precision: of the weights, `fp32` or `bf16`; `auto` is bf16 where the device multiplies it, else fp32.
            compile: run the backbone through `torch.compile`, which takes minutes for each new size of canvas and pays
                on a GPU, for many images of few sizes.
            flip: see each image mirrored too, and merge what is found (test-time augmentation).
            scales: see each image at so many times the size of the config, and merge what is found.
            download: whether addresses among the sources may be fetched.
            workers: threads that decode images ahead, while the network runs.
            on_error: is told the name and the error of each image that cannot be read, and the next one follows; by
                default the error is raised.

        Raises:
            UserError: as `frames` does, and for options of no meaning.
        """
        wanted = None if classes is None else labels_of(classes, self.classes)
        seen = views(flip, scales)
        if not (isinstance(batch_size, Integral) and batch_size >= 1):
            raise UserError(f"batch_size: {batch_size}; give 1 or more, a whole number")
        if precision not in ("fp32", "bf16", "auto"):
            raise UserError(f"precision: {precision}; give fp32, bf16 or auto")
        model = _with_score(self.prepared(device, precision, compile), score)
        stream = frames(source, download=download, workers=workers, on_error=on_error)
        results = self._results(model, stream, batch_size, seen)
        return results if wanted is None else (result.filter(classes=wanted) for result in results)

    def prepared(
        self,
        device: str | torch.device = "auto",
        precision: Precision | Literal["auto"] = "fp32",
        compile: bool = False,
    ) -> Detector:
        """The network as `predict` runs it on a device, made when it is first asked for and then kept."""
        place = _device(device)
        if precision == "auto":
            precision = "bf16" if multiplies_bf16(place) else "fp32"
        with self._lock:
            key = place, precision, compile
            if key not in self._prepared:
                if place.type == "cpu":
                    keep_pages()
                self._prepared[key] = prepare(copy.deepcopy(self.checkpoint.model).to(place), precision, compile)
            return self._prepared[key]

    def _results(
        self, model: Detector, stream: Iterator[Frame], batch_size: int, seen: Sequence[View]
    ) -> Iterator[Result]:
        on_cuda = next(model.buffers()).is_cuda
        running: deque[tuple[list[Frame], Detections, Callable[[], None]]] = deque()
        for batch in self._batches(stream, batch_size):
            running.append((batch, *_fetch(self._detect(model, batch, seen))))
            # While a GPU works on a batch, the one before it is turned into results and the next one is decoded.
            if len(running) > on_cuda:
                yield from self._finish(*running.popleft())
        for one in running:
            yield from self._finish(*one)

    def _batches(self, stream: Iterator[Frame], batch_size: int) -> Iterator[list[Frame]]:
        """Frames that follow each other and together waste little of their canvas, at most `batch_size`."""
        batch: list[Frame] = []
        for frame in stream:
            if batch and not _share_canvas([self._size(one) for one in (*batch, frame)]):
                yield batch
                batch = []
            batch.append(frame)
            if len(batch) == batch_size:
                yield batch
                batch = []
        if batch:
            yield batch

    def _size(self, frame: Frame, scale: float = 1.0) -> Size:
        """Height and width at which the network sees an image."""
        resize = Resize(round(self._resize.short_side * scale), round(self._resize.long_side * scale))
        return resize.size(*frame.pixels.shape[:2])

    @torch.no_grad()
    def _detect(self, model: Detector, batch: Sequence[Frame], seen: Sequence[View]) -> Detections:
        """What is in each frame, in its own pixels, on the model's device."""
        searched = None if model.rpn else [self._search(frame) for frame in batch]
        found = [self._look(model, batch, searched, view) for view in seen]
        return found[0] if len(found) == 1 else merge(found, model.detections)

    def _look(
        self, model: Detector, batch: Sequence[Frame], searched: Sequence[Tensor] | None, view: View
    ) -> Detections:
        device = next(model.buffers()).device
        sizes = [self._size(frame, view.scale) for frame in batch]
        pixels = [resize(frame.pixels, size) for frame, size in zip(batch, sizes, strict=True)]
        images = _place([image[:, ::-1] for image in pixels] if view.mirrored else pixels).to(device)
        in_file = torch.tensor([frame.pixels.shape[:2] for frame in batch], device=device)
        scales = (images.sizes / in_file).flip(-1)
        given = None if searched is None else _pad(searched).to(device)
        if given is not None:
            boxes = mirror(given.boxes, in_file[:, 1]) if view.mirrored else given.boxes
            given = replace(given, boxes=boxes * scales.repeat(1, 2)[:, None])
        found = to_file_pixels(model.detect(images, given), scales)
        return replace(found, boxes=mirror(found.boxes, in_file[:, 1])) if view.mirrored else found

    def _search(self, frame: Frame) -> Tensor:
        """The proposals of a detector without an RPN, in pixels of the image; one too large is searched smaller."""
        height, width = frame.pixels.shape[:2]
        scale = min(1.0, MAX_SIDE / max(height, width), math.sqrt(MAX_PIXELS / (height * width)))
        size = max(1, int(height * scale)), max(1, int(width * scale))
        boxes = selective_search(resize(frame.pixels, size))[: self.checkpoint.config.data.max_proposals]
        return torch.from_numpy(boxes * np.array([width / size[1], height / size[0]] * 2, np.float32))

    def _finish(self, batch: Sequence[Frame], found: Detections, wait: Callable[[], None]) -> Iterator[Result]:
        wait()
        for row, frame in enumerate(batch):
            valid, (height, width) = found.valid[row], frame.pixels.shape[:2]
            limits = np.array([width, height, width, height], np.float32)
            yield Result(
                boxes=found.boxes[row, valid].numpy().clip(0, limits),
                scores=found.scores[row, valid].numpy(),
                labels=found.labels[row, valid].numpy(),
                classes=self.classes,
                category_ids=self.category_ids,
                size=(height, width),
                path=frame.path,
                index=frame.index,
                pixels=None if frame.again else frame.pixels,
            )


def _device(name: str | torch.device) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.empty(0, device=name).device
        if device.type == "meta":
            raise RuntimeError("it has no memory")
        return device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device: {name}: {str(error).splitlines()[0]}; give cpu, cuda, or auto") from None


def _with_score(model: Detector, score: float | None) -> Detector:
    """The same network with another threshold."""
    if score is None:
        return model
    if not (isinstance(score, Real) and 0 <= score <= 1):
        raise UserError(f"score: {score}; give a number from 0 to 1")
    model = copy.copy(model)
    model.detections = replace(model.detections, score=score)
    return model


def _share_canvas(sizes: Sequence[Size]) -> bool:
    canvas = enclosing_canvas(sizes)
    return all(
        canvas[0] * canvas[1] <= PADDING * height * width
        for height, width in (enclosing_canvas([one]) for one in sizes)
    )


def _place(pixels: Sequence[UInt8[np.ndarray, "_h _w 3"]]) -> Images:
    """Images on one canvas, channels last in memory."""
    sizes = [(image.shape[0], image.shape[1]) for image in pixels]
    canvas = np.zeros((len(pixels), *enclosing_canvas(sizes), 3), np.uint8)
    for row, (image, (height, width)) in enumerate(zip(pixels, sizes, strict=True)):
        canvas[row, :height, :width] = image
    return Images(torch.from_numpy(canvas).permute(0, 3, 1, 2), torch.tensor(sizes))


def _pad(lists: Sequence[Float[Tensor, "_r 4"]]) -> Proposals:
    """Boxes of several images as one tensor; what selective search ranks has no scores: they are 1."""
    boxes = torch.nn.utils.rnn.pad_sequence([*lists], batch_first=True)
    valid = torch.arange(boxes.shape[1]) < torch.tensor([[len(one)] for one in lists])
    return Proposals(boxes, valid.float(), valid)


def _fetch(found: Detections) -> tuple[Detections, Callable[[], None]]:
    """The detections on the CPU, and what waits until they have come."""
    if not found.boxes.is_cuda:
        return found, lambda: None
    here, arrived = found.to("cpu", non_blocking=True), torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(found.boxes.device))  # by default it would be the current device's
    return here, arrived.synchronize
