"""Linear SVMs, one per class, with hard negative mining in one pass over the images (Girshick et al. 2014, §2.3).

features [n, d] of an image's regions, mask [n, C] of the negatives of each class
    │ one product computes all scores [n, C]; negatives above the margin enter the cache of their class
cache    each region once, with a mask of the classes whose cache contains it
    │ after enough new negatives of a class: train its SVM, evict easy negatives
LinearSVMs  weights [C, d]   biases [C]

The thresholds, which the paper (Appendix B) omits, and the scaling of the features are those of its code.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC

from detect.config import SVMOptions
from detect.errors import UserError

# liblinear stops when no dual variable changes by more than this, or after this many passes over its samples.
TOLERANCE = 1e-4
PASSES = 10_000


@dataclass(frozen=True, slots=True)
class LinearSVMs:
    """A weight vector and a bias for each class, for unscaled features."""

    weights: Float32[np.ndarray, "C d"]
    biases: Float32[np.ndarray, " C"]

    def scores(self, features: Float32[np.ndarray, "n d"]) -> Float32[np.ndarray, "n C"]:
        """Compute the score of each region for each class: at least about 1 for objects, at most about -1 otherwise."""
        return features @ self.weights.T + self.biases


def negatives(
    iou: Float[np.ndarray, "n G"], labels: Int64[np.ndarray, " G"], classes: int, negative_iou: float
) -> Bool[np.ndarray, "n C"]:
    """Return a mask of the negatives of each class: IoU with all ground truths of the class below the threshold.

    As in the paper's code, ground truths are regions too, and negatives of all other classes.
    """
    largest = np.zeros((len(iou), classes), iou.dtype)
    for ground_truth, label in enumerate(labels.tolist()):
        np.maximum(largest[:, label], iou[:, ground_truth], out=largest[:, label])
    return largest < negative_iou


class SVMTrainer:
    """Trains the SVMs of all classes in one pass over the images, always in the same order.

    Memory: float32 features of the positives and of each region in the cache of any class, stored once. After training,
    a class's cache holds its support vectors and the negatives close to them (scores of at least `evict_margin`); until
    the next training at most `retrain_after` and one image's regions are added. Training a class needs 12 more bytes
    per value of its samples, and liblinear 16 more per nonzero value.

    All negatives of the first image enter the cache. They train the first SVMs, which select later negatives.

    Args:
        positives: features of the ground truths of each class, possibly none; they are not copied.
        scale: factor of the features that gives them a mean norm of `feature_norm`.
        options: thresholds and cost.
    """

    def __init__(self, positives: Sequence[Float32[np.ndarray, "_ d"]], scale: float, options: SVMOptions) -> None:
        self.options = options
        self.images = 0
        """Number of images added."""
        self._positives = positives
        self._scale = scale
        classes, channels = len(positives), positives[0].shape[1]
        # A class without positives keeps this SVM: on negatives alone (ten or more, by C and bias_scale) the hinge loss
        # gives weight 0 and bias -1, the score of background. Its cache must stay empty, although -1 is above
        # hard_margin.
        self._svms = LinearSVMs(np.zeros((classes, channels), np.float32), np.full(classes, -1, np.float32))
        self._has_positives = np.array([len(features) > 0 for features in positives])
        self._trained = np.zeros(classes, bool)
        self._new = np.zeros(classes, np.int64)
        # Features [n, d] and a mask of the classes that hold them [n, C]; one block per image, so `add` copies none.
        self._cache = [(np.empty((0, channels), np.float32), np.empty((0, classes), bool))]

    def add(self, features: Float32[np.ndarray, "n d"], negative: Bool[np.ndarray, "n C"]) -> None:
        """Add the unscaled features of the next image, with the mask of `negatives`."""
        hard = self._svms.scores(features) > self.options.hard_margin
        enters = negative & self._has_positives & (hard | ~self._trained)
        rows = enters.any(axis=1)
        self._cache.append((features[rows], enters[rows]))
        self._new += enters.sum(axis=0)
        self._train((self._new > self.options.retrain_after) | (~self._trained & (self._new > 0)))
        self.images += 1

    def finish(self) -> LinearSVMs:
        """Return the SVMs, each trained on its whole cache.

        Raises:
            UserError: no image had a negative of a class that has positives.
        """
        # Training again without new negatives changes nothing: evicted negatives are no support vectors.
        self._train(self._new > 0)
        untrained = np.flatnonzero(self._has_positives & ~self._trained)
        if len(untrained):
            raise UserError(
                f"class {untrained[0]}: none of the {self.images} images has a negative for it; "
                f"give more images or proposals, or raise negative_iou = {self.options.negative_iou:g}"
            )
        return LinearSVMs(self._svms.weights.copy(), self._svms.biases.copy())

    def state(self) -> dict[str, np.ndarray]:
        """Return the state for `np.savez`; `images` is the number of images after which to continue."""
        return {
            "images": np.array(self.images),
            "features": np.concatenate([features for features, _ in self._cache]),
            "held": np.concatenate([held for _, held in self._cache]),
            "new": self._new.copy(),
            "trained": self._trained.copy(),
            "weights": self._svms.weights.copy(),
            "biases": self._svms.biases.copy(),
        }

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Restore the exact `state` of a trainer with the same positives, scale and options.

        Raises:
            ValueError: the state has other classes or features.
        """
        if state["weights"].shape != self._svms.weights.shape:
            raise ValueError(f"SVMs of shape {state['weights'].shape} do not fit {self._svms.weights.shape}")
        self.images = int(state["images"])
        self._cache = [(state["features"], state["held"].copy())]
        self._new = state["new"].copy()
        self._trained = state["trained"].copy()
        self._svms = LinearSVMs(state["weights"].copy(), state["biases"].copy())

    def _train(self, due: Bool[np.ndarray, " C"]) -> None:
        """Train the SVMs that are due, one by one since liblinear's random numbers are global, and evict negatives."""
        for label in np.flatnonzero(due).tolist():
            self._train_one(label)
        if due.any():
            for index, (features, held) in enumerate(self._cache):
                kept = held.any(axis=1)
                if not kept.all():
                    self._cache[index] = features[kept], held[kept]

    def _train_one(self, label: int) -> None:
        positives = self._positives[label]
        held = [features[column[:, label]] for features, column in self._cache]
        # float64, as in liblinear, and one matrix, so that results do not depend on the blocks of the cache.
        samples = np.concatenate([positives, *held], dtype=np.float64)
        del held
        samples *= self._scale
        svm = LinearSVC(
            loss="hinge",
            C=self.options.c,
            class_weight={1: self.options.positive_weight},
            intercept_scaling=self.options.bias_scale,
            tol=TOLERANCE,
            max_iter=PASSES,
            random_state=0,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            svm.fit(samples, np.repeat([1, 0], [len(positives), len(samples) - len(positives)]))
        if svm.n_iter_ >= PASSES:
            warnings.warn(
                f"class {label}: its SVM had not converged after {PASSES} passes over its {len(samples)} samples, and "
                f"is used as is; lower c = {self.options.c:g} or feature_norm = {self.options.feature_norm:g}",
                stacklevel=2,
            )
        self._svms.weights[label] = svm.coef_[0] * self._scale
        self._svms.biases[label] = svm.intercept_[0]
        self._trained[label] = True
        self._new[label] = 0

        easy = samples[len(positives) :] @ svm.coef_[0] + svm.intercept_[0] < self.options.evict_margin
        start = 0
        for _, held_for in self._cache:
            rows = np.flatnonzero(held_for[:, label])
            held_for[rows[easy[start : start + len(rows)]], label] = False
            start += len(rows)
