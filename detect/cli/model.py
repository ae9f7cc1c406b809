"""`detect model`: print a network as a table."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detect.cli.shared import CONFIG_HELP, add_command
from detect.errors import UserError


def add(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "model",
        _model,
        "print the network as a table: shapes, receptive fields, parameters, cost",
        "detect model voc/faster_rcnn_vgg16 --classes 20\n\n"
        "Nothing is computed, and neither data nor weights are needed.",
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help=CONFIG_HELP)
    size = "image size (default: the config's short side at 4:3; the input size of a classifier without --dense)"
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help=size)
    classes = "number of classes (default: COCO's 80; ImageNet's 1000 for a classifier)"
    parser.add_argument("--classes", type=int, metavar="N", help=classes)
    depth = "levels of submodules to list (default: as many as fit in 36 rows)"
    parser.add_argument("--depth", type=int, metavar="N", help=depth)
    dense = "a classifier in its form for whole images, with fully connected layers as convolutions"
    parser.add_argument("--dense", action="store_true", help=dense)
    parser.set_defaults(takes_overrides=True)


def _model(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from dataclasses import replace

    import torch
    from torch import nn

    from detect.config import Config, load_experiment
    from detect.models import Classifier, build_detector
    from detect.models.summary import summarize_on_image
    from detect.report.network_table import print_summary

    for name in ("size", "classes", "depth"):
        value = getattr(options, name)
        if value is not None and (value if isinstance(value, int) else min(value)) < 1:
            raise UserError(f"--{name}: {value}; give 1 or more")
    config = load_experiment(options.config, overrides)
    if isinstance(config, Config):
        if options.dense:
            raise UserError(f"--dense: {options.config} is a detector, which sees whole images anyway; leave it out")
        short_side, long_side = config.data.eval_sides
        short_side = min(short_side, round(long_side * 3 / 4))
        ratio, classes, proposals = 4 / 3, 80, config.data.max_proposals
    else:
        short_side, ratio = (config.data.resize, 4 / 3) if options.dense else (config.data.size, 1)
        classes, proposals = 1000, 0
    height, width = options.size or (short_side, round(short_side * ratio))
    classes = options.classes or classes
    # Weights do not change the shapes of a network, so their file need not exist.
    backbone = replace(config.model.backbone, weights=None)
    with torch.device("meta"):
        if isinstance(config, Config):
            model: nn.Module = build_detector(replace(config.model, backbone=backbone), classes)
        else:
            model = classifier = Classifier(classes, replace(config.model, backbone=backbone))
            if options.dense:
                classifier.to_dense(config.data.size)
    try:
        summary, regions = summarize_on_image(model.eval(), height, width, proposals, options.depth)
    except RuntimeError as error:  # torch's own, if a layer has no output cell
        raise UserError(f"--size: {height} × {width}: too small for the network: {error}") from None
    title = f"{options.config}: an image of {height} × {width}, {classes:,} classes"
    print_summary(summary, f"{title}, {regions:,} regions" if regions else title)
