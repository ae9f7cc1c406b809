"""Box regression by ridge regression on pool5 features, one regressor per class (Girshick et al. 2014, §3.5, App. C).

Each region whose IoU with its best ground truth is above `min_iou` is a sample of its class. The rows of X are the
scaled features of a class's samples with a 1 appended for the bias, the rows of Y their centred deltas. The regressor
minimises |XW - Y|² + λ|W|², with the bias regularised too: W = (XᵀX + λ)⁻¹XᵀY = Xᵀ(XXᵀ + λ)⁻¹Y.

The paper's code first whitens Y, to YT with T = V diag(1/sqrt(D + 0.001)) Vᵀ, where V diag(D) Vᵀ is Y's covariance, and
undoes that in each prediction. With one λ for all four deltas W is linear in Y, so T and T⁻¹ cancel and are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import starmap

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64

from detect.config import RidgeOptions

# Number of rows or columns of features that are converted to float64 at a time.
CHUNK = 1024


@dataclass(frozen=True, slots=True)
class RidgeRegressors:
    """One linear map from unscaled features to deltas per class."""

    weights: Float32[np.ndarray, "C d 4"]
    biases: Float32[np.ndarray, "C 4"]

    def deltas(self, features: Float32[np.ndarray, "n d"]) -> Float32[np.ndarray, "n C 4"]:
        """Compute the deltas of each region for each class, for `BoxCoder` with weights of 1."""
        return np.tensordot(features, self.weights, axes=(1, 1)) + self.biases


def regression_samples(
    iou: Float[np.ndarray, "n G"], min_iou: float
) -> tuple[Int64[np.ndarray, " k"], Int64[np.ndarray, " k"]]:
    """Return the indices of the regions that are samples, and of each sample's best ground truth of any class.

    As in the paper's code, ground truths are regions too, and thus samples with deltas of 0.
    """
    regions = np.flatnonzero(iou.max(axis=1, initial=0.0) > min_iou)
    # argmax needs a ground truth; an image without samples may have none.
    return regions, iou[regions].argmax(axis=1) if len(regions) else regions


def fit_regressors(
    samples: Iterable[tuple[Float32[np.ndarray, "_ d"], Float32[np.ndarray, "_ 4"]]],
    scale: float,
    options: RidgeOptions,
) -> RidgeRegressors:
    """Fit the regressors of all classes.

    Memory: with n samples of d features, a class needs its features, two square float64 matrices of side min(n, d + 1),
    and one chunk in float64. `samples` is consumed class by class and may be a generator.

    Args:
        samples: for each class the features [n, d] of its samples and their deltas [n, 4] as `BoxCoder` encodes them
            with weights of 1. A class with n = 0 gets zeros, which leave boxes unchanged.
        scale: factor of the features that gives them a mean norm of `feature_norm`.
        options: penalty.
    """
    # No loop: its variables would keep one class's samples in memory while the next class is read.
    weights, biases = zip(*starmap(partial(_fit, scale=scale, penalty=options.penalty), samples), strict=True)
    return RidgeRegressors(np.stack(weights).astype(np.float32), np.stack(biases).astype(np.float32))


def _fit(
    features: Float32[np.ndarray, "n d"], deltas: Float32[np.ndarray, "n 4"], scale: float, penalty: float
) -> tuple[Float64[np.ndarray, "d 4"], Float64[np.ndarray, " 4"]]:
    """Return weights and biases that map unscaled features to deltas."""
    samples, channels = features.shape
    if samples == 0:
        return np.zeros((channels, 4)), np.zeros(4)
    mean = deltas.mean(axis=0, dtype=np.float64)
    solve = _primal if channels < samples else _dual
    solution = solve(features, scale, deltas - mean, penalty)
    return scale * solution[:-1], solution[-1] + mean


def _primal(
    features: Float32[np.ndarray, "n d"], scale: float, targets: Float64[np.ndarray, "n 4"], penalty: float
) -> Float64[np.ndarray, "d+1 4"]:
    """Compute (XᵀX + λ)⁻¹XᵀY; XᵀX and XᵀY are summed over chunks of samples."""
    side = features.shape[1] + 1
    gram, product = np.zeros((side, side)), np.zeros((side, 4))
    for rows in _chunks(len(features)):
        chunk = np.ones((len(features[rows]), side))
        np.multiply(features[rows], scale, out=chunk[:, :-1], dtype=np.float64)
        gram += chunk.T @ chunk
        product += chunk.T @ targets[rows]
    gram.flat[:: side + 1] += penalty
    return np.linalg.solve(gram, product)


def _dual(
    features: Float32[np.ndarray, "n d"], scale: float, targets: Float64[np.ndarray, "n 4"], penalty: float
) -> Float64[np.ndarray, "d+1 4"]:
    """Compute Xᵀ(XXᵀ + λ)⁻¹Y; XXᵀ is summed over chunks of channels."""
    side, channels = features.shape
    gram = np.ones((side, side))  # contribution of the bias to XXᵀ
    for columns in _chunks(channels):
        chunk = np.multiply(features[:, columns], scale, dtype=np.float64)
        gram += chunk @ chunk.T
    gram.flat[:: side + 1] += penalty
    solution = np.linalg.solve(gram, targets)
    weights = [features[:, columns].astype(np.float64).T @ solution for columns in _chunks(channels)]
    return np.concatenate([scale * np.concatenate(weights), solution.sum(axis=0, keepdims=True)])


def _chunks(count: int) -> Iterator[slice]:
    return (slice(start, start + CHUNK) for start in range(0, count, CHUNK))
