"""Which images a report shows, and what of them."""

import base64
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from detect.evaluation.tide import tide
from detect.report.gallery import (
    LIMIT,
    OVERALL,
    PAIRED,
    SIDE,
    detections_of,
    differing,
    gallery,
    judge,
    picture,
)

TRUTH, OTHER, NOWHERE = (10, 10, 50, 50), (60, 60, 90, 90), (150, 150, 180, 180)


@pytest.fixture
def judged_of(dataset_of, prediction_of):
    def make(truths, found):
        dataset = dataset_of(truths)
        predictions = [prediction_of(id, boxes) for id, boxes in found.items()]
        return judge(dataset, predictions, tide(dataset, predictions))

    return make


def test_no_images_and_none_with_mistakes(judged_of):
    assert gallery(judged_of({}, {})) == []
    assert gallery(judged_of({1: [(TRUTH, 0, "")], 2: []}, {1: [(TRUTH, 0, 0.9)]})) == []


def test_what_is_told_of_an_image(judged_of):
    found = [(NOWHERE, 1, 0.4), (TRUTH, 0, 0.9), (NOWHERE, 0, 0.8), (NOWHERE, 0, 0.2)]
    judged = judged_of({3: [(TRUTH, 0, ""), (OTHER, 1, "")]}, {3: found})
    (entry,) = gallery(judged)
    assert entry["truths"] == [[10, 10, 50, 50, 0, "found"], [60, 60, 90, 90, 1, "missed"]]
    assert entry["detections"] == [
        [10, 10, 50, 50, 0, 0.9, "right"],
        [150, 150, 180, 180, 0, 0.8, "Bkg"],
        [150, 150, 180, 180, 1, 0.4, "Bkg"],
    ]  # best first, without that of 0.2
    assert entry["mistakes"] == 2  # the missed truth and the confident detection; 0.4 is not counted
    assert entry["id"] == 3 and entry["thumbnail"] is None  # there is no such file
    assert judged[0].share == pytest.approx(1 / 3)
    assert judged[0].shows == {("class", 0), ("class", 1), ("kind", 5)}


def test_the_worst_come_first_and_ties_in_the_order_of_the_data(judged_of):
    truths = {id: [(TRUTH, 0, "")] for id in (5, 6, 7)}
    truths[7] = [(TRUTH, 0, ""), (OTHER, 0, "")]
    assert [entry["id"] for entry in gallery(judged_of(truths, {}))] == [7, 5, 6]


def test_later_images_are_there_for_what_the_others_do_not_show(judged_of):
    worst = {id: [(TRUTH, 0, ""), (OTHER, 0, "")] for id in range(OVERALL + 5)}
    rare = {1000 + id: [(TRUTH, 1, "")] for id in range(4)}
    shown = [entry["id"] for entry in gallery(judged_of(worst | rare, {}))]
    assert shown == [*range(OVERALL), 1000, 1001]
    assert len(shown) <= LIMIT


def test_a_thumbnail_is_small_and_keeps_its_form(judged_of, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.full((300, 1200, 3), (200, 30, 30), np.uint8)).save(path)
    (one,) = judged_of({1: []}, {})
    address = picture(replace(one.record, path=path))["thumbnail"]
    kind, _, content = address.partition(",")
    assert kind == "data:image/jpeg;base64"
    small = Image.open(io.BytesIO(base64.b64decode(content)))
    assert small.size == (SIDE, SIDE // 4)
    np.testing.assert_allclose(np.array(small)[20, 200], (200, 30, 30), atol=8)


def test_detections_keep_the_pixels_of_the_file(judged_of):
    judged = judged_of({1: []}, {1: [((1.26, 2, 3.5, 4), 0, 0.5)]})
    assert detections_of(judged[0]) == [[1.3, 2, 3.5, 4, 0, 0.5, "Bkg"]]


def test_images_in_which_two_differ(dataset_of, prediction_of):
    dataset = dataset_of({id: [(TRUTH, 0, ""), (OTHER, 0, "")] for id in range(PAIRED + 3)})
    nothing = []
    one = [prediction_of(id, [(TRUTH, 0, 0.9)]) for id in range(PAIRED + 3)]
    both = [prediction_of(2, [(TRUTH, 0, 0.9), (OTHER, 0, 0.8)])]
    runs = [judge(dataset, found, tide(dataset, found)) for found in (nothing, one, nothing, both)]
    images = differing(runs)
    assert [image["run"] for image in images] == [1] * PAIRED + [3]
    last = images[-1]
    assert (last["id"], last["scores"]) == (2, [0, 0.5, 0, 1])
    assert [len(side) for side in last["detections"]] == [0, 1, 0, 2]
