"""`detect.train` and `detect train`: train an experiment, then evaluate its best checkpoint.

run = detect.train("photos", epochs=20, short_side=[480], learning_rate=2e-4)
run.metrics["AP50"], run.best, run.report
model = run.predictor()
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from lightning import Callback
from lightning.pytorch.loggers import Logger

from detect.allocator import keep_pages
from detect.checkpoint import ClassifierCheckpoint, load_any, load_checkpoint
from detect.config import ClassificationConfig, Config, Experiment, as_overrides
from detect.curation.divide import divide
from detect.data.classification import ClassificationData
from detect.data.datamodule import DetectionData
from detect.data.dataset import Dataset
from detect.data.defects import summary
from detect.data.formats import imagefolder
from detect.data.limits import unused_classes
from detect.files.folders import unused_folder
from detect.models import DetectorOptions
from detect.prediction.evaluate_checkpoint import Evaluation, evaluate_checkpoint, evaluate_classifier_checkpoint
from detect.prediction.predictor import Predictor
from detect.processes import print_once
from detect.training.fit import fit, fit_classifier
from detect.training.loop import NO_EXTRAS, Extras, silence_lightning
from detect.training.request import Request, resolve, sections_of

AnyPath = str | PathLike[str]


@dataclass(frozen=True, slots=True)
class Run:
    """A finished training run."""

    out: Path
    """Folder of the run."""
    best: Path
    """Best checkpoint; without validation the last one."""
    seconds: float
    """Duration of the training."""
    evaluation: Evaluation | None = None
    """Evaluation of the best checkpoint on the test split, else on the validation split; None without both."""

    @property
    def metrics(self) -> dict[str, Any]:
        """Metrics of the evaluation by name, such as `AP` and `AP50`; empty without one."""
        return self.evaluation.metrics if self.evaluation else {}

    @property
    def report(self) -> Path | None:
        """Page with the report of a detector's evaluation."""
        page = None if self.evaluation is None else self.evaluation.out / "report.html"
        return page if page and page.exists() else None

    def predictor(self) -> Predictor:
        """Load the best checkpoint of a detector, ready to predict."""
        return Predictor(load_checkpoint(self.best), self.best)

    def __repr__(self) -> str:
        shown = [name for name in ("AP", "AP50", "top1") if isinstance(self.metrics.get(name), float)]
        metrics = ", ".join(f"{name} {self.metrics[name]:.3f}" for name in shown)
        on = f" on {self.evaluation.split}" if self.evaluation else ""
        return f"Run({metrics}{on}{', ' if metrics else ''}best {self.best}, trained in {self.seconds:.0f} s)"


def train(
    data: AnyPath | Sequence[AnyPath] | None = None,
    *,
    model: AnyPath | Experiment | DetectorOptions | None = None,
    weights: AnyPath | None = None,
    epochs: int | None = None,
    out: AnyPath | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    logger: Logger | Sequence[Logger] = (),
    **options: Any,
) -> Run:
    """Train a detector or a classifier, then evaluate its best checkpoint, like `detect train`.

    If only data is given, the config is `small/faster_rcnn`; the rest is chosen from the data and printed.

    Args:
        data: data folder or annotation file, or a list of these, which are joined; by default the config's.
        model: name of a config (`detect configs` lists them), its YAML file, a `Config`, or the options of a detector,
            such as `FasterRCNNOptions()`, of which all other options are chosen from the data.
        weights: file of a model to begin from, see `--weights`; without `model` its network and sizes are used.
        epochs: passes over the training split.
        out: folder of the run, with all that it writes; by default a new one under `runs`.
        resume: continue the run in `out`, or begin it if there is none.
        callbacks: Lightning's callbacks, beside those of this package.
        logger: one of Lightning's loggers or several, beside `metrics.csv` and TensorBoard.
        options: other options of data and training by their name in configs, such as `learning_rate=1e-4`, `val=0.2`
            or `accelerator="cpu"`; those of the model by their whole name in a dictionary, such as
            `**{"model.rpn.nms_threshold": 0.6}`. `detect options` lists all.

    Returns:
        The run with its metrics, checkpoint and report.

    Raises:
        UserError: an option, the data or the folder cannot be used; the message is one line with the remedy.
        KeyboardInterrupt: the run was interrupted; its checkpoints are complete, and `resume=True` continues it.
    """
    named = model is None or isinstance(model, str | PathLike)
    request = Request(
        data=_paths(data),
        config=Path(model) if isinstance(model, str | PathLike) else None,
        sections={} if named else sections_of(model),
        weights=None if weights is None else Path(weights),
        overrides=tuple(as_overrides(options if epochs is None else {"epochs": epochs, **options})),
        out=None if out is None else Path(out),
        resume=resume,
    )
    if not logging.getLogger("detect").hasHandlers():  # otherwise the program handles what is logged
        print_log()
    return run(request, extras=Extras(tuple(callbacks), (logger,) if isinstance(logger, Logger) else tuple(logger)))


def run(request: Request, command: str | None = None, extras: Extras = NO_EXTRAS) -> Run:
    """Train and evaluate the experiment of a request, like `train`; `command` is the command line, for the report."""
    experiment, out, told = resolve(request)
    for line in told:
        print_once(line)
    if isinstance(experiment, Config):
        return train_detector(experiment, out, command, request.resume, extras)
    return _train_classifier(experiment, out, request.resume, extras)


def train_detector(
    config: Config, out: Path, command: str | None = None, resume: bool = False, extras: Extras = NO_EXTRAS
) -> Run:
    """Train a detector in the folder `out`, and evaluate it on the test split, else on the validation split."""
    silence_lightning()
    keep_pages()
    data = DetectionData(config.data, None, config.training.seed, divide, config.model.predicts_masks)
    final = config.data.final
    _tell_data(data, final)
    _print_notes(config)
    with _resume_hint(out):
        best, seconds = fit(config, data, out, resume, extras)
    print_once(f"trained in {seconds:.0f} s: {best}")
    if final is None:
        return Run(out, best, seconds)
    checkpoint, results = load_checkpoint(best), unused_folder(out / "eval")
    accelerator = config.training.accelerator
    evaluation = evaluate_checkpoint(checkpoint, best, data, final, results, command=command, accelerator=accelerator)
    return Run(out, best, seconds, evaluation)


def _tell_data(data: DetectionData, final: str | None) -> None:
    """Print the division, a summary of each split, and classes that cannot be learned."""
    datasets: list[Dataset] = [data.train, *([data.val] if data.val else []), *([data.split(final)] if final else [])]
    for line in data.division.lines() if data.division else ():
        print_once(line)
    for dataset in {dataset.split: dataset for dataset in datasets}.values():
        print_once(summary(dataset))
    if note := unused_classes(data.train):
        print_once(note)


def _train_classifier(config: ClassificationConfig, out: Path, resume: bool, extras: Extras) -> Run:
    silence_lightning()
    keep_pages()
    data = ClassificationData(config.data, seed=config.training.seed)
    final = config.data.final
    for dataset in (data.train, data.val, data.split(final) if final else None):
        if dataset is not None:
            print_once(imagefolder.summary(dataset))
    _print_notes(config)
    with _resume_hint(out):
        best, seconds = fit_classifier(config, data, out, resume, extras)
    print_once(f"trained in {seconds:.0f} s: {best}")
    if final is None:
        return Run(out, best, seconds)
    checkpoint = load_any(best)
    assert isinstance(checkpoint, ClassifierCheckpoint)
    results, accelerator = unused_folder(out / "eval"), config.training.accelerator
    evaluation = evaluate_classifier_checkpoint(checkpoint, best, data, final, results, accelerator)
    return Run(out, best, seconds, evaluation)


@contextmanager
def _resume_hint(out: Path) -> Iterator[None]:
    """Add the command that resumes the run to the message of an interruption."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; continue with: detect train --resume --out {out}") from None


def _print_notes(config: Experiment) -> None:
    """Print deviations from the paper, and a warning about frozen norms without weights."""
    for deviation in config.deviations:
        print_once(f"deviates from the paper: {deviation}")
    backbone = config.model.backbone
    if getattr(backbone, "norm", None) == "frozen" and backbone.weights is None and config.training.weights is None:
        print_once(
            "model.backbone.norm: frozen norms without weights do not normalise; batch or group trains better from "
            "scratch"
        )


class _Print(logging.Handler):
    """Prints log messages, in the first process."""

    def emit(self, record: logging.LogRecord) -> None:
        print_once(record.getMessage())


def print_log() -> None:
    """Print what is logged about weights and resuming."""
    log = logging.getLogger("detect")
    if not log.handlers:
        log.addHandler(_Print())
        log.setLevel(logging.INFO)


def _paths(data: AnyPath | Sequence[AnyPath] | None) -> tuple[Path, ...]:
    if data is None:
        return ()
    return (Path(data),) if isinstance(data, str | PathLike) else tuple(map(Path, data))
