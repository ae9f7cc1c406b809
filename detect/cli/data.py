"""`detect data`: check, count, convert, make and fetch data sets."""

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
        "data",
        help="check, count, convert, make and fetch data sets",
        epilog="example: detect data check data/bccd --config configs/bccd/faster_rcnn.yaml",
    )
    data = sets.add_subparsers(required=True, metavar="COMMAND")

    check = command(
        data,
        "check",
        _check,
        "find what is wrong with a data set: files, boxes, ids, duplicates, leakage, anchors",
        "detect data check data/bccd --config configs/bccd/faster_rcnn.yaml --html check.html\n\n"
        "The exit code is 0 for a clean set, 1 where there are errors or warnings.",
    )
    _source(check)
    check.add_argument("--config", type=Path, metavar="YAML", help="judge boxes and anchors as its network sees them")
    check.add_argument("--json", type=Path, metavar="FILE", help="write all findings")
    check.add_argument("--html", type=Path, metavar="FILE", help="write a page with pictures")
    check.add_argument("--fix", type=Path, metavar="DIR", help="write a mended copy; what is checked stays as it is")

    stats = command(
        data,
        "stats",
        _stats,
        "count images, boxes and classes, and draw how they are distributed",
        "detect data stats data/bccd --out stats",
    )
    _source(stats)
    _follow_links(stats)
    stats.add_argument("--out", type=Path, help="a new folder for stats.json and a picture a split")

    convert = command(
        data,
        "convert",
        _convert,
        "write a data set in another format, or its objects as images, one folder a class",
        "detect data convert data/voc2007 --to coco --out data/voc2007-coco",
    )
    _source(convert)
    _follow_links(convert)
    formats = "imagefolder cuts the objects out: SPLIT/CLASS/IMAGE_k.jpg"
    convert.add_argument("--to", choices=("coco", "voc", "yolo", "imagefolder"), required=True, help=formats)
    convert.add_argument("--out", type=Path, required=True, help="a new folder")
    convert.add_argument("--limit", type=int, metavar="N", help="take the first N images of each split")
    convert.add_argument(
        "--margin", type=float, help="around an object that is cut out, as a share of its sides (default: 0.1)"
    )

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

    download = command(
        data,
        "download",
        _download,
        "fetch a public data set; the only command that uses the network",
        "detect data download bccd --root data",
    )
    download.add_argument("name", help="bccd, voc2007, voc2012, coco, or a part such as coco/val2017")
    download.add_argument("--root", type=Path, default=Path("data"), help="the folder of data sets (default: data)")


def _source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="SOURCE", help="a data set in COCO, VOC or YOLO layout")
    parser.add_argument("--split", action="extend", nargs="+", metavar="NAME", help="default: all splits")


def _follow_links(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--follow-links", action="store_true", help="read what links out of the folder lead to")


def _check(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    from detect.curation.check import run_check

    files = {"json_file": options.json, "html": options.html, "fix": options.fix}
    return run_check(options.source, options.split, config=options.config, **files)


def _stats(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from detect.curation.stats import stats

    stats(options.source, options.split, options.out, follow_links=options.follow_links)


def _convert(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from detect.curation.convert import convert

    chosen = {"margin": options.margin, "limit": options.limit, "follow_links": options.follow_links}
    done = convert(options.source, options.out, options.to, options.split, **chosen)
    for line in done.unreadable:
        print(f"detect: left out: {line}", file=sys.stderr)
    for line in done.lines():
        print(line)
    print(options.out)


def _shapes(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from detect.curation.shapes import make_shapes

    print(make_shapes(options.out, images=options.images, seed=options.seed))


def _download(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from detect.curation.download import download

    print(download(options.name, options.root))
