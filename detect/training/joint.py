"""Joint training: all losses in every step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from detect.data.datamodule import DetectionData
from detect.models import TwoStage
from detect.structures import Targets
from detect.training import loop
from detect.training.loop import NO_EXTRAS, Extras
from detect.training.module import DetectorModule
from detect.training.recipe import Recipe


class Joint(Recipe):
    """One training loop with all losses (Girshick 2015, §2.3; Ren et al. 2015, §3.2, approximate joint training)."""

    def measure_data(self) -> None:
        """Measure the statistics of the box deltas, if the model normalises them."""
        if isinstance(self.model, TwoStage) and self.model.region_head.statistics is not None:
            measure_deltas(self.model, self.data)

    def train(self, card: dict[str, Any], out: Path, resume: bool, extras: Extras = NO_EXTRAS) -> None:
        """Train and validate."""
        loop.run_loop(
            DetectorModule(self.model, self.config.training, self.data.val, card), self.data, out, resume, extras
        )


def measure_deltas(model: TwoStage, data: DetectionData) -> None:
    """Measure the box deltas on the training split without augmentation; flips and scales hardly change them."""
    head = model.region_head
    assert head.statistics is not None
    records = data.train.records
    targets = (
        Targets(*(torch.from_numpy(array)[None] for array in (r.boxes, r.labels, ~r.crowd, r.crowd))) for r in records
    )
    proposals = (torch.from_numpy(boxes) for boxes in data.proposals_of(data.train))
    head.statistics.measure(zip(proposals, targets, strict=True), head.box_coder, head.matcher)
