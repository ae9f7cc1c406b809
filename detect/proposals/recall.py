"""Recall of proposals: the share of ground truths that they cover, and the overlap.

AR is COCO's class-agnostic average recall (Hosang et al. 2016, "What makes for effective detection proposals?", and
pycocotools with `useCats = 0`). MABO is the mean average best overlap (Uijlings et al. 2013, "Selective search", §5).
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

    AR matches as COCO does: at each IoU threshold proposals are processed in their order, and each is matched to the
    unmatched ground truth with the highest IoU. Later proposals do not change earlier matches, so the rank of the
    matched proposal of each ground truth gives the recall for every limit.

    Everything is computed on the CPU in float64, as in pycocotools, so that IoUs equal to a threshold compare equally.

    Args:
        limits: numbers of proposals per image, k; proposals beyond the largest are ignored.
    """

    def __init__(self, limits: Sequence[int] = (100, 300, 1000, 2000)):
        self.limits = tuple(sorted(limits))
        self.labels: Int64[np.ndarray, " n"] = np.empty(0, np.int64)
        """Class of each ground truth added so far."""
        self.ranks: Int32[np.ndarray, "n 10"] = np.empty((0, len(THRESHOLDS)), np.int32)
        """Rank of the matched proposal at each IoU threshold; `NEVER` for a missed ground truth."""
        self.overlaps: Float64[np.ndarray, "n k"] = np.empty((0, len(self.limits)), np.float64)
        """Best IoU with any of the first k proposals, matched or not, for each limit k."""

    def update(self, proposals: Proposals, targets: Targets) -> None:
        """Add a batch. Boxes are in pixels of the canvas, proposals best first. Crowd regions are ignored."""
        best = proposals.valid.int().argsort(dim=1, descending=True, stable=True)[:, : self.limits[-1]].cpu()
        boxes = proposals.boxes.detach().cpu().double().gather(1, best[..., None].expand(-1, -1, 4))
        overlaps = iou_matrix(boxes, targets.boxes.detach().cpu().double())
        iou = (overlaps * proposals.valid.cpu().gather(1, best)[..., None]).numpy()
        valid = (targets.valid & ~targets.crowd).cpu().numpy()
        ranks = _ranks(iou, valid, THRESHOLDS)
        best_iou = np.stack([iou[:, :limit].max(axis=1, initial=0.0)[valid] for limit in self.limits], axis=-1)
        self._extend(targets.labels.cpu().numpy()[valid], ranks[valid], best_iou)

    def merge(self, other: ProposalRecall) -> None:
        """Add the results of another instance, for example of another process, in any order.

        Raises:
            ValueError: the other instance has other limits.
        """
        if other.limits != self.limits:
            raise ValueError(f"limits {other.limits} cannot be merged with {self.limits}")
        self._extend(other.labels, other.ranks, other.overlaps)

    def compute(self) -> dict[str, float | None]:
        """Return the metrics over all ground truths, in 0 … 1; None without ground truths.

        For each limit k, `AR@k` is the mean recall over the IoUs 0.5, 0.55 … 0.95, and `recall@0.5@k` the recall at
        0.5. `ABO` is the best overlap averaged over the ground truths, `MABO` the mean of the classes' ABO, both for
        the largest limit.
        """
        metrics = {}
        for index, limit in enumerate(self.limits):
            metrics[f"AR@{limit}"] = self.average_recall(index)
            metrics[f"recall@0.5@{limit}"] = self.recall(0.5, index)
        metrics["ABO"] = self.mean_overlap()
        metrics["MABO"] = self.mabo()
        return metrics

    def recall(self, iou: float, index: int = -1) -> float | None:
        """Return the share of ground truths matched by the first `limits[index]` proposals, at one of `THRESHOLDS`."""
        (column,) = np.flatnonzero(np.isclose(THRESHOLDS, iou))
        return _mean(self.ranks[:, column] < self.limits[index])

    def covered(self, iou: float, index: int = -1) -> float | None:
        """Return the share of ground truths with at least this IoU with one of the first `limits[index]` proposals.

        Unlike in `recall`, one proposal may cover several ground truths (Uijlings et al. 2013, §5; Hosang et al.).
        """
        return _mean(self.overlaps[:, index] >= iou)

    def average_recall(self, index: int = -1) -> float | None:
        """Return the mean of `recall` over `THRESHOLDS`."""
        return _mean(self.ranks < self.limits[index])

    def mean_overlap(self, index: int = -1) -> float | None:
        """Return the best overlap with one of the first `limits[index]` proposals, averaged over the ground truths."""
        return _mean(self.overlaps[:, index])

    def abo(self, index: int = -1) -> dict[int, float | None]:
        """Return the average best overlap of each class with the first `limits[index]` proposals."""
        return {int(label): _mean(self.overlaps[self.labels == label, index]) for label in np.unique(self.labels)}

    def mabo(self, index: int = -1) -> float | None:
        """Return the mean of `abo` over the classes."""
        return _mean(np.array(list(self.abo(index).values())))

    def _extend(
        self, labels: Int64[np.ndarray, " n"], ranks: Int32[np.ndarray, "n 10"], overlaps: Float64[np.ndarray, "n k"]
    ) -> None:
        self.labels = np.concatenate([self.labels, labels])
        self.ranks = np.concatenate([self.ranks, ranks])
        self.overlaps = np.concatenate([self.overlaps, overlaps])


def _mean(values: np.ndarray) -> float | None:
    # An exact sum does not depend on the order of the images or the number of processes.
    return math.fsum(values.ravel()) / values.size if values.size else None


@numba.njit(cache=True, nogil=True)
def _ranks(iou, valid, thresholds):
    """Return the rank of the matched proposal of each ground truth at each threshold, or NEVER.

    Args:
        iou: float64 [B, R, G], of B images, R proposals and G ground truths.
        valid: bool [B, G], False for padding and crowds.
        thresholds: float64 [T].

    Returns:
        int32 [B, G, T].
    """
    images, proposals, ground_truths = iou.shape
    ranks = np.full((images, ground_truths, len(thresholds)), NEVER, dtype=np.int32)
    for image in range(images):
        for rank in range(proposals):
            for t, threshold in enumerate(thresholds):
                best, match = threshold, -1
                for g in range(ground_truths):
                    unmatched = valid[image, g] and ranks[image, g, t] == NEVER
                    if unmatched and iou[image, rank, g] >= best:
                        best, match = iou[image, rank, g], g
                if match >= 0:
                    ranks[image, match, t] = rank
    return ranks
