"""One experiment: data, model, Lightning's loop, and what remains of it on disk."""

from __future__ import annotations

import csv
import os
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only

from detect.checkpoint import load_checkpoint, model_card
from detect.config import Config, TrainingOptions, save_config
from detect.data.datamodule import DetectionData
from detect.errors import UserError
from detect.models import Detector
from detect.training.callbacks import ProgressBar, StopOnNaN
from detect.training.checkpoints import AtomicCheckpointIO
from detect.training.module import DetectorModule

LIGHTNING_PRECISION: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def fit(config: Config, data: DetectionData, out: Path, resume: bool = False) -> tuple[Path, float]:
    """Trains as the config says; returns the best checkpoint (the last without validation) and the seconds it took.

    The folder `out` then holds `config.yaml`, `metrics.csv`, `tensorboard/` and `checkpoints/{best,last}.ckpt`. With
    `resume` the run goes on after the folder's last checkpoint.
    """
    _check(config.training, out, resume)
    started = time.monotonic()
    seed_everything(config.training.seed, verbose=False)
    # All that can be wrong with the config is found before there is a folder.
    model, *other = (config.model.build(len(data.classes)) for _ in range(2 if config.training.alternating else 1))
    card = model_card(config, data.train)
    if resume:
        _compare(config, data.classes, _last(out))
    _begin_folder(config, out)
    if other:
        _fit_alternating(model, other[0], config.training, data, card, out)
    else:
        _fit(DetectorModule(model, config.training, data.val, card), data, out, resume)
    best, last = (out / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
    return best if best.exists() else last, time.monotonic() - started


def _fit(module: DetectorModule, data: DetectionData, out: Path, resume: bool = False) -> None:
    """Lightning's loop with our callbacks."""
    training, validates = module.training_options, module.evaluator is not None
    metrics = CSVLogger(out, name="", version="")
    with warnings.catch_warnings():
        # Advice on the number of workers, and Lightning's own use of what torch deprecates, help no user.
        warnings.filterwarnings("ignore", module="lightning")
        trainer = Trainer(
            accelerator=training.accelerator,
            **_processes(training),
            precision=LIGHTNING_PRECISION[training.precision],
            max_epochs=training.epochs,
            gradient_clip_val=training.clip_norm,
            check_val_every_n_epoch=training.validate_every,
            limit_val_batches=None if validates else 0,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            callbacks=_callbacks(training, out, validates),
            logger=[metrics, TensorBoardLogger(out, name="", version="tensorboard")],
            plugins=[AtomicCheckpointIO()],
            log_every_n_steps=10,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        if resume:
            _keep_rows(metrics, out / "metrics.csv")
        trainer.fit(module, datamodule=data, ckpt_path=_last(out) if resume else None, weights_only=True)


def _callbacks(training: TrainingOptions, out: Path, validates: bool) -> list[Callback]:
    keep = partial(ModelCheckpoint, dirpath=out / "checkpoints", enable_version_counter=False)
    callbacks: list[Callback] = [
        ProgressBar(),
        StopOnNaN(),
        LearningRateMonitor(logging_interval="step"),
        keep(filename="last", save_on_train_epoch_end=True),
    ]
    if validates:
        callbacks.append(keep(filename="best", monitor="AP", mode="max", save_on_train_epoch_end=False))
    if training.ema is not None:
        callbacks.append(EMAWeightAveraging(decay=training.ema))
    if training.patience is not None and validates:
        callbacks.append(EarlyStopping("AP", mode="max", patience=training.patience))
    return callbacks


class _DDP(DDPStrategy):
    """Validates without DDP's wrapper, whose broadcasts would hang where processes have unequal shares of images."""

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        assert self.lightning_module is not None
        return self.lightning_module.validation_step(*args, **kwargs)


def _processes(training: TrainingOptions) -> dict[str, Any]:
    """How many processes there are: as torchrun started them, else as the config says."""
    # With alternation only a part of the parameters is trained in each phase.
    parallel = _DDP(find_unused_parameters=training.alternating)
    if torch.distributed.is_torchelastic_launched():
        here, machines = (int(os.environ[name]) for name in ("LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"))
        return {"devices": here, "num_nodes": machines, "strategy": parallel}
    several = training.devices not in ("auto", 1, "1") or torch.cuda.device_count() > 1
    return {"devices": training.devices, "strategy": parallel if several else "auto"}


@rank_zero_only
def _keep_rows(metrics: CSVLogger, file: Path) -> None:
    """Lightning begins `metrics.csv` anew; a run that goes on keeps the rows that are there."""
    if file.exists():
        with file.open(newline="", encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
        metrics.experiment.metrics += rows


def _last(out: Path) -> Path:
    return out / "checkpoints" / "last.ckpt"


@rank_zero_only
def _begin_folder(config: Config, out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        save_config(config, out / "config.yaml")
    except OSError as error:
        raise UserError(f"{out}: {error.strerror}; choose another folder with --out") from None


def _check(training: TrainingOptions, out: Path, resume: bool) -> None:
    if training.precision == "fp16" and not torch.cuda.is_available():
        raise UserError("training.precision: fp16 needs a CUDA device; choose bf16 or fp32")
    if resume and training.alternating:
        raise UserError("--resume: alternating training cannot go on; start anew without it")
    if resume and not _last(out).exists():
        raise UserError(f"{_last(out)}: there is no checkpoint to resume from; start anew without --resume")


def _compare(config: Config, classes: tuple[str, ...], last: Path) -> None:
    """A run goes on with the classes and the network that it began with, or its folder is left as it is."""
    before = load_checkpoint(last)
    if before.classes != classes:
        raise UserError(f"--resume: {last} has the classes {', '.join(before.classes)}; the data has others")
    if before.config.model != config.model:
        raise UserError(f"--resume: {last} has another network than the config; start a new run for another one")


# ---- the paper's four steps ------------------------------------------------------------------------------------------


def _fit_alternating(
    first: Detector, second: Detector, training: TrainingOptions, data: DetectionData, card: dict[str, Any], out: Path
) -> None:
    """Alternating training (Ren et al. 2015, §3.2): in the end RPN and detector share one backbone.

    1. An RPN is trained from the initial weights. 2. A detector is trained from the initial weights on its proposals;
    the two share nothing yet. 3. An RPN is trained on the detector's backbone, which is frozen. 4. The detector's own
    layers are trained on the proposals of that RPN, with backbone and RPN frozen.
    """
    assert first.rpn is not None and second.rpn is not None
    _fit(DetectorModule(first, training, None, card, ["rpn"]), data, out / "step1")
    _fit(DetectorModule(second, training, None, card, ["boxes"], proposer=first), data, out / "step2")
    second.rpn.load_state_dict(first.rpn.state_dict())
    # In eval mode, in which Lightning leaves it, so that the statistics of batch norms stay as well.
    second.backbone.requires_grad_(False).eval()
    _fit(DetectorModule(second, training, None, card, ["rpn"]), data, out / "step3")
    second.rpn.requires_grad_(False)
    _fit(DetectorModule(second, training, data.val, card, ["boxes"]), data, out)
