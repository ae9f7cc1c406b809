"""Recall of the proposals of a store or of an RPN on a split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float32
from torch.utils.data import DataLoader

from detect.data.dataset import Dataset
from detect.data.records import Record
from detect.errors import UserError
from detect.models import TwoStage
from detect.proposals.recall import ProposalRecall
from detect.proposals.store import ProposalStore, digest
from detect.structures import Proposals, Targets
from detect.terminal import track

LIMITS = (10, 30, 100, 300, 1000, 2000, 10000)
"""Numbers of proposals per image for which the recall is reported."""


def store_recall(store: ProposalStore, dataset: Dataset, limits: Sequence[int] = LIMITS) -> ProposalRecall:
    """Return the recall of the proposals in a store.

    Raises:
        UserError: the store has no proposals for an image of the split.
    """
    recall = ProposalRecall(limits)
    for record in track(dataset.records, "recall"):
        try:
            boxes = store.boxes(digest(record.path))
        except KeyError:
            raise UserError(
                f"{store.path}: no proposals for {record.path}; compute them with detect propose {dataset.root}"
            ) from None
        add_image(recall, record, boxes)
    return recall


def add_image(recall: ProposalRecall, record: Record, boxes: Float32[np.ndarray, "n 4"]) -> None:
    """Add one image with its proposals, xyxy in pixels of the file, best first."""
    proposals, gt_boxes, labels, crowd = (
        torch.from_numpy(array)[None] for array in (boxes, record.boxes, record.labels, record.crowd)
    )
    valid = torch.ones(proposals.shape[:2], dtype=torch.bool)
    recall.update(Proposals(proposals, valid.float(), valid), Targets(gt_boxes, labels, torch.ones_like(crowd), crowd))


@torch.no_grad()
def rpn_recall(
    model: TwoStage, loader: DataLoader, device: torch.device, limits: Sequence[int] = LIMITS
) -> ProposalRecall:
    """Return the recall of a detector's RPN, with the number of proposals of training."""
    recall = ProposalRecall(limits)
    for batch in track(loader, "recall"):
        recall.update(model.propose(batch.images.to(device)).to("cpu"), batch.targets)
    return recall
