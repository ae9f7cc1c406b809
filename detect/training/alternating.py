"""Alternating training of RPN and detector in four steps (Ren et al. 2015, §3.2)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detect.config import Config
from detect.data.datamodule import DetectionData
from detect.models import FasterRCNN
from detect.training import loop
from detect.training.loop import NO_EXTRAS, Extras
from detect.training.module import DetectorModule
from detect.training.recipe import Recipe


class Alternating(Recipe):
    """Train RPN and detector alternately, so that they share one backbone in the end.

    1. Train an RPN from the initial weights.
    2. Train a detector from the initial weights on its proposals; the two share no layers yet.
    3. Train an RPN on the detector's backbone, which is frozen.
    4. Train the detector's own layers on that RPN's proposals, with backbone and RPN frozen.

    A run resumes in the step in which it stopped, and reads the last checkpoints of the steps before.
    """

    model: FasterRCNN

    def __init__(self, config: Config, data: DetectionData, blank: bool = False) -> None:
        super().__init__(config, data, blank)
        self.second = self.build()

    @staticmethod
    def checkpoints(out: Path) -> list[Path]:
        """Return the last checkpoints of the run and of its first step."""
        return [loop.last_checkpoint(out), loop.last_checkpoint(out / "step1")]

    @classmethod
    def needs_no_weights(cls, out: Path) -> bool:
        """Return whether the second step, the last one that begins from the initial weights, has a checkpoint."""
        return loop.last_checkpoint(out / "step2").exists()

    def train(self, card: dict[str, Any], out: Path, resume: bool, extras: Extras = NO_EXTRAS) -> None:
        """Run the four steps; the last one validates."""
        first, second, training, data = self.model, self.second, self.config.training, self.data
        assert isinstance(second, FasterRCNN)
        rpn: dict[str, Any] = {"card": card, "parts": ["rpn"]}
        boxes: dict[str, Any] = {"card": card, "parts": ["boxes"]}
        loop.run_step(DetectorModule(first, training, **rpn), data, out / "step1", resume, extras)
        loop.run_step(DetectorModule(second, training, **boxes, proposer=first), data, out / "step2", resume, extras)
        second.rpn.load_state_dict(first.rpn.state_dict())
        for part in (second.backbone, second.neck):
            if part is not None:
                # Eval mode, which Lightning keeps, freezes the statistics of batch norms as well.
                part.requires_grad_(False).eval()
        loop.run_step(DetectorModule(second, training, **rpn), data, out / "step3", resume, extras)
        second.rpn.requires_grad_(False)
        loop.run_loop(DetectorModule(second, training, data.val, **boxes), data, out, resume, extras)
