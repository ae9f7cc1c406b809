"""`detect data`: check, describe, convert, split, merge, generate and download data sets."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detect.cli.shared import add_command
from detect.errors import UserError

if TYPE_CHECKING:
    from detect.curation.convert import Conversion
    from detect.curation.crops import Crops


def add(commands: Any) -> None:
    """Add the command and its subcommands."""
    parser = commands.add_parser(
        "data",
        help="check, describe, convert, split, merge, generate and download data sets",
        epilog="example: detect data check data/bccd --config bccd/faster_rcnn",
    )
    subcommands = parser.add_subparsers(required=True, metavar="COMMAND")
    curation = (_add_check, _add_stats, _add_convert, _add_split, _add_merge)
    for add_subcommand in (*curation, _add_formats, _add_shapes, _add_download):
        add_subcommand(subcommands)


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="SOURCE", help="a data set in any readable format")
    _add_split_option(parser)


def _add_split_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--split", action="extend", nargs="+", metavar="NAME", help="default: all splits")
    parser.add_argument("--format", metavar="NAME", help="format of the annotations (default: by their content)")


def _add_follow_links(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--follow-links", action="store_true", help="follow symbolic links out of the folder")


# ---- check -----------------------------------------------------------------------------------------------------------


def _add_check(subcommands: Any) -> None:
    parser = add_command(
        subcommands,
        "check",
        _check,
        "find the defects of a data set: files, boxes, ids, duplicates, leakage, anchors",
        "detect data check data/bccd --config bccd/faster_rcnn --html check.html\n\n"
        "The exit code is 0 for a clean data set, 1 if there are errors or warnings.",
    )
    _add_source(parser)
    parser.add_argument(
        "--config",
        type=Path,
        metavar="CONFIG",
        help="also check anchors, and boxes at the input size, of this config, by name or file",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all findings")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with pictures")
    parser.add_argument("--fix", type=Path, metavar="DIR", help="write a repaired copy; the source is not changed")


def _check(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    from detect.curation.check import run_check

    files = {"json_file": options.json, "html": options.html, "fix": options.fix}
    return run_check(options.source, options.split, config=options.config, format=options.format, **files)


# ---- stats -----------------------------------------------------------------------------------------------------------


def _add_stats(subcommands: Any) -> None:
    parser = add_command(
        subcommands,
        "stats",
        _stats,
        "count images, boxes and classes, and plot their distributions",
        "detect data stats data/bccd --out stats",
    )
    _add_source(parser)
    _add_follow_links(parser)
    parser.add_argument("--out", type=Path, help="a new folder for stats.json and a picture per split")


def _stats(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from detect.curation.stats import stats

    chosen = {"format": options.format, "follow_links": options.follow_links}
    stats(options.source, options.split, options.out, **chosen)


# ---- convert ---------------------------------------------------------------------------------------------------------


def _add_convert(subcommands: Any) -> None:
    parser = add_command(
        subcommands,
        "convert",
        _convert,
        "write a data set in another format, or crop its objects into one folder per class",
        "detect data convert data/voc2007 --to coco --out data/voc2007-coco",
    )
    _add_source(parser)
    _add_follow_links(parser)
    formats = "imagefolder crops the objects: SPLIT/CLASS/IMAGE_k.jpg"
    parser.add_argument("--to", choices=("coco", "voc", "yolo", "imagefolder"), required=True, help=formats)
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--limit", type=int, metavar="N", help="convert only the first N images of each split")
    margin = "context around a cropped object, as a fraction of its sides (default: 0.1)"
    parser.add_argument("--margin", type=float, help=margin)


def _convert(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from detect.curation.convert import convert

    chosen = {"margin": options.margin, "limit": options.limit}
    chosen |= {"format": options.format, "follow_links": options.follow_links}
    _print_written(convert(options.source, options.out, options.to, options.split, **chosen), options.out)


def _print_written(conversion: Conversion | Crops, out: Path) -> None:
    for line in conversion.unreadable:
        print(f"detect: skipped: {line}", file=sys.stderr)
    for line in conversion.lines():
        print(line)
    print(out)


# ---- split and merge -------------------------------------------------------------------------------------------------


def _add_split(subcommands: Any) -> None:
    parser = add_command(
        subcommands,
        "split",
        _split,
        "write a copy of a data set that is divided into train, val and test",
        "detect data split photos --val 0.2 --test 0.1 --out photos-divided\n\n"
        "Every class is in every part if it has enough images, and near-duplicates stay in one part.\n"
        "The format is kept, or becomes COCO if detect cannot write it. Training needs no copy: --data.val 0.2",
    )
    _add_source(parser)
    _add_follow_links(parser)
    parser.add_argument("--val", type=float, metavar="FRACTION", help="fraction of the images for validation")
    parser.add_argument("--test", type=float, metavar="FRACTION", help="fraction of the images for the test")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives another division (default: 0)")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")


def _split(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from detect.curation.regroup import split_copy

    given = {"val": options.val, "test": options.test}
    fractions = {name: fraction for name, fraction in given.items() if fraction is not None}
    chosen = {"format": options.format, "follow_links": options.follow_links}
    _print_written(
        split_copy(options.source, options.out, fractions, options.seed, options.split, **chosen), options.out
    )


def _add_merge(subcommands: Any) -> None:
    parser = add_command(
        subcommands,
        "merge",
        _merge,
        "write several data sets as one; splits and classes are joined by name",
        "detect data merge VOC2007 VOC2012 --out VOC0712\n\n"
        "The format is kept if all data sets have the same and detect can write it; otherwise it becomes COCO.\n"
        "Training needs no copy: --data.root [VOC2007, VOC2012]",
    )
    parser.add_argument("sources", type=Path, nargs="+", metavar="SOURCE", help="a data set in any format")
    _add_split_option(parser)
    _add_follow_links(parser)
    parser.add_argument("--out", type=Path, required=True, help="a new folder")


def _merge(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from detect.curation.regroup import merge_copy

    chosen = {"format": options.format, "follow_links": options.follow_links}
    merged = merge_copy(options.sources, options.out, options.split, **chosen)
    _print_written(merged, options.out)


# ---- formats ---------------------------------------------------------------------------------------------------------


def _add_formats(subcommands: Any) -> None:
    description = "list the formats of annotations that are read, or describe the files of one"
    parser = add_command(subcommands, "formats", _formats, description, "detect data formats labelme")
    parser.add_argument("name", nargs="?", metavar="FORMAT", help="default: a list of all")


def _formats(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from detect.data.formats import FORMATS

    if options.name is None:
        for name, module in FORMATS.items():
            print(f"{name:14}{module.LOOKED_FOR}")
    elif options.name in FORMATS:
        print((FORMATS[options.name].__doc__ or "").strip())
    else:
        raise UserError(f"{options.name}: there is no such format; choose {', '.join(FORMATS)}")


# ---- shapes and download ---------------------------------------------------------------------------------------------


def _add_shapes(subcommands: Any) -> None:
    parser = add_command(
        subcommands,
        "shapes",
        _shapes,
        "generate a data set of drawn shapes in COCO layout",
        "detect data shapes --out data/shapes",
    )
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument(
        "--images", type=int, default=300, help="training images, plus a fifth for validation (default: 300)"
    )
    parser.add_argument("--seed", type=int, default=0)


def _shapes(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from detect.curation.shapes import make_shapes

    print(make_shapes(options.out, images=options.images, seed=options.seed))


def _add_download(subcommands: Any) -> None:
    parser = add_command(
        subcommands,
        "download",
        _download,
        "download a public data set from the internet",
        "detect data download bccd --root data",
    )
    parser.add_argument("name", help="bccd, voc2007, voc2012, coco, or a part such as coco/val2017")
    parser.add_argument("--root", type=Path, default=Path("data"), help="the folder for data sets (default: data)")


def _download(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from detect.curation.download import download

    print(download(options.name, options.root))
