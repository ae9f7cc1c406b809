"""Box regression by ridge, one regressor a class, on pool5 features (Girshick et al. 2014, §3.5 and App. C).

Each region that overlaps its best truth enough teaches the class of that truth the deltas that lead there. With the
samples of a class as rows of X, each feature scaled and a bias of 1 appended, and their centred deltas as rows of Y,
the regressor minimises |XW - Y|² + λ|W|², the bias under λ as well: W = (XᵀX + λ)⁻¹XᵀY = Xᵀ(XXᵀ + λ)⁻¹Y.

The paper's code whitens Y before, to YT with T = V diag(1/sqrt(D + 0.001)) Vᵀ of Y's covariance V diag(D) Vᵀ, and
undoes that in each prediction. As one λ for all four deltas makes W linear in Y, T and T⁻¹ cancel: both are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import starmap

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64

from detect.models import RidgeOptions

# Features that are turned into float64 at a time: rows, or columns of all rows.
PIECE = 1024


@dataclass(frozen=True, slots=True)
class RidgeRegressors:
    """A linear map from features, as the network gives them, to deltas, for each class."""

    weights: Float32[np.ndarray, "C d 4"]
    biases: Float32[np.ndarray, "C 4"]

    def deltas(self, features: Float32[np.ndarray, "n d"]) -> Float32[np.ndarray, "n C 4"]:
        """The deltas of each region for each class, as `BoxCoder` decodes them with weights of 1."""
        return np.tensordot(features, self.weights, axes=(1, 1)) + self.biases


def best_truths(
    iou: Float[np.ndarray, "n G"], min_iou: float
) -> tuple[Int64[np.ndarray, " k"], Int64[np.ndarray, " k"]]:
    """Which regions are samples, and the truth of largest IoU, whatever its class, that each of them is to reach.

    As in the paper's code, the truths are regions as well: samples whose deltas are 0.
    """
    regions = np.flatnonzero(iou.max(axis=1, initial=0.0) > min_iou)
    # Where no region is a sample there may be no truth either, and argmax wants one.
    return regions, iou[regions].argmax(axis=1) if len(regions) else regions


def fit_regressors(
    samples: Iterable[tuple[Float32[np.ndarray, "_ d"], Float32[np.ndarray, "_ 4"]]],
    scale: float,
    options: RidgeOptions,
) -> RidgeRegressors:
    """The regressors of all classes.

    Memory: with n samples of d features, a class needs its features as they come, two square float64 matrices of side
    min(n, d + 1), and a PIECE in float64. Classes are taken from `samples` one after another: one at a time is enough.

    Args:
        samples: for each class the features [n, d] of its samples and their deltas [n, 4] as `BoxCoder` encodes them
            with weights of 1. A class with n = 0 gets zeros and leaves boxes where they are.
        scale: what features are multiplied with, so that their mean norm is `feature_norm`.
        options: see there.
    """
    # A loop's variables would hold the samples of a class while those of the next are made.
    weights, biases = zip(*starmap(partial(_fit, scale=scale, penalty=options.penalty), samples), strict=True)
    return RidgeRegressors(np.stack(weights).astype(np.float32), np.stack(biases).astype(np.float32))


def _fit(
    features: Float32[np.ndarray, "n d"], deltas: Float32[np.ndarray, "n 4"], scale: float, penalty: float
) -> tuple[Float64[np.ndarray, "d 4"], Float64[np.ndarray, " 4"]]:
    """Weights and biases that take unscaled features to deltas."""
    samples, channels = features.shape
    if samples == 0:
        return np.zeros((channels, 4)), np.zeros(4)
    mean = deltas.mean(axis=0, dtype=np.float64)
    solve = _primal if channels < samples else _dual
    solution = solve(features, scale, deltas - mean, penalty)
    return scale * solution[:-1], solution[-1] + mean


def _primal(
    features: Float32[np.ndarray, "n d"], scale: float, goals: Float64[np.ndarray, "n 4"], penalty: float
) -> Float64[np.ndarray, "d+1 4"]:
    """(XᵀX + λ)⁻¹XᵀY, a sum over the samples."""
    side = features.shape[1] + 1
    gram, product = np.zeros((side, side)), np.zeros((side, 4))
    for rows in _pieces(len(features)):
        piece = np.ones((len(features[rows]), side))
        np.multiply(features[rows], scale, out=piece[:, :-1], dtype=np.float64)
        gram += piece.T @ piece
        product += piece.T @ goals[rows]
    gram.flat[:: side + 1] += penalty
    return np.linalg.solve(gram, product)


def _dual(
    features: Float32[np.ndarray, "n d"], scale: float, goals: Float64[np.ndarray, "n 4"], penalty: float
) -> Float64[np.ndarray, "d+1 4"]:
    """Xᵀ(XXᵀ + λ)⁻¹Y, XXᵀ a sum over the channels."""
    side, channels = features.shape
    gram = np.ones((side, side))  # the bias' part of XXᵀ
    for columns in _pieces(channels):
        piece = np.multiply(features[:, columns], scale, dtype=np.float64)
        gram += piece @ piece.T
    gram.flat[:: side + 1] += penalty
    solution = np.linalg.solve(gram, goals)
    weights = [features[:, columns].astype(np.float64).T @ solution for columns in _pieces(channels)]
    return np.concatenate([scale * np.concatenate(weights), solution.sum(axis=0, keepdims=True)])


def _pieces(count: int) -> Iterator[slice]:
    return (slice(start, start + PIECE) for start in range(0, count, PIECE))
