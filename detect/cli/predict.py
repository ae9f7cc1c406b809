"""`detect predict`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detect.cli.shared import command, free_folder
from detect.errors import UserError


def add(commands: Any) -> None:
    """Adds the command."""
    predict = command(
        commands,
        "predict",
        _predict,
        "find objects in images, folders, patterns, videos, a camera",
        "detect predict --ckpt runs/bccd/checkpoints/best.ckpt photos/ --score 0.5\n\n"
        "In --out are then pictures/ and videos/ with the boxes, predictions.json and images.json in COCO's format,\n"
        "and predictions.csv. After an interruption the same command with the same --out goes on.",
    )
    predict.add_argument("sources", nargs="+", metavar="SOURCE", help="a file, a folder, a pattern, camera:0")
    predict.add_argument("--ckpt", type=Path, required=True, help="a checkpoint, or an exported model (.onnx)")
    predict.add_argument(
        "--out", type=Path, help="a new folder, or that of a run to go on with (default: a new one under runs/)"
    )
    predict.add_argument("--score", type=float, help="the least of a detection (default: the config's)")
    predict.add_argument("--classes", nargs="+", metavar="NAME", help="only these")
    predict.add_argument("--batch-size", type=int, default=1, metavar="N", help="images at a time (default: 1)")
    predict.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 (default: a GPU where there is one)")
    predict.add_argument(
        "--precision", choices=("fp32", "bf16", "auto"), default="fp32", help="auto: what the device is fastest at"
    )
    predict.add_argument("--compile", action="store_true", help="torch.compile; for many images of few sizes, on a GPU")
    predict.add_argument("--flip", action="store_true", help="look at each image mirrored too, and merge")
    predict.add_argument(
        "--scales", type=float, nargs="+", metavar="S", help="look at each image at these sizes, and merge"
    )
    saved = "what to write (default: all, but no pictures of more than 1000 images); pictures are annotated videos too"
    predict.add_argument("--save", nargs="+", choices=("pictures", "coco", "csv"), help=saved)
    predict.add_argument(
        "--shard", metavar="I/N", help="do the I-th of N shares; with one --out for all of them, the last merges"
    )
    predict.add_argument("--download", action="store_true", help="allow http:// and https:// among the sources")
    predict.add_argument("--workers", type=int, default=2, help="threads that decode ahead (default: %(default)s)")


def _predict(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    from detect import load
    from detect.prediction.predict import parse_shard, predict

    chosen = {
        name: value
        for name in ("score", "classes", "batch_size", "device", "precision", "compile", "flip", "scales")
        if (value := getattr(options, name)) is not None and value is not False and (name, value) != ("device", "auto")
    }
    if options.ckpt.suffix == ".onnx":
        _refuse_of_exported(chosen)
    shard = (1, 1) if options.shard is None else parse_shard(options.shard)
    if options.shard is not None and options.out is None:
        raise UserError("--shard: all shards write into one folder; name it with --out")
    out = options.out or free_folder(Path("runs/predict"))
    try:
        outcome = predict(
            load(options.ckpt),
            options.sources,
            out,
            checkpoint=options.ckpt,
            options=chosen,
            save=options.save,
            shard=shard,
            download=options.download,
            workers=options.workers,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; the same command with --out {out} goes on") from None
    for line in outcome.left_out:
        print(f"detect: left out: {line}", file=sys.stderr)
    if outcome.left_out and outcome.merged:
        print(f"detect: {out} is finished; for what was left out, once mended, give another --out", file=sys.stderr)
    done = f"{outcome.images} images, {outcome.detections} detections"
    print(f"{out}: {done if outcome.merged else 'other shards have work to do'}")
    return 3 if outcome.left_out else 0


def _refuse_of_exported(chosen: dict[str, Any]) -> None:
    """An exported model has its precision and its one view in the graph."""
    if chosen.pop("precision", "fp32") == "bf16":
        raise UserError("--precision: an exported model has its own; leave it out, or give the checkpoint")
    for name in ("device", "compile", "flip", "scales"):
        if name in chosen:
            raise UserError(f"--{name}: an exported model has no such choice; leave it out, or give the checkpoint")
