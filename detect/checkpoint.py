"""What a checkpoint holds, and reading one without executing anything."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from detect.backbones.weights import refuse_compressed
from detect.config import Config, config_from_dict, config_to_dict
from detect.data.dataset import Dataset
from detect.errors import UserError
from detect.models import Detector

VERSIONS = ("detect", "torch", "torchvision", "lightning")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A trained detector and what is needed to use it."""

    model: Detector
    config: Config
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]


def model_card(config: Config, source: Dataset | Checkpoint) -> dict[str, Any]:
    """What a checkpoint says beside its weights, as plain values; `source` has the classes."""
    return {
        "config": config_to_dict(config),
        "classes": list(source.classes),
        "category_ids": list(source.category_ids),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in VERSIONS}},
    }


def load_checkpoint(path: Path, overrides: Sequence[str] = ()) -> Checkpoint:
    """The detector of a checkpoint that `detect train` wrote, on the CPU and in eval mode.

    Nothing in the file is executed. Overrides such as `--model.detections.score=0.3` change its config, as far as its
    weights still fit. Raises `UserError` where it is no such checkpoint.
    """
    try:
        refuse_compressed(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        card, state = content["detect"], content["state_dict"].items()
        config = config_from_dict(card["config"], str(path), overrides)
        classes, category_ids = tuple(map(str, card["classes"])), tuple(map(int, card["category_ids"]))
        weights = {key.removeprefix("model."): value for key, value in state if key.startswith("model.")}
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise UserError(f"{path}: {error.strerror}; give a checkpoint such as RUN/checkpoints/best.ckpt") from None
    except UserError:
        raise
    except Exception:  # torch.load raises whatever its readers do
        raise UserError(
            f"{path}: no checkpoint of detect, or a damaged one; give one such as RUN/checkpoints/best.ckpt"
        ) from None
    # The weights are in the checkpoint: the file that they began from is not needed.
    options = replace(config.model, backbone=replace(config.model.backbone, weights=None))
    model = options.build(len(classes))
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(
            f"{path}: its weights do not fit {'the options' if overrides else 'its own config'}: "
            + str(error).splitlines()[1].strip()
        ) from None
    return Checkpoint(model.lay_out(torch.channels_last).eval(), config, classes, category_ids)
