"""How well proposals cover the truths of a split: those of a store, or an RPN's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from rich.console import Console
from rich.progress import track
from torch.utils.data import DataLoader

from detect.data.dataset import Dataset
from detect.errors import UserError
from detect.models import Detector
from detect.proposals.recall import ProposalRecall
from detect.proposals.store import ProposalStore, digest
from detect.structures import Proposals, Targets

LIMITS = (10, 30, 100, 300, 1000, 2000, 10000)
"""Numbers of proposals an image for which recall is told."""


def store_recall(store: ProposalStore, dataset: Dataset, limits: Sequence[int] = LIMITS) -> ProposalRecall:
    """The recall of the proposals in a store.

    Raises `UserError` where images of the split have none there.
    """
    recall = ProposalRecall(limits)
    console = Console(stderr=True)
    for record in track(dataset.records, "recall", console=console, disable=not console.is_terminal):
        try:
            boxes = torch.from_numpy(store.boxes(digest(record.path)))[None]
        except KeyError:
            raise UserError(
                f"{store.path}: has no proposals of {record.path}; make them with detect propose {dataset.root}"
            ) from None
        every = torch.ones(boxes.shape[:2], dtype=torch.bool)
        truths, labels, crowd = (torch.from_numpy(one)[None] for one in (record.boxes, record.labels, record.crowd))
        targets = Targets(truths, labels, torch.ones_like(crowd), crowd)
        recall.update(Proposals(boxes, every.float(), every), targets)
    return recall


@torch.no_grad()
def rpn_recall(
    model: Detector, loader: DataLoader, device: torch.device, limits: Sequence[int] = LIMITS
) -> ProposalRecall:
    """The recall of a detector's RPN, with as many proposals as in training."""
    recall = ProposalRecall(limits)
    console = Console(stderr=True)
    for batch in track(loader, "recall", console=console, disable=not console.is_terminal):
        recall.update(model.propose(batch.images.to(device)).to("cpu"), batch.targets)
    return recall
