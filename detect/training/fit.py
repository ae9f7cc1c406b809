"""One experiment: data, model, Lightning's loop, and what remains of it on disk."""

from __future__ import annotations

import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy

from detect.checkpoint import model_card
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
    _check(config.training)
    seed_everything(config.training.seed, verbose=False)
    out.mkdir(parents=True, exist_ok=True)
    save_config(config, out / "config.yaml")
    started = time.monotonic()
    if config.training.alternating:
        _fit_alternating(config, data, out)
    else:
        model = config.model.build(len(data.classes))
        _fit(DetectorModule(model, config.training, data.val, model_card(config, data.train)), data, out, resume)
    best, last = (out / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
    return best if best.exists() else last, time.monotonic() - started


def _fit(module: DetectorModule, data: DetectionData, out: Path, resume: bool = False) -> None:
    """Lightning's loop with our callbacks."""
    training, validates = module.training_options, data.val is not None
    last = out / "checkpoints" / "last.ckpt"
    if resume and not last.exists():
        raise UserError(f"{last}: there is no checkpoint to resume from; start anew without --resume")
    with warnings.catch_warnings():
        # Advice on the number of workers, and Lightning's own use of what torch deprecates, help no user.
        warnings.filterwarnings("ignore", module="lightning")
        trainer = Trainer(
            accelerator=training.accelerator,
            devices=training.devices,
            strategy=_strategy(training),
            precision=LIGHTNING_PRECISION[training.precision],
            max_epochs=training.epochs,
            gradient_clip_val=training.clip_norm,
            check_val_every_n_epoch=training.validate_every,
            limit_val_batches=None if validates else 0,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            callbacks=_callbacks(training, out, validates),
            logger=[CSVLogger(out, name="", version=""), TensorBoardLogger(out, name="", version="tensorboard")],
            plugins=[AtomicCheckpointIO()],
            log_every_n_steps=10,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, datamodule=data, ckpt_path=last if resume else None, weights_only=True)


def _callbacks(training: TrainingOptions, out: Path, validates: bool) -> list[Callback]:
    best = {"monitor": "AP", "mode": "max", "filename": "best"} if validates else {"filename": "last"}
    callbacks: list[Callback] = [
        ProgressBar(),
        StopOnNaN(),
        LearningRateMonitor(logging_interval="step"),
        ModelCheckpoint(
            dirpath=out / "checkpoints", save_last=validates, save_top_k=1, enable_version_counter=False, **best
        ),
    ]
    if training.ema is not None:
        callbacks.append(EMAWeightAveraging(decay=training.ema))
    if training.patience is not None and validates:
        callbacks.append(EarlyStopping("AP", mode="max", patience=training.patience))
    return callbacks


class _DDP(DDPStrategy):
    """Validates without DDP's wrapper, whose broadcasts would hang where processes have unequal shares of images."""

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        return self.lightning_module.validation_step(*args, **kwargs)


def _strategy(training: TrainingOptions) -> DDPStrategy | str:
    several = torch.distributed.is_torchelastic_launched() or training.devices not in ("auto", 1, "1")
    if not several and torch.cuda.device_count() < 2:
        return "auto"
    # With alternation only a part of the parameters is trained in each phase.
    return _DDP(find_unused_parameters=training.alternating)


def _check(training: TrainingOptions) -> None:
    if training.precision == "fp16" and not torch.cuda.is_available():
        raise UserError("training.precision: fp16 needs a CUDA device; choose bf16 or fp32")


# ---- the paper's four steps ------------------------------------------------------------------------------------------


def _fit_alternating(config: Config, data: DetectionData, out: Path) -> None:
    """Alternating training (Ren et al. 2015, §3.2): in the end RPN and detector share one backbone.

    1. An RPN is trained from the initial weights. 2. A detector is trained from the initial weights on its proposals;
    the two share nothing yet. 3. An RPN is trained on the detector's backbone, which is frozen. 4. The detector's own
    layers are trained on the proposals of that RPN, with backbone and RPN frozen.
    """
    first, second = (config.model.build(len(data.classes)) for _ in range(2))
    card = model_card(config, data.train)

    def phase(number: int, model: Detector, part: Any, proposer: Detector | None = None) -> None:
        module = DetectorModule(model, config.training, data.val if number == 4 else None, card, [part], proposer)
        _fit(module, data if number == 4 else _without_validation(data), out if number == 4 else out / f"step{number}")

    phase(1, first, "rpn")
    phase(2, second, "boxes", proposer=first)
    assert first.rpn is not None and second.rpn is not None
    second.rpn.load_state_dict(first.rpn.state_dict())
    second.backbone.requires_grad_(False)
    phase(3, second, "rpn")
    second.rpn.requires_grad_(False)
    phase(4, second, "boxes")


def _without_validation(data: DetectionData) -> DetectionData:
    return DetectionData(replace(data.options, val=None), data.classes, data.seed)
