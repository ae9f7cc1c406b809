"""Selection of the images that a report shows."""

import base64
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from detect.evaluation.tide import tide
from detect.report.gallery import (
    MAX_IMAGES,
    MAX_PER_PAIR,
    MAX_WORST,
    THUMBNAIL_SIDE,
    detection_rows,
    errors_by_image,
    gallery,
    largest_differences,
    thumbnail,
)

OBJECT, OTHER, NOWHERE = (10, 10, 50, 50), (60, 60, 90, 90), (150, 150, 180, 180)


@pytest.fixture
def errors_of(dataset_of, prediction_of):
    def make(objects, detections):
        dataset = dataset_of(objects)
        predictions = [prediction_of(id, boxes) for id, boxes in detections.items()]
        return errors_by_image(dataset, predictions, tide(dataset, predictions))

    return make


def test_no_images_and_none_with_errors(errors_of):
    assert gallery(errors_of({}, {})) == []
    assert gallery(errors_of({1: [(OBJECT, 0, "")], 2: []}, {1: [(OBJECT, 0, 0.9)]})) == []


def test_the_entry_of_an_image(errors_of):
    boxes = [(NOWHERE, 1, 0.4), (OBJECT, 0, 0.9), (NOWHERE, 0, 0.8), (NOWHERE, 0, 0.2)]
    images = errors_of({3: [(OBJECT, 0, ""), (OTHER, 1, "")]}, {3: boxes})
    (entry,) = gallery(images)
    assert entry["ground_truths"] == [[10, 10, 50, 50, 0, "matched"], [60, 60, 90, 90, 1, "missed"]]
    assert entry["detections"] == [
        [10, 10, 50, 50, 0, 0.9, "correct"],
        [150, 150, 180, 180, 0, 0.8, "Bkg"],
        [150, 150, 180, 180, 1, 0.4, "Bkg"],
    ]  # highest score first, without that of 0.2
    assert entry["errors"] == 2  # the missed object and the detection of score 0.8; that of 0.4 is not counted
    assert entry["id"] == 3 and entry["thumbnail"] is None  # there is no such file
    assert images[0].share_correct == pytest.approx(1 / 3)
    assert images[0].groups == {("class", 0), ("class", 1), ("kind", 5)}


def test_a_lower_threshold_counts_and_draws_more(dataset_of, prediction_of):
    dataset = dataset_of({3: [(OBJECT, 0, "")]})
    predictions = [prediction_of(3, [(OBJECT, 0, 0.3), (NOWHERE, 0, 0.125), (NOWHERE, 1, 0.0625)])]
    (image,) = errors_by_image(dataset, predictions, tide(dataset, predictions), score_threshold=0.125)
    assert [row[5] for row in detection_rows(image)] == [0.3, 0.125] and image.num_errors == 1


def test_most_errors_come_first_and_ties_keep_the_order_of_the_data(errors_of):
    objects = {id: [(OBJECT, 0, "")] for id in (5, 6, 7)}
    objects[7] = [(OBJECT, 0, ""), (OTHER, 0, "")]
    assert [entry["id"] for entry in gallery(errors_of(objects, {}))] == [7, 5, 6]


def test_later_images_show_what_the_others_do_not(errors_of):
    worst = {id: [(OBJECT, 0, ""), (OTHER, 0, "")] for id in range(MAX_WORST + 5)}
    rare = {1000 + id: [(OBJECT, 1, "")] for id in range(4)}
    shown = [entry["id"] for entry in gallery(errors_of(worst | rare, {}))]
    assert shown == [*range(MAX_WORST), 1000, 1001]
    assert len(shown) <= MAX_IMAGES


def test_a_thumbnail_is_small_and_keeps_its_aspect_ratio(errors_of, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.full((300, 1200, 3), (200, 30, 30), np.uint8)).save(path)
    (one,) = errors_of({1: []}, {})
    url = thumbnail(replace(one.record, path=path))["thumbnail"]
    kind, _, content = url.partition(",")
    assert kind == "data:image/jpeg;base64"
    small = Image.open(io.BytesIO(base64.b64decode(content)))
    assert small.size == (THUMBNAIL_SIDE, THUMBNAIL_SIDE // 4)
    np.testing.assert_allclose(np.array(small)[20, 200], (200, 30, 30), atol=8)


def test_detections_keep_the_pixels_of_the_file(errors_of):
    (image,) = errors_of({1: []}, {1: [((1.26, 2, 3.5, 4), 0, 0.5)]})
    assert detection_rows(image) == [[1.3, 2, 3.5, 4, 0, 0.5, "Bkg"]]


def test_images_in_which_two_runs_differ_most(dataset_of, prediction_of):
    dataset = dataset_of({id: [(OBJECT, 0, ""), (OTHER, 0, "")] for id in range(MAX_PER_PAIR + 3)})
    nothing = []
    one = [prediction_of(id, [(OBJECT, 0, 0.9)]) for id in range(MAX_PER_PAIR + 3)]
    both = [prediction_of(2, [(OBJECT, 0, 0.9), (OTHER, 0, 0.8)])]
    runs = [errors_by_image(dataset, run, tide(dataset, run)) for run in (nothing, one, nothing, both)]
    images = largest_differences(runs)
    assert [image["run"] for image in images] == [1] * MAX_PER_PAIR + [3]
    last = images[-1]
    assert (last["id"], last["share_correct"]) == (2, [0, 0.5, 0, 1])
    assert [len(side) for side in last["detections"]] == [0, 1, 0, 2]
