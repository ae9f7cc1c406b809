"""Class selection and the repair of boxes."""

from pathlib import Path

import numpy as np
import pytest

from detect.data.annotations import Annotations, choose_classes, repair
from detect.data.defects import DefectLog


def test_choose_classes():
    names = {3: "cat", 7: "dog"}
    assert choose_classes({}, None) == ((), (), {})
    assert choose_classes(names, None) == (("cat", "dog"), (3, 7), {3: 0, 7: 1})
    assert choose_classes(names, ("ox", "dog", "ant")) == (("ox", "dog", "ant"), (8, 7, 9), {7: 1})


def raw(boxes, image, count, normalised=False):
    boxes = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    zeros = np.zeros(len(boxes), dtype=np.int64)
    return Annotations(
        classes=("cat",),
        category_ids=(1,),
        paths=[Path(f"{number}.jpg") for number in range(count)],
        sources=[Path(f"{number}.txt") for number in range(count)],
        declared=[None] * count,
        ids=None,
        boxes=boxes,
        image=np.array(image, dtype=np.int64),
        labels=zeros,
        crowd=zeros.astype(bool),
        difficult=zeros.astype(bool),
        areas=np.full(len(boxes), np.nan),
        places=[f"line {number}" for number in range(len(boxes))],
        normalised=normalised,
    )


@pytest.mark.parametrize("count", [0, 1])
def test_repair_no_boxes(count):
    log = DefectLog(Path(), "train")
    assert repair(raw([], [], count), np.full((count, 2), 10), log).boxes.shape == (0, 4)
    assert log.repaired == ()


def test_repair_keeps_the_columns_together():
    log = DefectLog(Path(), "train")
    boxes = [[0, 0, 1, 1], [0, 0, 0, 1], [0, 0, 2, 2], [0, 0, 1, 1], [-1, 0, 3, 1]]
    repaired = repair(raw(boxes, [1, 0, 0, 2, 1], 3), np.array([[10, 10], [20, 20], [0, 0]]), log)
    np.testing.assert_array_equal(repaired.boxes, [[0, 0, 1, 1], [0, 0, 2, 2], [0, 0, 3, 1]])
    np.testing.assert_array_equal(repaired.areas, [1, 4, 3])
    assert repaired.image.tolist() == [1, 0, 1] and repaired.places == ["line 0", "line 2", "line 4"]
    assert [(defect.rule, defect.path.name) for defect in log.repaired] == [
        ("zero-area", "0.txt"),
        ("clipped", "1.txt"),
    ]


def test_repaired_boxes_hold_what_a_record_promises():
    """For any numbers, a box lies inside the image and has positive area, or is left out."""
    rng = np.random.default_rng(0)
    corners = rng.choice([-1e300, -5, -1e-9, 0, 1e-9, 0.5, 3, 7.3, 9.9999999, 10, 10.0001, 1e300], (500, 4))
    log = DefectLog(Path(), "train")
    repaired = repair(raw(corners, np.zeros(500), 1), np.array([[10, 10]]), log).boxes.astype(np.float32)
    assert 0 < len(repaired) < 500
    assert (repaired >= 0).all() and (repaired <= 10).all() and (repaired[:, 2:] > repaired[:, :2]).all()


def test_normalised_boxes_are_scaled_by_their_image():
    repaired = repair(
        raw([[0, 0, 0.5, 1]] * 2, [0, 1], 2, normalised=True), np.array([[10, 20], [40, 8]]), DefectLog(Path(), "x")
    )
    np.testing.assert_array_equal(repaired.boxes, [[0, 0, 5, 20], [0, 0, 20, 8]])
    assert not repaired.normalised
