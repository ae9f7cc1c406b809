"""One linear SVM a class, with hard negatives found in one pass over the images (Girshick et al. 2014, §2.3, App. B).

features [n, d] of an image's regions, and which of them are negatives of which class
    │ one product gives all scores [n, C]: a negative above the margin enters the cache of its class
cache    each region once, and for which classes it is held
    │ enough new negatives of a class: train its SVM, evict what has become easy
LinearSVMs  weights [C, d]   biases [C]

The thresholds, which the paper leaves out, are those of its code, as is the rescaling of the features.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC

from detect.errors import UserError
from detect.models import SVMOptions

# liblinear stops when no dual variable wants to move by more than this, or after so many passes over its samples.
TOLERANCE = 1e-4
PASSES = 10_000


@dataclass(frozen=True, slots=True)
class LinearSVMs:
    """A weight vector and a bias for each class; they take features as the network gives them, not scaled."""

    weights: Float32[np.ndarray, "C d"]
    biases: Float32[np.ndarray, " C"]

    def scores(self, features: Float32[np.ndarray, "n d"]) -> Float32[np.ndarray, "n C"]:
        """The score of each region for each class: about 1 and more for an object, about -1 and less for none."""
        return features @ self.weights.T + self.biases


def negatives(
    iou: Float[np.ndarray, "n G"], labels: Int64[np.ndarray, " G"], classes: int, negative_iou: float
) -> Bool[np.ndarray, "n C"]:
    """Which of n regions are negatives of which class: those whose IoU with every truth of it is below the threshold.

    As in the paper's code, the truths are regions as well: each is a negative of the classes that it is none of.
    """
    largest = np.zeros((len(iou), classes), iou.dtype)
    for truth, label in enumerate(labels.tolist()):
        np.maximum(largest[:, label], iou[:, truth], out=largest[:, label])
    return largest < negative_iou


class SVMTrainer:
    """Trains the SVMs of all classes while the images go by once, always in the same order.

    Memory: float32 features of the positives, and of each region that is held for some class, once for all of them.
    What a class holds is what its last training left, which is its support vectors and the negatives close to them
    (scores of at least `evict_margin`), and at most `retrain_after` and one image's regions on top of it. A training
    needs 12 bytes more for each value of a class' samples, and liblinear 16 for each that is not zero.

    The first image's negatives enter unseen. They train the first SVMs, which judge the next ones.

    Args:
        positives: for each class the features of its truths, none perhaps; they are held, not copied.
        scale: what features are multiplied with, so that their mean norm is `feature_norm`.
        options: see there.
    """

    def __init__(self, positives: Sequence[Float32[np.ndarray, "_ d"]], scale: float, options: SVMOptions) -> None:
        self.options = options
        self.images = 0
        """How many images were added."""
        self._positives = positives
        self._scale = scale
        classes, channels = len(positives), positives[0].shape[1]
        # A class without positives keeps this SVM: of negatives alone (ten or more, by C and bias_scale) the hinge loss
        # makes weight 0 and bias -1, the score of no object. It holds no negatives: -1 is above hard_margin, so that
        # all of them would enter for nothing.
        self._svms = LinearSVMs(np.zeros((classes, channels), np.float32), np.full(classes, -1, np.float32))
        self._learns = np.array([len(features) > 0 for features in positives])
        self._trained = np.zeros(classes, bool)
        self._new = np.zeros(classes, np.int64)
        # Features [n, d] and for which classes they are held [n, C], a block an image: nothing is copied to add one.
        self._cache = [(np.empty((0, channels), np.float32), np.empty((0, classes), bool))]

    def add(self, features: Float32[np.ndarray, "n d"], negative: Bool[np.ndarray, "n C"]) -> None:
        """Takes the next image: its features, as the network gives them, and which are `negatives` of which class."""
        hard = self._svms.scores(features) > self.options.hard_margin
        enters = negative & self._learns & (hard | ~self._trained)
        rows = enters.any(axis=1)
        self._cache.append((features[rows], enters[rows]))
        self._new += enters.sum(axis=0)
        self._train((self._new > self.options.retrain_after) | (~self._trained & (self._new > 0)))
        self.images += 1

    def finish(self) -> LinearSVMs:
        """The SVMs, each trained with all that is in its cache.

        Raises:
            UserError: no image had a negative of a class that has positives.
        """
        # Without new negatives there is nothing to train: what was evicted had no part in the solution.
        self._train(self._new > 0)
        untrained = np.flatnonzero(self._learns & ~self._trained)
        if len(untrained):
            raise UserError(
                f"class {untrained[0]}: no region of the {self.images} images is a negative of it; "
                f"give more images or proposals, or raise negative_iou = {self.options.negative_iou:g}"
            )
        return LinearSVMs(self._svms.weights.copy(), self._svms.biases.copy())

    def state(self) -> dict[str, np.ndarray]:
        """All that the added images have changed, for `np.savez`; `images` says after how many of them to go on."""
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
        """Goes on where `state` was taken, by a trainer of the same positives, scale and options: to equal bits.

        Raises:
            ValueError: the state is of other classes or features.
        """
        if state["weights"].shape != self._svms.weights.shape:
            raise ValueError(f"SVMs of shape {state['weights'].shape} cannot go on as {self._svms.weights.shape}")
        self.images = int(state["images"])
        self._cache = [(state["features"], state["held"].copy())]
        self._new = state["new"].copy()
        self._trained = state["trained"].copy()
        self._svms = LinearSVMs(state["weights"].copy(), state["biases"].copy())

    def _train(self, due: Bool[np.ndarray, " C"]) -> None:
        """Trains the SVMs that are due, one after another (liblinear's random numbers are global), and evicts."""
        for label in np.flatnonzero(due).tolist():
            self._train_one(label)
        if due.any():
            for place, (features, held) in enumerate(self._cache):
                kept = held.any(axis=1)
                if not kept.all():
                    self._cache[place] = features[kept], held[kept]

    def _train_one(self, label: int) -> None:
        positives = self._positives[label]
        held = [features[column[:, label]] for features, column in self._cache]
        # float64, as liblinear computes, and one matrix, so that no bit depends on where the blocks of the cache end.
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
                f"class {label}: its SVM was still changing after {PASSES} passes over its {len(samples)} samples, and "
                f"is used as it is; lower c = {self.options.c:g} or feature_norm = {self.options.feature_norm:g}",
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
