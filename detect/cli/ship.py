"""`detect export`, `detect import` and `detect compress`: a checkpoint for, from and at less cost."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detect.cli.shared import command, detection_data, make_folder, refuse_training


def add(commands: Any) -> None:
    """Adds the commands."""
    ship = command(
        commands,
        "export",
        _export,
        "write a detector for use elsewhere, once the file has found the same as the checkpoint",
        "detect export --ckpt runs/bccd/checkpoints/best.ckpt --format onnx --out bccd.onnx --data.root data/bccd",
    )
    ship.add_argument("--ckpt", type=Path, required=True, help="a checkpoint of detect train or import")
    formats = "onnx and torch-export hold the whole way from photographs to boxes, safetensors the weights"
    ship.add_argument("--format", choices=("onnx", "torch-export", "safetensors"), default="onnx", help=formats)
    ship.add_argument("--out", type=Path, help="the file (default: beside the checkpoint, by the format's ending)")
    ship.add_argument("--split", help="whose images it is tried on (default: the config's test, else val)")
    ship.set_defaults(takes_overrides=True)

    bring = command(
        commands,
        "import",
        _import,
        "make a checkpoint of the weights of another project, with equal outputs",
        "detect import torchvision fasterrcnn_resnet50_fpn_coco-258fb6c6.pth --out coco.ckpt",
    )
    bring.add_argument("project", choices=("torchvision", "detectron2"), help="that made the file")
    bring.add_argument(
        "file",
        type=Path,
        metavar="FILE",
        help="a state dict or a checkpoint of training (.pth, .pt, .safetensors), of detectron2 also a .pkl",
    )
    bring.add_argument("--out", type=Path, required=True, help="the new checkpoint, to be used like any other")
    bring.add_argument(
        "--names", nargs="+", default=(), help="of the classes, or a file with one a line (default: COCO's)"
    )
    bring.add_argument(
        "--style",
        choices=("caffe2", "torchvision"),
        help="of a detectron2 file that does not tell how pixels are normalised (default: caffe2, as its model zoo)",
    )
    bring.add_argument(
        "--frozen-eps",
        type=float,
        choices=(0.0, 1e-5),
        metavar="{0,1e-5}",
        help="of torchvision's frozen norms; 1e-5 for what began from an ImageNet backbone alone (default: 0)",
    )

    compress = command(
        commands,
        "compress",
        _compress,
        "make a detector's fully connected layers smaller, by truncated SVD",
        "detect compress --ckpt runs/voc/checkpoints/best.ckpt --out runs/voc/checkpoints/svd.ckpt --split test",
    )
    compress.add_argument("--ckpt", type=Path, required=True, help="a checkpoint of detect train")
    compress.add_argument("--out", type=Path, required=True, help="the new checkpoint, to be used like the other")
    ranks = "of fc6, fc7 and so on (default: the paper's, 1024 256)"
    compress.add_argument("--ranks", type=int, nargs="+", default=(1024, 256), metavar="RANK", help=ranks)
    compress.add_argument("--split", help="tell AP before and after on this split")
    compress.set_defaults(takes_overrides=True)


def _export(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from detect.checkpoint import load_checkpoint
    from detect.export.export_checkpoint import SUFFIXES, check_exportable, export_checkpoint
    from detect.export.sample_images import has_data, sample_images, synthetic_images
    from detect.files.atomic import refuse_existing

    refuse_training(overrides)
    checkpoint = load_checkpoint(options.ckpt, overrides)
    out = options.out or options.ckpt.with_suffix(SUFFIXES[options.format])
    refuse_existing(out)
    check_exportable(checkpoint, options.format, out)
    if options.split or has_data(checkpoint.config):
        photographs = sample_images(checkpoint.config, options.split, checkpoint.classes)
    else:
        photographs = synthetic_images()
        print(
            f"{checkpoint.config.data.root}: no data there, so drawn scenes are compared; better give --data.root DIR"
        )
    compared = export_checkpoint(checkpoint, out, options.format, photographs)
    if compared is not None:
        print(
            f"finds the same: {compared.detections} detections in {compared.images} images and {compared.batches} "
            f"batches of two differ by {compared.score_difference:.1g} in score at most; "
            f"their IoU is {compared.iou:.5f} at least"
        )
    print(out)


def _import(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from rich.console import Console

    from detect.foreign_weights.import_weights import import_weights
    from detect.terminal import table

    done = import_weights(options.project, options.file, options.out, options.names, options.style, options.frozen_eps)
    Console().print(table(("part", "tensors", "numbers", "meaning"), done.rows()))
    if done.note:
        print(done.note)
    print(options.out)


def _compress(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    import torch
    from rich.console import Console

    from detect.checkpoint import load_checkpoint, save_checkpoint
    from detect.config import check_proposals
    from detect.export.compress import compare_cost, compress
    from detect.files.atomic import refuse_existing
    from detect.terminal import table

    refuse_training(overrides)
    refuse_existing(options.out)
    before = load_checkpoint(options.ckpt, overrides)
    dataset = loader = None
    if options.split is not None:  # read before the work, so that a wrong split costs nothing
        check_proposals(before.config)
        data = detection_data(before.config, before.classes)
        dataset = data.split(options.split)
        loader = data.eval_loader(dataset)
    after = compress(before, options.ranks)
    make_folder(options.out.parent)
    save_checkpoint(after, options.out)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    Console().print(table(("metric", "before", "after"), compare_cost(before, after, device, loader, dataset)))
    print(options.out)
