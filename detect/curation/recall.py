"""How well proposals cover the truths of a split: those of a store, or an RPN's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float32
from rich.console import Console
from rich.progress import track
from torch.utils.data import DataLoader

from detect.data.dataset import Dataset, Record
from detect.errors import UserError
from detect.models import TwoStage
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
            boxes = store.boxes(digest(record.path))
        except KeyError:
            raise UserError(
                f"{store.path}: has no proposals of {record.path}; make them with detect propose {dataset.root}"
            ) from None
        add_image(recall, record, boxes)
    return recall


def add_image(recall: ProposalRecall, record: Record, boxes: Float32[np.ndarray, "n 4"]) -> None:
    """Adds one image with its proposals, xyxy in pixels of the file, best first."""
    proposals, truths, labels, crowd = (
        torch.from_numpy(one)[None] for one in (boxes, record.boxes, record.labels, record.crowd)
    )
    every = torch.ones(proposals.shape[:2], dtype=torch.bool)
    recall.update(Proposals(proposals, every.float(), every), Targets(truths, labels, torch.ones_like(crowd), crowd))


@torch.no_grad()
def rpn_recall(
    model: TwoStage, loader: DataLoader, device: torch.device, limits: Sequence[int] = LIMITS
) -> ProposalRecall:
    """The recall of a detector's RPN, with as many proposals as in training."""
    recall = ProposalRecall(limits)
    console = Console(stderr=True)
    for batch in track(loader, "recall", console=console, disable=not console.is_terminal):
        recall.update(model.propose(batch.images.to(device)).to("cpu"), batch.targets)
    return recall
