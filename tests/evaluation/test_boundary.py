"""Boundary IoU, and the pairs of masks that a report compares."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from detect.data.masks import encode
from detect.evaluation.boundary import boundary, boundary_distance, boundary_iou, compare_boundaries, mask_iou
from detect.evaluation.flat import flatten_detections, flatten_ground_truths
from detect.evaluation.matching import match


def bitmap_of(x1, y1, x2, y2, height=100, width=100):
    bitmap = np.zeros((height, width), np.uint8)
    bitmap[y1:y2, x1:x2] = 1
    return bitmap


def by_the_authors(bitmap, distance):
    """Return the boundary as boundary_iou.utils.boundary_utils.mask_to_boundary computes it."""
    height, width = bitmap.shape
    padded = cv2.copyMakeBorder(bitmap, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=distance)
    return bitmap - eroded[1 : height + 1, 1 : width + 1]


def pairs_of(dataset, predictions):
    ground_truths = flatten_ground_truths(dataset, "segm")
    detections = flatten_detections(dataset, predictions, ground_truths)
    return compare_boundaries(dataset, predictions, ground_truths, detections, match(ground_truths, detections))


def test_empty_and_equal_masks():
    empty, one = np.zeros((20, 20), np.uint8), bitmap_of(3, 3, 9, 9)
    assert mask_iou(empty, empty) == boundary_iou(empty, empty, 1) == 0.0
    assert mask_iou(one, one) == boundary_iou(one, one, 1) == 1.0


def test_the_distance_is_two_per_cent_of_the_diagonal():
    assert boundary_distance(300, 400) == 10 and boundary_distance(3, 4) == 1


def test_the_boundary_of_a_square():
    """A frame of two pixels around 6 × 6 pixels; also along the edge of the image."""
    assert boundary(bitmap_of(20, 20, 30, 30), 2).sum() == 100 - 36
    assert boundary(bitmap_of(0, 0, 10, 10), 2).sum() == 100 - 36
    assert boundary(bitmap_of(20, 20, 24, 24), 2).sum() == 16


def test_boundaries_differ_where_masks_hardly_do():
    """80² pixels in 82²: IoU 0.952, but the frames of one pixel share nothing."""
    larger, smaller = bitmap_of(9, 9, 91, 91), bitmap_of(10, 10, 90, 90)
    assert mask_iou(larger, smaller) == 6400 / 6724
    assert boundary_iou(larger, smaller, 1) == 0.0
    shared, union = 80**2 - 78**2, 82**2 - 78**2
    assert boundary_iou(larger, smaller, 2) == pytest.approx(shared / (union + 78**2 - 76**2))


@pytest.mark.parametrize("seed", range(6))
def test_boundaries_equal_the_authors_code(mask_case_of, seed):
    dataset, predictions = mask_case_of(seed)
    pairs = pairs_of(dataset, predictions)
    assert pairs
    for pair in pairs:
        record, size = pair.record, (pair.record.height, pair.record.width)
        assert pair.prediction.image_id == record.id
        assert pair.prediction.labels[pair.detection] == record.labels[pair.ground_truth]
        truth = record.masks[pair.ground_truth].bitmap(*size)
        detected = pair.prediction.masks[pair.detection].bitmap(*size)
        assert pair.iou == (truth & detected).sum() / (truth | detected).sum() >= 0.5
        a, b = (by_the_authors(bitmap, boundary_distance(*size)) for bitmap in (truth, detected))
        assert pair.boundary_iou == (a & b).sum() / (a | b).sum()


def test_wrong_and_ignored_detections_have_no_pair(dataset_of, prediction_of):
    box, far = (10, 10, 50, 50), (60, 60, 90, 90)
    dataset = dataset_of({4: [(box, 0, ""), (far, 0, "crowd")], 2: []})
    masks = tuple(encode(bitmap_of(*one, 300, 400)) for one in (box, far))
    dataset = replace(dataset, records=(replace(dataset.records[0], masks=masks), dataset.records[1]))
    found = prediction_of(4, [(far, 0, 0.9), (box, 1, 0.8), (box, 0, 0.7), (box, 0, 0.6)])
    found = replace(found, masks=tuple(masks[row] for row in (1, 0, 0, 0)))
    (pair,) = pairs_of(dataset, [found])
    assert (pair.ground_truth, pair.detection, pair.iou, pair.boundary_iou) == (0, 2, 1.0, 1.0)
    assert pairs_of(dataset, []) == []
