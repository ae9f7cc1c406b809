import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from detect.evaluation.bootstrap import COLUMNS, LEAST_IMAGES, difference, draw, interval, resample
from detect.evaluation.coco import FIGURES, Prediction, evaluate_coco
from detect.evaluation.matching import RECALLS, found_in, truths_of
from detect.evaluation.voc import evaluate_voc

SQUARE = (10, 10, 50, 50)


def resampled(dataset, predictions, weights):
    return resample(truths_of(dataset), found_in(dataset, predictions), weights)


def assert_figures(samples, row, dataset, predictions):
    """Row `row` has what the two evaluations find."""
    coco, voc = evaluate_coco(dataset, predictions), evaluate_voc(dataset, predictions)
    expected = {name: coco[name] for name in FIGURES} | {name: voc[name]["mAP"] for name in voc}
    for name, value in expected.items():
        ours = samples.figures[name][row]
        assert math.isnan(ours) if value is None else ours == pytest.approx(value, abs=1e-12), name
    for label, figures in enumerate(coco["per_class"].values()):
        for name in ("AP", "AP50", "AP75", "AR100"):
            value, ours = figures[name], samples.classes[name][row, label]
            assert math.isnan(ours) if value is None else ours == pytest.approx(value, abs=1e-12), name


def without_ties(predictions, seed):
    """Where scores differ, the copies of an image stay together in the order of the scores, as its weight has them."""
    random = np.random.default_rng(seed)
    return [replace(one, scores=random.random(len(one.scores)).astype(np.float32)) for one in predictions]


def in_order(dataset):
    """By ascending id: `evaluate_voc` breaks ties by the order of the images, pycocotools by their ids."""
    return replace(dataset, records=tuple(sorted(dataset.records, key=lambda record: record.id)))


def test_without_images_there_is_nothing(dataset_of):
    weights = draw(0, 3, seed=0)
    assert weights.shape == (4, 0)
    samples = resampled(dataset_of({}), [], weights)
    assert all(np.isnan(values).all() for values in samples.figures.values())
    assert interval(samples.figures["AP"], 0) is None


def test_a_draw_has_as_many_images_as_there_are():
    weights = draw(50, 20, seed=1)
    assert (weights[0] == 1).all() and (weights.sum(axis=1) == 50).all() and len(np.unique(weights, axis=0)) == 21
    np.testing.assert_array_equal(weights, draw(50, 20, seed=1))
    assert (weights[1:] != draw(50, 20, seed=2)[1:]).any()


@pytest.mark.parametrize("seed", range(12))
def test_with_all_weights_one_the_figures_are_pycocotools_and_vocs(case_of, seed):
    dataset, predictions = case_of(seed)
    dataset = in_order(dataset)
    assert_figures(resampled(dataset, predictions, draw(len(dataset), 0, seed=0)), 0, dataset, predictions)


@pytest.mark.parametrize("seed", range(12))
def test_a_weight_is_as_good_as_so_many_copies_of_the_image(case_of, seed):
    dataset, predictions = case_of(seed)
    predictions = without_ties(predictions, seed)
    dataset = in_order(dataset)
    weights = np.random.default_rng(seed).integers(0, 4, (1, len(dataset))).astype(np.int32)
    samples = resampled(dataset, predictions, weights)
    records, copies = [], []
    of_image = {one.image_id: one for one in predictions}
    for record, weight in zip(dataset.records, weights[0].tolist(), strict=True):
        for _ in range(weight):
            records.append(replace(record, id=len(records)))
            if one := of_image.get(record.id):
                copies.append(replace(one, image_id=records[-1].id))
    assert_figures(samples, 0, replace(dataset, records=tuple(records)), copies)


@pytest.fixture
def coins(dataset_of, prediction_of):
    """Of 80 images with one truth each, 60 have it found: the recall of a resample is a binomial's share."""
    dataset = dataset_of({number: [(SQUARE, 0, "")] for number in range(80)})
    return dataset, [prediction_of(number, [(SQUARE, 0, 0.5)]) for number in range(60)]


def test_the_interval_of_a_share_is_the_binomials(coins):
    dataset, predictions = coins
    samples = resampled(dataset, predictions, draw(80, 4000, seed=0))
    shares = samples.figures["AR100"]
    assert shares[0] == 0.75
    assert np.std(shares[1:]) == pytest.approx(math.sqrt(0.75 * 0.25 / 80), rel=0.05)
    low, high = interval(shares, samples.images["AR100"])
    assert low == pytest.approx(stats.binom.ppf(0.025, 80, 0.75) / 80, abs=1.01 / 80)
    assert high == pytest.approx(stats.binom.ppf(0.975, 80, 0.75) / 80, abs=1.01 / 80)
    # Without mistakes the precision is 1 up to the recall, so that AP is the share of the 101 recalls it reaches.
    reached = np.searchsorted(RECALLS, shares, side="right")
    np.testing.assert_allclose(samples.figures["AP"], reached / 101, atol=1e-12)


def test_the_interval_holds_the_figure_and_stays_within_0_and_1(case_of):
    """Where it would not if the percentiles were taken as they come: there are few truths of each class."""
    dataset, predictions = case_of(3)
    samples = resampled(dataset, predictions, draw(len(dataset), 200, seed=0))
    drawn = samples.figures["AP"][1:]
    low, high = interval(samples.figures["AP"], LEAST_IMAGES)
    assert 0 <= low < samples.figures["AP"][0] < high <= 1
    assert np.mean(drawn) > samples.figures["AP"][0]
    spread = np.subtract(*np.nanpercentile(drawn, [97.5, 2.5]))
    assert high - low == pytest.approx(spread, abs=1e-12) or low == 0 or high == 1


def test_too_few_images_or_no_resamples_give_no_interval(coins):
    dataset, predictions = coins
    samples = resampled(dataset, predictions, draw(80, 0, seed=0))
    assert interval(samples.figures["AP"], 80) is None
    values = np.array([0.5, 0.4, 0.6, np.nan])
    assert interval(values, LEAST_IMAGES - 1) is None
    assert interval(values, LEAST_IMAGES) == pytest.approx((0.405, 0.595))
    assert difference(values, values[::-1], 80) == {"difference": None, "interval": None, "p": None}


def test_a_paired_difference_is_sharper_than_two_intervals(coins):
    """Ten images more are found: of those alone the difference depends."""
    dataset, predictions = coins
    more = predictions + [replace(predictions[0], image_id=number) for number in range(60, 70)]
    weights = draw(80, 1000, seed=0)
    samples = [resampled(dataset, one, weights).figures["AR100"] for one in (predictions, more)]
    paired = difference(samples[1], samples[0], 80)
    assert paired["difference"] == pytest.approx(0.125)
    low, high = paired["interval"]
    assert 0 < low < 0.125 < high and paired["p"] < 0.01
    other = resampled(dataset, predictions, draw(80, 1000, seed=1)).figures["AR100"]
    unpaired = difference(samples[1], other, 80)["interval"]
    assert high - low < 0.8 * (unpaired[1] - unpaired[0])
    backwards = difference(samples[0], samples[1], 80)
    assert backwards["interval"] == pytest.approx((-high, -low)) and backwards["p"] == paired["p"]


def test_a_run_does_not_differ_from_itself(coins):
    values = resampled(*coins, draw(80, 50, seed=0)).figures["AP"]
    assert difference(values, values, 80) == {"difference": 0.0, "interval": (0.0, 0.0), "p": 1.0}


def test_any_number_of_threads_gives_the_same_bits(case_of):
    dataset, predictions = case_of(5)
    weights = draw(len(dataset), 30, seed=0)
    alone = resampled(dataset, predictions, weights)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        together = resampled(dataset, predictions, weights)
    finally:
        torch.set_num_threads(threads)
    for name in alone.figures:
        np.testing.assert_array_equal(alone.figures[name], together.figures[name])
    for name in COLUMNS:
        np.testing.assert_array_equal(alone.classes[name], together.classes[name])


def test_difficult_truths_count_for_coco_alone(dataset_of):
    dataset = dataset_of({1: [(SQUARE, 0, "difficult")], 2: [(SQUARE, 0, "")]})
    found = Prediction(2, np.array([SQUARE], np.float32), np.array([0.5], np.float32), np.array([0]))
    samples = resampled(dataset, [found], draw(2, 0, seed=0))
    assert samples.figures["AR100"][0] == 0.5 and samples.figures["VOC"][0] == pytest.approx(1)
    assert (samples.images["AP"], samples.images["VOC"], samples.images_of_class) == (2, 1, [2, 0])
