"""Checkpoints: content, writing, and reading without executing anything."""

from __future__ import annotations

import errno
import json
import platform
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from detect.config import ClassificationConfig, Config, Experiment, config_from_dict, config_to_dict
from detect.config.renamed import find_renamed
from detect.errors import UserError, class_names
from detect.files.atomic import atomic_write
from detect.files.tensors import NO_SAFETENSORS, load_torch, refuse_repeated
from detect.models import Classifier, Detector, build_detector
from detect.versions import versions

M = TypeVar("M", Detector, Classifier)
PACKAGES = ("torch", "torchvision", "lightning")
"""Packages whose versions are recorded."""
FENCED = "--data.follow_links=false"
"""Override of a checkpoint's config, before the user's: only the user decides whether links are followed."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A trained detector with its config and classes."""

    model: Detector
    config: Config
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]

    def __repr__(self) -> str:
        return _summary(self)


@dataclass(frozen=True, slots=True)
class ClassifierCheckpoint:
    """A trained classifier with its config and classes."""

    model: Classifier
    config: ClassificationConfig
    classes: tuple[str, ...]

    def __repr__(self) -> str:
        return _summary(self)


def _summary(checkpoint: Checkpoint | ClassifierCheckpoint) -> str:
    """Return the network, its size and its classes in one line, in place of all its layers."""
    options, count = checkpoint.config.model, sum(value.numel() for value in checkpoint.model.parameters())
    network = f"{options.name}, backbone {options.backbone.name}, {count:,} parameters"
    return f"{type(checkpoint).__name__}({network}, {class_names(checkpoint.classes)})"


def model_card(config: Experiment, classes: Sequence[str], category_ids: Sequence[int] = ()) -> dict[str, Any]:
    """Return the content of a checkpoint besides its weights, as plain values."""
    return {
        "config": config_to_dict(config),
        "classes": list(classes),
        "category_ids": list(category_ids),
        "versions": {"python": platform.python_version(), **versions(*PACKAGES)},
    }


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write a detector for `load_checkpoint`, atomically, without the optimiser: training cannot resume from it."""
    card = model_card(checkpoint.config, checkpoint.classes, checkpoint.category_ids)
    weights = {f"model.{name}": value.cpu() for name, value in checkpoint.model.state_dict().items()}
    save_torch({"detect": card, "state_dict": weights}, path)


def save_torch(content: dict[str, Any], path: Path) -> None:
    """Write with `torch.save`, atomically. Raise `OSError` if the disk refuses it."""
    try:
        with atomic_write(path) as draft, draft.open("wb") as file:
            torch.save(content, file)
    except RuntimeError as error:  # of torch's writer, about the incomplete file
        cause = error.__context__
        if isinstance(cause, OSError | KeyboardInterrupt):
            raise cause from None
        if "write" not in str(error):
            raise
        raise OSError(errno.ENOSPC, "the disk is full or not writable") from None


def save_safetensors(checkpoint: Checkpoint, path: Path) -> None:
    """Write the weights with the model card as metadata; `load_checkpoint` and other programs read the file.

    Raises:
        UserError: safetensors is not installed.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.torch import save_file
    except ModuleNotFoundError:
        raise UserError(f"{path}: {NO_SAFETENSORS}") from None
    card = model_card(checkpoint.config, checkpoint.classes, checkpoint.category_ids)
    weights = {name: value.contiguous() for name, value in checkpoint.model.state_dict().items()}
    try:
        save_file(weights, path, {key: json.dumps(value, ensure_ascii=False) for key, value in card.items()})
    except SafetensorError as error:  # for example on a full disk
        raise OSError(f"{error}") from None


def load_checkpoint(path: str | Path, overrides: Sequence[str] = ()) -> Checkpoint:
    """Load a detector that `detect train` or `detect export --format safetensors` wrote, in eval mode.

    Nothing in the file is executed.

    Args:
        path: a `.ckpt` or `.safetensors` file.
        overrides: changes of its config, such as `--model.postprocess.score_threshold=0.3`, with which the weights fit.

    Raises:
        UserError: the file is not such a checkpoint.
    """
    checkpoint = load_any(path, overrides)
    if isinstance(checkpoint, ClassifierCheckpoint):
        raise UserError(f"{path}: this is a classifier; give the checkpoint of a detector")
    return checkpoint


def load_any(path: str | Path, overrides: Sequence[str] = ()) -> Checkpoint | ClassifierCheckpoint:
    """Load a detector or a classifier, like `load_checkpoint`."""
    path = Path(path)
    content = _read(path, overrides)
    config, classes = content.config, content.classes
    # The checkpoint has all weights: the backbone's initial weights are not needed.
    backbone = replace(config.model.backbone, weights=None)
    if isinstance(config, ClassificationConfig):
        network = replace(config.model, backbone=backbone)
        classifier = _load_model(lambda: Classifier(len(classes), network), content, path, overrides)
        return ClassifierCheckpoint(classifier, config, classes)
    options = replace(config.model, backbone=backbone)
    detector = _load_model(lambda: build_detector(options, len(classes)), content, path, overrides)
    return Checkpoint(detector, config, classes, content.category_ids)


@dataclass(frozen=True, slots=True)
class _Content:
    """Content of a checkpoint's file."""

    weights: dict[str, Tensor]
    config: Experiment
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]


def _read(path: Path, overrides: Sequence[str]) -> _Content:
    try:
        card, weights = (_safetensors if path.suffix == ".safetensors" else _torch)(path)
        if find_renamed(card["config"]):
            raise UserError(f"{path}: written by an earlier version of detect, which this one cannot read; train again")
        config = config_from_dict(card["config"], str(path), [FENCED, *overrides])
        classes, category_ids = tuple(map(str, card["classes"])), tuple(map(int, card["category_ids"]))
        refuse_repeated(weights, path)
        if isinstance(config, Config) and len(category_ids) != len(classes):
            raise ValueError("one id for each class")
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise UserError(f"{path}: {error.strerror}; give a checkpoint such as {_example(path)}") from None
    except ModuleNotFoundError:
        raise UserError(f"{path}: {NO_SAFETENSORS}") from None
    except UserError:
        raise
    except Exception:  # torch.load raises any exception
        raise UserError(
            f"{path}: not a checkpoint of detect, or damaged; give one such as RUN/checkpoints/best.ckpt"
        ) from None
    return _Content(weights, config, classes, category_ids)


def _example(path: Path) -> str:
    """Return an existing checkpoint near `path`, if any: a run without validation has no best.ckpt."""
    folders = (path.parent, path, path / "checkpoints")
    files = [folder / name for folder in folders for name in ("best.ckpt", "last.ckpt") if (folder / name).is_file()]
    return str(files[0]) if files else "RUN/checkpoints/best.ckpt"


def _torch(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return model card and weights of a file that Lightning wrote."""
    content = load_torch(path)
    state = content["state_dict"].items()
    return content["detect"], {key.removeprefix("model."): value for key, value in state if key.startswith("model.")}


def _safetensors(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return model card and weights of a file that `save_safetensors` wrote."""
    from safetensors import safe_open

    path.open("rb").close()  # for a clear OSError, which safetensors does not raise
    with safe_open(path, "pt") as file:
        card = {key: json.loads(value) for key, value in file.metadata().items()}
        return card, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a dictionary


def _load_model(build: Callable[[], M], content: _Content, path: Path, overrides: Sequence[str]) -> M:
    """Build the model and load the weights."""
    try:
        with torch.device("meta"):  # a small config may need any amount of memory
            build().load_state_dict(content.weights, assign=True)
        model = build()
        model.load_state_dict(content.weights)
    except RuntimeError as error:
        first = textwrap.shorten(str(error).splitlines()[1], 160, placeholder=" …")
        if overrides:
            given = " ".join(overrides)
            raise UserError(f"{path}: the weights do not fit the options {given}: {first}; leave these out") from None
        raise UserError(f"{path}: the weights do not fit the file's config: {first}; restore the file") from None
    model.to_memory_format(torch.channels_last).eval()
    return model
