import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from detect.config import RidgeOptions
from detect.models.box_coder import BoxCoder
from detect.training import ridge
from detect.training.ridge import fit_regressors, regression_samples

OPTIONS = RidgeOptions()


def samples(count: int, channels: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features as after a ReLU, and deltas that depend on them, on each other, and are not centred."""
    draw = np.random.default_rng(seed)
    features = np.maximum(draw.normal(0.5, 1.0, (count, channels)), 0).astype(np.float32)
    deltas = features @ draw.normal(0, 0.05, (channels, 4)) + draw.normal(0, 0.1, (count, 4)) @ draw.normal(size=(4, 4))
    return features, (deltas + np.array([0.3, -0.2, 0.5, 0.1])).astype(np.float32)


def as_in_the_papers_code(features, deltas, scale, penalty):
    """Ridge on whitened targets and with a penalised bias; the whitening is undone in the prediction."""
    augmented = np.concatenate([scale * features.astype(np.float64), np.ones((len(features), 1))], axis=1)
    mean = deltas.astype(np.float64).mean(axis=0)
    centred = deltas - mean
    values, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
    whiten = vectors @ np.diag(1 / np.sqrt(values + 0.001)) @ vectors.T
    undo = vectors @ np.diag(np.sqrt(values + 0.001)) @ vectors.T
    model = Ridge(alpha=penalty, fit_intercept=False, solver="svd").fit(augmented, centred @ whiten)

    def predict(others):
        others = np.concatenate([scale * others.astype(np.float64), np.ones((len(others), 1))], axis=1)
        return others @ model.coef_.T @ undo + mean

    return predict


@pytest.mark.parametrize("penalty", [0.1, 1000.0])
@pytest.mark.parametrize(("count", "channels"), [(60, 7), (7, 60), (20, 20), (20, 19), (19, 20), (1, 5)])
def test_is_scikit_learns_ridge_on_whitened_targets(count, channels, penalty):
    features, deltas = samples(count, channels)
    predict = as_in_the_papers_code(features, deltas, 3.0, penalty)
    regressors = fit_regressors([(features, deltas)], 3.0, RidgeOptions(penalty=penalty))
    others, _ = samples(11, channels, seed=1)
    np.testing.assert_allclose(regressors.deltas(others)[:, 0], predict(others), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("piece", [1, 4, 1024])
@pytest.mark.parametrize(("count", "channels"), [(13, 5), (5, 13), (9, 9)])
def test_primal_and_dual_agree_whatever_the_pieces(count, channels, piece, monkeypatch):
    features, deltas = samples(count, channels)
    targets = deltas.astype(np.float64)
    expected = ridge._primal(features, 2.0, targets, 10.0)
    monkeypatch.setattr(ridge, "CHUNK", piece)
    for solve in (ridge._primal, ridge._dual):
        np.testing.assert_allclose(solve(features, 2.0, targets, 10.0), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("count", "channels", "form"), [(9, 8, "_primal"), (8, 8, "_dual"), (7, 8, "_dual")])
def test_the_smaller_system_is_solved(count, channels, form, monkeypatch):
    """The primal has a row for each feature and one for the bias, the dual one for each sample."""
    called = []
    for name in ("_primal", "_dual"):
        solve = getattr(ridge, name)
        monkeypatch.setattr(ridge, name, lambda *given, name=name, solve=solve: called.append(name) or solve(*given))
    fit_regressors([samples(count, channels)], 1.0, OPTIONS)
    assert called == [form]


def test_by_hand():
    # Deltas of 3 and 1, mean 2, so ±1 for the features ±2, which are scaled to ±1: XᵀX = 2 and XᵀY = 2, the bias' part
    # is 0. With λ = 2 the scaled weight is 2 / (2 + 2) = 1/2, which is 1/4 on what came; the mean is the bias.
    features = np.array([[2.0], [-2.0]], np.float32)
    deltas = np.array([[3.0, 0.0, -3.0, 7.0], [1.0, 0.0, -1.0, 7.0]], np.float32)
    regressors = fit_regressors([(features, deltas)], 0.5, RidgeOptions(penalty=2.0))
    np.testing.assert_allclose(regressors.weights, [[[0.25, 0, -0.25, 0]]], atol=1e-7)
    np.testing.assert_allclose(regressors.biases, [[2, 0, -2, 7]], atol=1e-7)
    expected = [[[3, 0, -3, 7]], [[2, 0, -2, 7]]]
    np.testing.assert_allclose(regressors.deltas(np.array([[4.0], [0.0]], np.float32)), expected, atol=1e-6)


def test_the_bias_is_penalised():
    # Features of 1, 1 and 4 and deltas of 0, 0 and 3, centred -1, -1 and 2: XᵀX = [[18, 6], [6, 3]], XᵀY = [6, 0].
    # With λ = 1 the solution of [[19, 6], [6, 4]] is [24, -36] / 40; a free bias would give the straight line.
    features = np.array([[1.0], [1.0], [4.0]], np.float32)
    deltas = np.array([[0.0] * 4, [0.0] * 4, [3.0] * 4], np.float32)
    regressors = fit_regressors([(features, deltas)], 1.0, RidgeOptions(penalty=1.0))
    np.testing.assert_allclose(regressors.weights, [[[0.6] * 4]], rtol=1e-6)
    np.testing.assert_allclose(regressors.biases, [[1 - 0.9] * 4], rtol=1e-6)


def test_the_penalty_is_in_units_of_scaled_features():
    features, deltas = samples(30, 4)
    small = fit_regressors([(features, deltas)], 2.0, OPTIONS)
    large = fit_regressors([(8 * features, deltas)], 0.25, OPTIONS)
    np.testing.assert_allclose(8 * large.weights, small.weights, rtol=1e-6)
    np.testing.assert_allclose(large.biases, small.biases, rtol=1e-6)
    other = fit_regressors([(features, deltas)], 20.0, OPTIONS)
    assert not np.allclose(other.weights, small.weights, rtol=0.1)


def test_a_class_without_samples_leaves_boxes_where_they_are():
    none = np.empty((0, 6), np.float32), np.empty((0, 4), np.float32)
    some = samples(30, 6)
    regressors = fit_regressors(iter([none, some]), 1.0, OPTIONS)  # an iterator: one class in memory is enough
    assert not regressors.weights[0].any() and not regressors.biases[0].any()
    alone = fit_regressors([some], 1.0, OPTIONS)
    np.testing.assert_array_equal(regressors.weights[1:], alone.weights)
    np.testing.assert_array_equal(regressors.biases[1:], alone.biases)
    assert regressors.weights.shape == (2, 6, 4) and regressors.weights.dtype == regressors.biases.dtype == np.float32
    assert not regressors.deltas(some[0])[:, 0].any()
    assert regressors.deltas(none[0]).shape == (0, 2, 4)


def test_equal_inputs_give_equal_bits_and_are_left_alone():
    features, deltas = samples(20, 30)
    copies = features.copy(), deltas.copy()
    one, other = (fit_regressors([(features, deltas)], 1.0, OPTIONS) for _ in range(2))
    np.testing.assert_array_equal(one.weights, other.weights)
    np.testing.assert_array_equal(one.biases, other.biases)
    np.testing.assert_array_equal(features, copies[0])
    np.testing.assert_array_equal(deltas, copies[1])


def test_boxes_come_closer_to_their_ground_truths():
    """The features hold the deltas of the object in its region; regions are of many positions and sizes."""
    coder = BoxCoder()
    ground_truths = torch.rand(200, 2) * 100
    ground_truths = torch.cat([ground_truths, ground_truths + 20 + 60 * torch.rand(200, 2)], dim=1)
    sides = (ground_truths[:, 2:] - ground_truths[:, :2]).repeat(1, 2)
    boxes = ground_truths + (torch.rand(200, 4) - 0.5) * 0.3 * sides
    deltas = coder.encode(ground_truths, boxes)
    features = torch.cat([deltas.clamp(min=0), (-deltas).clamp(min=0)], dim=1).numpy()
    regressors = fit_regressors([(features[:150], deltas[:150].numpy())], 20 / 0.2, OPTIONS)
    moved = coder.decode(torch.from_numpy(regressors.deltas(features[150:])[:, 0]), boxes[150:])
    before, after = (boxes[150:] - ground_truths[150:]).abs().mean(), (moved - ground_truths[150:]).abs().mean()
    assert after < before / 4


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_regression_samples_by_hand(kind):
    # Below the threshold, on it, above it, a tie that the first ground truth wins, a ground truth itself.
    iou = np.array([[0.5, 0.1], [0.2, 0.75], [0.7, 0.8], [0.8, 0.8], [0.0, 1.0]], kind)
    rows, ground_truths = regression_samples(iou, 0.75)
    assert rows.tolist() == [2, 3, 4] and ground_truths.tolist() == [1, 0, 1]


@pytest.mark.parametrize("shape", [(0, 0), (0, 2), (3, 0), (3, 2)])
def test_regression_samples_where_there_are_none(shape):
    rows, ground_truths = regression_samples(np.zeros(shape, np.float32), 0.6)
    assert rows.shape == ground_truths.shape == (0,) and rows.dtype == ground_truths.dtype == np.int64
