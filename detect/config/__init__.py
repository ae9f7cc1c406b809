"""Experiments: what a YAML file says of the model, the data and the training, read and checked."""

from detect.config.experiment import *  # noqa: F403
