"""`detect demo` and `detect train`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detect.cli.evaluate import evaluate_checkpoint, evaluate_classifier
from detect.cli.shared import calm, command, detection_data, free_folder, is_first_process, refuse_used, say, tell_data
from detect.errors import UserError

if TYPE_CHECKING:
    from detect.config import ClassificationConfig, Config, Experiment

OPTIONS_NOTE = """\
Any option of the config can be changed after it, as --section.key VALUE:
  --data.root DIR  --data.short_side [600]  --data.batch_size 8  --training.epochs 24
  --training.precision auto  --model.backbone.weights IMAGENET1K_V1
The folder of a run holds config.yaml with all of them."""


def add(commands: Any) -> None:
    """Adds the commands."""
    demo = command(commands, "demo", _demo, "make data, train on it, evaluate and draw, in minutes", "detect demo")
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="a new folder (default: %(default)s)")

    train = command(
        commands,
        "train",
        _train,
        "fit a detector or a classifier, then evaluate its best checkpoint",
        "detect train -c configs/bccd/faster_rcnn.yaml --data.root data/bccd\n\n" + OPTIONS_NOTE,
    )
    train.add_argument("-c", "--config", type=Path, help="the experiment, a YAML file; see configs/")
    train.add_argument("--out", type=Path, help="the folder of the run (default: a new one under runs/)")
    train.add_argument(
        "--resume", action="store_true", help="go on with the run in --out, or with -c begin it where there is none"
    )
    train.set_defaults(takes_overrides=True)


def _demo(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from detect.config.demo import demo_config
    from detect.curation.shapes import make_shapes

    refuse_used(options.out)
    data = make_shapes(options.out / "data", images={"train": 590, "val": 60})
    metrics = _train_and_evaluate(demo_config(data), options.out, options.command)
    print(f"AP50 {metrics['AP50']:.3f}. Open the report: {options.out / 'eval' / 'report.html'}")


def _train(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from detect.config import Config, load_experiment

    if options.resume:
        if options.out is None:
            raise UserError("--resume goes on with the run in --out DIR: name that folder")
        out, begun = options.out, (options.out / "config.yaml").exists()
        if not begun and options.config is None:
            raise UserError(f"--resume: {out} holds no run; with -c it would begin one")
        if not begun and is_first_process() and not (out / ".lock").exists():
            refuse_used(out, " (a run goes on with --resume)")
        config = load_experiment(options.config or out / "config.yaml", overrides)
    elif options.config is None:
        raise UserError("-c: name the experiment, for example -c configs/bccd/faster_rcnn.yaml")
    else:
        config = load_experiment(options.config, overrides)
        out = options.out or _new_run(options.config)
        if is_first_process():
            refuse_used(out, " (a run goes on with --resume)")
    _tell_weights()
    if isinstance(config, Config):
        _train_and_evaluate(config, out, options.command, options.resume)
    else:
        _train_classifier(config, out, options.resume)


def _train_and_evaluate(config: Config, out: Path, command: str, resume: bool = False) -> dict[str, Any]:
    from detect.checkpoint import load_checkpoint
    from detect.training.fit import fit

    calm()
    data = detection_data(config)
    final = config.data.test or config.data.val
    tell_data(data, [data.train, *([data.val] if data.val else []), *([data.split(final)] if final else [])])
    _announce(config)
    try:
        best, seconds = fit(config, data, out, resume)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; go on with: detect train --resume --out {out}") from None
    say(f"trained in {seconds:.0f} s: {best}")
    if final is None:
        return {}
    checkpoint, results = load_checkpoint(best), free_folder(out / "eval")
    accelerator = config.training.accelerator
    return evaluate_checkpoint(checkpoint, best, data, final, results, command, accelerator=accelerator)


def _train_classifier(config: ClassificationConfig, out: Path, resume: bool) -> None:
    from detect.allocator import keep_pages
    from detect.checkpoint import ClassifierCheckpoint, load_any
    from detect.data.classification import ClassificationData
    from detect.data.formats.imagefolder import summary
    from detect.training.fit import fit_classifier

    calm()
    keep_pages()
    data = ClassificationData(config.data, seed=config.training.seed)
    final = config.data.test or config.data.val
    for dataset in (data.train, data.val, data.split(final) if final else None):
        if dataset is not None:
            say(summary(dataset))
    _announce(config)
    try:
        best, seconds = fit_classifier(config, data, out, resume)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; go on with: detect train --resume --out {out}") from None
    say(f"trained in {seconds:.0f} s: {best}")
    if final is not None:
        checkpoint = load_any(best)
        assert isinstance(checkpoint, ClassifierCheckpoint)
        evaluate_classifier(checkpoint, best, data, final, free_folder(out / "eval"), config.training.accelerator)


def _announce(config: Experiment) -> None:
    """What one should know of an experiment before it begins."""
    for deviation in config.deviations:
        say(f"deviates from the paper: {deviation}")
    backbone = config.model.backbone
    if getattr(backbone, "norm", None) == "frozen" and backbone.weights is None:
        say("model.backbone.norm: frozen without weights is no norm; batch and group learn better from scratch")


def _new_run(config: Path) -> Path:
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise UserError("--out: several processes need one folder by its name; give --out DIR")
    if not is_first_process():
        return Path(os.environ["DETECT_RUN"])
    folder = free_folder(Path("runs") / "_".join(config.with_suffix("").parts[-2:]))
    os.environ["DETECT_RUN"] = str(folder)  # for the processes that Lightning starts, one for each device
    return folder


def _tell_weights() -> None:
    """Lets `load_weights` say what it has loaded and what it has left out."""
    log = logging.getLogger("detect.backbones.weights")
    if is_first_process() and not log.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
