import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from detect.evaluation.bootstrap import MIN_IMAGES, confidence_interval, draw_weights, paired_difference, resample
from detect.evaluation.coco import METRICS, Prediction, evaluate_coco
from detect.evaluation.flat import flatten_detections, flatten_ground_truths
from detect.evaluation.matching import RECALL_THRESHOLDS
from detect.evaluation.voc import evaluate_voc
from detect.evaluation.weighted import CLASS_METRICS

SQUARE = (10, 10, 50, 50)


def resampled(dataset, predictions, weights):
    return resample(flatten_ground_truths(dataset), flatten_detections(dataset, predictions), weights)


def assert_metrics(samples, row, dataset, predictions):
    """Row `row` equals the metrics of the two evaluations."""
    coco, voc = evaluate_coco(dataset, predictions), evaluate_voc(dataset, predictions)
    expected = {name: coco[name] for name in METRICS} | {name: voc[name]["mAP"] for name in voc}
    for name, value in expected.items():
        ours = samples.metrics[name][row]
        assert math.isnan(ours) if value is None else ours == pytest.approx(value, abs=1e-12), name
    for label, metrics in enumerate(coco["per_class"].values()):
        for name in ("AP", "AP50", "AP75", "AR100"):
            value, ours = metrics[name], samples.classes[name][row, label]
            assert math.isnan(ours) if value is None else ours == pytest.approx(value, abs=1e-12), name


def without_ties(predictions, seed):
    """Return predictions with distinct scores: then copies of an image stay together when sorted, as with a weight."""
    random = np.random.default_rng(seed)
    return [replace(one, scores=random.random(len(one.scores)).astype(np.float32)) for one in predictions]


def in_order(dataset):
    """Sort the images by id: `evaluate_voc` breaks ties by the order of the images, pycocotools by their ids."""
    return replace(dataset, records=tuple(sorted(dataset.records, key=lambda record: record.id)))


def test_without_images_all_metrics_are_nan(dataset_of):
    weights = draw_weights(0, 3, seed=0)
    assert weights.shape == (4, 0)
    samples = resampled(dataset_of({}), [], weights)
    assert all(np.isnan(values).all() for values in samples.metrics.values())
    assert confidence_interval(samples.metrics["AP"], 0) is None


def test_a_resample_has_as_many_images_as_the_data_set():
    weights = draw_weights(50, 20, seed=1)
    assert (weights[0] == 1).all() and (weights.sum(axis=1) == 50).all() and len(np.unique(weights, axis=0)) == 21
    np.testing.assert_array_equal(weights, draw_weights(50, 20, seed=1))
    assert (weights[1:] != draw_weights(50, 20, seed=2)[1:]).any()


@pytest.mark.parametrize("seed", range(12))
def test_with_all_weights_one_metrics_equal_pycocotools_and_voc(case_of, seed):
    dataset, predictions = case_of(seed)
    dataset = in_order(dataset)
    assert_metrics(resampled(dataset, predictions, draw_weights(len(dataset), 0, seed=0)), 0, dataset, predictions)


@pytest.mark.parametrize("seed", range(12))
def test_a_weight_equals_copies_of_the_image(case_of, seed):
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
    assert_metrics(samples, 0, replace(dataset, records=tuple(records)), copies)


@pytest.fixture
def binomial(dataset_of, prediction_of):
    """60 of 80 images with one object each have a correct detection: recall is binomially distributed."""
    dataset = dataset_of({number: [(SQUARE, 0, "")] for number in range(80)})
    return dataset, [prediction_of(number, [(SQUARE, 0, 0.5)]) for number in range(60)]


def test_the_interval_of_a_share_is_that_of_the_binomial(binomial):
    dataset, predictions = binomial
    samples = resampled(dataset, predictions, draw_weights(80, 4000, seed=0))
    shares = samples.metrics["AR100"]
    assert shares[0] == 0.75
    assert np.std(shares[1:]) == pytest.approx(math.sqrt(0.75 * 0.25 / 80), rel=0.05)
    low, high = confidence_interval(shares, samples.images["AR100"])
    assert low == pytest.approx(stats.binom.ppf(0.025, 80, 0.75) / 80, abs=1.01 / 80)
    assert high == pytest.approx(stats.binom.ppf(0.975, 80, 0.75) / 80, abs=1.01 / 80)
    # Without false positives the precision is 1 up to the recall, so AP is the share of the 101 recalls reached.
    reached = np.searchsorted(RECALL_THRESHOLDS, shares, side="right")
    np.testing.assert_allclose(samples.metrics["AP"], reached / 101, atol=1e-12)


def test_the_interval_contains_the_metric_and_stays_within_0_and_1(case_of):
    """Uncorrected percentiles would not, since each class has few ground truths."""
    dataset, predictions = case_of(3)
    samples = resampled(dataset, predictions, draw_weights(len(dataset), 200, seed=0))
    drawn = samples.metrics["AP"][1:]
    low, high = confidence_interval(samples.metrics["AP"], MIN_IMAGES)
    assert 0 <= low < samples.metrics["AP"][0] < high <= 1
    assert np.mean(drawn) > samples.metrics["AP"][0]
    spread = np.subtract(*np.nanpercentile(drawn, [97.5, 2.5]))
    assert high - low == pytest.approx(spread, abs=1e-12) or low == 0 or high == 1


def test_too_few_images_or_no_resamples_give_no_interval(binomial):
    dataset, predictions = binomial
    samples = resampled(dataset, predictions, draw_weights(80, 0, seed=0))
    assert confidence_interval(samples.metrics["AP"], 80) is None
    values = np.array([0.5, 0.4, 0.6, np.nan])
    assert confidence_interval(values, MIN_IMAGES - 1) is None
    assert confidence_interval(values, MIN_IMAGES) == pytest.approx((0.405, 0.595))
    assert paired_difference(values, values[::-1], 80) == {"difference": None, "interval": None, "p": None}


def test_a_paired_difference_is_sharper_than_two_intervals(binomial):
    """Ten more images have detections; the difference depends on these alone."""
    dataset, predictions = binomial
    more = predictions + [replace(predictions[0], image_id=number) for number in range(60, 70)]
    weights = draw_weights(80, 1000, seed=0)
    samples = [resampled(dataset, one, weights).metrics["AR100"] for one in (predictions, more)]
    paired = paired_difference(samples[1], samples[0], 80)
    assert paired["difference"] == pytest.approx(0.125)
    low, high = paired["interval"]
    assert 0 < low < 0.125 < high and paired["p"] < 0.01
    other = resampled(dataset, predictions, draw_weights(80, 1000, seed=1)).metrics["AR100"]
    unpaired = paired_difference(samples[1], other, 80)["interval"]
    assert high - low < 0.8 * (unpaired[1] - unpaired[0])
    backwards = paired_difference(samples[0], samples[1], 80)
    assert backwards["interval"] == pytest.approx((-high, -low)) and backwards["p"] == paired["p"]


def test_a_run_does_not_differ_from_itself(binomial):
    values = resampled(*binomial, draw_weights(80, 50, seed=0)).metrics["AP"]
    assert paired_difference(values, values, 80) == {"difference": 0.0, "interval": (0.0, 0.0), "p": 1.0}


def test_any_number_of_threads_gives_the_same_bits(case_of):
    dataset, predictions = case_of(5)
    weights = draw_weights(len(dataset), 30, seed=0)
    alone = resampled(dataset, predictions, weights)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        together = resampled(dataset, predictions, weights)
    finally:
        torch.set_num_threads(threads)
    for name in alone.metrics:
        np.testing.assert_array_equal(alone.metrics[name], together.metrics[name])
    for name in CLASS_METRICS:
        np.testing.assert_array_equal(alone.classes[name], together.classes[name])


def test_difficult_objects_count_for_coco_only(dataset_of):
    dataset = dataset_of({1: [(SQUARE, 0, "difficult")], 2: [(SQUARE, 0, "")]})
    prediction = Prediction(2, np.array([SQUARE], np.float32), np.array([0.5], np.float32), np.array([0]))
    samples = resampled(dataset, [prediction], draw_weights(2, 0, seed=0))
    assert samples.metrics["AR100"][0] == 0.5 and samples.metrics["VOC"][0] == pytest.approx(1)
    assert (samples.images["AP"], samples.images["VOC"], samples.images_of_class) == (2, 1, [2, 0])
