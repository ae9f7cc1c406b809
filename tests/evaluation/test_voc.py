import numpy as np
import pytest

from detect.evaluation.voc import evaluate_voc

A, B, C = (10, 10, 50, 50), (100, 100, 140, 140), (200, 200, 240, 240)
FAR = (300, 10, 340, 50)


def figures(dataset, predictions, **options):
    metrics = evaluate_voc(dataset, predictions, **options)
    return metrics["VOC07"]["mAP"], metrics["VOC"]["mAP"]


def test_without_images_or_truths_there_are_no_figures(dataset_of, prediction_of):
    assert figures(dataset_of({}), []) == (None, None)
    assert figures(dataset_of({1: []}), [prediction_of(1, [(A, 0, 0.9)])]) == (None, None)


def test_without_predictions_the_figures_are_zero(dataset_of, prediction_of):
    dataset = dataset_of({1: [(A, 0, "")]})
    assert figures(dataset, []) == (0, 0)
    assert figures(dataset, [prediction_of(1, [])]) == (0, 0)


def test_everything_found(dataset_of, prediction_of):
    dataset = dataset_of({1: [(A, 0, ""), (B, 1, "")], 2: [(A, 0, "")]})
    predictions = [prediction_of(1, [(A, 0, 0.9), (B, 1, 0.1)]), prediction_of(2, [(A, 0, 0.2)])]
    assert figures(dataset, predictions) == (1, 1)
    assert evaluate_voc(dataset, predictions)["VOC"]["per_class"] == {"cat": 1.0, "dog": 1.0}


def test_a_curve_by_hand(dataset_of, prediction_of):
    """Right, wrong, right of three truths: recalls 1/3, 1/3, 2/3, precisions 1, 1/2, 2/3."""
    dataset = dataset_of({1: [(A, 0, ""), (B, 0, ""), (C, 0, "")]})
    found = prediction_of(1, [(B, 0, 0.7), (FAR, 0, 0.8), (A, 0, 0.9)])
    eleven, area = figures(dataset, [found])
    assert eleven == pytest.approx((4 * 1 + 3 * 2 / 3) / 11)  # 0 … 0.3, then 0.4 … 0.6, then nothing
    assert area == pytest.approx((1 + 2 / 3) / 3)


def test_the_precision_is_the_best_from_here_on(dataset_of, prediction_of):
    """Wrong, right, right of two truths: precisions 0, 1/2, 2/3, made monotone 2/3 everywhere."""
    dataset = dataset_of({1: [(A, 0, ""), (B, 0, "")]})
    found = prediction_of(1, [(FAR, 0, 0.9), (A, 0, 0.8), (B, 0, 0.7)])
    assert figures(dataset, [found]) == pytest.approx((2 / 3, 2 / 3))


def test_a_recall_of_three_in_ten_reaches_the_fourth_point(dataset_of, prediction_of):
    truths = [((20 * i, 0, 20 * i + 10, 10), 0, "") for i in range(10)]
    found = prediction_of(1, [(box, 0, 0.9) for box, _, _ in truths[:3]])
    assert figures(dataset_of({1: truths}), [found])[0] == pytest.approx(4 / 11)


def test_duplicates_are_mistakes(dataset_of, prediction_of):
    dataset = dataset_of({1: [(A, 0, ""), (B, 0, "")]})
    found = prediction_of(1, [(A, 0, 0.9), (A, 0, 0.8), (B, 0, 0.7)])
    assert figures(dataset, [found])[1] == pytest.approx((1 + 2 / 3) / 2)


def test_a_detection_belongs_to_the_truth_it_overlaps_most_even_if_that_is_taken(dataset_of, prediction_of):
    close = (10, 10, 50, 48)  # the second detection overlaps it by more than half, too
    dataset = dataset_of({1: [(A, 0, ""), (close, 0, "")]})
    found = prediction_of(1, [(A, 0, 0.9), (A, 0, 0.8)])
    assert figures(dataset, [found])[1] == pytest.approx(1 / 2)


@pytest.mark.parametrize("mark", ["difficult", "crowd"])
def test_excused_truths_count_neither_way(dataset_of, prediction_of, mark):
    dataset = dataset_of({1: [(A, 0, ""), (B, 0, mark)]})
    assert figures(dataset, [prediction_of(1, [(B, 0, 0.9), (B, 0, 0.85), (A, 0, 0.8)])]) == (1, 1)
    assert figures(dataset, [prediction_of(1, [(A, 0, 0.8)])]) == (1, 1)
    assert figures(dataset_of({1: [(A, 0, mark)]}), []) == (None, None)


def test_an_overlap_of_exactly_the_threshold_is_enough(dataset_of, prediction_of):
    """The devkit's boxes 11 … 50 by 11 … 50 and 11 … 50 by 11 … 30: 800 of 1600 pixels."""
    dataset = dataset_of({1: [(A, 0, "")]})
    found = [prediction_of(1, [((10, 10, 50, 30), 0, 0.9)])]
    assert figures(dataset, found) == (1, 1)
    assert figures(dataset, found, iou=0.51) == (0, 0)


def test_other_classes_and_other_images_do_not_match(dataset_of, prediction_of):
    dataset = dataset_of({1: [(A, 0, "")], 2: [(B, 1, "")]})
    assert figures(dataset, [prediction_of(1, [(A, 1, 0.9)]), prediction_of(2, [(A, 0, 0.9)])]) == (0, 0)


def test_classes_without_truths_do_not_lower_the_mean(dataset_of, prediction_of):
    metrics = evaluate_voc(dataset_of({1: [(A, 0, "")]}), [prediction_of(1, [(A, 0, 0.9), (B, 1, 0.9)])])
    assert metrics["VOC"] == {"mAP": 1.0, "per_class": {"cat": 1.0, "dog": None}}


def devkit(truths, detections, iou):
    """The devkit's loop for one class: `truths` and `detections` by image, one after another."""
    order = sorted(((score, i, box) for i, found in detections.items() for box, score in found), key=lambda d: -d[0])
    taken, tp = set(), []
    for _, image, box in order:
        best, best_overlap = None, -np.inf
        for g, (truth, excused) in enumerate(truths[image]):
            # Pixels that both hold, with inclusive corners.
            width = min(box[2], truth[2]) - max(box[0] + 1, truth[0] + 1) + 1
            height = min(box[3], truth[3]) - max(box[1] + 1, truth[1] + 1) + 1
            if width > 0 and height > 0:
                areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, truth)]
                overlap = width * height / (sum(areas) - width * height)
                if overlap > best_overlap:
                    best, best_overlap = (image, g, excused), overlap
        if best_overlap < iou:
            tp.append(0)
        elif not best[2]:
            tp.append(int(best not in taken))
            taken.add(best)
    positives = sum(not excused for image in truths.values() for _, excused in image)
    recall, precision = np.cumsum(tp) / positives, np.cumsum(tp) / np.arange(1, len(tp) + 1)
    recall, precision = np.r_[0, recall, 1], np.r_[0, precision, 0]
    for i in reversed(range(len(precision) - 1)):
        precision[i] = max(precision[i], precision[i + 1])
    steps = np.flatnonzero(np.diff(recall)) + 1
    return float(np.sum((recall[steps] - recall[steps - 1]) * precision[steps]))


@pytest.mark.parametrize("seed", range(10))
def test_against_the_devkits_loop(case_of, seed):
    dataset, predictions = case_of(seed)
    per_class = evaluate_voc(dataset, predictions, iou=0.4)["VOC"]["per_class"]
    for label, name in enumerate(dataset.classes[:3]):
        truths = {
            r.id: [
                (box, crowd)
                for box, crowd, of in zip(r.boxes.tolist(), r.crowd.tolist(), r.labels.tolist(), strict=True)
                if of == label
            ]
            for r in dataset.records
        }
        if not any(not crowd for image in truths.values() for _, crowd in image):
            assert per_class[name] is None
            continue
        found = {
            p.image_id: list(
                zip(p.boxes[p.labels == label].tolist(), p.scores[p.labels == label].tolist(), strict=True)
            )
            for p in predictions
        }
        found = {r.id: found[r.id] for r in dataset.records if r.id in found}  # as equal scores are ordered
        assert per_class[name] == pytest.approx(devkit(truths, found, 0.4), abs=1e-12)
