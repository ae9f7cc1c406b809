"""`detect demo` and `detect train`."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detect.cli.evaluate import print_evaluation
from detect.cli.shared import CONFIG_HELP, add_command, detection_data, print_once, silence_lightning
from detect.errors import UserError
from detect.files.folders import refuse_used, unused_folder
from detect.processes import is_first_process

if TYPE_CHECKING:
    from detect.config import ClassificationConfig, Config, Experiment

OPTIONS_NOTE = """\
Any option of the config can be overridden with --section.key VALUE:
  --data.root DIR  --data.short_side [600]  --data.batch_size 8  --training.epochs 24
  --training.precision auto  --model.backbone.weights IMAGENET1K_V1
`detect options` lists all of them."""
RESUME_NOTE = " (to continue a run, give --resume)"


def add(commands: Any) -> None:
    """Add the commands."""
    demo = add_command(commands, "demo", _demo, "generate data, train, evaluate and report, in minutes", "detect demo")
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="a new folder (default: %(default)s)")

    train = add_command(
        commands,
        "train",
        _train,
        "train a detector or a classifier, then evaluate its best checkpoint",
        "detect train -c bccd/faster_rcnn --data.root data/bccd\n\n" + OPTIONS_NOTE,
    )
    train.add_argument("-c", "--config", type=Path, help=CONFIG_HELP)
    weights = "begin from a model: a checkpoint or .safetensors file of ours, or a file of torchvision or detectron2"
    train.add_argument("--weights", type=Path, metavar="FILE", help=weights)
    network = "take the network's options from --weights, as without -c, instead of the config"
    train.add_argument("--model", choices=("from-weights",), help=network)
    train.add_argument("--out", type=Path, help="the folder of the run (default: a new one under runs/)")
    resume = "continue the run in --out, or start it with -c if there is none"
    train.add_argument("--resume", action="store_true", help=resume)
    train.set_defaults(takes_overrides=True)


def _demo(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from detect.config.demo import demo_config
    from detect.curation.shapes import make_shapes

    refuse_used(options.out)
    data = make_shapes(options.out / "data", images={"train": 590, "val": 60})
    metrics = _train_detector(demo_config(data), options.out, options.command)
    print(f"AP50 {metrics['AP50']:.3f}. Open the report: {options.out / 'eval' / 'report.html'}")


def _train(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from detect.config import Config

    config, out = _config_and_folder(options, overrides)
    _print_log()
    if isinstance(config, Config):
        _train_detector(config, out, options.command, options.resume)
    else:
        _train_classifier(config, out, options.resume)


def _config_and_folder(options: argparse.Namespace, overrides: Sequence[str]) -> tuple[Experiment, Path]:
    """Return the experiment and the folder of its run. Raise `UserError` if the folder cannot be used for it."""
    if options.model and options.weights is None:
        raise UserError("--model from-weights: name the file with --weights FILE")
    if options.resume:
        if options.out is None:
            raise UserError("--resume: name the folder of the run with --out DIR")
        out, started = options.out, (options.out / "config.yaml").exists()
        if not started and options.config is None and options.weights is None:
            raise UserError(f"--resume: {out} has no run; give -c to start one")
        if not started and is_first_process() and not (out / ".lock").exists():
            refuse_used(out, RESUME_NOTE)
        return _with_division(_load(options, overrides, out / "config.yaml" if started else None), out), out
    if options.config is None and options.weights is None:
        raise UserError("-c: name the experiment, for example -c bccd/faster_rcnn")
    config = _load(options, overrides)
    out = options.out or _new_run_folder(options.config or options.weights)
    if is_first_process():
        refuse_used(out, RESUME_NOTE)
        return config, out
    return _with_division(config, out), out


def _with_division(config: Experiment, out: Path) -> Experiment:
    """Return the experiment with the division in the folder of its run, if there is one already."""
    from detect.config import Config, with_division
    from detect.data.division import DIVISION

    if isinstance(config, Config) and (out / DIVISION).exists():
        return with_division(config, out / DIVISION)
    return config


def _load(options: argparse.Namespace, overrides: Sequence[str], begun: Path | None = None) -> Experiment:
    """Return the experiment; `begun` is the config of a run that is resumed."""
    from detect.config import load_experiment
    from detect.training.from_weights import load_from_weights

    if options.weights is None:
        return load_experiment(options.config or begun, overrides)
    return load_from_weights(options.config, options.weights, overrides, options.model is not None, begun)


def _train_detector(config: Config, out: Path, command: str, resume: bool = False) -> dict[str, Any]:
    from detect.checkpoint import load_checkpoint
    from detect.data.defects import summary
    from detect.data.limits import unused_classes
    from detect.prediction.evaluate_checkpoint import evaluate_checkpoint
    from detect.training.fit import fit

    silence_lightning()
    data = detection_data(config)
    final = config.data.final
    datasets = [data.train, *([data.val] if data.val else []), *([data.split(final)] if final else [])]
    for line in data.division.lines() if data.division else ():
        print_once(line)
    for dataset in {dataset.split: dataset for dataset in datasets}.values():
        print_once(summary(dataset))
    if note := unused_classes(data.train):
        print_once(note)
    _print_notes(config)
    with _resume_hint(out):
        best, seconds = fit(config, data, out, resume)
    print_once(f"trained in {seconds:.0f} s: {best}")
    if final is None:
        return {}
    checkpoint, results = load_checkpoint(best), unused_folder(out / "eval")
    accelerator = config.training.accelerator
    evaluation = evaluate_checkpoint(checkpoint, best, data, final, results, command=command, accelerator=accelerator)
    print_evaluation(evaluation)
    return evaluation.metrics


def _train_classifier(config: ClassificationConfig, out: Path, resume: bool) -> None:
    from detect.allocator import keep_pages
    from detect.checkpoint import ClassifierCheckpoint, load_any
    from detect.data.classification import ClassificationData
    from detect.data.formats.imagefolder import summary
    from detect.prediction.evaluate_checkpoint import evaluate_classifier_checkpoint
    from detect.training.fit import fit_classifier

    silence_lightning()
    keep_pages()
    data = ClassificationData(config.data, seed=config.training.seed)
    final = config.data.final
    for dataset in (data.train, data.val, data.split(final) if final else None):
        if dataset is not None:
            print_once(summary(dataset))
    _print_notes(config)
    with _resume_hint(out):
        best, seconds = fit_classifier(config, data, out, resume)
    print_once(f"trained in {seconds:.0f} s: {best}")
    if final is not None:
        checkpoint = load_any(best)
        assert isinstance(checkpoint, ClassifierCheckpoint)
        results, accelerator = unused_folder(out / "eval"), config.training.accelerator
        print_evaluation(evaluate_classifier_checkpoint(checkpoint, best, data, final, results, accelerator))


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


def _new_run_folder(config: Path) -> Path:
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise UserError("--out: several processes need the same folder; give it with --out DIR")
    if not is_first_process():
        return Path(os.environ["DETECT_RUN"])
    folder = unused_folder(Path("runs") / "_".join(config.with_suffix("").parts[-2:]))
    os.environ["DETECT_RUN"] = str(folder)  # for the processes that Lightning starts, one per device
    return folder


class _Print(logging.Handler):
    """Prints log messages."""

    def emit(self, record: logging.LogRecord) -> None:
        print(record.getMessage(), flush=True)


def _print_log() -> None:
    """Print what is logged about weights and resuming, in the first process."""
    log = logging.getLogger("detect")
    if is_first_process() and not log.handlers:
        log.addHandler(_Print())
        log.setLevel(logging.INFO)
