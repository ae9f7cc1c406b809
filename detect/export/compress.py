"""Truncated SVD of a detector's fully connected layers, and the time saved (Girshick 2015, §3.1 and §4.4)."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import replace
from statistics import median

import torch
from torch.utils.data import DataLoader

from detect.checkpoint import Checkpoint
from detect.data.canvases import enclosing_canvas
from detect.data.dataset import Dataset
from detect.errors import UserError
from detect.models import FasterRCNN, FasterRCNNOptions, FastRCNN, FastRCNNOptions
from detect.models.low_rank import truncate
from detect.prediction.evaluate import evaluate
from detect.prediction.prepare import prepare
from detect.structures import Images

PAPER_RANKS = (1024, 256)
"""Ranks of VGG16's fc6 and fc7 in Figure 2 of the paper: mAP 66.6 instead of 66.9, 223 ms per image instead of 320."""


def compress(checkpoint: Checkpoint, ranks: Sequence[int] = PAPER_RANKS) -> Checkpoint:
    """Return a copy whose fully connected layers have the given ranks, which its config stores as `model.svd`.

    Args:
        checkpoint: the trained detector.
        ranks: ranks of fc6, fc7 and so on.

    Raises:
        UserError: the network has no such layers, a rank is invalid, or the network is already compressed.
    """
    options = checkpoint.config.model
    if not isinstance(options, FastRCNNOptions | FasterRCNNOptions):
        raise UserError(
            f"{options.name}: only the box heads of fast_rcnn and faster_rcnn can be compressed; give one of these"
        )
    if options.svd:
        raise UserError(
            f"model.svd: compressed already to ranks {', '.join(map(str, options.svd))}; compress the original "
            "checkpoint"
        )
    model = copy.deepcopy(checkpoint.model)
    assert isinstance(model, FastRCNN | FasterRCNN)
    truncate(model.region_head.box_head, ranks)
    config = replace(checkpoint.config, model=replace(options, svd=tuple(ranks)))
    return replace(checkpoint, model=model, config=config)


def compare_cost(
    before: Checkpoint,
    after: Checkpoint,
    device: torch.device,
    loader: DataLoader | None = None,
    dataset: Dataset | None = None,
) -> list[tuple[str, str, str]]:
    """Compare parameters and seconds of the box head before and after compression and, on a split, AP in %.

    The seconds are for an image of the config's size with the config's maximum number of regions.

    Args:
        before: the original detector.
        after: the compressed detector.
        device: device to measure on.
        loader: loader of a split.
        dataset: the split.

    Returns:
        Rows of name, value before and value after.
    """
    models = [_prepared(checkpoint, device) for checkpoint in (before, after)]
    data, rpn = before.config.data, models[0].rpn
    regions = data.max_proposals if rpn is None else rpn.options.testing.post_nms_top_k
    seconds = time_heads(models, regions, data.eval_sides)
    columns = [
        {
            "parameters of the head": f"{count_parameters(model):,}",
            f"seconds per image of the head, {regions} regions": f"{head_seconds:.3f}",
        }
        for model, head_seconds in zip(models, seconds, strict=True)
    ]
    if loader is not None and dataset is not None:
        for model, column in zip(models, columns, strict=True):
            metrics, _ = evaluate(model, loader, dataset, device, classes=data.classes)
            aps = {"AP": metrics["AP"], "AP50": metrics["AP50"], "VOC07": metrics["VOC07"]["mAP"]}
            column |= {f"{name}, %": "–" if ap is None else f"{100 * ap:.1f}" for name, ap in aps.items()}
    return [(name, value, columns[1][name]) for name, value in columns[0].items()]


def _prepared(checkpoint: Checkpoint, device: torch.device) -> FastRCNN | FasterRCNN:
    model = prepare(checkpoint.model.to(device))
    assert isinstance(model, FastRCNN | FasterRCNN)
    return model


def count_parameters(model: FastRCNN | FasterRCNN) -> int:
    """Return the number of parameters of the box head and its predictor."""
    parts = (model.region_head.box_head, model.region_head.predictor)
    return sum(parameter.numel() for part in parts for parameter in part.parameters())


@torch.no_grad()
def time_heads(
    models: Sequence[FastRCNN | FasterRCNN], regions: int, size: tuple[int, int], repeats: int = 5
) -> list[float]:
    """Return the median seconds per image of pooling, box head and predictor of each prepared model.

    The models are timed alternately. Image and boxes are random, since they hardly affect the time.

    Args:
        models: models with the same features, on the same device.
        regions: number of regions per image.
        size: height and width of the image, in pixels.
        repeats: number of measurements of each model, after a warm-up.
    """
    device = models[0].backbone.mean.device
    generator = torch.Generator().manual_seed(0)
    height, width = size
    corners = torch.rand(1, regions, 2, 2, generator=generator).sort(dim=2).values * torch.tensor([width, height])
    boxes = corners.flatten(2).to(device)
    pixels = torch.rand(1, 3, *enclosing_canvas([size]), generator=generator) * 255
    features = models[0].features(Images(pixels, torch.tensor([[height, width]])).to(device))
    seconds: list[list[float]] = [[] for _ in models]
    for _ in range(1 + repeats):
        for model, times in zip(models, seconds, strict=True):
            _wait(device)
            started = time.perf_counter()
            model.region_head(features, boxes)
            _wait(device)
            times.append(time.perf_counter() - started)
    return [median(times[1:]) for times in seconds]


def _wait(device: torch.device) -> None:
    """Wait until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
