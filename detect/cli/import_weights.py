"""`detect import`: convert weights of another project to a checkpoint."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detect.cli.shared import add_command


def add(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "import",
        _import,
        "convert weights of another project to a checkpoint with equal outputs",
        "detect import torchvision fasterrcnn_resnet50_fpn_coco-258fb6c6.pth --out coco.ckpt",
    )
    parser.add_argument(
        "project", choices=("torchvision", "detectron2", "yolox"), help="the project that wrote the file"
    )
    files = "a state dict or a training checkpoint (.pth, .pt, .safetensors), for detectron2 also a .pkl"
    parser.add_argument("file", type=Path, metavar="FILE", help=files)
    parser.add_argument("--out", type=Path, required=True, help="the new checkpoint")
    names = "class names, or a file with one name per line (default: COCO's)"
    parser.add_argument("--names", nargs="+", default=(), help=names)
    style = "pixel normalisation of a detectron2 file that does not contain it (default: caffe2, as in its model zoo)"
    parser.add_argument("--style", choices=("caffe2", "torchvision"), help=style)
    epsilon = "epsilon of torchvision's frozen norms: 1e-5 if training started from an ImageNet backbone (default: 0)"
    parser.add_argument("--frozen-eps", type=float, choices=(0.0, 1e-5), metavar="{0,1e-5}", help=epsilon)


def _import(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from rich.console import Console

    from detect.foreign_weights.import_weights import import_weights
    from detect.terminal import table

    imported = import_weights(
        options.project, options.file, options.out, options.names, options.style, options.frozen_eps
    )
    Console().print(table(("part", "tensors", "numbers", "meaning"), imported.rows()))
    if imported.note:
        print(imported.note)
    print(options.out)
