"""Type and shape checks of every annotated call of the package, and fixtures for small data sets."""

import dataclasses
import functools
import http.server
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import beartype.typing  # noqa: F401 - for the names in _CONF
import jaxtyping
import numba
import numpy as np
import pytest
import torch


def _unchecked(compiler):
    """Return `compiler` for the original functions: it cannot compile the wrappers that check types."""

    @functools.wraps(compiler)
    def wrapper(*args, **kwargs):
        compiled = compiler(*args, **kwargs)
        if any(map(callable, args)):  # a decorator without arguments
            return compiled
        return lambda function: compiled(getattr(function, "__wrapped__", function))

    return wrapper


numba.njit = _unchecked(numba.njit)
torch.library.custom_op = _unchecked(torch.library.custom_op)

# Ints pass as floats, and beartype checks the same item of a list each time. Two hints that it cannot check become Any:
# `Self` outside of a class, and `BinaryIO`, which BytesIO does not inherit from.
_CONF = (
    "is_pep484_tower=True, is_random=False, hint_overrides=beartype.FrozenDict("
    "{beartype.typing.Self: beartype.typing.Any, beartype.typing.BinaryIO: beartype.typing.Any})"
)
jaxtyping.install_import_hook("detect", f"beartype.beartype(conf=beartype.BeartypeConf({_CONF}))")

from detect.data.dataset import Dataset, Record  # noqa: E402  the hook comes first
from detect.data.masks import Polygons  # noqa: E402
from detect.evaluation.coco import Prediction  # noqa: E402

torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """Mark the tests that compile graphs, drive a browser or export to ONNX as slow, by their fixtures."""
    for item in items:
        if {"unchecked", "tab", "exported", "operators", "traced_once"} & set(item.fixturenames):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _seed():
    """Seed torch, so that a test draws the same numbers regardless of the tests before it."""
    torch.manual_seed(0)


@pytest.fixture
def unchecked(monkeypatch):
    """Disable the type checks, which Dynamo cannot trace, and reset Dynamo, which limits compilations per line."""
    torch._dynamo.reset()
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    modules = [module for name, module in sys.modules.items() if name.partition(".")[0] == "detect"]
    kinds = {value for module in modules for value in vars(module).values() if isinstance(value, type)}
    for kind in filter(dataclasses.is_dataclass, kinds):
        if "__init__" in vars(kind) and hasattr(kind.__init__, "__wrapped__"):
            monkeypatch.setattr(kind, "__init__", kind.__init__.__wrapped__)


# ---- small data sets and predictions, written as lists ---------------------------------------------------------------

Box = tuple[float, float, float, float]
GroundTruth = tuple[Box, int, str]
"""Box, label and mark: "", "crowd" or "difficult"."""


def make_record(number: int, ground_truths: list[GroundTruth]) -> Record:
    boxes = np.array([box for box, _, _ in ground_truths], np.float32).reshape(-1, 4)
    return Record(
        id=number,
        path=Path("/data/images") / f"{number}.jpg",
        width=400,
        height=300,
        boxes=boxes,
        labels=np.array([label for _, label, _ in ground_truths], np.int64),
        crowd=np.array([mark == "crowd" for _, _, mark in ground_truths], bool),
        difficult=np.array([mark == "difficult" for _, _, mark in ground_truths], bool),
        areas=np.prod(boxes[:, 2:] - boxes[:, :2], axis=1, dtype=np.float64),
    )


def make_dataset(images: dict[int, list[GroundTruth]], classes=("cat", "dog"), category_ids=(7, 3)) -> Dataset:
    records = tuple(make_record(number, ground_truths) for number, ground_truths in images.items())
    return Dataset(Path("/data"), "val", "coco", classes, category_ids, records)


def make_prediction(number: int, detections: list[tuple[Box, int, float]]) -> Prediction:
    return Prediction(
        number,
        boxes=np.array([box for box, _, _ in detections], np.float32).reshape(-1, 4),
        scores=np.array([score for _, _, score in detections], np.float32),
        labels=np.array([label for _, label, _ in detections], np.int64),
    )


def random_case(seed: int) -> tuple[Dataset, list[Prediction]]:
    """Draw a case with crowds, equal scores and IoUs, empty images, missing predictions, an unused class."""
    random = np.random.default_rng(seed)
    whole = random.random() < 0.5  # integers give IoUs that equal a threshold

    def boxes(n: int) -> np.ndarray:
        sides = np.exp(random.uniform(1, 5, (n, 2)))
        corner = random.uniform(0, 120, (n, 2))
        return np.concatenate([corner, corner + sides], axis=1)

    def rounded(drawn: np.ndarray) -> list:
        drawn = np.round(drawn) if whole else drawn
        drawn[:, 2:] = np.maximum(drawn[:, 2:], drawn[:, :2] + 1)
        return drawn.tolist()

    images, predictions = {}, []
    for number in random.permutation(40)[:8].tolist():
        drawn = boxes(int(random.integers(0, 9) * (random.random() < 0.8)))
        marks = random.choice(["", "", "", "", "crowd"], len(drawn)).tolist()
        classes = random.integers(0, 3, len(drawn))
        images[number] = list(zip(rounded(drawn.copy()), classes.tolist(), marks, strict=True))
        if random.random() < 0.1:
            continue
        n = int(random.integers(0, 40))
        detected, labels = boxes(n), random.integers(0, 4, n)
        if len(drawn) and n:
            target = random.integers(0, len(drawn), n)
            sides = np.tile(drawn[target, 2:] - drawn[target, :2], 2)
            near = drawn[target] + random.normal(0, 0.08, (n, 4)) * sides
            detected = np.where(random.random((n, 1)) < 0.8, near, detected)
            labels = np.where(random.random(n) < 0.8, classes[target], labels)
        scores = np.where(random.random(n) < 0.5, random.random(n).round(1), random.random(n))
        predictions.append(
            make_prediction(number, list(zip(rounded(detected), labels.tolist(), scores.tolist(), strict=True)))
        )
    return make_dataset(images, ("a", "b", "c", "none"), (90, 1, 17, 4)), predictions


def random_mask_case(seed: int) -> tuple[Dataset, list[Prediction]]:
    """Draw a case with blobs: polygons, run-length encodings and objects without mask; masks near the objects."""
    random = np.random.default_rng(seed)
    dataset, predictions = random_case(seed)

    def shape(box):
        angles = np.sort(random.uniform(0, 2 * np.pi, 8))
        radius = random.uniform(0.4, 1.0, 8)[:, None] / 2
        centre, extent = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
        return Polygons((centre + radius * extent * np.stack([np.cos(angles), np.sin(angles)], axis=1),))

    def masks_of(boxes, height, width):
        shapes = [shape(box.astype(np.float64)) for box in boxes]
        kinds = random.choice(3, len(shapes), p=[0.5, 0.4, 0.1])
        forms = (lambda one: one, lambda one: one.rle(height, width), lambda one: None)
        return tuple(forms[kind](one) for kind, one in zip(kinds, shapes, strict=True))

    records = [replace(record, height=180, width=240) for record in dataset.records]
    records = [replace(record, masks=masks_of(record.boxes, record.height, record.width)) for record in records]
    by_id = {record.id: record for record in records}
    found = []
    for prediction in predictions:
        record = by_id[prediction.image_id]
        masks = []
        for box in prediction.boxes:
            pairs = zip(record.masks, record.boxes, strict=True)
            near = [mask for mask, other in pairs if np.abs(other - box).max() < 9]
            mask = near[0] if near and near[0] is not None and random.random() < 0.7 else shape(box.astype(np.float64))
            masks.append(mask.rle(record.height, record.width))
        found.append(replace(prediction, masks=tuple(masks)))
    return replace(dataset, records=tuple(records)), found


@pytest.fixture
def dataset_of() -> Callable[..., Dataset]:
    return make_dataset


@pytest.fixture
def prediction_of() -> Callable[..., Prediction]:
    return make_prediction


@pytest.fixture
def case_of() -> Callable[[int], tuple[Dataset, list[Prediction]]]:
    return random_case


@pytest.fixture
def mask_case_of() -> Callable[[int], tuple[Dataset, list[Prediction]]]:
    return random_mask_case


# ---- a server, and weights of detectron2 -----------------------------------------------------------------------------


class Server(http.server.ThreadingHTTPServer):
    """Server of `files`; `cut` lists the number of bytes after which the next connections end."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.cut, self.codes, self.ranges, self.requests = {}, [], [], True, []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        start = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-")
        start = int(start) if self.server.ranges else 0
        self.server.requests.append(start)
        content = self.server.files.get(self.path.lstrip("/"))
        if self.server.codes:
            return self.send_error(self.server.codes.pop(0))
        if content is None:
            return self.send_error(404)
        if start and start >= len(content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        stop = start + self.server.cut.pop(0) if self.server.cut else None
        self.wfile.write(content[start:stop])
        return None

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr("detect.files.download.PAUSES", (0, 0))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def _detectron2_resnet18(classes):
    """Return a random state dict of detectron2's Faster R-CNN: ResNet-18, FPN of 16 and box head of 8 channels."""
    shapes = {}

    def convolution(name, channels_in, channels, size=3, norm=True):
        shapes[f"{name}.weight"] = (channels, channels_in, size, size)
        if norm:
            for kind in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"{name}.norm.{kind}"] = (channels,)
        else:
            shapes[f"{name}.bias"] = (channels,)

    convolution("backbone.bottom_up.stem.conv1", 3, 64, 7)
    width = 64
    for stage, channels in ((2, 64), (3, 128), (4, 256), (5, 512)):
        for block in range(2):
            name = f"backbone.bottom_up.res{stage}.{block}"
            if width != channels:
                convolution(f"{name}.shortcut", width, channels, 1)
            convolution(f"{name}.conv1", width, channels)
            convolution(f"{name}.conv2", channels, channels)
            width = channels
        convolution(f"backbone.fpn_lateral{stage}", channels, 16, 1, norm=False)
        convolution(f"backbone.fpn_output{stage}", 16, 16, 3, norm=False)
    rpn = "proposal_generator.rpn_head"
    for name, channels, size in (("conv", 16, 3), ("objectness_logits", 3, 1), ("anchor_deltas", 12, 1)):
        convolution(f"{rpn}.{name}", 16, channels, size, norm=False)
    heads = {"box_head.fc1": (8, 16 * 49), "box_head.fc2": (8, 8)}
    heads |= {"box_predictor.cls_score": (classes + 1, 8), "box_predictor.bbox_pred": (4 * classes, 8)}
    for name, shape in heads.items():
        shapes |= {f"roi_heads.{name}.weight": shape, f"roi_heads.{name}.bias": shape[:1]}
    draw = torch.Generator().manual_seed(0)
    return {key: torch.rand(shape, generator=draw) for key, shape in shapes.items()}


@pytest.fixture(scope="session")
def detectron2_resnet18():
    return _detectron2_resnet18
