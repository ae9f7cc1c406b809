"""`detect export`: write a detector in another format."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detect.cli.shared import add_command

if TYPE_CHECKING:
    from detect.export.equality import Equality


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
    out = "the file (default: next to the checkpoint, with the suffix of the format)"
    parser.add_argument("--out", type=Path, help=out)
    parser.add_argument("--split", help="split of the images for the check (default: the config's test, else val)")
    parser.set_defaults(takes_overrides=True)


def _export(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from detect.checkpoint import load_checkpoint
    from detect.config import refuse_training_options
    from detect.export.export_checkpoint import SUFFIXES, check_exportable, export_checkpoint
    from detect.export.sample_images import has_data, sample_images, synthetic_images
    from detect.files.atomic import refuse_existing

    refuse_training_options(overrides)
    checkpoint = load_checkpoint(options.ckpt, overrides)
    out = options.out or options.ckpt.with_suffix(SUFFIXES[options.format])
    refuse_existing(out)
    check_exportable(checkpoint, options.format, out)
    if options.split or has_data(checkpoint.config):
        images = sample_images(checkpoint.config, options.split, checkpoint.classes)
    else:
        images = synthetic_images()
        roots = " and ".join(map(str, checkpoint.config.data.roots))
        print(f"{roots}: no data set; the check uses synthetic images; give --data.root DIR for a better check")
    equality = export_checkpoint(checkpoint, out, options.format, images)
    if equality is not None:
        print(_outcome(equality))
    print(out)


def _outcome(equality: Equality) -> str:
    """Return one line about the comparison."""
    pairs = f"{equality.batches} batch{'es' * (equality.batches != 1)} of two"
    images = f"{equality.images} images and {pairs}"
    if not equality.detections:
        remedy = "train it longer, or give images of its objects with --data.root DIR"
        return f"neither the checkpoint nor the file detects anything in {images}, so no box was compared; {remedy}"
    masks = f", cells of masks by at most {equality.mask_difference:.1g}" if equality.mask_difference else ""
    return (
        f"same detections as the checkpoint: {equality.detections} in {images}; scores differ by at most "
        f"{equality.score_difference:.1g}{masks}, IoU is at least {equality.iou:.5f}"
    )
