"""Truncated SVD of a trained detector's fully connected layers, and what it saves (Girshick 2015, §3.1 and §4.4)."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from torch.utils.data import DataLoader

from detect.checkpoint import Checkpoint, model_card
from detect.config import RCNNOptions
from detect.data.canvases import enclosing_canvas
from detect.data.dataset import Dataset
from detect.errors import UserError
from detect.models import Detector
from detect.models.low_rank import truncate
from detect.prediction.evaluate import evaluate
from detect.prediction.prepare import prepare
from detect.structures import Images
from detect.training.checkpoints import save_detector

PAPER_RANKS = (1024, 256)
"""Of VGG16's fc6 and fc7 in the paper's Figure 2: mAP 66.6 instead of 66.9, 223 ms an image instead of 320."""


def compress(checkpoint: Checkpoint, ranks: Sequence[int] = PAPER_RANKS) -> Checkpoint:
    """A copy with these ranks of fc6, fc7 and so on, which its config remembers as `model.svd`.

    Raises `UserError` where the network has no such layers or ranks, and where it is compressed already.
    """
    options = checkpoint.config.model
    if isinstance(options, RCNNOptions):
        raise UserError("rcnn: a crop's time is that of its convolutions; compress a fast_rcnn or faster_rcnn")
    if options.svd:
        raise UserError(
            f"model.svd: the ranks are {', '.join(map(str, options.svd))} already; compress the checkpoint that this "
            "one was made from"
        )
    model = copy.deepcopy(checkpoint.model)
    truncate(model.trunk, ranks)
    config = replace(checkpoint.config, model=replace(options, svd=tuple(ranks)))
    return replace(checkpoint, model=model, config=config)


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Writes a checkpoint that `load_checkpoint` reads."""
    save_detector(checkpoint.model, model_card(checkpoint.config, checkpoint.classes, checkpoint.category_ids), path)


def measure(
    before: Checkpoint,
    after: Checkpoint,
    device: torch.device,
    loader: DataLoader | None = None,
    dataset: Dataset | None = None,
) -> list[tuple[str, str, str]]:
    """Figures of both by name: the head's parameters and seconds, and with the loader of a split also APs, in %.

    The seconds are for an image of the config's size and for as many regions as the config has at most.
    """
    models = [prepare(checkpoint.model.to(device)) for checkpoint in (before, after)]
    data, rpn = before.config.data, models[0].rpn
    regions = data.max_proposals if rpn is None else rpn.options.testing.after_nms
    seconds = seconds_of_heads(models, regions, (max(data.short_side), data.long_side))
    columns = [
        {
            "parameters of the head": f"{count_parameters(model):,}",
            f"seconds an image of the head, {regions} regions": f"{of_head:.3f}",
        }
        for model, of_head in zip(models, seconds, strict=True)
    ]
    if loader is not None and dataset is not None:
        for model, column in zip(models, columns, strict=True):
            metrics, _ = evaluate(model, loader, dataset, device)
            figures = {"AP": metrics["AP"], "AP50": metrics["AP50"], "VOC07": metrics["VOC07"]["mAP"]}
            column |= {f"{name}, %": "–" if ap is None else f"{100 * ap:.1f}" for name, ap in figures.items()}
    return [(name, figure, columns[1][name]) for name, figure in columns[0].items()]


def count_parameters(model: Detector) -> int:
    """Those of the head: trunk and predictor."""
    return sum(parameter.numel() for part in (model.trunk, model.predictor) for parameter in part.parameters())


@torch.no_grad()
def seconds_of_heads(models: Sequence[Detector], regions: int, size: tuple[int, int], repeats: int = 5) -> list[float]:
    """What pooling, trunk and predictor of each prepared model take for an image: medians, measured in turns.

    What the image shows and where the boxes lie hardly matters to the time: both are drawn at random.

    Args:
        models: that have the same features, on the same device.
        regions: an image.
        size: height and width of the canvas, in pixels.
        repeats: how often each is measured, after one run to warm up.
    """
    device = models[0].backbone.mean.device
    draw = torch.Generator().manual_seed(0)
    height, width = size
    corners = torch.rand(1, regions, 2, 2, generator=draw).sort(dim=2).values * torch.tensor([width, height])
    boxes = corners.flatten(2).to(device)
    # A canvas is a multiple of the coarsest stride.
    pixels = torch.rand(1, 3, *enclosing_canvas([size]), generator=draw) * 255
    features = models[0].features(Images(pixels, torch.tensor([[height, width]])).to(device))
    seconds: list[list[float]] = [[] for _ in models]
    for _ in range(1 + repeats):
        for model, times in zip(models, seconds, strict=True):
            _wait(device)
            started = time.perf_counter()
            model.heads(features, boxes)
            _wait(device)
            times.append(time.perf_counter() - started)
    return [median(times[1:]) for times in seconds]


def _wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
