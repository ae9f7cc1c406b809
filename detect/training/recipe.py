"""Interface of training recipes: the losses and the order in which they are trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from detect.config import Config
from detect.data.datamodule import DetectionData
from detect.foreign_weights.any_file import read_weights
from detect.models import Detector
from detect.training.initial_weights import build_model
from detect.training.loop import NO_EXTRAS, Extras, last_checkpoint


class Recipe(ABC):
    """A way to train a detector.

    The constructor builds the model or models and raises `UserError` if the config does not fit; nothing is written
    before `train`. Random numbers are seeded beforehand.

    Args:
        config: the experiment.
        data: images and annotations of the experiment.
        blank: build the models without their initial weights, because checkpoints hold the weights of all of them.
    """

    def __init__(self, config: Config, data: DetectionData, blank: bool = False) -> None:
        self.config, self.data, self.blank = config, data, blank
        path = config.training.weights
        self.weights = None if blank or path is None else read_weights(path)
        self.model = self.build()

    def build(self) -> Detector:
        """Return a new model of the config, with its initial weights."""
        model = build_model(self.config, self.data.classes, self.weights, self.blank)
        assert isinstance(model, Detector)
        return model

    def measure_data(self) -> None:  # noqa: B027  most recipes measure nothing
        """Measure statistics of the training data that the model needs, before the run's folder is created."""

    @staticmethod
    def checkpoints(out: Path) -> list[Path]:
        """Return the paths of the checkpoints that a run of this recipe in the folder `out` would resume from."""
        return [last_checkpoint(out)]

    @classmethod
    def needs_no_weights(cls, out: Path) -> bool:
        """Return whether a run in the folder `out` has checkpoints of all models."""
        return all(path.exists() for path in cls.checkpoints(out))

    @abstractmethod
    def train(self, card: dict[str, Any], out: Path, resume: bool, extras: Extras = NO_EXTRAS) -> None:
        """Train in the folder `out`, with the user's callbacks and loggers in each training loop.

        `card` goes into each checkpoint (see `detect.checkpoint.model_card`).
        """
