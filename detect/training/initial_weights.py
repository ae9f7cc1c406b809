"""Initial weights of a training, from another model's file: `training.weights`.

    read     the file of any program as one of our models                      detect.foreign_weights.any_file
    match    each tensor of the new model with one of the file, by name
    copy     tensors of equal shape; rows of classes by the name of the class, and background's row
             a file's single region head is copied to each stage of a cascade; of a file's cascade, the first stage
    report   what was copied, what is new, and what was left out

A tensor has rows of classes if its first dimension grows with the number of classes: first the rows of each class, in
the order of the classes, then those of background, if any.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from detect.backbones import BackboneOptions
from detect.checkpoint import Checkpoint, ClassifierCheckpoint
from detect.config import ClassificationConfig, Config, Experiment, config_to_dict
from detect.errors import UserError, listed
from detect.foreign_weights.any_file import Weights
from detect.foreign_weights.import_weights import PARTS, STAGE, part_of
from detect.foreign_weights.state_dicts import BATCHES
from detect.models import Classifier, Detector, build_detector
from detect.terminal import align

CANONICAL = {
    "region_head.box_head.body.": "backbone.body.",
    "region_head.box_head.fully_connected.": "region_head.box_head.",
}
"""Prefixes in R-CNN, whose box head is a whole network, by those that the same layers have in other detectors."""
LAST_STAGE = "region_head.box_head.stage."
"""Prefix of the network's last stage if it is the box head; elsewhere it is a stage of the backbone."""
COMPARED = (
    "backbone.",
    "neck",
    "box_head.",
    "masks.",
    "svd",
    "predictor.layer",
    "rpn.convolutions",
    "region_head.class_agnostic",
)
"""Options, or sections of options, that determine a network's tensors or their meaning."""
NOT_COMPARED = ("backbone.weights", "backbone.train_stages", "backbone.initialization", "masks.samples")
FROM_WEIGHTS = "take the network from the file with --model from-weights"
log = logging.getLogger(__name__)


def build_model(
    config: Experiment, classes: Sequence[str], weights: Weights | None, blank: bool = False
) -> Detector | Classifier:
    """Build the model of an experiment, copy the weights that fit, and log a table of them.

    Args:
        config: the experiment. With `weights` its `model.backbone.weights` are not loaded.
        classes: names of the classes of the data.
        weights: the weights to begin from, or None.
        blank: load no weights at all.

    Raises:
        UserError: the weights are a detector's and the model is a classifier, or the backbone does not fit.
    """
    source = None if weights is None else weights.checkpoint
    if weights is None:
        return _build(config, classes, None if blank else config.model.backbone.weights)
    if isinstance(source, Checkpoint) and isinstance(config, ClassificationConfig):
        raise UserError(
            f"{weights.path}: this is a detector, the config describes a classifier; give a classifier's file"
        )
    if source is None or (isinstance(source, ClassifierCheckpoint) and isinstance(config, Config)):
        if source is not None and source.config.model.backbone.architecture() != config.model.backbone.architecture():
            networks = f"this is {_network(source.config)}, the config says {_network(config)}"
            raise UserError(f"{weights.path}: {networks}: {FROM_WEIGHTS}")
        return _build(config, classes, str(weights.path))  # which logs a table
    model = _build(config, classes, None)
    for line in _report(weights, source, config, copy_weights(model, source, config, classes), classes):
        log.info("%s", line)
    return model


def _build(config: Experiment, classes: Sequence[str], backbone_weights: str | None) -> Detector | Classifier:
    backbone = replace(config.model.backbone, weights=backbone_weights)
    if isinstance(config, ClassificationConfig):
        return Classifier(len(classes), replace(config.model, backbone=backbone))
    return build_detector(replace(config.model, backbone=backbone), len(classes))


# ---- match and copy --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Copied:
    """Names of tensors by what became of them, and labels of the file's classes by ours."""

    labels: dict[int, int]
    taken: list[str] = field(default_factory=list)
    by_class: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    across: list[str] = field(default_factory=list)
    """Those of `taken` and `by_class` that were copied between the stages of a cascade and a single region head."""


@torch.no_grad()
def copy_weights(
    model: Detector | Classifier, source: Checkpoint | ClassifierCheckpoint, config: Experiment, classes: Sequence[str]
) -> Copied:
    """Copy all tensors that fit into `model`, in place.

    Args:
        model: the model of `config`, newly built.
        source: the model to copy from.
        config: the experiment.
        classes: names of the classes of `model`.

    Returns:
        What was copied; batch counts are not listed.
    """
    given = {_canonical(key, source.config): (key, value) for key, value in source.model.state_dict().items()}
    copied = Copied(match_classes(classes, source.classes))
    rows = _rows_per_class(config, len(classes))
    used = set()
    for key, value in model.state_dict().items():
        if key.endswith(BATCHES):
            continue
        name = _canonical(key, config)
        found = name if name in given else _across_cascade(name)
        theirs, tensor = given.get(found, ("", None))
        if tensor is None:
            copied.new.append(key)
            continue
        if rows[key] and _copy_rows(tensor, value, rows[key], copied.labels, len(source.classes), len(classes)):
            copied.by_class.append(key)
        elif not rows[key] and tensor.shape == value.shape:
            value.copy_(tensor)
            copied.taken.append(key)
        else:
            copied.new.append(key)
            continue
        used.add(theirs)
        if found != name:
            copied.across.append(key)
    copied.left_out = [key for key, _ in given.values() if key not in used and not key.endswith(BATCHES)]
    return copied


def _across_cascade(name: str) -> str:
    """Return the name of a stage's tensor in a single region head, or of a region head's tensor in the first stage."""
    if STAGE.match(name):
        return STAGE.sub("region_head.", name)
    return name.replace("region_head.", "region_head.stages.0.", 1)


def match_classes(ours: Sequence[str], theirs: Sequence[str]) -> dict[int, int]:
    """Return the label of `theirs` for each label of `ours` that has one.

    Names match exactly or, failing that, regardless of case; no class of `theirs` is used twice.
    """
    free = {name: label for label, name in enumerate(theirs)}
    labels = {label: free.pop(name) for label, name in enumerate(ours) if name in free}
    folded = {name.casefold(): label for name, label in free.items()}
    for label, name in enumerate(ours):
        if label not in labels and name.casefold() in folded:
            labels[label] = folded.pop(name.casefold())
    return dict(sorted(labels.items()))


def _copy_rows(tensor: Tensor, value: Tensor, rows: int, labels: dict[int, int], theirs: int, ours: int) -> bool:
    """Copy rows of classes, and then of background; return False if the shapes do not fit."""
    background = len(value) - rows * ours
    if tensor.shape[1:] != value.shape[1:] or len(tensor) != rows * theirs + background:
        return False
    for label, other in labels.items():
        value[rows * label : rows * (label + 1)] = tensor[rows * other : rows * (other + 1)]
    value[rows * ours :] = tensor[rows * theirs :]
    return True


def _rows_per_class(config: Experiment, count: int) -> dict[str, int]:
    """Return the number of rows of one class in each tensor of the model; 0 for a tensor without classes."""
    with torch.device("meta"):
        fewer, more = (_build(config, ("",) * size, None).state_dict() for size in (count, count + 1))
    return {key: len(more[key]) - len(value) if value.ndim else 0 for key, value in fewer.items()}


def _canonical(key: str, config: Experiment) -> str:
    """Return the name of a tensor that does not depend on whether its layers are a backbone or a box head."""
    if key.startswith(LAST_STAGE):
        return f"backbone.body.{_last_stage(config.model.backbone)}.{key.removeprefix(LAST_STAGE)}"
    prefix = next(filter(key.startswith, CANONICAL), "")
    return CANONICAL.get(prefix, "") + key.removeprefix(prefix)


@cache
def _last_stage(options: BackboneOptions) -> str:
    with torch.device("meta"):
        return list(options.stages(options.make(num_classes=1)))[-1]


# ---- report ----------------------------------------------------------------------------------------------------------


def _report(
    weights: Weights,
    source: Checkpoint | ClassifierCheckpoint,
    config: Experiment,
    copied: Copied,
    classes: Sequence[str],
) -> Iterator[str]:
    """Yield the lines of the report. Raise `UserError` if the backbone does not fit."""
    differences = "; ".join(_differences(config_to_dict(source.config)["model"], config_to_dict(config)["model"]))
    networks = f"this is {_network(source.config)}, the config says {_network(config)}"
    networks += f" ({differences})" if differences else ""
    if any(_canonical(key, config).startswith(("backbone.", "network.")) for key in copied.new):
        raise UserError(f"{weights.path}: {networks}: {FROM_WEIGHTS}")
    if differences:
        yield f"{weights.path}: {networks}: what fits is copied; or {FROM_WEIGHTS}"
    yield from weights.notes
    yield f"{weights.path} → {_network(config)}"
    counts: dict[str, list[int]] = {part: [0, 0, 0, 0] for part in PARTS.values()}
    for column, keys in enumerate((copied.taken, copied.by_class, copied.new, copied.left_out)):
        for key in keys:
            counts.setdefault(part_of(key), [0, 0, 0, 0])[column] += 1
    titles = ("tensors of", "taken", "by class", "new", "left out")
    yield from align(
        [titles, *((part, *(str(n or "–") for n in numbers)) for part, numbers in counts.items() if any(numbers))]
    )
    if copied.across:
        to_stages = STAGE.match(copied.across[0])
        yield "  each stage begins with the box head of the file" if to_stages else "  box head: the file's first stage"
    if copied.by_class:
        used = set(copied.labels.values())
        yield _classes("taken by name", [classes[label] for label in copied.labels])
        yield _classes("new", [name for label, name in enumerate(classes) if label not in copied.labels])
        yield _classes("left out", [name for label, name in enumerate(source.classes) if label not in used])


def _classes(kind: str, names: Sequence[str]) -> str:
    noun = "class" if len(names) == 1 else "classes"
    return f"  {len(names)} {noun} {kind}{': ' if names else ''}{listed(names, 6)}"


def _network(config: Experiment) -> str:
    """Return the name of a network, such as `faster_rcnn on resnet50-fpn`."""
    neck = getattr(config.model, "neck", None)
    return f"{config.model.name} on {config.model.backbone.architecture()}{f'-{neck.name}' if neck else ''}"


def _differences(theirs: dict[str, Any], ours: dict[str, Any], section: str = "") -> Iterator[str]:
    """Yield the options of the network that differ, if both networks have them."""
    for option, value in theirs.items():
        name, other = f"{section}{option}", ours.get(option, value)
        if isinstance(value, dict) and isinstance(other, dict):
            yield from _differences(value, other, f"{name}.")
        elif value != other and name.startswith(COMPARED) and name not in NOT_COMPARED:
            shown = (one["name"] if isinstance(one, dict) else "null" if one is None else one for one in (value, other))
            yield "{} {}, not {}".format(name, *shown)
