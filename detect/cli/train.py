"""`detect demo` and `detect train`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detect.cli.evaluate import print_evaluation
from detect.cli.shared import CONFIG_HELP, add_command
from detect.files.folders import refuse_used

if TYPE_CHECKING:
    from detect.training.run import Run

OPTIONS_NOTE = """\
Any option of the config can be overridden with --section.key VALUE:
  --data.root DIR  --data.short_side [600]  --data.batch_size 8  --training.epochs 24
  --training.precision auto  --model.backbone.weights IMAGENET1K_V1
`detect options` lists all of them."""


def add(commands: Any) -> None:
    """Add the commands."""
    demo = add_command(commands, "demo", _demo, "generate data, train, evaluate and report, in minutes", "detect demo")
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="a new folder (default: %(default)s)")
    demo.add_argument("--masks", action="store_true", help="train Mask R-CNN, which also predicts masks")

    train = add_command(
        commands,
        "train",
        _train,
        "train a detector or a classifier, then evaluate its best checkpoint",
        "detect train photos\n\n" + OPTIONS_NOTE,
    )
    data = "data folders or annotation files, which are joined (default: --data.root, or that of the config)"
    train.add_argument("data", type=Path, nargs="*", metavar="DIR", help=data)
    config = f"{CONFIG_HELP} (default: small/faster_rcnn, fitted to the data)"
    train.add_argument("-c", "--config", type=Path, help=config)
    weights = (
        "begin from a model: a checkpoint or .safetensors file of ours, or a file of torchvision, detectron2 or YOLOX"
    )
    train.add_argument("--weights", type=Path, metavar="FILE", help=weights)
    network = "take the network's options from --weights, as without -c, instead of the config"
    train.add_argument("--model", choices=("from-weights",), help=network)
    train.add_argument("--out", type=Path, help="the folder of the run (default: a new one under runs/)")
    resume = "continue the run in --out, or start it if there is none"
    train.add_argument("--resume", action="store_true", help=resume)
    train.set_defaults(takes_overrides=True)


def _demo(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from detect.config.demo import demo_config
    from detect.curation.shapes import make_shapes
    from detect.training.run import train_detector

    refuse_used(options.out)
    data = make_shapes(options.out / "data", images={"train": 590, "val": 60})
    run = train_detector(demo_config(data, masks=options.masks), options.out, options.command)
    _print_run(run)
    masks = f", of the masks {run.metrics['mask_AP50']:.3f}" if "mask_AP50" in run.metrics else ""
    print(f"AP50 {run.metrics['AP50']:.3f}{masks}. Open the report: {run.report}")


def _train(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from detect.training.request import Request
    from detect.training.run import print_log, run

    request = Request(
        data=tuple(options.data),
        config=options.config,
        weights=options.weights,
        network=options.model is not None,
        overrides=tuple(overrides),
        out=options.out,
        resume=options.resume,
    )
    print_log()
    _print_run(run(request, options.command))


def _print_run(run: Run) -> None:
    if run.evaluation is not None:
        print_evaluation(run.evaluation)
