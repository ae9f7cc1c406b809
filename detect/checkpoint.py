"""What a checkpoint holds, and reading one without executing anything."""

from __future__ import annotations

import json
import platform
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detect.config import ClassificationConfig, Config, Experiment, config_from_dict, config_to_dict
from detect.errors import UserError
from detect.files.tensors import load_torch, refuse_repeated
from detect.models import Classifier, Detector

VERSIONS = ("detect", "torch", "torchvision", "lightning")
FENCED = "--data.follow_links=false"
"""Whose links are followed is for this user to say, not for the maker of a file: goes before what the user says."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A trained detector and what is needed to use it."""

    model: Detector
    config: Config
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ClassifierCheckpoint:
    """A trained classifier and what is needed to use it."""

    model: Classifier
    config: ClassificationConfig
    classes: tuple[str, ...]


def model_card(config: Experiment, classes: Sequence[str], category_ids: Sequence[int] = ()) -> dict[str, Any]:
    """What a checkpoint says beside its weights, as plain values."""
    return {
        "config": config_to_dict(config),
        "classes": list(classes),
        "category_ids": list(category_ids),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in VERSIONS}},
    }


def save_safetensors(checkpoint: Checkpoint, path: Path) -> None:
    """Writes weights alone, with the model card as metadata; `load_checkpoint` reads the file, and others can.

    Raises `UserError` where safetensors is not installed.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.torch import save_file
    except ModuleNotFoundError:
        raise UserError(f"{path}: to write this format, pip install safetensors") from None
    card = model_card(checkpoint.config, checkpoint.classes, checkpoint.category_ids)
    weights = {name: value.contiguous() for name, value in checkpoint.model.state_dict().items()}
    try:
        save_file(weights, path, {key: json.dumps(value, ensure_ascii=False) for key, value in card.items()})
    except SafetensorError as error:  # also of a full disk
        raise OSError(f"{error}") from None


def load_checkpoint(path: Path, overrides: Sequence[str] = ()) -> Checkpoint:
    """The detector of a checkpoint that `detect train` wrote, or `detect export --format safetensors`, in eval mode.

    Nothing in the file is executed. Overrides such as `--model.detections.score=0.3` change its config, as far as its
    weights still fit. Raises `UserError` where it is no such checkpoint.
    """
    checkpoint = load_any(path, overrides)
    if isinstance(checkpoint, ClassifierCheckpoint):
        raise UserError(f"{path}: this is a classifier; give the checkpoint of a detector")
    return checkpoint


def load_any(path: Path, overrides: Sequence[str] = ()) -> Checkpoint | ClassifierCheckpoint:
    """As `load_checkpoint`, of a detector or a classifier."""
    content = _read(path, overrides)
    config, classes = content.config, content.classes
    # The weights are in the checkpoint: the file that they began from is not needed.
    backbone = replace(config.model.backbone, weights=None)
    if isinstance(config, ClassificationConfig):
        classifier = _filled(replace(config.model, backbone=backbone), content, path, overrides)
        return ClassifierCheckpoint(classifier, config, classes)
    detector = _filled(replace(config.model, backbone=backbone), content, path, overrides)
    return Checkpoint(detector, config, classes, content.category_ids)


@dataclass(frozen=True, slots=True)
class _Content:
    """What the file of a checkpoint holds."""

    weights: dict[str, Tensor]
    config: Experiment
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]


def _read(path: Path, overrides: Sequence[str]) -> _Content:
    try:
        card, weights = (_safetensors if path.suffix == ".safetensors" else _torch)(path)
        config = config_from_dict(card["config"], str(path), [FENCED, *overrides])
        classes, category_ids = tuple(map(str, card["classes"])), tuple(map(int, card["category_ids"]))
        refuse_repeated(weights, path)
        if isinstance(config, Config) and len(category_ids) != len(classes):
            raise ValueError("an id for each class")
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise UserError(f"{path}: {error.strerror}; give a checkpoint such as {_example(path)}") from None
    except ModuleNotFoundError:
        raise UserError(f"{path}: to read this format, pip install safetensors") from None
    except UserError:
        raise
    except Exception:  # torch.load raises whatever its readers do
        raise UserError(
            f"{path}: no checkpoint of detect, or a damaged one; give one such as RUN/checkpoints/best.ckpt"
        ) from None
    return _Content(weights, config, classes, category_ids)


def _example(path: Path) -> str:
    """One that is there, if the user was right about the run: without validation there is no best.ckpt."""
    folders = (path.parent, path, path / "checkpoints")
    there = [folder / name for folder in folders for name in ("best.ckpt", "last.ckpt") if (folder / name).is_file()]
    return str(there[0]) if there else "RUN/checkpoints/best.ckpt"


def _torch(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Model card and weights of a file of Lightning's."""
    content = load_torch(path)
    state = content["state_dict"].items()
    return content["detect"], {key.removeprefix("model."): value for key, value in state if key.startswith("model.")}


def _safetensors(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Model card and weights of a file of `save_safetensors`."""
    from safetensors import safe_open

    path.open("rb").close()  # its own errors do not say what is wrong
    with safe_open(path, "pt") as file:
        card = {key: json.loads(value) for key, value in file.metadata().items()}
        return card, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  it is no dictionary


def _filled(options: Any, content: _Content, path: Path, overrides: Sequence[str]) -> Any:
    """The network of the options, with the weights of the file."""
    try:
        with torch.device("meta"):  # without memory, of which a config of few bytes may want any amount
            options.build(len(content.classes)).load_state_dict(content.weights, assign=True)
        model = options.build(len(content.classes))
        model.load_state_dict(content.weights)
    except RuntimeError as error:
        first = textwrap.shorten(str(error).splitlines()[1], 160, placeholder=" …")
        if overrides:
            wanted = f"the options {' '.join(overrides)}"
            raise UserError(f"{path}: its weights do not fit {wanted}: {first}; leave these out") from None
        raise UserError(f"{path}: its weights do not fit its own config: {first}; restore the file") from None
    model.lay_out(torch.channels_last).eval()
    return model
