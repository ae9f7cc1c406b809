"""`detect data`: make, convert and fetch data sets."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detect.cli.shared import command


def add(commands: Any) -> None:
    """Adds the commands."""
    sets = commands.add_parser(
        "data", help="make, convert, fetch data sets", epilog="example: detect data download bccd"
    )
    data = sets.add_subparsers(required=True, metavar="COMMAND")

    shapes = command(
        data,
        "shapes",
        _shapes,
        "a made data set of drawn shapes, in COCO layout",
        "detect data shapes --out data/shapes",
    )
    shapes.add_argument("--out", type=Path, required=True, help="a new folder")
    shapes.add_argument("--images", type=int, default=300, help="training images; a fifth for validation")
    shapes.add_argument("--seed", type=int, default=0)

    convert = command(
        data,
        "convert",
        _convert,
        "cut the objects of a detection data set out, into one folder a class",
        "detect data convert data/voc2007 --to imagefolder --out data/voc2007-crops --split train --split val",
    )
    convert.add_argument("source", type=Path, metavar="SOURCE", help="a data set in COCO, VOC or YOLO layout")
    convert.add_argument("--to", choices=("imagefolder",), required=True, help="SPLIT/CLASS/IMAGE_k.jpg")
    convert.add_argument("--out", type=Path, required=True, help="a new folder")
    convert.add_argument("--split", action="extend", nargs="+", metavar="NAME", help="default: all splits")
    convert.add_argument("--limit", type=int, metavar="N", help="take the first N images of each split")
    convert.add_argument(
        "--margin", type=float, default=0.1, help="around a box, as a share of its sides (default: %(default)s)"
    )

    download = command(
        data,
        "download",
        _download,
        "fetch a public data set; the only command that uses the network",
        "detect data download bccd --root data",
    )
    download.add_argument("name", help="bccd, voc2007, voc2012, coco, or a part such as coco/val2017")
    download.add_argument("--root", type=Path, default=Path("data"), help="the folder of data sets (default: data)")


def _shapes(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from detect.data.shapes import make_shapes

    print(make_shapes(options.out, images=options.images, seed=options.seed))


def _convert(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from detect.data.convert import MIN_SIDE, to_imagefolder

    done = to_imagefolder(options.source, options.out, options.split, margin=options.margin, limit=options.limit)
    for name, folder in done.renamed.items():
        print(f"class {name!r}: its folder is {folder}")
    for line in done.unreadable:
        print(f"detect: left out: {line}", file=sys.stderr)
    left_out = f"{done.small} boxes with a side under {MIN_SIDE} pixels and {done.crowds} crowds left out"
    print(f"{options.out}: {done.crops.total()} images of {len(done.crops)} classes; {left_out}")


def _download(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from detect.data.download import download

    print(download(options.name, options.root))
