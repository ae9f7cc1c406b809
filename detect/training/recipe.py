"""The interface of training recipes: which losses are trained in which order."""

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
        data: its images and annotations.
    """

    def __init__(self, config: Config, data: DetectionData) -> None:
        self.config, self.data = config, data
        self.model = self.build()

    def build(self) -> Detector:
        """Return a new model of the config."""
        return build_detector(self.config.model, len(self.data.classes))

    def measure_data(self) -> None:  # noqa: B027  most recipes need nothing
        """Measure what the model needs to know of the training data, before the run's folder is created."""

    @staticmethod
    def checkpoints(out: Path) -> list[Path]:
        """Return where a run of this recipe in the folder `out` may have checkpoints to resume from."""
        return [last_checkpoint(out)]

    @abstractmethod
    def train(self, card: dict[str, Any], out: Path, resume: bool) -> None:
        """Train in the folder `out`; `card` goes into each checkpoint (see `detect.checkpoint.model_card`)."""
