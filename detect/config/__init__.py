"""Experiments: model, data and training, read from YAML and checked."""

from detect.config.experiment import (
    ClassificationConfig,
    Config,
    Experiment,
    check_proposals,
    recipe_of,
    with_absolute_paths,
    with_division,
)
from detect.config.keywords import as_overrides
from detect.config.reading import (
    config_from_dict,
    config_to_dict,
    config_to_yaml,
    given_options,
    load_config,
    load_experiment,
    refuse_training_options,
)
from detect.config.training_options import (
    AlternatingOptions,
    JointOptions,
    RCNNStagesOptions,
    RidgeOptions,
    SVMOptions,
    TrainingOptions,
)

__all__ = [
    "AlternatingOptions",
    "ClassificationConfig",
    "Config",
    "Experiment",
    "JointOptions",
    "RCNNStagesOptions",
    "RidgeOptions",
    "SVMOptions",
    "TrainingOptions",
    "as_overrides",
    "check_proposals",
    "config_from_dict",
    "config_to_dict",
    "config_to_yaml",
    "given_options",
    "load_config",
    "load_experiment",
    "recipe_of",
    "refuse_training_options",
    "with_absolute_paths",
    "with_division",
]
