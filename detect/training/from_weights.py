"""An experiment that takes its network, and without a config its other options, from a file of weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detect.checkpoint import ClassifierCheckpoint
from detect.config import ClassificationConfig, Experiment, config_to_dict, load_experiment
from detect.errors import UserError
from detect.foreign_weights.any_file import read_weights

KEPT = {
    "data": ("short_side", "eval_short_side", "long_side", "size", "batch_size", "augment", "mosaic", "mixup"),
    "training": (
        *("epochs", "optimizer", "learning_rate", "momentum", "nesterov", "weight_decay", "bias_lr_factor"),
        *("warmup_steps", "warmup_epochs", "warmup_start", "warmup_curve", "schedule", "milestones", "final_lr_factor"),
        *("closing_epochs", "clip_norm", "ema", "ema_ramp"),
    ),
}
"""Options besides the network that are taken from the file if there is no config; the others belong to other data."""


def weights_override(weights: Path) -> str:
    """Return the override of a config that names the file of initial weights."""
    return f"--training.weights={json.dumps(str(weights))}"


def load_from_weights(
    config: Path | None,
    weights: Path,
    overrides: Sequence[str] = (),
    network: bool = True,
    begun: Path | None = None,
) -> Experiment:
    """Return an experiment that begins from the weights of another model.

    Args:
        config: a YAML file; without one the options are those with which the file's model was trained.
        weights: file of the weights.
        overrides: options that replace those of the config or of the file.
        network: take the network from the file also if there is a config.
        begun: config of a run that is resumed; the file of weights is then not read.

    Raises:
        UserError: the file cannot be read or has no network options, or an option is not valid.
    """
    overrides = [weights_override(weights), *overrides]
    if begun is not None and network:
        return load_experiment(config or begun, overrides, {"model": config_to_dict(load_experiment(begun))["model"]})
    if begun is not None or (config is not None and not network):
        return load_experiment(config or begun, overrides)
    checkpoint = read_weights(weights).checkpoint
    if checkpoint is None:
        raise UserError(f"{weights}: a backbone without a detector; give the config of one with -c")
    source = config_to_dict(checkpoint.config)
    model = {**source["model"], "backbone": {**source["model"]["backbone"], "weights": None}}
    if config is None:
        kept = {
            section: {key: source[section][key] for key in keys if key in source[section]}
            for section, keys in KEPT.items()
        }
        return load_experiment(None, overrides, {"model": model, **kept})
    if isinstance(checkpoint, ClassifierCheckpoint):
        experiment = load_experiment(config, overrides)
        if not isinstance(experiment, ClassificationConfig):
            model = {**config_to_dict(experiment)["model"], "backbone": model["backbone"]}
    sections: dict[str, Any] = {"model": model}
    return load_experiment(config, overrides, sections)
