import numpy as np
import pytest

from detect.evaluation.voc import evaluate_voc

A, B, C = (10, 10, 50, 50), (100, 100, 140, 140), (200, 200, 240, 240)
FAR = (300, 10, 340, 50)


def both_maps(dataset, predictions, **options):
    metrics = evaluate_voc(dataset, predictions, **options)
    return metrics["VOC07"]["mAP"], metrics["VOC"]["mAP"]


def test_without_images_or_ground_truths_map_is_none(dataset_of, prediction_of):
    assert both_maps(dataset_of({}), []) == (None, None)
    assert both_maps(dataset_of({1: []}), [prediction_of(1, [(A, 0, 0.9)])]) == (None, None)


def test_without_predictions_map_is_zero(dataset_of, prediction_of):
    dataset = dataset_of({1: [(A, 0, "")]})
    assert both_maps(dataset, []) == (0, 0)
    assert both_maps(dataset, [prediction_of(1, [])]) == (0, 0)


def test_perfect_detections(dataset_of, prediction_of):
    dataset = dataset_of({1: [(A, 0, ""), (B, 1, "")], 2: [(A, 0, "")]})
    predictions = [prediction_of(1, [(A, 0, 0.9), (B, 1, 0.1)]), prediction_of(2, [(A, 0, 0.2)])]
    assert both_maps(dataset, predictions) == (1, 1)
    assert evaluate_voc(dataset, predictions)["VOC"]["per_class"] == {"cat": 1.0, "dog": 1.0}


def test_a_curve_by_hand(dataset_of, prediction_of):
    """Correct, wrong, correct with three objects: recalls 1/3, 1/3, 2/3, precisions 1, 1/2, 2/3."""
    dataset = dataset_of({1: [(A, 0, ""), (B, 0, ""), (C, 0, "")]})
    prediction = prediction_of(1, [(B, 0, 0.7), (FAR, 0, 0.8), (A, 0, 0.9)])
    eleven, area = both_maps(dataset, [prediction])
    assert eleven == pytest.approx((4 * 1 + 3 * 2 / 3) / 11)  # at the recalls 0 … 0.3 and 0.4 … 0.6
    assert area == pytest.approx((1 + 2 / 3) / 3)


def test_precision_is_the_highest_at_this_recall_or_above(dataset_of, prediction_of):
    """Wrong, correct, correct with two objects: precisions 0, 1/2, 2/3, so 2/3 everywhere."""
    dataset = dataset_of({1: [(A, 0, ""), (B, 0, "")]})
    prediction = prediction_of(1, [(FAR, 0, 0.9), (A, 0, 0.8), (B, 0, 0.7)])
    assert both_maps(dataset, [prediction]) == pytest.approx((2 / 3, 2 / 3))


def test_a_recall_of_three_in_ten_reaches_the_fourth_point(dataset_of, prediction_of):
    objects = [((20 * i, 0, 20 * i + 10, 10), 0, "") for i in range(10)]
    prediction = prediction_of(1, [(box, 0, 0.9) for box, _, _ in objects[:3]])
    assert both_maps(dataset_of({1: objects}), [prediction])[0] == pytest.approx(4 / 11)


def test_duplicates_are_false_positives(dataset_of, prediction_of):
    dataset = dataset_of({1: [(A, 0, ""), (B, 0, "")]})
    prediction = prediction_of(1, [(A, 0, 0.9), (A, 0, 0.8), (B, 0, 0.7)])
    assert both_maps(dataset, [prediction])[1] == pytest.approx((1 + 2 / 3) / 2)


def test_a_detection_matches_the_highest_iou_even_if_that_is_taken(dataset_of, prediction_of):
    close = (10, 10, 50, 48)  # also has an IoU over 0.5 with the second detection
    dataset = dataset_of({1: [(A, 0, ""), (close, 0, "")]})
    prediction = prediction_of(1, [(A, 0, 0.9), (A, 0, 0.8)])
    assert both_maps(dataset, [prediction])[1] == pytest.approx(1 / 2)


@pytest.mark.parametrize("mark", ["difficult", "crowd"])
def test_ignored_objects_count_neither_way(dataset_of, prediction_of, mark):
    dataset = dataset_of({1: [(A, 0, ""), (B, 0, mark)]})
    assert both_maps(dataset, [prediction_of(1, [(B, 0, 0.9), (B, 0, 0.85), (A, 0, 0.8)])]) == (1, 1)
    assert both_maps(dataset, [prediction_of(1, [(A, 0, 0.8)])]) == (1, 1)
    assert both_maps(dataset_of({1: [(A, 0, mark)]}), []) == (None, None)


def test_an_iou_equal_to_the_threshold_matches(dataset_of, prediction_of):
    """The devkit's boxes 11 … 50 by 11 … 50 and 11 … 50 by 11 … 30: 800 of 1600 pixels."""
    dataset = dataset_of({1: [(A, 0, "")]})
    predictions = [prediction_of(1, [((10, 10, 50, 30), 0, 0.9)])]
    assert both_maps(dataset, predictions) == (1, 1)
    assert both_maps(dataset, predictions, iou_threshold=0.51) == (0, 0)


def test_other_classes_and_other_images_do_not_match(dataset_of, prediction_of):
    dataset = dataset_of({1: [(A, 0, "")], 2: [(B, 1, "")]})
    assert both_maps(dataset, [prediction_of(1, [(A, 1, 0.9)]), prediction_of(2, [(A, 0, 0.9)])]) == (0, 0)


def test_classes_without_ground_truths_do_not_lower_the_mean(dataset_of, prediction_of):
    metrics = evaluate_voc(dataset_of({1: [(A, 0, "")]}), [prediction_of(1, [(A, 0, 0.9), (B, 1, 0.9)])])
    assert metrics["VOC"] == {"mAP": 1.0, "per_class": {"cat": 1.0, "dog": None}}


def devkit(ground_truths, detections, iou_threshold):
    """Return the devkit's AP of one class from ground truths and detections by image."""
    order = sorted(((score, i, box) for i, rows in detections.items() for box, score in rows), key=lambda d: -d[0])
    taken, tp = set(), []
    for _, image, box in order:
        best, best_overlap = None, -np.inf
        for g, (gt, ignored) in enumerate(ground_truths[image]):
            # Pixels in both, with inclusive corners.
            width = min(box[2], gt[2]) - max(box[0] + 1, gt[0] + 1) + 1
            height = min(box[3], gt[3]) - max(box[1] + 1, gt[1] + 1) + 1
            if width > 0 and height > 0:
                areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, gt)]
                overlap = width * height / (sum(areas) - width * height)
                if overlap > best_overlap:
                    best, best_overlap = (image, g, ignored), overlap
        if best_overlap < iou_threshold:
            tp.append(0)
        elif not best[2]:
            tp.append(int(best not in taken))
            taken.add(best)
    positives = sum(not ignored for image in ground_truths.values() for _, ignored in image)
    recall, precision = np.cumsum(tp) / positives, np.cumsum(tp) / np.arange(1, len(tp) + 1)
    recall, precision = np.r_[0, recall, 1], np.r_[0, precision, 0]
    for i in reversed(range(len(precision) - 1)):
        precision[i] = max(precision[i], precision[i + 1])
    steps = np.flatnonzero(np.diff(recall)) + 1
    return float(np.sum((recall[steps] - recall[steps - 1]) * precision[steps]))


@pytest.mark.parametrize("seed", range(10))
def test_against_the_devkits_loop(case_of, seed):
    dataset, predictions = case_of(seed)
    per_class = evaluate_voc(dataset, predictions, iou_threshold=0.4)["VOC"]["per_class"]
    for label, name in enumerate(dataset.classes[:3]):
        ground_truths = {
            r.id: [
                (box, crowd)
                for box, crowd, of in zip(r.boxes.tolist(), r.crowd.tolist(), r.labels.tolist(), strict=True)
                if of == label
            ]
            for r in dataset.records
        }
        if not any(not crowd for image in ground_truths.values() for _, crowd in image):
            assert per_class[name] is None
            continue
        detections = {
            p.image_id: list(
                zip(p.boxes[p.labels == label].tolist(), p.scores[p.labels == label].tolist(), strict=True)
            )
            for p in predictions
        }
        detections = {
            r.id: detections[r.id] for r in dataset.records if r.id in detections
        }  # the order of equal scores
        assert per_class[name] == pytest.approx(devkit(ground_truths, detections, 0.4), abs=1e-12)
