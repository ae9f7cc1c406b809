"""`detect export`: write a detector in another format."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detect.cli.shared import add_command, refuse_training_options


def add(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "export",
        _export,
        "export a detector, and check that the file gives the same detections as the checkpoint",
        "detect export --ckpt runs/bccd/checkpoints/best.ckpt --format onnx --out bccd.onnx --data.root data/bccd",
    )
    parser.add_argument("--ckpt", type=Path, required=True, help="a checkpoint of detect train or import")
    formats = "onnx and torch-export include pre- and post-processing; safetensors holds only the weights"
    parser.add_argument("--format", choices=("onnx", "torch-export", "safetensors"), default="onnx", help=formats)
    out = "the file (default: beside the checkpoint, with the suffix of the format)"
    parser.add_argument("--out", type=Path, help=out)
    parser.add_argument("--split", help="split of the images for the check (default: the config's test, else val)")
    parser.set_defaults(takes_overrides=True)


def _export(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from detect.checkpoint import load_checkpoint
    from detect.export.export import SUFFIXES, export, has_data, made_photographs, photographs_of, refuse
    from detect.files.atomic import refuse_existing

    refuse_training_options(overrides)
    checkpoint = load_checkpoint(options.ckpt, overrides)
    out = options.out or options.ckpt.with_suffix(SUFFIXES[options.format])
    refuse_existing(out)
    refuse(checkpoint, options.format, out)
    if options.split or has_data(checkpoint.config):
        photographs = photographs_of(checkpoint.config, options.split, checkpoint.classes)
    else:
        photographs = made_photographs()
        root = checkpoint.config.data.root
        print(f"{root}: no data set, so the check uses drawn scenes; --data.root DIR gives a better one")
    compared = export(checkpoint, out, options.format, photographs)
    if compared is not None:
        print(
            f"same detections as the checkpoint: {compared.detections} in {compared.photographs} images and "
            f"{compared.batches} batches of two; scores differ by at most {compared.score:.1g}, "
            f"IoU is at least {compared.iou:.5f}"
        )
    print(out)
