"""An experiment: model, data and training."""

from __future__ import annotations

from dataclasses import field, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import InstanceOf, SerializeAsAny

from detect.config.training_options import (
    AlternatingOptions,
    JointOptions,
    RCNNStagesOptions,
    RecipeOptions,
    TrainingOptions,
)
from detect.data.classification_options import ClassificationDataOptions
from detect.data.options import DataOptions
from detect.errors import UserError
from detect.models import ClassifierOptions, DetectorOptions, FasterRCNNOptions
from detect.options import options

RECIPES: dict[str, Any] = {options.name: options for options in (JointOptions, AlternatingOptions, RCNNStagesOptions)}


@options
class Config:
    """Input of `detect train` for a detector, saved in its checkpoints.

    Args:
        model: options of one of `detect.models.MODELS`.
        data: images and annotations.
        training: optimisation.
        deviations: differences to the paper that the experiment reproduces; printed before training.
    """

    model: SerializeAsAny[InstanceOf[DetectorOptions]] = field(default_factory=FasterRCNNOptions)
    data: DataOptions = field(default_factory=DataOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)
    deviations: tuple[str, ...] = ()


@options
class ClassificationConfig:
    """Input of `detect train` for a classifier, saved in its checkpoints.

    Args:
        model: network and loss.
        data: images and their classes.
        training: optimisation.
        deviations: differences to the paper that the experiment reproduces; printed before training.
    """

    model: ClassifierOptions = field(default_factory=ClassifierOptions)
    data: ClassificationDataOptions = field(default_factory=ClassificationDataOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)
    deviations: tuple[str, ...] = ()


Experiment = Config | ClassificationConfig
E = TypeVar("E", Config, ClassificationConfig)


def with_absolute_paths(config: E) -> E:
    """Return the experiment with absolute paths of its data, which are valid in any working directory."""
    data = config.data
    if isinstance(data, ClassificationDataOptions):
        return replace(config, data=replace(data, root=data.root.absolute()))
    root = tuple(path.absolute() for path in data.root) if isinstance(data.root, tuple) else data.root.absolute()
    proposals, division = (None if path is None else path.absolute() for path in (data.proposals, data.division))
    return replace(config, data=replace(data, root=root, proposals=proposals, division=division))


def with_division(config: Config, division: Path | None) -> Config:
    """Return the experiment with the file of a division, if it divides its training split."""
    return replace(config, data=replace(config.data, division=division)) if config.data.fractions else config


def recipe_of(config: Config) -> RecipeOptions:
    """Return the training recipe. Raise `UserError` if the model cannot be trained with it."""
    name, allowed = config.model.name, config.model.recipes
    recipe = config.training.recipe or RECIPES[allowed[0]]()
    if recipe.name not in allowed:
        raise UserError(
            f"training.recipe: {recipe.name} is not for {name}; choose {' or '.join(allowed)}, or leave it out"
        )
    return recipe


def check_proposals(config: Config) -> None:
    """Raise `UserError` if the model needs a proposal store and none is given, or one is given that it does not use."""
    needed, given = config.model.proposals == "given", config.data.proposals is not None
    if given and not needed:
        raise UserError(f"data.proposals: {config.model.name} does not use given proposals; leave the store out")
    if needed and not given:
        roots = " ".join(map(str, config.data.roots))
        raise UserError(
            f"data.proposals: {config.model.name} needs proposals; run detect propose {roots} --out "
            "proposals.db, then add --data.proposals proposals.db"
        )
