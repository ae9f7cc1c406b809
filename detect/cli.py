"""The `detect` command. Nothing heavy is imported before a command needs it: help comes at once."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detect.errors import UserError

if TYPE_CHECKING:
    from detect.checkpoint import Checkpoint, ClassifierCheckpoint
    from detect.config import ClassificationConfig, Config, Experiment
    from detect.data.datamodule import DetectionData
    from detect.data.dataset import Dataset
    from detect.proposals.recall import ProposalRecall

OPTIONS_NOTE = """\
Any option of the config can be changed after it, as --section.key VALUE:
  --data.root DIR  --data.short_side [600]  --data.batch_size 8  --training.epochs 24
  --training.precision auto  --model.backbone.weights IMAGENET1K_V1
The folder of a run holds config.yaml with all of them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; a user's mistake is one line on stderr and exit code 2, an interrupt 130."""
    parser = _parser()
    words = list(sys.argv[1:] if arguments is None else arguments)
    options, overrides = parser.parse_known_args(_one_word_each(words) if words[:1] == ["compare"] else words)
    if overrides and not options.takes_overrides:
        parser.error(f"unrecognised: {' '.join(overrides)}")
    try:
        return options.run(options, overrides) or 0
    except KeyboardInterrupt as interrupt:
        print(f"detect: {interrupt}" if interrupt.args else "detect: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        message = _user_message(error)
        if message is None:
            raise
        print(f"detect: error: {message}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="detect", description="The R-CNN family: train, evaluate, ship.", epilog="example: detect demo"
    )
    parser.add_argument("--version", action=_Version)
    parser.set_defaults(takes_overrides=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = _command(commands, "demo", _demo, "make data, train on it, evaluate and draw, in minutes", "detect demo")
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="a new folder (default: %(default)s)")

    train = _command(
        commands,
        "train",
        _train,
        "fit a detector or a classifier, then evaluate its best checkpoint",
        "detect train -c configs/bccd/faster_rcnn.yaml --data.root data/bccd\n\n" + OPTIONS_NOTE,
    )
    train.add_argument("-c", "--config", type=Path, help="the experiment, a YAML file; see configs/")
    train.add_argument("--out", type=Path, help="the folder of the run (default: a new one under runs/)")
    train.add_argument("--resume", action="store_true", help="go on with the run in --out")
    train.set_defaults(takes_overrides=True)

    evaluate = _command(
        commands,
        "eval",
        _eval,
        "COCO and VOC figures of a detector's checkpoint, accuracies of a classifier's",
        "detect eval --ckpt runs/bccd/checkpoints/best.ckpt --data.root data/bccd --split test",
    )
    evaluate.add_argument("--ckpt", type=Path, required=True, help="a checkpoint, or an exported detector (.onnx)")
    evaluate.add_argument("--split", help="the split to evaluate (default: the config's test, else val)")
    evaluate.add_argument("--out", type=Path, help="a new folder for the results (default: eval_SPLIT/ in the run)")
    evaluate.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the weights")
    evaluate.add_argument("--engine", choices=("pycocotools", "fast"), default="pycocotools", help="equal figures")
    evaluate.set_defaults(takes_overrides=True)

    predict = _command(
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

    ship = _command(
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

    bring = _command(
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

    compress = _command(
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

    compare = _command(
        commands,
        "compare",
        _compare,
        "train, judge and time several detectors on one data set",
        "detect compare configs/bccd/*.yaml --data.root data/bccd --out runs/bccd\n\n"
        "The same command goes on with what was interrupted. An option such as --data.root is for all configs.",
    )
    compare.add_argument("sources", nargs="*", type=Path, metavar="CONFIG", help="a config to train, or a checkpoint")
    compare.add_argument("--out", type=Path, required=True, help="the folder of the comparison, with a run a config")
    compare.add_argument("--split", help="what all are judged on (default: the configs' test, else val)")
    compare.add_argument("--images", type=int, default=50, help="the most that are timed (default: %(default)s)")
    compare.set_defaults(takes_overrides=True)

    propose = _command(
        commands,
        "propose",
        _propose,
        "selective search into a store of proposals, or the recall of proposals",
        "detect propose data/bccd --out data/bccd.proposals",
    )
    propose.add_argument("sources", nargs="+", metavar="SOURCE", help="a data set, a folder, an image or a pattern")
    propose.add_argument("--out", type=Path, help="the store; images that it has are not searched again")
    propose.add_argument("--mode", choices=("single", "fast", "quality"), default="fast", help="default: %(default)s")
    propose.add_argument("--seed", type=int, default=0, help="of the ranking")
    propose.add_argument("--processes", type=int, help="how many work at a time (default: one for each core)")
    propose.add_argument("--recall", metavar="SPLIT", help="tell how well the proposals cover the truths of this split")
    propose.add_argument("--ckpt", type=Path, help="with --recall: the RPN of this checkpoint; --out is the picture")

    model = _command(
        commands,
        "model",
        _model,
        "the network as a table: shapes, receptive fields, parameters, cost",
        "detect model configs/voc/faster_rcnn_vgg16.yaml --classes 20\n\n"
        "Nothing is computed, and neither data nor weights are needed.",
    )
    model.add_argument("config", type=Path, metavar="CONFIG", help="the experiment, a YAML file; see configs/")
    size = "of the image (default: the config's short side, at 4:3; what a classifier sees)"
    model.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help=size)
    model.add_argument("--classes", type=int, metavar="N", help="default: COCO's 80, for a classifier ImageNet's 1000")
    model.add_argument(
        "--depth", type=int, metavar="N", help="how far down parts are told apart (default: as fits 36 rows)"
    )
    model.set_defaults(takes_overrides=True)

    sets = commands.add_parser(
        "data", help="make, convert, fetch data sets", epilog="example: detect data download bccd"
    )
    data = sets.add_subparsers(required=True, metavar="COMMAND")
    shapes = _command(
        data,
        "shapes",
        _shapes,
        "a made data set of drawn shapes, in COCO layout",
        "detect data shapes --out data/shapes",
    )
    shapes.add_argument("--out", type=Path, required=True, help="a new folder")
    shapes.add_argument("--images", type=int, default=300, help="training images; a fifth for validation")
    shapes.add_argument("--seed", type=int, default=0)
    convert = _command(
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
    download = _command(
        data,
        "download",
        _download,
        "fetch a public data set; the only command that uses the network",
        "detect data download bccd --root data",
    )
    download.add_argument("name", help="bccd, voc2007, voc2012, coco, or a part such as coco/val2017")
    download.add_argument("--root", type=Path, default=Path("data"), help="the folder of data sets (default: data)")
    return parser


class _Version(argparse.Action):
    """Prints the versions of what figures depend on."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="versions of detect and of what its figures depend on")

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        names = ("detect", "torch", "torchvision", "lightning", "pycocotools")
        print(", ".join(f"{name} {version(name)}" for name in names))
        parser.exit()


def _command(commands: Any, name: str, run: Any, help: str, example: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


# ---- commands --------------------------------------------------------------------------------------------------------


def _demo(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from detect.data.shapes import make_shapes
    from detect.demo import demo_config

    _refuse_used(options.out)
    data = make_shapes(options.out / "data", images={"train": 800, "val": 60})
    metrics = _train_and_evaluate(demo_config(data), options.out)
    print(f"AP50 {metrics['AP50']:.3f}. Detections beside the truths: {options.out / 'eval' / 'pictures'}")


def _train(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from detect.config import Config, load_experiment

    if options.resume:
        if options.out is None:
            raise UserError("--resume goes on with the run in --out DIR: name that folder")
        if not (options.out / "config.yaml").exists():
            raise UserError(f"--resume: {options.out} holds no run; start one without --resume")
        config = load_experiment(options.config or options.out / "config.yaml", overrides)
        out = options.out
    elif options.config is None:
        raise UserError("-c: name the experiment, for example -c configs/bccd/faster_rcnn.yaml")
    else:
        config = load_experiment(options.config, overrides)
        out = options.out or _new_run(options.config)
        if _is_first_process():
            _refuse_used(out)
    _tell_weights()
    if isinstance(config, Config):
        _train_and_evaluate(config, out, options.resume)
    else:
        _train_classifier(config, out, options.resume)


def _eval(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from detect.checkpoint import ClassifierCheckpoint, load_any
    from detect.config import check_proposals

    _refuse_training(overrides)
    if options.ckpt.suffix == ".onnx":
        _evaluate_exported(options, overrides)
        return
    checkpoint = load_any(options.ckpt, overrides)
    config = checkpoint.config
    if not isinstance(checkpoint, ClassifierCheckpoint):
        check_proposals(checkpoint.config)
    split, out = _split_and_out(options, config)
    if isinstance(checkpoint, ClassifierCheckpoint):
        if (options.precision, options.engine) != ("fp32", "pycocotools"):
            raise UserError("--precision, --engine: they are for detectors; leave them out for a classifier")
        _refuse_used(out)
        _evaluate_classifier(checkpoint, options.ckpt, split, out)
        return
    data = _data(checkpoint.config, checkpoint.classes)
    _tell(data, [data.split(split)])
    if _is_first_process():
        _refuse_used(out)
        _make(out)
    _evaluate(checkpoint, options.ckpt, data, split, out, options.precision, options.engine)


def _evaluate_exported(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from detect.config import Config, config_from_dict
    from detect.evaluation.table import print_metrics
    from detect.inference.evaluate import evaluate_exported, write_evaluation
    from detect.inference.onnx_model import OnnxModel

    model = OnnxModel(options.ckpt)
    for word in overrides:
        if word.startswith("--model."):
            raise UserError(f"{word}: the network is in the graph as it is; change the checkpoint and export it again")
    if options.precision != "fp32":
        raise UserError(f"--precision: {options.precision}; an exported model computes in fp32; leave it out")
    config = config_from_dict(model.config, str(options.ckpt), overrides)
    assert isinstance(config, Config)
    split, out = _split_and_out(options, config)
    data = _data(config, model.classes)
    dataset = data.split(split)
    _tell(data, [dataset])
    _refuse_used(out)
    _make(out)
    metrics, evaluator = evaluate_exported(model, dataset, options.engine)
    write_evaluation(out, metrics, evaluator, options.ckpt, "ONNX Runtime", "fp32", options.engine)
    print_metrics(metrics)
    print(f"{dataset.root} {split}: {out / 'metrics.json'}, {out / 'predictions.json'}, {out / 'pictures'}")


def _split_and_out(options: argparse.Namespace, config: Experiment) -> tuple[str, Path]:
    """What to evaluate on, and the folder for the results."""
    split = options.split or config.data.test or config.data.val
    if split is None:
        raise UserError("--split: the config names no test and no val split; name the one to evaluate")
    folder = options.ckpt.resolve().parent
    return split, options.out or _free((folder.parent if folder.name == "checkpoints" else folder) / f"eval_{split}")


def _predict(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    from detect import load
    from detect.inference.predict import predict, shard_of

    chosen = {
        name: getattr(options, name)
        for name in ("score", "classes", "batch_size", "device", "precision", "compile", "flip", "scales")
        if getattr(options, name) not in (None, False, "auto" if name == "device" else None)
    }
    if options.ckpt.suffix == ".onnx":
        _refuse_of_exported(chosen)
    shard = (1, 1) if options.shard is None else shard_of(options.shard)
    if options.shard is not None and options.out is None:
        raise UserError("--shard: all shards write into one folder; name it with --out")
    out = options.out or _free(Path("runs/predict"))
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
    done = f"{outcome.images} images, {outcome.detections} detections"
    print(f"{out}: {done if outcome.merged else 'other shards have work to do'}")
    return 3 if outcome.left_out else 0


def _refuse_of_exported(chosen: dict[str, Any]) -> None:
    """An exported model has its precision and its one view in the graph."""
    chosen.pop("precision", None)
    for name in ("device", "compile", "flip", "scales"):
        if name in chosen:
            raise UserError(f"--{name}: an exported model has no such choice; leave it out, or give the checkpoint")


def _export(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from detect.checkpoint import load_checkpoint
    from detect.inference.export import SUFFIXES, export, has_data, made_photographs, photographs_of, refuse

    _refuse_training(overrides)
    checkpoint = load_checkpoint(options.ckpt, overrides)
    out = options.out or options.ckpt.with_suffix(SUFFIXES[options.format])
    if out.exists():
        raise UserError(f"{out}: this is there already; give another --out")
    refuse(checkpoint, options.format, out)
    if options.split or has_data(checkpoint.config):
        photographs = photographs_of(checkpoint.config, options.split, checkpoint.classes)
    else:
        photographs = made_photographs()
        print(
            f"{checkpoint.config.data.root}: no data there, so drawn scenes are compared; better give --data.root DIR"
        )
    compared = export(checkpoint, out, options.format, photographs)
    if compared is not None:
        print(
            f"finds the same: {compared.detections} detections in {compared.photographs} images and {compared.batches} "
            f"batches of two differ by {compared.score:.1g} in score at most; their IoU is {compared.iou:.5f} at least"
        )
    print(out)


def _import(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from rich.console import Console

    from detect.evaluation.table import table
    from detect.inference.import_weights import import_weights

    done = import_weights(options.project, options.file, options.out, options.names, options.style)
    Console().print(table(("part", "tensors", "numbers", "meaning"), done.rows()))
    if done.note:
        print(done.note)
    print(options.out)


def _compress(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    import torch
    from rich.console import Console

    from detect.checkpoint import load_checkpoint
    from detect.config import check_proposals
    from detect.evaluation.table import table
    from detect.inference.compress import compress, measure, save

    _refuse_training(overrides)
    if options.out.exists():
        raise UserError(f"{options.out}: this is there already; give another --out")
    before = load_checkpoint(options.ckpt, overrides)
    dataset = loader = None
    if options.split is not None:  # read before the work, so that a wrong split costs nothing
        check_proposals(before.config)
        data = _data(before.config, before.classes)
        dataset = data.split(options.split)
        loader = data.eval_loader(dataset)
    after = compress(before, options.ranks)
    _make(options.out.parent)
    save(after, options.out)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    Console().print(table(("figure", "before", "after"), measure(before, after, device, loader, dataset)))
    print(options.out)


def _compare(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from detect.allocator import keep_pages
    from detect.compare import compare

    if options.images < 1:
        raise UserError(f"--images: {options.images}; time one image at least")
    if "RANK" in os.environ or "LOCAL_RANK" in os.environ:
        raise UserError("compare: it runs in one process; start it without torchrun")
    _calm()
    keep_pages()
    split = [f"--split={options.split}"] if options.split else []
    words = [*options.sources, *overrides, *split, f"--images={options.images}", f"--out={options.out}"]
    command = shlex.join(["detect", "compare", *map(str, words)])
    try:
        compare(options.sources, options.out, overrides, options.split, options.images, command)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; the same command goes on where this one ended") from None


def _propose(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    from detect.data.read import read
    from detect.inference.propose import propose

    if options.ckpt is not None:
        _rpn_recall(options)
        return 0
    if options.out is None:
        raise UserError("--out: name the file of the store, for example --out proposals.db")
    # Read before the work, so that a wrong split costs nothing.
    truths = None if options.recall is None else read(_only_source(options), options.recall, skip_unreadable=True)
    try:
        outcome = propose(options.sources, options.out, options.mode, options.seed, options.processes)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; the same command goes on where this one ended") from None
    print(f"{options.out}: {outcome.added} images added, {outcome.present} were there")
    for line in outcome.unreadable:
        print(f"detect: left out: {line}", file=sys.stderr)
    if truths is not None:
        _store_recall(options, truths)
    return 3 if outcome.unreadable else 0


def _store_recall(options: argparse.Namespace, dataset: Dataset) -> None:
    from contextlib import closing

    from detect.inference.recall import store_recall
    from detect.proposals.store import ProposalStore

    with closing(ProposalStore(options.out)) as store:
        recall = store_recall(store, dataset)
    picture = options.out.with_name(f"{options.out.name}.{dataset.split}.png")
    _show_recall(recall, dataset, picture, f"Selective search, {options.mode}")


def _rpn_recall(options: argparse.Namespace) -> None:
    import torch

    from detect.checkpoint import load_checkpoint
    from detect.inference.prepare import prepare
    from detect.inference.recall import rpn_recall

    if options.recall is None:
        raise UserError("--ckpt: the recall of an RPN needs the split of the truths; give --recall SPLIT")
    checkpoint = load_checkpoint(options.ckpt, [f"--data.root={_only_source(options)}"])
    if checkpoint.model.rpn is None:
        raise UserError(f"--ckpt: {options.ckpt}: a {checkpoint.config.model.name} has no RPN; leave --ckpt out")
    data = _data(checkpoint.config, checkpoint.classes)
    dataset = data.split(options.recall)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recall = rpn_recall(prepare(checkpoint.model.to(device)), data.eval_loader(dataset), device)
    _show_recall(recall, dataset, options.out or options.ckpt.with_name(f"proposals_{dataset.split}.png"), "RPN")


def _show_recall(recall: ProposalRecall, dataset: Dataset, picture: Path, title: str) -> None:
    from detect.evaluation.proposals import draw_recall, print_recall

    print_recall(recall, dataset.classes)
    draw_recall(picture, recall, f"{title}: {dataset.root} {dataset.split}")
    print(picture)


def _only_source(options: argparse.Namespace) -> Path:
    if len(options.sources) != 1:
        raise UserError("--recall: give one data set as the only source, for it has the truths")
    return Path(options.sources[0])


def _model(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from dataclasses import replace

    import torch

    from detect.config import Config, load_experiment
    from detect.models.summary import print_summary, summarize_on_image

    for name in ("size", "classes", "depth"):
        value = getattr(options, name)
        if value is not None and (value if isinstance(value, int) else min(value)) < 1:
            raise UserError(f"--{name}: {value}; give 1 or more")
    config = load_experiment(options.config, overrides)
    if isinstance(config, Config):
        short_side = min(max(config.data.short_side), config.data.long_side * 3 / 4)
        size, classes, proposals = (round(short_side), round(short_side * 4 / 3)), 80, config.data.max_proposals
    else:
        size, classes, proposals = (config.data.size, config.data.size), 1000, 0
    height, width = options.size or size
    classes = options.classes or classes
    # Weights change nothing of a network's shape: the file that they come from need not be there.
    network = replace(config.model, backbone=replace(config.model.backbone, weights=None))
    with torch.device("meta"):
        model = network.build(classes).eval()
    try:
        summary, regions = summarize_on_image(model, height, width, proposals, options.depth)
    except RuntimeError as error:  # torch's own, of a layer that is left without a cell
        raise UserError(f"--size: {height} × {width}: too small for the network: {error}") from None
    title = f"{options.config}: an image of {height} × {width}, {classes:,} classes"
    print_summary(summary, f"{title}, {regions:,} regions" if regions else title)


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


# ---- what they share -------------------------------------------------------------------------------------------------


def _train_and_evaluate(config: Config, out: Path, resume: bool = False) -> dict[str, Any]:
    from detect.checkpoint import load_checkpoint
    from detect.training.fit import fit

    _calm()
    data = _data(config)
    final = config.data.test or config.data.val
    _tell(data, [data.train, *([data.val] if data.val else []), *([data.split(final)] if final else [])])
    _announce(config)
    try:
        best, seconds = fit(config, data, out, resume)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; go on with: detect train --resume --out {out}") from None
    _print(f"trained in {seconds:.0f} s: {best}")
    if final is None:
        return {}
    return _evaluate(load_checkpoint(best), best, data, final, _free(out / "eval"))


def _train_classifier(config: ClassificationConfig, out: Path, resume: bool) -> None:
    from detect.allocator import keep_pages
    from detect.checkpoint import ClassifierCheckpoint, load_any
    from detect.data.classification import ClassificationData
    from detect.data.imagefolder import summary
    from detect.training.fit import fit_classifier

    _calm()
    keep_pages()
    data = ClassificationData(config.data, seed=config.training.seed)
    final = config.data.test or config.data.val
    for dataset in (data.train, data.val, data.split(final) if final else None):
        if dataset is not None:
            _print(summary(dataset))
    _announce(config)
    try:
        best, seconds = fit_classifier(config, data, out, resume)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; go on with: detect train --resume --out {out}") from None
    _print(f"trained in {seconds:.0f} s: {best}")
    if final is not None:
        checkpoint = load_any(best)
        assert isinstance(checkpoint, ClassifierCheckpoint)
        _evaluate_classifier(checkpoint, best, final, _free(out / "eval"))


def _evaluate_classifier(checkpoint: ClassifierCheckpoint, file: Path, split: str, out: Path) -> None:
    import torch

    from detect.data.classification import ClassificationData
    from detect.evaluation.classification import print_classification, write_classification
    from detect.inference.classify import classify

    _join_processes()
    device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu")
    data = ClassificationData(checkpoint.config.data, checkpoint.classes)
    metrics, evaluator = classify(checkpoint.model.to(device), data, split, device, file)
    if _is_first_process():
        write_classification(out, metrics, evaluator)
        print_classification(metrics)
        files = (out / name for name in ("metrics.json", "predictions.csv", "confusion.png"))
        print(f"{evaluator.dataset.root} {split}: {', '.join(map(str, files))}")


def _evaluate(
    checkpoint: Checkpoint,
    file: Path,
    data: DetectionData,
    split: str,
    out: Path,
    precision: Any = "fp32",
    engine: Any = "pycocotools",
) -> dict[str, Any]:
    import torch

    from detect.allocator import keep_pages
    from detect.evaluation.table import print_metrics
    from detect.inference.evaluate import evaluate, write_evaluation
    from detect.inference.prepare import prepare

    keep_pages()
    _join_processes()
    place = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    dataset = data.split(split)
    model = prepare(checkpoint.model.to(place), precision)
    metrics, evaluator = evaluate(model, data.eval_loader(dataset), dataset, torch.device(place), engine)
    if _is_first_process():
        write_evaluation(out, metrics, evaluator, file, place, precision, engine)
        print_metrics(metrics)
        print(f"{dataset.root} {split}: {out / 'metrics.json'}, {out / 'predictions.json'}, {out / 'pictures'}")
    return metrics


def _data(config: Config, classes: Sequence[str] | None = None) -> DetectionData:
    from detect.allocator import keep_pages
    from detect.data.datamodule import DetectionData

    keep_pages()
    return DetectionData(config.data, classes, seed=config.training.seed)


def _tell(data: DetectionData, datasets: Sequence[Any]) -> None:
    """What was read and mended, before the first step."""
    from detect.data.defects import summary

    for name in dict.fromkeys(dataset.split for dataset in datasets):
        _print(summary(data.split(name)))


def _announce(config: Experiment) -> None:
    """What one should know of an experiment before it begins."""
    for deviation in config.deviations:
        _print(f"deviates from the paper: {deviation}")
    backbone = config.model.backbone
    if getattr(backbone, "norm", None) == "frozen" and backbone.weights is None:
        _print("model.backbone.norm: frozen without weights is no norm; batch and group learn better from scratch")


def _one_word_each(words: Sequence[str]) -> list[str]:
    """`--section.key VALUE` as `--section.key=VALUE`, so that no value is taken for an argument of the command."""
    joined, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        separate = word.startswith("--") and "." in word and "=" not in word and rest
        joined.append(f"{word}={rest.pop(0)}" if separate else word)
    return joined


def _new_run(config: Path) -> Path:
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise UserError("--out: several processes need one folder by its name; give --out DIR")
    if not _is_first_process():
        return Path(os.environ["DETECT_RUN"])
    folder = _free(Path("runs") / "_".join(config.with_suffix("").parts[-2:]))
    os.environ["DETECT_RUN"] = str(folder)  # for the processes that Lightning starts, one for each device
    return folder


def _free(folder: Path) -> Path:
    """The folder, or where it exists the first of those with a number that does not."""
    names = (folder, *(folder.with_name(f"{folder.name}_{number}") for number in range(2, 10**4)))
    return next(name for name in names if not name.exists())


def _refuse_used(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: this is a file; give another --out")
    if out.exists() and any(out.iterdir()):
        raise UserError(
            f"{out}: the folder is not empty; give another --out, or remove it (a run goes on with --resume)"
        )


def _refuse_training(overrides: Sequence[str]) -> None:
    for word in overrides:
        if word.startswith("--training."):
            raise UserError(f"{word}: training is over; a checkpoint has options of data and model")


def _make(out: Path) -> None:
    """Before the work whose results go there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: {error.strerror}; choose another folder with --out") from None


def _is_first_process() -> bool:
    """True but in the second and later processes of torchrun (RANK) or of Lightning (LOCAL_RANK)."""
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"


def _join_processes() -> None:
    """Under torchrun, lets the processes share the evaluation; after training they are joined already."""
    import torch
    from torch import distributed

    if distributed.is_available() and distributed.is_torchelastic_launched() and not distributed.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        distributed.init_process_group()


def _print(text: str) -> None:
    if _is_first_process():
        print(text, flush=True)


def _tell_weights() -> None:
    """Lets `load_weights` say what it has loaded and what it has left out."""
    log = logging.getLogger("detect.backbones.weights")
    if _is_first_process() and not log.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)


def _calm() -> None:
    """Keeps Lightning's advice and advertisements from the terminal, once it is imported."""
    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _user_message(error: Exception) -> str | None:
    """The one line of a `UserError`, also where a worker wraps it in its traceback; None for a bug of ours."""
    if not isinstance(error, UserError):
        return None
    return str(error).strip().splitlines()[-1].rpartition("detect.errors.UserError: ")[2]
