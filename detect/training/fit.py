"""One experiment: data, model, Lightning's loop, and what remains of it on disk."""

from __future__ import annotations

import os
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from lightning import Callback, Trainer, seed_everything
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, WeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from detect.checkpoint import load_any, load_checkpoint, model_card
from detect.config import (
    ClassificationConfig,
    Config,
    Experiment,
    RCNNOptions,
    TrainingOptions,
    check_proposals,
    config_to_yaml,
)
from detect.data.classification import ClassificationData
from detect.data.datamodule import DetectionData
from detect.devices import multiplies_bf16, warn_of_slow_bf16
from detect.errors import UserError
from detect.models import RCNN, Detector
from detect.structures import Targets
from detect.training import clock
from detect.training.callbacks import ProgressBar, StopOnNaN
from detect.training.checkpoints import AtomicCheckpointIO, save_detector
from detect.training.metrics import MetricsFile
from detect.training.module import ClassifierModule, DetectorModule, TrainingModule
from detect.training.rcnn_stages import train_stages
from detect.training.run_folder import FULL, complaint, is_first, owned, write
from detect.training.saving import Patience, SaveLast, interruptible

PATIENCE = timedelta(minutes=10)
"""How long a process waits for another whose machine is lost; one that dies is noticed at once. None is as far behind
the others as that, but where a large model is compiled."""
TUNED = "fine_tuning"
"""The folder of R-CNN's first stage."""
E = TypeVar("E", Config, ClassificationConfig)
LIGHTNING_PRECISION: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def fit(config: Config, data: DetectionData, out: Path, resume: bool = False) -> tuple[Path, float]:
    """Trains as the config says; returns the best checkpoint (the last without validation) and the seconds it took.

    The folder `out` then holds `config.yaml`, `metrics.csv`, `tensorboard/`, `checkpoints/{best,last}.ckpt` and
    `training.json` with the seconds of all sessions. With `resume` the run goes on after the folder's last checkpoint,
    or begins where it did not come to one.

    Raises `KeyboardInterrupt` when it is interrupted, with whole checkpoints.
    """
    config = _with_precision(config)
    started = time.monotonic()
    # All that can be wrong with the config is found before there is a folder.
    model, *other = build(config, data)
    if model.statistics is not None:
        _measure_deltas(model, data)
    card = model_card(config, data.train.classes, data.train.category_ids)
    for checkpoint in (_last(out), _last(out / TUNED), _last(out / "step1")):
        if resume and checkpoint.exists():
            _compare(config, data.classes, checkpoint)
    with _session(config, out, resume):
        if other:
            _fit_alternating(model, other[0], config.training, data, card, out, resume)
        elif isinstance(model, RCNN):
            _fit_stages(model, config, data, card, out, resume)
        else:
            _fit(DetectorModule(model, config.training, data.val, card), data, out, resume)
    return best_checkpoint(out), time.monotonic() - started


def fit_classifier(
    config: ClassificationConfig, data: ClassificationData, out: Path, resume: bool = False
) -> tuple[Path, float]:
    """As `fit`, with a classifier."""
    config = _with_precision(config)
    started = time.monotonic()
    _check(config.training)
    if config.training.alternating:
        raise UserError("training.alternating: a classifier has no RPN to train in turns with")
    _check_shares(config.training, data)
    _check_size(config)
    seed_everything(config.training.seed, verbose=False)
    model = config.model.build(len(data.classes))
    if resume and _last(out).exists():
        before = load_any(_last(out))
        if (before.classes, before.config.model) != (data.classes, config.model):
            raise UserError(f"--resume: {_last(out)} has other classes or another network; start a new run for these")
    card = model_card(config, data.classes)
    with _session(config, out, resume):
        _fit(ClassifierModule(model, config.training, data.val, card), data, out, resume)
    return best_checkpoint(out), time.monotonic() - started


def build(config: Config, data: DetectionData) -> list[Detector]:
    """The model as training begins, two for the paper's four steps; the data is read, and nothing written.

    Raises `UserError` where the config does not fit itself, the data or this machine.
    """
    _check(config.training)
    _check_val(data)
    _check_shares(config.training, data)
    seed_everything(config.training.seed, verbose=False)
    models: list[Detector] = [
        config.model.build(len(data.classes)) for _ in range(2 if config.training.alternating else 1)
    ]
    _check_model(models[0], config)
    return models


def best_checkpoint(out: Path) -> Path:
    """What a run is judged by: the best checkpoint, or the last of a run without validation."""
    best, last = (out / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
    return best if best.exists() else last


def _fit(module: TrainingModule, data: DetectionData | ClassificationData, out: Path, resume: bool = False) -> None:
    """Lightning's loop with our callbacks."""
    training, validates = module.training_options, module.evaluator is not None
    resume = resume and _last(out).exists()
    seen = torch.load(_last(out), weights_only=True, mmap=True) if resume else {"metrics_rows": 0, "global_step": 0}
    metrics = MetricsFile(out / "metrics.csv", seen["metrics_rows"], seen["global_step"])
    # What TensorBoard was told after the checkpoint goes as well.
    board = TensorBoardLogger(out, name="", version="tensorboard", purge_step=seen["global_step"] if resume else None)
    with warnings.catch_warnings():
        # Advice on the number of workers, and Lightning's own use of what torch deprecates, help no user.
        warnings.filterwarnings("ignore", module="lightning")
        trainer = Trainer(
            **_processes(training),
            precision=LIGHTNING_PRECISION[training.precision],
            max_epochs=training.epochs,
            gradient_clip_val=training.clip_norm,
            check_val_every_n_epoch=training.validate_every,
            limit_val_batches=None if validates else 0,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            callbacks=_callbacks(training, out, module.monitor if validates else None, metrics),
            logger=[metrics, board],
            plugins=[AtomicCheckpointIO(), *_cluster(training)],
            default_root_dir=out,
            log_every_n_steps=10,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        try:
            trainer.fit(module, datamodule=data, ckpt_path=_last(out) if resume else None, weights_only=True)
        except SystemExit:  # which is what Lightning makes of it
            raise KeyboardInterrupt from None


def _callbacks(training: TrainingOptions, out: Path, monitor: str | None, metrics: MetricsFile) -> list[Callback]:
    callbacks: list[Callback] = [
        ProgressBar(),
        StopOnNaN(),
        LearningRateMonitor(logging_interval="step"),
        SaveLast(_last(out), training.save_minutes, metrics),
    ]
    if monitor is not None:
        folder: dict[str, Any] = {"dirpath": out / "checkpoints", "enable_version_counter": False}
        callbacks.append(_Best(filename="best", monitor=monitor, mode="max", save_on_train_epoch_end=False, **folder))
    if training.ema is not None:
        # Not EMAWeightAveraging, whose formula also moves what is constant, such as anchors, by a rounding a step.
        callbacks.append(WeightAveraging(use_buffers=True, multi_avg_fn=get_ema_multi_avg_fn(training.ema)))
    if training.patience is not None and monitor is not None:
        callbacks.append(Patience(monitor, mode="max", patience=training.patience))
    return callbacks


class _Best(ModelCheckpoint):
    """Keeps the epoch of the highest figure; of several, as of those at zero, the last."""

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        equal = current is not None and current == self.best_model_score
        return bool(equal) or super().check_monitor_top_k(trainer, current)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Also of a folder that has moved since; Lightning would forget what was best, and overwrite it."""
        here = Path(self.dirpath or ".")
        paths = ("best_model_path", "kth_best_model_path", "last_model_path")
        moved = {name: str(here / Path(path).name) if (path := state_dict.get(name)) else "" for name in paths}
        best = {str(here / Path(path).name): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **moved, "best_k_models": best, "dirpath": self.dirpath})


class _DDP(DDPStrategy):
    """Validates without DDP's wrapper, whose broadcasts would hang where processes have unequal shares of images."""

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        assert self.lightning_module is not None
        with self.precision_plugin.val_step_context():
            return self.lightning_module.validation_step(*args, **kwargs)


def _processes(training: TrainingOptions) -> dict[str, Any]:
    """Where training runs and in how many processes: as torchrun started them, else as the config says."""
    # With alternation only a part of the parameters is trained in each phase.
    parallel = _DDP(find_unused_parameters=training.alternating, timeout=PATIENCE)
    if torch.distributed.is_torchelastic_launched():
        here, machines = (int(os.environ[name]) for name in ("LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"))
        return {"accelerator": training.accelerator, "devices": here, "num_nodes": machines, "strategy": parallel}
    several = count_processes(training) > 1
    devices = training.devices or "auto"
    return {"accelerator": training.accelerator, "devices": devices, "strategy": parallel if several else "auto"}


def _cluster(training: TrainingOptions) -> list[Any]:
    """No requeueing by Lightning in SLURM: it saves amid a step, in the working directory, where runs then begin."""
    if not SLURMEnvironment.detect() or torch.distributed.is_torchelastic_launched():
        return []
    return [SLURMEnvironment(auto_requeue=False) if count_processes(training) > 1 else LightningEnvironment()]


def _with_precision(config: E) -> E:
    """The experiment with what `auto` stands for here; the folder of the run remembers it."""
    return replace(config, training=replace(config.training, precision=_precision(config.training)))


def _precision(training: TrainingOptions) -> Literal["auto", "fp32", "bf16", "fp16"]:
    on_gpu = training.accelerator != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    if training.precision == "auto":
        return "bf16" if multiplies_bf16(device) else "fp32"
    if training.precision == "bf16":
        warn_of_slow_bf16(device)
    return training.precision


def count_processes(training: TrainingOptions) -> int:
    """How many processes a training takes here."""
    if torch.distributed.is_torchelastic_launched():
        return int(os.environ["WORLD_SIZE"])
    return training.devices or max(1, 0 if training.accelerator == "cpu" else torch.accelerator.device_count())


def _last(out: Path) -> Path:
    return out / "checkpoints" / "last.ckpt"


@contextmanager
def _session(config: Experiment, out: Path, resume: bool) -> Iterator[None]:
    """The time in which this process, and no other, writes to the folder of a run."""
    with owned(out), interruptible():
        # The first process alone asks: to the others it would be their own run that has begun.
        if not resume and is_first() and (out / "config.yaml").exists():
            raise UserError(f"{out}: another run has begun in this folder; give another --out")
        clock.begin(out, resume)
        _save_config(config, out)
        try:
            yield
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise UserError(complaint(out, str(error.strerror), None, full=True)) from None
        clock.end(out)


@rank_zero_only
def _save_config(config: Experiment, out: Path) -> None:
    write(out / "config.yaml", config_to_yaml(config))


def _check(training: TrainingOptions) -> None:
    gpus, processes = torch.accelerator.device_count(), count_processes(training)
    if training.accelerator == "gpu" and not gpus:
        raise UserError("training.accelerator: torch sees no GPU; choose cpu or auto")
    if gpus and training.accelerator != "cpu" and processes > gpus * int(os.environ.get("GROUP_WORLD_SIZE", 1)):
        raise UserError(f"training.devices: there are {gpus} GPUs here for {processes} processes; choose fewer")
    if training.precision == "fp16" and not torch.cuda.is_available():
        raise UserError("training.precision: fp16 needs a CUDA device; choose auto, bf16 or fp32")


def _check_val(data: DetectionData) -> None:
    if data.val is not None and all(record.crowd.all() for record in data.val.records):
        raise UserError(
            f"{data.val.root}: the split {data.val.split} has no boxes, so it cannot tell the best checkpoint; "
            "name another with --data.val, or null"
        )


def _check_shares(training: TrainingOptions, data: DetectionData | ClassificationData) -> None:
    """Each process must have a batch to validate on: Lightning ends where one has none."""
    processes = count_processes(training)
    if data.val is not None and len(batches := data.val_dataloader()) < processes:
        raise UserError(
            f"{data.val.root}: the split {data.val.split} has batches for {len(batches)} of {processes} processes; "
            "lower --data.eval_batch_size or take fewer processes"
        )


def _check_size(config: ClassificationConfig) -> None:
    """A pass without data, and without the weights, which change nothing of the shapes."""
    size, options = config.data.size, replace(config.model, backbone=replace(config.model.backbone, weights=None))
    with torch.device("meta"):
        model = options.build(num_classes=1).eval()
        try:
            model(torch.empty(1, 3, size, size, dtype=torch.uint8))
        except (RuntimeError, ValueError) as error:  # torch's own, of a layer that is left without a cell, or with one
            raise UserError(f"data.size: {size} pixels are too few for the network; give more ({error})") from None


def _check_model(model: Detector, config: Config) -> None:
    check_proposals(config)
    if model.rpn is not None and model.statistics is not None:
        raise UserError("model.boxes.delta_weights: null needs proposals before training, and an RPN has none yet")
    if isinstance(model, RCNN) and model.statistics is not None:
        raise UserError("model.boxes.delta_weights: null is for fast_rcnn; rcnn learns with factors, the paper's are 1")
    if isinstance(model, RCNN) and count_processes(config.training) > 1:
        raise UserError("training.devices: the stages of rcnn run in one process; give --training.devices 1")
    if model.rpn is None and config.training.alternating:
        raise UserError(f"training.alternating: {config.model.name} has no RPN to train in turns with")


def _measure_deltas(model: Detector, data: DetectionData) -> None:
    """Mean and variance of the training split's box deltas; flips and scales change neither much."""
    assert model.statistics is not None
    records = data.train.records
    truths = (
        Targets(*(torch.from_numpy(array)[None] for array in (r.boxes, r.labels, ~r.crowd, r.crowd))) for r in records
    )
    proposals = (torch.from_numpy(boxes) for boxes in data.proposals_of(data.train))
    model.statistics.measure(zip(proposals, truths, strict=True), model.coder, model.matcher)


def _compare(config: Config, classes: tuple[str, ...], last: Path) -> None:
    """A run goes on with the classes and the network that it began with, or its folder is left as it is."""
    before = load_checkpoint(last)
    if before.classes != classes:
        raise UserError(f"--resume: {last} has the classes {', '.join(before.classes)}; the data has others")
    if before.config.model != config.model:
        raise UserError(f"--resume: {last} has another network than the config; start a new run for another one")
    for name in ("optimizer", "learning_rate", "momentum", "nesterov", "weight_decay", "bias_rate"):
        was, wanted = getattr(before.config.training, name), getattr(config.training, name)
        if was != wanted:
            raise UserError(f"--resume: {last} began with training.{name} {was} and not {wanted}; start a new run")


# ---- R-CNN's stages --------------------------------------------------------------------------------------------------


def _fit_stages(
    model: RCNN, config: Config, data: DetectionData, card: dict[str, Any], out: Path, resume: bool
) -> None:
    """The network by gradients, its SVMs and box regressors from its features (Girshick et al. 2014, §2.3).

    Each stage goes on where it ended. There is no validation: before the last stage there is no detector.
    """
    assert isinstance(config.model, RCNNOptions)
    done, stages = out / "checkpoints" / "best.ckpt", out / "stages"
    if resume and done.exists():
        return
    if config.model.fine_tuning:
        _fit_step(DetectorModule(model, config.training, None, card), data, out / TUNED, resume)
    cuda = config.training.accelerator != "cpu" and torch.cuda.is_available()
    train_stages(model.to("cuda" if cuda else "cpu").eval(), data.eval_loader(data.train), config.model, stages)
    save_detector(model, card, done)
    shutil.rmtree(stages, ignore_errors=True)


# ---- the paper's four steps ------------------------------------------------------------------------------------------


def _fit_alternating(
    first: Detector,
    second: Detector,
    training: TrainingOptions,
    data: DetectionData,
    card: dict[str, Any],
    out: Path,
    resume: bool,
) -> None:
    """Alternating training (Ren et al. 2015, §3.2): in the end RPN and detector share one backbone.

    1. An RPN is trained from the initial weights. 2. A detector is trained from the initial weights on its proposals;
    the two share nothing yet. 3. An RPN is trained on the detector's backbone, which is frozen. 4. The detector's own
    layers are trained on the proposals of that RPN, with backbone and RPN frozen.

    A run goes on in the step that it was in; of those before it, the last checkpoints are read.
    """
    assert first.rpn is not None and second.rpn is not None
    _fit_step(DetectorModule(first, training, None, card, ["rpn"]), data, out / "step1", resume)
    _fit_step(DetectorModule(second, training, None, card, ["boxes"], proposer=first), data, out / "step2", resume)
    second.rpn.load_state_dict(first.rpn.state_dict())
    # In eval mode, in which Lightning leaves it, so that the statistics of batch norms stay as well.
    second.backbone.requires_grad_(False).eval()
    _fit_step(DetectorModule(second, training, None, card, ["rpn"]), data, out / "step3", resume)
    second.rpn.requires_grad_(False)
    _fit(DetectorModule(second, training, data.val, card, ["boxes"]), data, out, resume)


def _fit_step(module: DetectorModule, data: DetectionData, out: Path, resume: bool) -> None:
    """Leaves the model as it is on the disk, where an average of the weights stands in their place."""
    _fit(module, data, out, resume)
    module.model.load_state_dict(load_checkpoint(_last(out)).model.state_dict())
