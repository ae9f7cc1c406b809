"""`detect weights`: list and download published weights."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detect.cli.shared import add_command


def add(commands: Any) -> None:
    """Add the command and its subcommands."""
    parser = commands.add_parser(
        "weights",
        help="list and download published weights",
        epilog="example: detect weights download fasterrcnn_resnet50_fpn_v2",
    )
    subcommands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_command(subcommands, "list", _list, "list the weights that can be downloaded", "detect weights list")
    download = add_command(
        subcommands,
        "download",
        _download,
        "download weights from their publisher and verify their checksum",
        "detect weights download fasterrcnn_resnet50_fpn_v2",
    )
    download.add_argument("name", help="a name that `detect weights list` prints")
    download.add_argument("--out", type=Path, metavar="DIR", help="folder of the file (default: torch.hub's)")


def _list(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from detect.foreign_weights.published import published_weights, weights_folder
    from detect.terminal import align

    groups = {
        "backbones of torchvision, for --model.backbone.weights by name": ("torchvision", True),
        "detectors of torchvision, for --weights": ("torchvision", False),
        "detectors of detectron2, for --weights": ("detectron2", False),
        "detectors of YOLOX, for --weights": ("yolox", False),
    }
    for title, group in groups.items():
        print(title)
        weights = [one for one in published_weights().values() if (one.project, one.is_backbone) == group]
        present = ["here" if (weights_folder() / one.remote.file).is_file() else "" for one in weights]
        sizes = [f"{one.megabytes:.0f} MB" if one.megabytes else "" for one in weights]
        names = [one.name for one in weights]
        print(*(line.rstrip() for line in align(list(zip(names, sizes, present, strict=True)))), sep="\n")


def _download(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from detect.foreign_weights.published import download_weights

    print(download_weights(options.name, options.out))
