"""Interface of training recipes: the losses and the order in which they are trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from detect.config import Config
from detect.data.datamodule import DetectionData
from detect.models import Detector, build_detector
from detect.training.loop import last_checkpoint


class Recipe(ABC):
    """A way to train a detector.

    The constructor builds the model or models and raises `UserError` if the config does not fit; nothing is written
    before `train`. Random numbers are seeded beforehand.

    Args:
        config: the experiment.
        data: images and annotations of the experiment.
    """

    def __init__(self, config: Config, data: DetectionData) -> None:
        self.config, self.data = config, data
        self.model = self.build()

    def build(self) -> Detector:
        """Return a new model of the config."""
        return build_detector(self.config.model, len(self.data.classes))

    def measure_data(self) -> None:  # noqa: B027  most recipes measure nothing
        """Measure statistics of the training data that the model needs, before the run's folder is created."""

    @staticmethod
    def checkpoints(out: Path) -> list[Path]:
        """Return the paths of the checkpoints that a run of this recipe in the folder `out` would resume from."""
        return [last_checkpoint(out)]

    @abstractmethod
    def train(self, card: dict[str, Any], out: Path, resume: bool) -> None:
        """Train in the folder `out`; `card` goes into each checkpoint (see `detect.checkpoint.model_card`)."""
