"""Gathers what a detector says of a data set, batch by batch and process by process, and turns it into figures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, distributed

from detect.data.dataset import Dataset
from detect.evaluation.coco import Prediction, evaluate_coco, from_detections
from detect.evaluation.voc import evaluate_voc
from detect.proposals.recall import ProposalRecall
from detect.structures import Batch, Detections


class Evaluator:
    """COCO's and VOC's figures, the recall of the proposals and the mean losses, from one pass over a split."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.predictions: list[Prediction] = []
        self.recall: ProposalRecall | None = None
        self.losses: dict[str, float] = defaultdict(float)

    def update(self, batch: Batch, detections: Detections, losses: Mapping[str, Tensor] | None = None) -> None:
        """Adds a batch."""
        self.predictions += from_detections(detections, batch.ids, batch.scales)
        if detections.proposals is not None:
            self.recall = self.recall or ProposalRecall()
            self.recall.update(detections.proposals, batch.targets)
        for name, loss in (losses or {}).items():
            self.losses[name] += float(loss) * len(batch)

    def gather(self) -> None:
        """Joins what every process has seen; afterwards each of them computes the same figures."""
        parts: list[Any] = [(self.predictions, self.recall, dict(self.losses))]
        if distributed.is_available() and distributed.is_initialized():
            parts *= distributed.get_world_size()
            distributed.all_gather_object(parts, parts[0])
        self.predictions, self.recall, self.losses = [], None, defaultdict(float)
        for predictions, recall, losses in parts:
            self.predictions += predictions
            if recall is not None:
                self.recall = self.recall or ProposalRecall(recall.limits)
                self.recall.merge(recall)
            for name, loss in losses.items():
                self.losses[name] += loss
        # The order in which images were seen must not decide ties.
        self.predictions.sort(key=lambda prediction: prediction.image_id)

    def compute(self, engine: Literal["pycocotools", "fast"] = "pycocotools") -> dict[str, Any]:
        """All the figures; the losses, if there were any, as means over the images."""
        count = max(1, len(self.predictions))
        losses = {name: loss / count for name, loss in self.losses.items()}
        return {
            **evaluate_coco(self.dataset, self.predictions, engine=engine),
            **evaluate_voc(self.dataset, self.predictions),
            **({} if self.recall is None else self.recall.compute()),
            **({"losses": losses | {"loss": sum(losses.values())}} if losses else {}),
        }
