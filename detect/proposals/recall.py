"""How many truths a set of proposals covers, and how tightly.

AR is COCO's average recall without classes (Hosang et al. 2016, "What makes for effective detection proposals?", and
pycocotools with `useCats = 0`); MABO is the mean average best overlap (Uijlings et al. 2013, "Selective search", §5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numba
import numpy as np
from jaxtyping import Float64, Int32, Int64

from detect.ops.boxes import iou_matrix
from detect.structures import Proposals, Targets

THRESHOLDS = np.linspace(0.5, 0.95, 10)
NEVER = np.iinfo(np.int32).max


class ProposalRecall:
    """Recall of the best k proposals of each image, for several limits k at once.

    AR matches as COCO does: at each IoU threshold the proposals come in their order, and each takes the free truth that
    it overlaps most. What the first k proposals took does not change with the later ones, so the rank of the proposal
    that took a truth tells the recall for every limit.

    Everything is computed on the CPU in float64, as in pycocotools, so that an IoU on a threshold falls on its side.

    Args:
        limits: the numbers of proposals an image, k; later proposals than the largest are not looked at.
    """

    def __init__(self, limits: Sequence[int] = (100, 300, 1000, 2000)):
        self.limits = tuple(sorted(limits))
        self.labels: Int64[np.ndarray, " n"] = np.empty(0, np.int64)
        """The class of each truth seen so far."""
        self.ranks: Int32[np.ndarray, "n 10"] = np.empty((0, len(THRESHOLDS)), np.int32)
        """The rank of the proposal that took it, at each IoU threshold; `NEVER` for a missed truth."""
        self.overlaps: Float64[np.ndarray, "n k"] = np.empty((0, len(self.limits)), np.float64)
        """Its best IoU with any of the first k proposals, matched or not, for each limit k."""

    def update(self, proposals: Proposals, targets: Targets) -> None:
        """Adds a batch; boxes are in pixels of the canvas, proposals best first. Crowd regions are left out."""
        best = proposals.valid.int().argsort(dim=1, descending=True, stable=True)[:, : self.limits[-1]].cpu()
        boxes = proposals.boxes.detach().cpu().double().gather(1, best[..., None].expand(-1, -1, 4))
        overlaps = iou_matrix(boxes, targets.boxes.detach().cpu().double())
        iou = (overlaps * proposals.valid.cpu().gather(1, best)[..., None]).numpy()
        truth = (targets.valid & ~targets.crowd).cpu().numpy()
        ranks = _ranks(iou, truth, THRESHOLDS)
        largest = np.stack([iou[:, :limit].max(axis=1, initial=0.0)[truth] for limit in self.limits], axis=-1)
        self._extend(targets.labels.cpu().numpy()[truth], ranks[truth], largest)

    def merge(self, other: ProposalRecall) -> None:
        """Adds what another one has seen, as of another process; the order does not matter.

        Raises:
            ValueError: the other one has other limits.
        """
        if other.limits != self.limits:
            raise ValueError(f"limits {other.limits} cannot be merged with {self.limits}")
        self._extend(other.labels, other.ranks, other.overlaps)

    def compute(self) -> dict[str, float | None]:
        """The figures over all truths seen, in 0 … 1; None where there was no truth.

        For each limit k, `AR@k` is the mean recall over the IoUs 0.5, 0.55 … 0.95 and `recall@0.5@k` that at 0.5.
        `ABO` is the mean over the truths of the best overlap, `MABO` the mean over the classes of their ABO, both with
        the largest limit.
        """
        figures = {}
        for place, limit in enumerate(self.limits):
            figures[f"AR@{limit}"] = self.average_recall(place)
            figures[f"recall@0.5@{limit}"] = self.recall(0.5, place)
        figures["ABO"] = self.mean_overlap()
        figures["MABO"] = self.mabo()
        return figures

    def recall(self, iou: float, place: int = -1) -> float | None:
        """The share of the truths that one of the first `limits[place]` proposals took, at one of `THRESHOLDS`."""
        (column,) = np.flatnonzero(np.isclose(THRESHOLDS, iou))
        return _mean(self.ranks[:, column] < self.limits[place])

    def covered(self, iou: float, place: int = -1) -> float | None:
        """The share of the truths that one of the first `limits[place]` proposals overlaps with at least this IoU.

        Other than for `recall`, one proposal may stand for several truths (Uijlings et al. 2013, §5; Hosang et al.).
        """
        return _mean(self.overlaps[:, place] >= iou)

    def average_recall(self, place: int = -1) -> float | None:
        """The mean of `recall` over `THRESHOLDS`."""
        return _mean(self.ranks < self.limits[place])

    def mean_overlap(self, place: int = -1) -> float | None:
        """The best overlap with one of the first `limits[place]` proposals, averaged over the truths."""
        return _mean(self.overlaps[:, place])

    def abo(self, place: int = -1) -> dict[int, float | None]:
        """Of each class that was seen, the average best overlap with the first `limits[place]` proposals."""
        return {int(one): _mean(self.overlaps[self.labels == one, place]) for one in np.unique(self.labels)}

    def mabo(self, place: int = -1) -> float | None:
        """The mean of `abo` over the classes."""
        return _mean(np.array(list(self.abo(place).values())))

    def _extend(
        self, labels: Int64[np.ndarray, " n"], ranks: Int32[np.ndarray, "n 10"], overlaps: Float64[np.ndarray, "n k"]
    ) -> None:
        self.labels = np.concatenate([self.labels, labels])
        self.ranks = np.concatenate([self.ranks, ranks])
        self.overlaps = np.concatenate([self.overlaps, overlaps])


def _mean(values: np.ndarray) -> float | None:
    # The exact sum: the order in which images were seen, or by how many processes, does not change a bit of it.
    return math.fsum(values.ravel()) / values.size if values.size else None


@numba.njit(cache=True, nogil=True)
def _ranks(iou, truth, thresholds):
    """The rank of the proposal that takes each truth at each threshold, or NEVER: int32 [B, G, T].

    Takes IoUs of B images, R proposals and G truths, float64 [B, R, G]; what is a truth, bool [B, G]; float64 [T].
    """
    images, proposals, truths = iou.shape
    ranks = np.full((images, truths, len(thresholds)), NEVER, dtype=np.int32)
    for image in range(images):
        for rank in range(proposals):
            for t, threshold in enumerate(thresholds):
                best, taken = threshold, -1
                for g in range(truths):
                    free = truth[image, g] and ranks[image, g, t] == NEVER
                    if free and iou[image, rank, g] >= best:
                        best, taken = iou[image, rank, g], g
                if taken >= 0:
                    ranks[image, taken, t] = rank
    return ranks
