"""R-CNN's stages after fine-tuning: linear SVMs, then box regressors (Girshick et al. 2014, §2.3 and Appendix C).

    1. collect  features of the truths, and of regions close to them        FOLDER/features/<image>.npz
    2. mine     the SVMs, from hard negatives, in one pass over all regions    FOLDER/{mining,svms}.npz
    3. regress  ridge regression, one class after another

Every stage goes on where it was killed, to the same bits. The disk holds, for each image, the truths' features in
float32 and the pool5 of at most `NEAR` regions in float16; the features of all regions, hundreds of gigabytes for VOC
in the paper's code, are used as they come and never kept.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.utils.data import DataLoader

from detect.config import RCNNOptions
from detect.errors import UserError
from detect.models import RCNN
from detect.models.matcher import in_crowd
from detect.ops.boxes import iou_matrix
from detect.structures import Batch
from detect.training.ridge import best_truths, fit_regressors
from detect.training.svm import LinearSVMs, SVMTrainer, negatives

NEAR = 64
"""Regions an image, drawn at random, that teach the regressors."""
MEASURED = 32
"""Regions an image, drawn at random, whose features' norms give the scale."""
SAVED_EVERY = 60.0
"""Seconds of mining that a kill can cost."""


def train_stages(model: RCNN, loader: DataLoader[Batch], options: RCNNOptions, folder: Path) -> None:
    """Sets the SVMs and the box regressors of a fine-tuned model, as far as it has them.

    Args:
        model: on the device where it is to run, in eval mode.
        loader: the training split as it is, each image once, always in the same order.
        options: see there.
        folder: what is done so far, kept until the caller removes it.
    """
    predictor = model.predictor
    if predictor.svms is None and predictor.regressors is None:
        return
    collect(model, loader, options, folder / "features")
    if predictor.svms is not None:
        svms = mine(model, loader, options, folder)
        _set(predictor.svms, svms.weights, svms.biases)
    if predictor.regressors is not None:
        regressors = regress(model.num_classes, options, folder / "features")
        weights = regressors.weights.transpose(0, 2, 1).reshape(predictor.regressors.weight.shape)
        _set(predictor.regressors, weights, regressors.biases.reshape(-1))


# ---- 1. features -----------------------------------------------------------------------------------------------------


def collect(model: RCNN, loader: DataLoader[Batch], options: RCNNOptions, folder: Path) -> None:
    """Puts down, image by image, all that is learned from except the negatives."""
    folder.mkdir(parents=True, exist_ok=True)
    layer = model.predictor.layer
    for place, batch, row in _images(loader, "features of the truths"):
        file = _file(folder, place)
        if file.exists():
            continue
        truths, labels, proposals = _boxes(batch, row)
        regions = torch.cat([truths, proposals])
        draw = np.random.default_rng(place)
        samples, reached = best_truths(iou_matrix(regions, truths).numpy(), options.ridge.min_iou)
        chosen = np.sort(draw.permutation(len(samples))[:NEAR])
        near, matched = torch.from_numpy(samples[chosen]), torch.from_numpy(reached[chosen])
        measured = torch.from_numpy(np.sort(draw.permutation(len(regions))[:MEASURED]))
        described = _describe(model, batch, row, torch.cat([truths, regions[near], regions[measured]]))
        of_truths, of_near, of_measured = (
            {name: values[start:end] for name, values in described.items()}
            for start, end in _spans(len(truths), len(near), len(measured))
        )
        _save(
            file,
            positives=of_truths[layer],
            labels=labels,
            near=of_near["pool5"].astype(np.float16),
            near_labels=labels[matched.numpy()],
            deltas=model.coder.encode(truths[matched], regions[near]).numpy(),
            norms=np.linalg.norm(of_measured[layer], axis=1),
            pool5_norms=np.linalg.norm(of_measured["pool5"], axis=1),
        )


# ---- 2. support vector machines --------------------------------------------------------------------------------------


def mine(model: RCNN, loader: DataLoader[Batch], options: RCNNOptions, folder: Path) -> LinearSVMs:
    """The SVMs of all classes, after one pass over the proposals and truths of every image."""
    done, begun = folder / "svms.npz", folder / "mining.npz"
    if done.exists():
        return LinearSVMs(**_load(done))
    files = _files(folder / "features")
    positives = [_of_class(files, label, "positives", "labels") for label in range(model.num_classes)]
    scale = _scale(files, "norms", options.svm.feature_norm)
    trainer = SVMTrainer(positives, scale, options.svm)
    if begun.exists():
        trainer.load_state(_load(begun))
    saved = time.monotonic()
    for place, batch, row in _images(loader, "hard negatives"):
        if place < trainer.images:
            continue
        truths, labels, proposals = _boxes(batch, row)
        regions = torch.cat([truths, proposals])
        features = _describe(model, batch, row, regions)[model.predictor.layer]
        iou = iou_matrix(regions, truths).numpy()
        negative = negatives(iou, labels, model.num_classes, options.svm.negative_iou)
        trainer.add(features, negative & ~_in_crowd(batch, row, regions)[:, None])
        if time.monotonic() - saved > SAVED_EVERY:
            _save(begun, **trainer.state())
            saved = time.monotonic()
    svms = trainer.finish()
    _save(done, weights=svms.weights, biases=svms.biases)
    return svms


# ---- 3. box regression -----------------------------------------------------------------------------------------------


def regress(num_classes: int, options: RCNNOptions, folder: Path) -> Any:
    """The box regressors of all classes."""
    files = _files(folder)
    scale = _scale(files, "pool5_norms", options.ridge.feature_norm)

    def samples() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for label in _track(range(num_classes), "box regressors"):
            # No variable: it would hold these while those of the next class are read.
            yield (
                _of_class(files, label, "near", "near_labels").astype(np.float32),
                _of_class(files, label, "deltas", "near_labels"),
            )

    return fit_regressors(samples(), scale, options.ridge)


# ---- what they share -------------------------------------------------------------------------------------------------


def _images(loader: DataLoader[Batch], what: str) -> Iterator[tuple[int, Batch, int]]:
    """Every image: its place in the order, its batch, its row there."""
    place = 0
    for batch in _track(loader, what):
        for row in range(len(batch)):
            yield place, batch, row
            place += 1


def _boxes(batch: Batch, row: int) -> tuple[Tensor, np.ndarray, Tensor]:
    """Truths that are no crowds, their labels, and proposals."""
    targets, proposals = batch.targets, batch.proposals
    assert proposals is not None
    truth = targets.valid[row] & ~targets.crowd[row]
    return targets.boxes[row, truth], targets.labels[row, truth].numpy(), proposals.boxes[row, proposals.valid[row]]


def _in_crowd(batch: Batch, row: int, regions: Tensor) -> np.ndarray:
    """Which regions lie in a crowd, and are nobody's negatives, as `match` has it."""
    targets = batch.targets
    return in_crowd(targets.boxes[row, targets.valid[row] & targets.crowd[row]], regions).numpy()


@torch.no_grad()
def _describe(model: RCNN, batch: Batch, row: int, boxes: Tensor) -> dict[str, np.ndarray]:
    """The layers of each region."""
    images, device = batch.images, model.backbone.mean.device
    one = type(images)(images.pixels[row : row + 1], images.sizes[row : row + 1]).to(device)
    layers = model.describe(model.features(one), boxes[None].to(device))
    return {name: values[0].float().cpu().numpy() for name, values in layers.items()}


def _scale(files: Iterable[Path], name: str, norm: float) -> float:
    """What brings the features to a mean norm."""
    norms = np.concatenate([_load(file)[name] for file in files])
    if not norms.any():
        raise UserError(f"the features of {len(norms)} regions are all zero; begin from weights, or fine-tune")
    return norm / float(norms.mean(dtype=np.float64))


def _of_class(files: Iterable[Path], label: int, name: str, labels: str) -> np.ndarray:
    """The rows of one class, of all images. Only the arrays that are named are read."""
    rows = []
    for file in files:
        with np.load(file) as content:
            own = content[labels] == label
            rows.append(content[name][own] if own.any() else content[name][:0])
    return np.concatenate(rows)


def _spans(*lengths: int) -> list[tuple[int, int]]:
    ends = np.cumsum(lengths).tolist()
    return list(zip([0, *ends], ends, strict=False))


def _set(layer: nn.Linear, weights: np.ndarray, biases: np.ndarray) -> None:
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weights))
        layer.bias.copy_(torch.from_numpy(biases))


def _file(folder: Path, place: int) -> Path:
    return folder / f"{place:06d}.npz"


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.npz"))


def _load(file: Path) -> dict[str, np.ndarray]:
    with np.load(file) as content:
        return dict(content)


def _save(file: Path, **arrays: np.ndarray) -> None:
    """Whole or not at all."""
    draft = file.with_name(f".{file.name}.part")
    with draft.open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]
        stream.flush()
        os.fsync(stream.fileno())
    draft.replace(file)


def _track(items: Any, what: str) -> Iterator[Any]:
    """With a progress bar, or a line where the output is no terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        console.print(what)
    return iter(track(items, what, console=console, disable=not console.is_terminal))
