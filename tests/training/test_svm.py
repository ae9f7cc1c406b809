import warnings
from dataclasses import replace

import numpy as np
import pytest
from sklearn.svm import LinearSVC

from detect.config import SVMOptions
from detect.errors import UserError
from detect.training import svm
from detect.training.svm import SVMTrainer, negatives

EVERYTHING = SVMOptions(hard_margin=-1e9, evict_margin=-1e9)
CHANNELS = 6


def regions(seed: int, count: int, offset: float = 0.0) -> np.ndarray:
    """Features as after a ReLU, some zero."""
    return np.maximum(np.random.default_rng(seed).normal(offset, 1.0, (count, CHANNELS)), 0).astype(np.float32)


@pytest.fixture
def positives() -> list[np.ndarray]:
    return [regions(1, 12, 1.0), regions(2, 7, 0.5)]


@pytest.fixture
def images() -> list[tuple[np.ndarray, np.ndarray]]:
    """Six images of 20 regions; a sixth of the regions are no negatives of a class."""
    draw = np.random.default_rng(0)
    return [(regions(10 + image, 20), draw.random((20, 2)) > 1 / 6) for image in range(6)]


def trained(positives, images, options, scale=3.0):
    trainer = SVMTrainer(positives, scale, options)
    for features, negative in images:
        trainer.add(features, negative)
    return trainer.finish()


def scikit_learns(positives, held, scale, options):
    """Weights and bias of one class, on all its samples at once."""
    machine = LinearSVC(
        C=options.c,
        loss="hinge",
        class_weight={1: options.positive_weight, 0: 1.0},
        intercept_scaling=options.bias_scale,
        tol=1e-8,
        max_iter=10**6,
        random_state=0,
    )
    samples = scale * np.concatenate([positives, held]).astype(np.float64)
    machine.fit(samples, [1] * len(positives) + [0] * len(held))
    return scale * machine.coef_[0], machine.intercept_[0]


@pytest.mark.parametrize("c", [1e-3, 0.1])
@pytest.mark.parametrize("retrain_after", [15, 10**6])
def test_with_all_negatives_it_is_scikit_learns(positives, images, c, retrain_after, monkeypatch):
    monkeypatch.setattr(svm, "TOLERANCE", 1e-8)
    options = replace(EVERYTHING, c=c, retrain_after=retrain_after)
    svms = trained(positives, images, options)
    for label in range(2):
        held = np.concatenate([features[negative[:, label]] for features, negative in images])
        weights, bias = scikit_learns(positives[label], held, 3.0, options)
        np.testing.assert_allclose(svms.weights[label], weights, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(svms.biases[label], bias, rtol=1e-5, atol=1e-5)


def test_by_hand():
    # One feature, x = 1 for the positives and -1 for the negatives, scaled by 2, as many of each: without a bias the
    # margins are met at w = 1/2 on the scaled features, which is 1 on those that came; `c` is large enough for that.
    options = replace(EVERYTHING, c=1.0, positive_weight=1.0)
    positives, held = np.ones((3, 1), np.float32), -np.ones((3, 1), np.float32)
    svms = trained([positives], [(held, np.ones((3, 1), bool))], options, scale=2.0)
    np.testing.assert_allclose(svms.weights, [[1.0]], atol=1e-3)
    np.testing.assert_allclose(svms.biases, [0.0], atol=1e-3)
    np.testing.assert_allclose(svms.scores(np.array([[2.0], [-3.0]], np.float32)), [[2.0], [-3.0]], atol=5e-3)


def test_a_positive_weighs_twice_and_its_scale_frees_the_bias():
    # All features are zero, so that the bias alone is learned, from p positives and n = 20 negatives: the least
    # (b / 10)² / 2 + c (2 p max(0, 1 - b) + n max(0, 1 + b)) is at b = 1 for 2 p > n, and at -1 for 2 p < n, once
    # 100 c |2 p - n|, which is 20 here, is at least 1.
    zeros = np.zeros((20, 1), np.float32)
    for count, bias in ((11, 1.0), (9, -1.0)):
        svms = trained([zeros[:count]], [(zeros, np.ones((20, 1), bool))], replace(EVERYTHING, c=0.1))
        np.testing.assert_allclose(svms.biases, [bias], atol=1e-3)
        assert not svms.weights.any()


def test_the_thresholds_decide_what_is_held():
    # Without scale and bias to speak of, a score is w x: the SVM of the first image has w = 1 (see above).
    options = SVMOptions(c=1.0, positive_weight=1.0, retrain_after=4)
    trainer = SVMTrainer([np.ones((8, 1), np.float32)], 1.0, options)
    column = lambda *values: np.array([values], np.float32).T  # noqa: E731
    everything = lambda count: np.ones((count, 1), bool)  # noqa: E731

    # Every negative of the first image enters, trains the SVM, and is dropped when it is easy.
    trainer.add(column(-1, -1, -1, -1.1, -1.3, -50), np.array([[True]] * 5 + [[False]]))
    np.testing.assert_allclose(trainer.state()["weights"], [[1.0]], atol=1e-3)
    np.testing.assert_allclose(trainer.state()["features"], column(-1, -1, -1, -1.1))

    # From now on only negatives above the margin enter. Four new ones do not exceed four: no training.
    before = trainer.state()["weights"]
    trainer.add(column(-1.1, -0.9, -1.01, 0.5, 5), np.array([[True]] * 4 + [[False]]))
    np.testing.assert_allclose(trainer.state()["features"], column(-1, -1, -1, -1.1, -0.9, 0.5))
    trainer.add(column(-0.9, -0.9), everything(2))
    np.testing.assert_array_equal(trainer.state()["new"], [4])
    np.testing.assert_array_equal(trainer.state()["weights"], before)

    # The fifth trains: the one that is new takes part.
    trainer.add(column(-0.8), everything(1))
    assert trainer.state()["new"] == 0 and trainer.images == 4
    held = column(-1, -1, -1, -1.1, -0.9, 0.5, -0.9, -0.9, -0.8)
    weights, bias = scikit_learns(np.ones((8, 1)), held, 1.0, options)
    np.testing.assert_allclose(trainer.state()["weights"], [weights], atol=1e-2)
    np.testing.assert_allclose(trainer.state()["features"], held[held @ weights + bias >= -1.2])


def test_all_negatives_enter_until_there_is_an_svm_whatever_the_margin():
    trainer = SVMTrainer([np.ones((2, 1), np.float32)], 1.0, SVMOptions(hard_margin=5.0))
    trainer.add(-np.ones((3, 1), np.float32), np.ones((3, 1), bool))
    assert len(trainer.state()["features"]) == 3
    trainer.add(-np.ones((3, 1), np.float32), np.ones((3, 1), bool))
    assert len(trainer.state()["features"]) == 3


def test_mining_is_the_plain_loop_over_classes(positives, images):
    """The same with lists, a class at a time, and scikit-learn on copies of the features."""
    options = SVMOptions(c=0.05, retrain_after=10)
    svms = trained(positives, images, options)
    for label in range(2):
        held, new, weights, bias, sizes = np.empty((0, CHANNELS)), 0, None, 0.0, []
        for features, negative in images:
            candidates = features[negative[:, label]]
            if weights is not None:
                candidates = candidates[candidates @ weights + bias > -1.0001]
            held, new = np.concatenate([held, candidates]), new + len(candidates)
            if weights is None or new > 10:
                weights, bias = scikit_learns(positives[label], held, 3.0, options)
                held, new = held[held @ weights + bias >= -1.2], 0
            sizes.append(len(held))
        weights, bias = scikit_learns(positives[label], held, 3.0, options)
        np.testing.assert_allclose(svms.weights[label], weights, atol=2e-3)
        np.testing.assert_allclose(svms.biases[label], bias, atol=2e-3)
        assert min(sizes) > 0 and max(sizes) < 120 * 5 / 6, "the data must mine and evict"


def test_a_region_is_held_once_for_all_classes(positives):
    trainer = SVMTrainer(positives, 3.0, EVERYTHING)
    features = regions(3, 4)
    trainer.add(features, np.array([[True, True], [False, True], [False, False], [True, False]]))
    state = trainer.state()
    np.testing.assert_array_equal(state["features"], features[[0, 1, 3]])
    np.testing.assert_array_equal(state["held"], [[True, True], [False, True], [True, False]])


def test_only_regions_that_no_class_holds_go():
    # Class 0 lies at 1 and has w = 1 and b = 0: -1 scores -1 and -5 scores -5. Class 1 lies at -9 and has w = -1/2 and
    # b = -7/2: -5 scores -1, -1 scores -3 and 3, which is no negative of class 0, -5.
    positives = [np.array([[1.0]], np.float32), np.array([[-9.0]], np.float32)]
    trainer = SVMTrainer(positives, 1.0, SVMOptions(c=1.0, positive_weight=1.0))
    trainer.add(np.array([[3.0], [-1.0], [-5.0]], np.float32), np.array([[False, True], [True, True], [True, True]]))
    state = trainer.state()
    np.testing.assert_allclose(state["weights"], [[1.0], [-0.5]], atol=1e-3)
    np.testing.assert_allclose(state["biases"], [0.0, -3.5], atol=1e-2)
    np.testing.assert_array_equal(state["features"], [[-1], [-5]])
    np.testing.assert_array_equal(state["held"], [[True, False], [False, True]])


@pytest.mark.parametrize("stop", [0, 1, 3, 6])
def test_a_pass_goes_on_from_its_state_to_equal_bits(positives, images, stop, tmp_path):
    options = SVMOptions(c=0.05, retrain_after=10)
    whole, part = SVMTrainer(positives, 3.0, options), SVMTrainer(positives, 3.0, options)
    for features, negative in images:
        whole.add(features, negative)
    for features, negative in images[:stop]:
        part.add(features, negative)
    np.savez(tmp_path / "state.npz", **part.state())

    rest = SVMTrainer(positives, 3.0, options)
    with np.load(tmp_path / "state.npz", allow_pickle=False) as state:
        rest.load_state(state)
    assert rest.images == stop
    for features, negative in images[rest.images :]:
        rest.add(features, negative)
    for name, value in whole.state().items():
        np.testing.assert_array_equal(rest.state()[name], value, err_msg=name)
    expected, found = whole.finish(), rest.finish()
    np.testing.assert_array_equal(found.weights, expected.weights)
    np.testing.assert_array_equal(found.biases, expected.biases)


def test_a_state_does_not_change_with_the_trainer_that_gave_or_took_it(positives, images):
    trainer, other = (SVMTrainer(positives, 3.0, SVMOptions(c=0.05, retrain_after=10)) for _ in range(2))
    trainer.add(*images[0])
    state = trainer.state()
    copy = {name: value.copy() for name, value in state.items()}
    other.load_state(state)
    for one in (trainer, other):
        for features, negative in images[1:]:
            one.add(features, negative)
        one.finish()
    for name, value in copy.items():
        np.testing.assert_array_equal(state[name], value, err_msg=name)


def test_a_state_of_other_features_is_refused(positives):
    state = SVMTrainer(positives, 1.0, SVMOptions()).state()
    for others in ([positives[0]], [features[:, :3] for features in positives]):
        with pytest.raises(ValueError, match="do not fit"):
            SVMTrainer(others, 1.0, SVMOptions()).load_state(state)


def test_equal_inputs_give_equal_bits_and_finish_can_be_asked_twice(positives, images):
    options = SVMOptions(c=0.05, retrain_after=10)
    one, other = trained(positives, images, options), trained(positives, images, options)
    np.testing.assert_array_equal(one.weights, other.weights)
    np.testing.assert_array_equal(one.biases, other.biases)
    assert one.weights.dtype == one.biases.dtype == np.float32
    trainer = SVMTrainer(positives, 3.0, options)
    trainer.add(*images[0])
    np.testing.assert_array_equal(trainer.finish().weights, trainer.finish().weights)


def test_the_weights_hold_the_scale(positives, images):
    """Features that are four times as large are scaled to the same SVM."""
    options = SVMOptions(c=0.05)
    small = trained(positives, images, options, scale=2.0)
    images = [(4 * features, negative) for features, negative in images]
    large = trained([4 * features for features in positives], images, options, scale=0.5)
    np.testing.assert_allclose(4 * large.weights, small.weights, rtol=1e-6)
    np.testing.assert_array_equal(large.biases, small.biases)


def test_a_class_without_positives_holds_nothing_and_detects_nothing(positives, images):
    none = np.empty((0, CHANNELS), np.float32)
    trainer = SVMTrainer([none, positives[0]], 3.0, EVERYTHING)
    for features, negative in images:
        trainer.add(features, negative)
    assert not trainer.state()["held"][:, 0].any()
    svms = trainer.finish()
    assert not svms.weights[0].any() and svms.biases[0] == -1
    alone = trained(positives[:1], [(features, negative[:, 1:]) for features, negative in images], EVERYTHING)
    np.testing.assert_array_equal(svms.weights[1:], alone.weights)


def test_images_without_regions_and_without_negatives_change_nothing(positives, images):
    nothing = [
        (np.empty((0, CHANNELS), np.float32), np.empty((0, 2), bool)),
        (regions(5, 4, 1.0), np.zeros((4, 2), bool)),
    ]
    options = SVMOptions(c=0.05, retrain_after=10)
    some = trained(positives, [*nothing, images[0], *nothing, *images[1:], *nothing], options)
    np.testing.assert_array_equal(some.weights, trained(positives, images, options).weights)


def test_a_class_without_negatives_is_named(positives, images):
    with pytest.raises(UserError, match=r"^class 0: none of the 0 images has a negative for it; give more images"):
        SVMTrainer(positives, 1.0, SVMOptions()).finish()
    only_first = [(features, negative & [True, False]) for features, negative in images]
    with pytest.raises(UserError, match=r"^class 1: .* 6 images .* negative_iou = 0\.3$"):
        trained(positives, only_first, SVMOptions())


def test_an_svm_that_does_not_converge_is_used_and_named(positives, images, monkeypatch):
    monkeypatch.setattr(svm, "PASSES", 2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        svms = trained(positives, images[:1], SVMOptions(c=1000.0))
    assert [str(warning.message).partition(":")[0] for warning in caught] == ["class 0", "class 1"]
    assert "after 2 passes" in str(caught[0].message) and "lower c = 1000" in str(caught[0].message)
    assert np.isfinite(svms.weights).all() and svms.weights.any(axis=1).all()


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_negatives_by_hand(kind):
    # Two ground truths of class 0, none of class 1, one of class 2.
    iou = np.array([[0.1, 0.29, 0.5], [0.3, 0.0, 0.0], [0.0, 0.9, 0.299]], kind)
    expected = [[True, True, False], [False, True, True], [False, True, True]]
    np.testing.assert_array_equal(negatives(iou, np.array([0, 0, 2]), 3, 0.3), expected)


def test_without_truths_all_are_negatives_and_without_regions_none():
    assert negatives(np.empty((4, 0)), np.empty(0, np.int64), 3, 0.3).tolist() == [[True] * 3] * 4
    assert negatives(np.empty((0, 2)), np.array([0, 1]), 3, 0.3).shape == (0, 3)
