"""Boxes with keypoints are told from polygons."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from detect.data.formats.yolo_lines import find_keypoints, line_box
from detect.data.read import read
from detect.errors import UserError

POSE = "0 0.5 0.5 0.2 0.2 0.45 0.45 2 0.55 0.55 2\n"


def poses(count, points, numbers, seed=0):
    """Draw boxes with keypoints within, some of them invisible."""
    random = np.random.default_rng(seed)
    lines = []
    for _ in range(count):
        size = random.uniform(0.1, 0.4, 2)
        centre = random.uniform(size / 2, 1 - size / 2)
        xy = centre + random.uniform(-0.5, 0.5, (points, 2)) * size
        seen = random.integers(0, 3, (points, 1))
        xy[seen[:, 0] == 0] = 0
        keypoints = np.hstack([xy, seen])[:, :numbers]
        lines.append([*centre, *size, *keypoints.reshape(-1)])
    return lines


def polygons(count, corners, extent, seed=0):
    """Draw polygons around random centres, their corners in order."""
    random = np.random.default_rng(seed)
    lines = []
    for _ in range(count):
        angles = np.sort(random.uniform(0, 2 * np.pi, corners))
        radius = random.uniform(extent / 2, extent)
        xy = random.uniform(radius, 1 - radius, 2) + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        lines.append(xy.reshape(-1).tolist())
    return lines


@pytest.mark.parametrize("shape", [(2, 3), (4, 3), (17, 3), (5, 3), (2, 2), (4, 2), (17, 2)])
def test_keypoints_are_recognised(shape):
    lines = poses(30, *shape)
    assert find_keypoints(lines) == shape
    assert find_keypoints([*lines, [0.5, 0.5, 0.1, 0.1], [0.1] * 5, [*lines[0][:-1], np.nan]]) == shape


@settings(max_examples=200, deadline=None)
@given(count=st.integers(1, 40), corners=st.integers(3, 24), extent=st.floats(0.005, 0.45), seed=st.integers(0, 2**16))
def test_polygons_are_no_keypoints(count, corners, extent, seed):
    assert find_keypoints(polygons(count, corners, extent, seed)) is None


@pytest.mark.parametrize("lines", [[], [[0.5, 0.5, 0.2, 0.2]] * 9, [[np.nan] * 10], [[np.inf] * 10], [[2.0] * 10] * 9])
def test_other_lines_are_no_keypoints(lines):
    assert find_keypoints(lines) is None


def test_the_box_of_a_line():
    values = [float(word) for word in POSE.split()[1:]]
    assert line_box(values, (2, 3)) == pytest.approx((0.4, 0.4, 0.6, 0.6))
    assert line_box(values) == (0.2, 0.2, 2, 2)  # as a polygon
    with pytest.raises(ValueError):
        line_box(values, (3, 3))


@pytest.mark.parametrize("declared", [True, False])
def test_lines_with_keypoints_need_their_shape(tmp_path, declared):
    for folder in ("images", "labels"):
        (tmp_path / folder / "train").mkdir(parents=True)
    Image.new("RGB", (120, 80)).save(tmp_path / "images" / "train" / "a.png")
    (tmp_path / "labels" / "train" / "a.txt").write_text(POSE)
    yaml = "train: images/train\nnames: [red]\n" + ("kpt_shape: [2, 3]\n" if declared else "")
    (tmp_path / "data.yaml").write_text(yaml)
    if declared:
        np.testing.assert_allclose(read(tmp_path, "train").records[0].boxes, [[48, 32, 72, 48]], rtol=1e-6)
        (tmp_path / "labels" / "train" / "a.txt").write_text(POSE[:-3])
        with pytest.raises(UserError, match=r"a\.txt: line 1 is not a class and four numbers, with 6 more for its key"):
            read(tmp_path, "train")
    else:
        problem = r"keypoint-lines, first .*data.yaml: 1 of 1 lines are boxes with 2 keypoints of 3 numbers"
        with pytest.raises(
            UserError, match=rf"1 × {problem}, no polygons; it has no kpt_shape: \[2, 3\] \(.*--fix OUT"
        ):
            read(tmp_path, "train")
