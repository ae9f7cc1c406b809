"""Training of an experiment: checks, recipe, and the run's folder."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from lightning import seed_everything
from lightning.pytorch.utilities import rank_zero_only

from detect.checkpoint import model_card
from detect.config import (
    AlternatingOptions,
    ClassificationConfig,
    Config,
    Experiment,
    JointOptions,
    RCNNStagesOptions,
    TrainingOptions,
    check_proposals,
    config_to_yaml,
    recipe_of,
    with_absolute_paths,
    with_division,
)
from detect.config.experiment import E
from detect.data.classification import ClassificationData
from detect.data.datamodule import DetectionData
from detect.data.division import DIVISION, Division, division_json
from detect.errors import UserError
from detect.files.atomic import DISK_FULL
from detect.foreign_weights.any_file import read_weights
from detect.models import Classifier
from detect.training import clock, loop
from detect.training.alternating import Alternating
from detect.training.initial_weights import build_model
from detect.training.joint import Joint
from detect.training.loop import best_checkpoint, last_checkpoint
from detect.training.module import ClassifierModule
from detect.training.processes import check_machine, count_processes, resolve_precision
from detect.training.rcnn_stages import RCNNStages
from detect.training.recipe import Recipe
from detect.training.resume import check_division_kept, check_resumable
from detect.training.run_folder import disk_full_message, is_first, owned, write
from detect.training.saving import interruptible

RECIPES: dict[type, type[Recipe]] = {
    JointOptions: Joint,
    AlternatingOptions: Alternating,
    RCNNStagesOptions: RCNNStages,
}
log = logging.getLogger(__name__)


def fit(
    config: Config, data: DetectionData, out: Path, resume: bool = False, extras: loop.Extras = loop.NO_EXTRAS
) -> tuple[Path, float]:
    """Train a detector; return the best checkpoint (without validation the last one) and the duration in seconds.

    The folder `out` then holds `config.yaml`, `metrics.csv`, `tensorboard/`, `checkpoints/{best,last}.ckpt` and
    `training.json` with the duration of all sessions, and `division.json` if the training split is divided. With
    `resume` the run continues from the folder's last checkpoint, or starts if the folder has none. `extras` are the
    user's callbacks and loggers.

    Raises:
        UserError: the options contradict each other, or do not fit the data, this machine or the folder.
        KeyboardInterrupt: the run was interrupted; its checkpoints are complete.
    """
    config = with_division(_recorded(config), (out / DIVISION).absolute())
    assert bool(config.data.fractions) == (data.division is not None), "the training split is not divided"
    started = time.monotonic()
    # Raises all mistakes in the config before the folder exists.
    recipe = prepare(config, data, out if resume else None)
    recipe.measure_data()
    card = model_card(config, data.train.classes, data.train.category_ids)
    # Of all recipes: the folder may hold a run of another one.
    for checkpoint in dict.fromkeys(path for one in RECIPES.values() for path in one.checkpoints(out)):
        if resume and checkpoint.exists():
            changes = check_resumable(config, data.classes, checkpoint)
            check_division_kept(data.division, checkpoint, out)
            _log_changes(changes, checkpoint)
    with _session(config, out, resume, data.division):
        recipe.train(card, out, resume, extras)
    return best_checkpoint(out), time.monotonic() - started


def prepare(config: Config, data: DetectionData, resumed: Path | None = None) -> Recipe:
    """Check the experiment and return its recipe with the initial model; nothing is written.

    Args:
        config: the experiment.
        data: images and annotations of the experiment.
        resumed: the folder of a run that is resumed; initial weights that it does not need any more are not read.

    Raises:
        UserError: the options contradict each other, or do not fit the data or this machine.
    """
    check_machine(config.training)
    _check_val(data)
    _check_shares(config.training, data)
    check_proposals(config)
    recipe = RECIPES[type(recipe_of(config))]
    seed_everything(config.training.seed, verbose=False)
    return recipe(config, data, blank=resumed is not None and recipe.needs_no_weights(resumed))


def fit_classifier(
    config: ClassificationConfig,
    data: ClassificationData,
    out: Path,
    resume: bool = False,
    extras: loop.Extras = loop.NO_EXTRAS,
) -> tuple[Path, float]:
    """Train a classifier, like `fit`."""
    config = _recorded(config)
    started = time.monotonic()
    check_machine(config.training)
    if config.training.recipe is not None:
        raise UserError("training.recipe: recipes are for detectors; leave it out for a classifier")
    _check_shares(config.training, data)
    _check_size(config)
    seed_everything(config.training.seed, verbose=False)
    blank, path = resume and last_checkpoint(out).exists(), config.training.weights
    model = build_model(config, data.classes, None if blank or path is None else read_weights(path), blank)
    assert isinstance(model, Classifier)
    if blank:
        _log_changes(check_resumable(config, data.classes, last_checkpoint(out)), last_checkpoint(out))
    card = model_card(config, data.classes)
    with _session(config, out, resume):
        loop.run_loop(ClassifierModule(model, config.training, data.val, card), data, out, resume, extras)
    return best_checkpoint(out), time.monotonic() - started


@contextmanager
def _session(config: Experiment, out: Path, resume: bool, division: Division | None = None) -> Iterator[None]:
    """Own the run's folder: only this process, or the processes of this training, may write to it."""
    with owned(out), interruptible():
        # Only the first process checks: to the others, this run itself might look like another one that has begun.
        if not resume and is_first() and (out / "config.yaml").exists():
            raise UserError(f"{out}: another run has begun in this folder; give another --out")
        clock.begin(out, resume)
        if division is not None:
            _save(out / DIVISION, division_json(division))
        _save(out / "config.yaml", config_to_yaml(config))
        try:
            yield
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            raise UserError(disk_full_message(out, str(error.strerror))) from None
        clock.end(out)


def _log_changes(changes: str, checkpoint: Path) -> None:
    if changes:
        log.info("--resume: %s continues with %s", checkpoint, changes)


@rank_zero_only
def _save(file: Path, text: str) -> None:
    write(file, text)


def _recorded(config: E) -> E:
    """Return the experiment for the run's folder: with this machine's precision for `auto`, and with absolute paths."""
    config = replace(config, training=replace(config.training, precision=resolve_precision(config.training)))
    return with_absolute_paths(config)


def _check_val(data: DetectionData) -> None:
    if data.val is not None and all(record.crowd.all() for record in data.val.records):
        raise UserError(
            f"{data.val.source}: the split {data.val.split} has no boxes, so it cannot select the best checkpoint; "
            "name another with --data.val, or null"
        )


def _check_shares(training: TrainingOptions, data: DetectionData | ClassificationData) -> None:
    """Raise `UserError` if a process would have no batch to validate on; Lightning would end the run there."""
    processes = count_processes(training)
    if data.val is not None and len(batches := data.val_dataloader()) < processes:
        raise UserError(
            f"{data.val.root}: the split {data.val.split} has batches for {len(batches)} of {processes} processes; "
            "lower --data.eval_batch_size or use fewer processes"
        )


def _check_size(config: ClassificationConfig) -> None:
    """Raise `UserError` if the images are too small for the network, checked by a pass on the meta device."""
    size, options = config.data.size, replace(config.model, backbone=replace(config.model.backbone, weights=None))
    with torch.device("meta"):
        model = Classifier(1, options).eval()
        try:
            model(torch.empty(1, 3, size, size, dtype=torch.uint8))
        except (RuntimeError, ValueError) as error:  # torch's own: a layer's map has one cell or none
            raise UserError(f"data.size: {size} pixels are too few for the network; give more ({error})") from None
