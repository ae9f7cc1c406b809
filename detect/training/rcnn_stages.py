"""R-CNN's training: fine-tuning, linear SVMs, box regressors (Girshick et al. 2014, §2.3 and Appendix C).

    1. fine-tune  the network with softmax, by gradients                          RUN/fine_tuning/
    2. collect    features of ground truths and of regions close to them          RUN/stages/features/<image>.npz
    3. mine       the SVMs, from hard negatives, in one pass over all regions     RUN/stages/{mining,svms}.npz
    4. regress    ridge regression, class by class                                RUN/checkpoints/best.ckpt

Each killed stage resumes where it stopped, with bit-identical results. For each image, the disk holds the ground
truths' features in float32 and pool5 of at most `MAX_NEAR` regions in float16. The features of all regions, hundreds of
gigabytes for VOC in the paper's code, are never stored.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from detect.checkpoint import Checkpoint, save_checkpoint
from detect.config import Config, RCNNStagesOptions, recipe_of
from detect.data.datamodule import DetectionData
from detect.devices import choose_device
from detect.errors import UserError
from detect.files.atomic import atomic_write
from detect.models import RCNN
from detect.models.matcher import in_crowd
from detect.ops.boxes import iou_matrix
from detect.structures import Batch
from detect.terminal import stage
from detect.training import loop
from detect.training.loop import NO_EXTRAS, Extras
from detect.training.module import DetectorModule
from detect.training.processes import count_processes
from detect.training.recipe import Recipe
from detect.training.ridge import RidgeRegressors, fit_regressors, regression_samples
from detect.training.run_folder import disk_errors
from detect.training.svm import LinearSVMs, SVMTrainer, negatives

FINE_TUNING = "fine_tuning"
"""Folder of the first stage within a run's folder."""
MAX_NEAR = 64
"""Maximum number of random regions per image that the regressors are fitted to."""
MAX_MEASURED = 32
"""Maximum number of random regions per image that the scale of the features is measured on."""
SAVE_SECONDS = 60.0
"""Seconds between saved states of mining; a killed run loses at most this time."""


class RCNNStages(Recipe):
    """R-CNN's stages, one after the other. No validation: the detector is complete only after the last stage."""

    model: RCNN

    def __init__(self, config: Config, data: DetectionData, blank: bool = False) -> None:
        super().__init__(config, data, blank)
        if count_processes(config.training) > 1:
            raise UserError("training.devices: the stages of rcnn run in one process; give --training.devices 1")

    @staticmethod
    def checkpoints(out: Path) -> list[Path]:
        """Return the last checkpoint of fine-tuning."""
        return [loop.last_checkpoint(out / FINE_TUNING)]

    def train(self, card: dict[str, Any], out: Path, resume: bool, extras: Extras = NO_EXTRAS) -> None:
        """Run the stages that are not complete yet."""
        options, training = recipe_of(self.config), self.config.training
        assert isinstance(options, RCNNStagesOptions)
        done, folder = out / "checkpoints" / "best.ckpt", out / "stages"
        if resume and done.exists():
            return
        if options.fine_tuning:
            module = DetectorModule(self.model, training, None, card)
            loop.run_step(module, self.data, out / FINE_TUNING, resume, extras)
        model = self.model.to(choose_device(training.accelerator)).eval()
        fit_predictors(model, self.data.eval_loader(self.data.train), options, folder)
        train = self.data.train
        with disk_errors(done):
            save_checkpoint(Checkpoint(model, self.config, train.classes, train.category_ids), done)
        shutil.rmtree(folder, ignore_errors=True)


def fit_predictors(model: RCNN, loader: DataLoader[Batch], options: RCNNStagesOptions, folder: Path) -> None:
    """Fit the SVMs and the box regressors of a fine-tuned model, if it has any.

    Args:
        model: the model in eval mode, on the device to run on.
        loader: the training split without augmentation, each image once, always in the same order.
        options: options of SVMs and regressors.
        folder: folder of intermediate results, which the caller removes.
    """
    predictor = model.region_head.predictor
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


# ---- 2. features -----------------------------------------------------------------------------------------------------


def collect(model: RCNN, loader: DataLoader[Batch], options: RCNNStagesOptions, folder: Path) -> None:
    """Store the positives of the SVMs and the samples of the regressors, in one file per image."""
    folder.mkdir(parents=True, exist_ok=True)
    layer = model.region_head.predictor.layer
    for index, batch, row in _images(loader, "features of the ground truths"):
        file = _file(folder, index)
        if file.exists():
            continue
        ground_truths, labels, proposals = _boxes(batch, row)
        regions = torch.cat([ground_truths, proposals])
        generator = np.random.default_rng(index)
        samples, best = regression_samples(iou_matrix(regions, ground_truths).numpy(), options.ridge.min_iou)
        chosen = np.sort(generator.permutation(len(samples))[:MAX_NEAR])
        near, matched = torch.from_numpy(samples[chosen]), torch.from_numpy(best[chosen])
        measured = torch.from_numpy(np.sort(generator.permutation(len(regions))[:MAX_MEASURED]))
        features = _describe(model, batch, row, torch.cat([ground_truths, regions[near], regions[measured]]))
        of_ground_truths, of_near, of_measured = (
            {name: values[start:end] for name, values in features.items()}
            for start, end in _spans(len(ground_truths), len(near), len(measured))
        )
        _save(
            file,
            positives=of_ground_truths[layer],
            labels=labels,
            near=of_near["pool5"].astype(np.float16),
            near_labels=labels[matched.numpy()],
            deltas=model.region_head.box_coder.encode(ground_truths[matched], regions[near]).numpy(),
            norms=np.linalg.norm(of_measured[layer], axis=1),
            pool5_norms=np.linalg.norm(of_measured["pool5"], axis=1),
        )


# ---- 3. support vector machines --------------------------------------------------------------------------------------


def mine(model: RCNN, loader: DataLoader[Batch], options: RCNNStagesOptions, folder: Path) -> LinearSVMs:
    """Return the SVMs of all classes, after one pass over the proposals and ground truths of every image."""
    done, begun = folder / "svms.npz", folder / "mining.npz"
    if done.exists():
        return LinearSVMs(**_load(done))
    files = _files(folder / "features")
    positives = [_rows_of_class(files, label, "positives", "labels") for label in range(model.num_classes)]
    scale = _scale(files, "norms", options.svm.feature_norm)
    trainer = SVMTrainer(positives, scale, options.svm)
    if begun.exists():
        trainer.load_state(_load(begun))
    saved = time.monotonic()
    for index, batch, row in _images(loader, "hard negatives"):
        if index < trainer.images:
            continue
        ground_truths, labels, proposals = _boxes(batch, row)
        regions = torch.cat([ground_truths, proposals])
        features = _describe(model, batch, row, regions)[model.region_head.predictor.layer]
        iou = iou_matrix(regions, ground_truths).numpy()
        negative = negatives(iou, labels, model.num_classes, options.svm.negative_iou)
        trainer.add(features, negative & ~_in_crowd(batch, row, regions)[:, None])
        if time.monotonic() - saved > SAVE_SECONDS:
            _save(begun, **trainer.state())
            saved = time.monotonic()
    svms = trainer.finish()
    _save(done, weights=svms.weights, biases=svms.biases)
    return svms


# ---- 4. box regression -----------------------------------------------------------------------------------------------


def regress(num_classes: int, options: RCNNStagesOptions, folder: Path) -> RidgeRegressors:
    """Return the box regressors of all classes."""
    files = _files(folder)
    scale = _scale(files, "pool5_norms", options.ridge.feature_norm)

    def samples() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for label in stage(range(num_classes), "box regressors"):
            # No variable: it would keep the arrays in memory while the next class is read.
            yield (
                _rows_of_class(files, label, "near", "near_labels").astype(np.float32),
                _rows_of_class(files, label, "deltas", "near_labels"),
            )

    return fit_regressors(samples(), scale, options.ridge)


# ---- shared helpers --------------------------------------------------------------------------------------------------


def _images(loader: DataLoader[Batch], description: str) -> Iterator[tuple[int, Batch, int]]:
    """Yield index, batch, and row in the batch of every image."""
    index = 0
    for batch in stage(loader, description):
        for row in range(len(batch)):
            yield index, batch, row
            index += 1


def _boxes(batch: Batch, row: int) -> tuple[Tensor, np.ndarray, Tensor]:
    """Return ground truths without crowds, their labels, and proposals of an image."""
    targets, proposals = batch.targets, batch.proposals
    assert proposals is not None
    objects = targets.valid[row] & ~targets.crowd[row]
    return targets.boxes[row, objects], targets.labels[row, objects].numpy(), proposals.boxes[row, proposals.valid[row]]


def _in_crowd(batch: Batch, row: int, regions: Tensor) -> np.ndarray:
    """Return a mask of the regions that lie in crowd regions; as in `match`, they are not negatives."""
    targets = batch.targets
    return in_crowd(targets.boxes[row, targets.valid[row] & targets.crowd[row]], regions).numpy()


@torch.no_grad()
def _describe(model: RCNN, batch: Batch, row: int, boxes: Tensor) -> dict[str, np.ndarray]:
    """Compute the features of each region's crop by layer."""
    images, device = batch.images, model.backbone.mean.device
    image = type(images)(images.pixels[row : row + 1], images.sizes[row : row + 1]).to(device)
    layers = model.region_head.describe(model.features(image), boxes[None].to(device))
    return {name: values[0].float().cpu().numpy() for name, values in layers.items()}


def _scale(files: Iterable[Path], name: str, norm: float) -> float:
    """Return the factor that scales the features to the mean norm `norm`."""
    norms = np.concatenate([_load(file)[name] for file in files])
    if not norms.any():
        raise UserError(f"the features of {len(norms)} regions are all zero; start from weights, or fine-tune")
    return norm / float(norms.mean(dtype=np.float64))


def _rows_of_class(files: Iterable[Path], label: int, name: str, labels: str) -> np.ndarray:
    """Return the rows of one class from the files of all images; only the named arrays are read."""
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


def _file(folder: Path, index: int) -> Path:
    return folder / f"{index:06d}.npz"


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.npz"))


def _load(file: Path) -> dict[str, np.ndarray]:
    with np.load(file) as content:
        return dict(content)


def _save(file: Path, **arrays: np.ndarray) -> None:
    with atomic_write(file) as draft, draft.open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]
