"""Evaluation of a model file on a split: a checkpoint of a detector or classifier, or an exported detector."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from detect.allocator import keep_pages
from detect.checkpoint import FENCED, Checkpoint, ClassifierCheckpoint, load_any
from detect.config import (
    ClassificationConfig,
    Config,
    Experiment,
    check_proposals,
    config_from_dict,
    given_options,
    refuse_training_options,
)
from detect.config.experiment import E
from detect.data.classification import ClassificationData
from detect.data.datamodule import DetectionData
from detect.data.dataset import SEPARATOR
from detect.data.defects import summary
from detect.data.splits import usual_splits
from detect.devices import Accelerator, choose_device
from detect.errors import UserError
from detect.evaluation.coco import Engine
from detect.files.folders import create_folder, refuse_used, unused_folder
from detect.prediction.classify import classify
from detect.prediction.evaluate import evaluate, evaluate_exported, write_evaluation
from detect.prediction.onnx_detector import OnnxDetector
from detect.prediction.prepare import Precision, prepare
from detect.processes import is_first_process
from detect.report.classification import write_classification

DETECTOR_FILES = ("report.html", "metrics.json", "predictions.json", "pictures")
CLASSIFIER_FILES = ("metrics.json", "predictions.csv", "confusion.png")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Metrics on a split, and the folder with the results."""

    metrics: dict[str, Any]
    source: str
    """The evaluated data set."""
    split: str
    out: Path
    files: tuple[str, ...]
    """Names of the results in `out`."""

    @property
    def is_classifier(self) -> bool:
        """True if a classifier was evaluated."""
        return self.files == CLASSIFIER_FILES

    def __str__(self) -> str:
        return f"{self.source} {self.split}: {', '.join(str(self.out / name) for name in self.files)}"


def evaluate_file(
    file: Path,
    overrides: Sequence[str] = (),
    split: str | None = None,
    out: Path | None = None,
    *,
    classes: Sequence[str] | None = None,
    precision: Precision = "fp32",
    engine: Engine = "pycocotools",
    dense: bool = False,
    data: Sequence[Path] = (),
    command: str | None = None,
    log: Callable[[str], object] = print,
) -> Evaluation:
    """Evaluate the model in a file and write the results into a new folder.

    Args:
        file: a checkpoint, or an exported detector (.onnx).
        overrides: options of the config, each in the form `--section.key=VALUE`.
        split: by default the config's test split, else its val split; of other data its own, else the training split.
        out: by default `eval_SPLIT` in the folder of the run.
        classes: classes to evaluate; by default all.
        precision: precision of the weights.
        engine: implementation of the COCO metrics; both give equal numbers.
        dense: evaluate a classifier on whole images, see `Classifier.to_dense`.
        data: data folders or annotation files; by default those of the config.
        command: command line, for the report.
        log: called with a summary of the data.

    Raises:
        UserError: the file is not a model, an option does not apply to it, or the folder is in use.
    """
    refuse_training_options(overrides)
    overrides = [*overrides, *([] if classes is None else [f"--data.classes={json.dumps(list(classes))}"])]
    if file.suffix == ".onnx":
        _refuse_dense(file, dense)
        return _evaluate_onnx(file, overrides, split, out, precision, engine, data, command, log)
    checkpoint = _load(file, overrides, data)
    if isinstance(checkpoint, ClassifierCheckpoint):
        return _evaluate_classifier(checkpoint, file, split, out, precision, engine, dense)
    _refuse_dense(file, dense)
    return _evaluate_detector(checkpoint, file, split, out, precision, engine, command, log)


def evaluate_checkpoint(
    checkpoint: Checkpoint,
    file: Path,
    data: DetectionData,
    split: str,
    out: Path,
    *,
    precision: Precision = "fp32",
    engine: Engine = "pycocotools",
    command: str | None = None,
    accelerator: Accelerator = "auto",
) -> Evaluation:
    """Evaluate a detector on a split and write metrics, predictions, report and pictures into the folder `out`.

    Under torchrun the processes share the images, all of them return the same metrics, and the first one writes.
    """
    keep_pages()
    device = choose_device(accelerator)
    _join_process_group(device)
    dataset = data.split(split)
    model = prepare(checkpoint.model.to(device), precision)
    metrics, evaluator = evaluate(model, data.eval_loader(dataset), dataset, device, engine, data.options.classes)
    if is_first_process():
        write_evaluation(
            out,
            metrics,
            evaluator,
            file,
            checkpoint.config,
            device=str(device),
            precision=precision,
            engine=engine,
            command=command,
        )
    return Evaluation(metrics, dataset.source, dataset.split, out, DETECTOR_FILES)


def evaluate_classifier_checkpoint(
    checkpoint: ClassifierCheckpoint,
    file: Path,
    data: ClassificationData,
    split: str,
    out: Path,
    accelerator: Accelerator = "auto",
    *,
    dense: bool = False,
) -> Evaluation:
    """Evaluate a classifier on a split and write metrics, predictions and confusion matrix into the folder `out`.

    With `dense` whole images are evaluated, see `Classifier.to_dense`.
    Under torchrun the processes share the images, all of them return the same metrics, and the first one writes.
    """
    device = choose_device(accelerator)
    _join_process_group(device)
    metrics, evaluator = classify(checkpoint.model.to(device), data, split, device, file, dense)
    if is_first_process():
        write_classification(out, metrics, evaluator)
    return Evaluation(metrics, str(evaluator.dataset.root), split, out, CLASSIFIER_FILES)


def _refuse_dense(file: Path, dense: bool) -> None:
    if dense:
        raise UserError(f"--dense: {file} is a detector, which sees whole images anyway; leave it out")


def _load(file: Path, overrides: Sequence[str], data: Sequence[Path]) -> Checkpoint | ClassifierCheckpoint:
    """Load a checkpoint, with its config on these data folders."""
    checkpoint, given = load_any(file, overrides), given_options(overrides)
    if isinstance(checkpoint, ClassifierCheckpoint):
        return replace(checkpoint, config=_on_data(checkpoint.config, data, given))
    return replace(checkpoint, config=_on_data(checkpoint.config, data, given))


def _evaluate_detector(
    checkpoint: Checkpoint,
    file: Path,
    split: str | None,
    out: Path | None,
    precision: Precision,
    engine: Engine,
    command: str | None,
    log: Callable[[str], object],
) -> Evaluation:
    config = checkpoint.config
    check_proposals(config)
    split, out = _split_and_folder(file, config, split, out)
    keep_pages()
    images = DetectionData(config.data, checkpoint.classes, config.training.seed, None, config.model.predicts_masks)
    log(summary(images.split(split)))
    if is_first_process():
        refuse_used(out)
        create_folder(out)
    return evaluate_checkpoint(
        checkpoint, file, images, split, out, precision=precision, engine=engine, command=command
    )


def _evaluate_classifier(
    checkpoint: ClassifierCheckpoint,
    file: Path,
    split: str | None,
    out: Path | None,
    precision: str,
    engine: str,
    dense: bool,
) -> Evaluation:
    if (precision, engine) != ("fp32", "pycocotools"):
        raise UserError("--precision, --engine: only for detectors; leave them out for a classifier")
    split, out = _split_and_folder(file, checkpoint.config, split, out)
    refuse_used(out)
    images = ClassificationData(checkpoint.config.data, checkpoint.classes)
    return evaluate_classifier_checkpoint(checkpoint, file, images, split, out, dense=dense)


def _evaluate_onnx(
    file: Path,
    overrides: Sequence[str],
    split: str | None,
    out: Path | None,
    precision: str,
    engine: Engine,
    data: Sequence[Path],
    command: str | None,
    log: Callable[[str], object],
) -> Evaluation:
    model = OnnxDetector(file)
    for word in overrides:
        if word.startswith(("--model.", "--data.short_side", "--data.eval_short_side", "--data.long_side")):
            raise UserError(f"{word}: this is fixed in the graph; change the checkpoint and export it again")
    if precision != "fp32":
        raise UserError(f"--precision: {precision}; an exported model computes in fp32; leave it out")
    config = config_from_dict(model.config, str(file), [FENCED, *overrides])
    if not isinstance(config, Config):
        raise UserError(f"{file}: this is a classifier; give a file that detect export has written")
    config = _on_data(config, data, given_options(overrides))
    split, out = _split_and_folder(file, config, split, out)
    keep_pages()
    dataset = DetectionData(config.data, model.classes, config.training.seed, None, config.model.predicts_masks).split(
        split
    )
    log(summary(dataset))
    refuse_used(out)
    create_folder(out)
    metrics, evaluator = evaluate_exported(model, dataset, engine, config.data.classes)
    write_evaluation(out, metrics, evaluator, file, config, device="ONNX Runtime", engine=engine, command=command)
    return Evaluation(metrics, dataset.source, dataset.split, out, DETECTOR_FILES)


def _on_data(config: E, data: Sequence[Path], given: Collection[str]) -> E:
    """Return the experiment on these data folders; on others than its own with the splits that they have.

    Args:
        config: the experiment.
        data: the folders; empty for those of the experiment.
        given: names of the options that the user gave.
    """
    if not data:
        return config
    if isinstance(config, ClassificationConfig):
        if len(data) > 1:
            raise UserError(f"{data[1]}: a classifier is evaluated on one data set; leave the others out")
        return replace(config, data=replace(config.data, root=data[0]))
    if set(map(os.path.realpath, data)) == set(map(os.path.realpath, config.data.roots)):
        return config
    kept = {name: getattr(config.data, name) for name in ("format", "test") if f"data.{name}" in given}
    options = replace(config.data, root=tuple(data), format=kept.get("format"), val=None, test=None, division=None)
    found = usual_splits(options)
    values = {"train": found["train"], "test": found["test"] or found["val"] or found["train"], **kept}
    return replace(config, data=replace(options, **values))


def _split_and_folder(file: Path, config: Experiment, split: str | None, out: Path | None) -> tuple[str, Path]:
    """Return the split to evaluate and the folder of the results."""
    split = split or config.data.final
    if split is None:
        raise UserError("--split: the config has no test or val split; name the split to evaluate")
    folder = file.resolve().parent
    run = folder.parent if folder.name == "checkpoints" else folder
    return split, out or unused_folder(run / f"eval_{split.replace(SEPARATOR, '+')}")


def _join_process_group(device: torch.device) -> None:
    """Join the process group of torchrun, if any, unless training has already joined it."""
    if distributed.is_available() and distributed.is_torchelastic_launched() and not distributed.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        distributed.init_process_group()
