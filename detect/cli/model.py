"""`detect model`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detect.cli.shared import command
from detect.errors import UserError


def add(commands: Any) -> None:
    """Adds the command."""
    model = command(
        commands,
        "model",
        _model,
        "the network as a table: shapes, receptive fields, parameters, cost",
        "detect model configs/voc/faster_rcnn_vgg16.yaml --classes 20\n\n"
        "Nothing is computed, and neither data nor weights are needed.",
    )
    model.add_argument("config", type=Path, metavar="CONFIG", help="the experiment, a YAML file; see configs/")
    size = "of the image (default: the config's short side, at 4:3; what a classifier sees)"
    model.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help=size)
    model.add_argument("--classes", type=int, metavar="N", help="default: COCO's 80, for a classifier ImageNet's 1000")
    model.add_argument(
        "--depth", type=int, metavar="N", help="how far down parts are told apart (default: as fits 36 rows)"
    )
    model.set_defaults(takes_overrides=True)


def _model(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from dataclasses import replace

    import torch

    from detect.config import Config, load_experiment
    from detect.models.summary import print_summary, summarize_on_image

    for name in ("size", "classes", "depth"):
        value = getattr(options, name)
        if value is not None and (value if isinstance(value, int) else min(value)) < 1:
            raise UserError(f"--{name}: {value}; give 1 or more")
    config = load_experiment(options.config, overrides)
    if isinstance(config, Config):
        short_side = min(max(config.data.short_side), config.data.long_side * 3 / 4)
        size, classes, proposals = (round(short_side), round(short_side * 4 / 3)), 80, config.data.max_proposals
    else:
        size, classes, proposals = (config.data.size, config.data.size), 1000, 0
    height, width = options.size or size
    classes = options.classes or classes
    # Weights change nothing of a network's shape: the file that they come from need not be there.
    network = replace(config.model, backbone=replace(config.model.backbone, weights=None))
    with torch.device("meta"):
        model = network.build(classes).eval()
    try:
        summary, regions = summarize_on_image(model, height, width, proposals, options.depth)
    except RuntimeError as error:  # torch's own, of a layer that is left without a cell
        raise UserError(f"--size: {height} × {width}: too small for the network: {error}") from None
    title = f"{options.config}: an image of {height} × {width}, {classes:,} classes"
    print_summary(summary, f"{title}, {regions:,} regions" if regions else title)
