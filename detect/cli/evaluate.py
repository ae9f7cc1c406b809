"""`detect eval`, which is also how a training ends."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detect.cli.shared import (
    command,
    detection_data,
    free_folder,
    is_first_process,
    make_folder,
    refuse_training,
    refuse_used,
    tell_data,
)
from detect.errors import UserError

if TYPE_CHECKING:
    import torch

    from detect.checkpoint import Checkpoint, ClassifierCheckpoint
    from detect.config import Experiment
    from detect.data.classification import ClassificationData
    from detect.data.datamodule import DetectionData
    from detect.data.dataset import Dataset


def add(commands: Any) -> None:
    """Adds the command."""
    evaluate = command(
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


def _eval(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from detect.checkpoint import ClassifierCheckpoint, load_any
    from detect.config import check_proposals
    from detect.data.classification import ClassificationData

    refuse_training(overrides)
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
        refuse_used(out)
        labelled = ClassificationData(checkpoint.config.data, checkpoint.classes)
        evaluate_classifier(checkpoint, options.ckpt, labelled, split, out)
        return
    data = detection_data(checkpoint.config, checkpoint.classes)
    tell_data(data, [data.split(split)])
    if is_first_process():
        refuse_used(out)
        make_folder(out)
    how = (options.command, options.precision, options.engine)
    evaluate_checkpoint(checkpoint, options.ckpt, data, split, out, *how)


def _evaluate_exported(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from detect.checkpoint import FENCED
    from detect.config import Config, config_from_dict
    from detect.prediction.evaluate import evaluate_exported, write_evaluation
    from detect.prediction.onnx_detector import OnnxDetector
    from detect.report.tables import print_metrics

    model = OnnxDetector(options.ckpt)
    for word in overrides:
        if word.startswith(("--model.", "--data.short_side", "--data.long_side")):
            raise UserError(f"{word}: this is in the graph as it is; change the checkpoint and export it again")
    if options.precision != "fp32":
        raise UserError(f"--precision: {options.precision}; an exported model computes in fp32; leave it out")
    config = config_from_dict(model.config, str(options.ckpt), [FENCED, *overrides])
    if not isinstance(config, Config):
        raise UserError(f"{options.ckpt}: its config is of a classifier, as no model of detect export has it")
    split, out = _split_and_out(options, config)
    data = detection_data(config, model.classes)
    dataset = data.split(split)
    tell_data(data, [dataset])
    refuse_used(out)
    make_folder(out)
    metrics, evaluator = evaluate_exported(model, dataset, options.engine)
    how = {"device": "ONNX Runtime", "engine": options.engine, "command": options.command}
    write_evaluation(out, metrics, evaluator, options.ckpt, config, **how)
    print_metrics(metrics)
    print(_where(dataset, out))


def _split_and_out(options: argparse.Namespace, config: Experiment) -> tuple[str, Path]:
    """What to evaluate on, and the folder for the results."""
    split = options.split or config.data.test or config.data.val
    if split is None:
        raise UserError("--split: the config names no test and no val split; name the one to evaluate")
    folder = options.ckpt.resolve().parent
    return split, options.out or free_folder(
        (folder.parent if folder.name == "checkpoints" else folder) / f"eval_{split}"
    )


def evaluate_checkpoint(
    checkpoint: Checkpoint,
    file: Path,
    data: DetectionData,
    split: str,
    out: Path,
    command: str,
    precision: Any = "fp32",
    engine: Any = "pycocotools",
    accelerator: str = "auto",
) -> dict[str, Any]:
    """Evaluates a detector on a split, prints its figures and, with all else, writes them into the folder `out`."""
    from detect.allocator import keep_pages
    from detect.prediction.evaluate import evaluate, write_evaluation
    from detect.prediction.prepare import prepare
    from detect.report.tables import print_metrics

    keep_pages()
    device = _device(accelerator)
    _join_processes(device)
    dataset = data.split(split)
    model = prepare(checkpoint.model.to(device), precision)
    metrics, evaluator = evaluate(model, data.eval_loader(dataset), dataset, device, engine)
    if is_first_process():
        how = {"device": str(device), "precision": precision, "engine": engine, "command": command}
        write_evaluation(out, metrics, evaluator, file, checkpoint.config, **how)
        print_metrics(metrics)
        print(_where(dataset, out))
    return metrics


def _where(dataset: Dataset, out: Path) -> str:
    files = ", ".join(str(out / name) for name in ("report.html", "metrics.json", "predictions.json", "pictures"))
    return f"{dataset.root} {dataset.split}: {files}"


def evaluate_classifier(
    checkpoint: ClassifierCheckpoint,
    file: Path,
    data: ClassificationData,
    split: str,
    out: Path,
    accelerator: str = "auto",
) -> None:
    """The same for a classifier."""
    from detect.prediction.classify import classify
    from detect.report.classification import print_classification, write_classification

    device = _device(accelerator)
    _join_processes(device)
    metrics, evaluator = classify(checkpoint.model.to(device), data, split, device, file)
    if is_first_process():
        write_classification(out, metrics, evaluator)
        print_classification(metrics)
        files = (out / name for name in ("metrics.json", "predictions.csv", "confusion.png"))
        print(f"{evaluator.dataset.root} {split}: {', '.join(map(str, files))}")


def _device(accelerator: str) -> torch.device:
    """The device of this process, which under torchrun is one of several here."""
    import torch

    on_gpu = accelerator != "cpu" and torch.cuda.is_available()
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if on_gpu else torch.device("cpu")


def _join_processes(device: torch.device) -> None:
    """Under torchrun, lets the processes share the evaluation; after training they are joined already."""
    import torch
    from torch import distributed

    if distributed.is_available() and distributed.is_torchelastic_launched() and not distributed.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        distributed.init_process_group()
