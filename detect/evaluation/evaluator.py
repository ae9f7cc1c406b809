"""Evaluator: accumulates detections over batches and processes and computes metrics."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, distributed

from detect.data.dataset import Dataset
from detect.data.merge import keep_classes
from detect.devices import is_distributed, start_copy
from detect.evaluation.coco import Engine, Prediction, evaluate_coco, from_detections, select_classes
from detect.evaluation.voc import evaluate_voc
from detect.proposals.recall import ProposalRecall
from detect.structures import Batch, Detections


class Evaluator:
    """COCO and VOC metrics, proposal recall and mean losses of one pass over a split."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.sizes = {record.id: (record.height, record.width) for record in dataset.records}
        self.predictions: list[Prediction] = []
        self.recall: ProposalRecall | None = None
        self.losses: dict[str, float] = defaultdict(float)
        self._waiting: deque[tuple[list[str], list[Any], Callable[[], None]]] = deque()

    def update(self, batch: Batch, detections: Detections, losses: Mapping[str, Tensor] | None = None) -> None:
        """Add a batch. A batch on a GPU is evaluated while the GPU computes the next one."""
        device, names = detections.boxes.device, list(losses or {})
        values = torch.stack([losses[name] for name in names]) if losses else None
        targets = None if detections.proposals is None else batch.targets
        self._waiting.append((names, *start_copy(device, batch.ids, batch.scales, targets, detections, values)))
        if device.type != "cuda" or len(self._waiting) > 1:
            self._add(*self._waiting.popleft())

    def _add(self, names: Sequence[str], copies: Sequence[Any], wait: Callable[[], None]) -> None:
        wait()
        ids, scales, targets, detections, losses = copies
        self.predictions += from_detections(detections, ids, scales, self.sizes)
        if detections.proposals is not None:
            self.recall = self.recall or ProposalRecall()
            self.recall.update(detections.proposals, targets)
        for name, loss in zip(names, [] if losses is None else losses.tolist(), strict=True):
            self.losses[name] += loss * len(ids)

    def gather(self) -> None:
        """Gather the batches of all processes, so that each process computes the same metrics."""
        while self._waiting:
            self._add(*self._waiting.popleft())
        shards: list[Any] = [(self.predictions, self.recall, dict(self.losses))]
        if is_distributed():
            shards *= distributed.get_world_size()
            distributed.all_gather_object(shards, shards[0])
        self.predictions, self.recall, self.losses = [], None, defaultdict(float)
        for predictions, recall, losses in shards:
            self.predictions += predictions
            if recall is not None:
                self.recall = self.recall or ProposalRecall(recall.limits)
                self.recall.merge(recall)
            for name, loss in losses.items():
                self.losses[name] += loss
        # Ties must not depend on the order in which the images were evaluated.
        self.predictions.sort(key=lambda prediction: prediction.image_id)

    def keep_classes(self, classes: Sequence[str]) -> None:
        """Limit ground truths and detections to some classes; their metrics stay the same."""
        before, self.dataset = self.dataset, keep_classes(self.dataset, classes)
        self.predictions = select_classes(self.predictions, before.classes, self.dataset.classes)

    def compute(self, engine: Engine = "pycocotools") -> dict[str, Any]:
        """Return all metrics and, if any losses were added, their means over the images."""
        count = max(1, len(self.predictions))
        losses = {name: loss / count for name, loss in self.losses.items()}
        return {
            **evaluate_coco(self.dataset, self.predictions, engine=engine),
            **evaluate_voc(self.dataset, self.predictions),
            **({} if self.recall is None else self.recall.compute()),
            **({"losses": losses | {"loss": sum(losses.values())}} if losses else {}),
        }
