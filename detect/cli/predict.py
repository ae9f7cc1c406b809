"""`detect predict`: run a detector on images and videos."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detect.cli.shared import add_command
from detect.errors import UserError
from detect.files.folders import unused_folder

if TYPE_CHECKING:
    from detect.prediction.predict import Engine

FLAGS = {"flip": "--tta-flip", "scales": "--tta-scales"}
"""Flags whose names differ from the options of `Predictor.predict`."""


def add(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "predict",
        _predict,
        "detect objects in images, folders, glob patterns, videos or a camera",
        "detect predict --ckpt runs/bccd/checkpoints/best.ckpt photos/ --score 0.5\n\n"
        "Writes to --out: pictures/ and videos/ with drawn boxes and masks, predictions.json and images.json in COCO\n"
        "format, and predictions.csv. To continue after an interruption, repeat the command with the same --out.",
    )
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="a file, a folder, a glob pattern, or camera:0")
    parser.add_argument("--ckpt", type=Path, required=True, help="a checkpoint, or an exported detector (.onnx)")
    out = "a new folder, or the folder of a run to continue (default: a new one under runs/)"
    parser.add_argument("--out", type=Path, help=out)
    parser.add_argument("--score", type=float, help="score threshold (default: the config's)")
    parser.add_argument("--classes", nargs="+", metavar="NAME", help="detect only these classes")
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="images per batch (default: 1)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    precisions = "precision of the weights; auto: the fastest on the device (default: fp32)"
    parser.add_argument("--precision", choices=("fp32", "bf16", "auto"), default="fp32", help=precisions)
    compiled = "use torch.compile, for many images of few sizes on a GPU"
    parser.add_argument("--compile", action="store_true", help=compiled)
    _add_augmentation(parser)
    saved = "what to write (default: all, but no pictures for more than 1000 images); pictures include videos"
    parser.add_argument("--save", nargs="+", choices=("pictures", "coco", "csv"), help=saved)
    shard = "process shard I of N; give all shards the same --out, and the last one merges the results"
    parser.add_argument("--shard", metavar="I/N", help=shard)
    parser.add_argument("--download", action="store_true", help="allow http:// and https:// sources")
    decoders = "threads that decode images, in each process (default: %(default)s)"
    parser.add_argument("--workers", type=int, default=2, help=decoders)
    _add_engine(parser)


def _add_engine(parser: argparse.ArgumentParser) -> None:
    """Add the flags of engines, which run the work in many processes."""
    engine = "predict in several processes, which are started again if they die; on one machine or a cluster"
    parser.add_argument("--engine", choices=("ray",), help=engine)
    parser.add_argument("--address", metavar="HOST:PORT", help="with --engine: a Ray cluster (default: this machine)")
    actors = "with --engine: number of processes (default: one per GPU, or else per CPU)"
    parser.add_argument("--actors", type=int, metavar="N", help=actors)


def _add_augmentation(parser: argparse.ArgumentParser) -> None:
    """Add the flags of test-time augmentation, and their former names."""
    flip = "test-time augmentation: also detect in the mirrored image, and merge"
    parser.add_argument("--tta-flip", dest="flip", action="store_true", help=flip)
    scales = "test-time augmentation: detect at these scales of the image, and merge"
    parser.add_argument("--tta-scales", dest="scales", type=float, nargs="+", metavar="S", help=scales)
    for name, flag in FLAGS.items():
        parser.add_argument(f"--{name}", dest=argparse.SUPPRESS, action=_Renamed, const=flag)


class _Renamed(argparse.Action):
    """Action of a flag's former name: raise `UserError` with the new name."""

    def __init__(self, option_strings: Sequence[str], dest: str, const: str) -> None:
        super().__init__(option_strings, dest, nargs="*", const=const, help=argparse.SUPPRESS)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        raise UserError(f"{option_string}: this option is now called {self.const}")


def _predict(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    from detect import load
    from detect.prediction.predict import parse_shard, predict

    chosen = {
        name: value
        for name in ("score", "classes", "batch_size", "device", "precision", "compile", "flip", "scales")
        if (value := getattr(options, name)) is not None and value is not False and (name, value) != ("device", "auto")
    }
    if options.ckpt.suffix == ".onnx":
        _refuse_fixed_options(chosen)
    shard = (1, 1) if options.shard is None else parse_shard(options.shard)
    if options.shard is not None and options.out is None:
        raise UserError("--shard: all shards write to the same folder; give it with --out")
    engine = _engine(options)
    out = options.out or unused_folder(Path("runs/predict"))
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
            engine=engine,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; to continue, repeat the command with --out {out}") from None
    for line in outcome.left_out:
        print(f"detect: skipped: {line}", file=sys.stderr)
    if outcome.left_out and outcome.merged:
        print(f"detect: {out} is complete; to process repaired files, give another --out", file=sys.stderr)
    counts = f"{outcome.images} images, {outcome.detections} detections"
    print(f"{out}: {counts if outcome.merged else 'other shards are not finished yet'}")
    return 3 if outcome.left_out else 0


def _engine(options: argparse.Namespace) -> Engine | None:
    """Return the engine that the flags choose; None for this process."""
    if options.engine is None:
        for name in ("address", "actors"):
            if getattr(options, name) is not None:
                raise UserError(f"--{name}: this is an option of an engine; add --engine ray")
        return None
    from detect.scale.ray_engine import RayEngine

    return RayEngine(options.address, options.actors)


def _refuse_fixed_options(chosen: dict[str, Any]) -> None:
    """Raise `UserError` for options that are fixed in the graph of an exported model."""
    if chosen.pop("precision", "fp32") == "bf16":
        raise UserError("--precision: fixed in an exported model; leave it out, or give the checkpoint")
    for name in ("device", "compile", "flip", "scales"):
        if name in chosen:
            flag = FLAGS.get(name, f"--{name}")
            raise UserError(f"{flag}: not available for an exported model; leave it out, or give the checkpoint")
