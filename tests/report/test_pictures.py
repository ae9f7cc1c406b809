from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from detect.data.masks import encode
from detect.errors import UserError
from detect.report.drawing import BLACK, COLOURS, WHITE, draw_boxes
from detect.report.pictures import draw_pair, write_pictures

GREY = 128
NO_BOXES, NO_LABELS = np.empty((0, 4), np.float32), np.empty(0, np.int64)


def grey(height, width):
    return np.full((height, width, 3), GREY, np.uint8)


def holds(picture, colour) -> bool:
    return bool((picture == colour).all(axis=-1).any())


def test_without_boxes_the_image_does_not_change():
    image = grey(30, 40)
    drawn = draw_boxes(image, NO_BOXES, NO_LABELS, [])
    np.testing.assert_array_equal(drawn, image)
    assert drawn is not image


def test_a_box_is_drawn_along_its_inner_edge_in_its_colour():
    image = grey(200, 300)
    drawn = draw_boxes(image, np.array([[100, 80, 180, 160]], np.float32), np.array([2]), [""])
    assert (image == GREY).all()
    row = drawn[120]
    assert [tuple(row[x]) for x in (98, 99, 100, 101, 102, 103)] == [
        (GREY,) * 3, BLACK, COLOURS[2], COLOURS[2], BLACK, (GREY,) * 3
    ]  # fmt: skip
    assert tuple(row[179]) == COLOURS[2]
    assert tuple(row[180]) == BLACK
    assert tuple(drawn[159, 140]) == COLOURS[2]


def test_colours_are_repeated_after_the_last():
    box = np.array([[9, 20, 40, 40]], np.float32)
    one, other = (draw_boxes(grey(50, 50), box, np.array([label]), ["a"]) for label in (1, 1 + len(COLOURS)))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "box",
    [(0, 0, 120, 90), (-50, -50, 500, 500), (119.9, 89.9, 120, 90), (110, 40, 120, 60), (40, 0, 60, 1), (5, 80, 9, 90)],
)
def test_a_name_stays_inside_the_picture(box):
    image = grey(90, 120)
    blank = draw_boxes(image, np.array([box], np.float32), np.array([3]), [""])
    named = draw_boxes(image, np.array([box], np.float32), np.array([3]), ["a class"])
    rows, columns = np.nonzero((blank != named).any(axis=-1))
    assert rows.size > 200
    assert 0 < np.ptp(rows) < 20  # no side is cut off
    assert 25 < np.ptp(columns) < 70


def test_the_smallest_pictures():
    for height, width in ((1, 1), (2, 50), (50, 2)):
        drawn = draw_boxes(grey(height, width), np.array([[0, 0, width, height]], np.float32), np.array([0]), ["name"])
        assert drawn.shape == (height, width, 3)


def test_labels_avoid_each_other():
    boxes = np.array([[20, 50, 120, 100], [20, 50, 120, 100], [20, 50, 120, 100]], np.float32)
    labels = np.array([0, 1, 2])
    drawn = draw_boxes(grey(150, 200), boxes, labels, ["first", "second", "third"])
    areas = [(drawn == COLOURS[label]).all(axis=-1).sum() for label in labels]
    assert min(areas) > 200  # none covers another


def test_a_pair_shows_ground_truths_left_and_detections_right(dataset_of, prediction_of):
    dataset = dataset_of({1: [((100, 100, 300, 250), 0, "")]})
    prediction = prediction_of(1, [((100, 100, 300, 250), 1, 0.9), ((10, 10, 60, 60), 0, 0.4)])
    pair = draw_pair(grey(300, 400), dataset.records[0], prediction, dataset.classes)
    assert pair.dtype == np.uint8
    left, right = pair[:, :800], pair[:, -800:]  # 400 pixels, enlarged twice
    assert holds(left, COLOURS[0])
    assert not holds(left, COLOURS[1])
    assert holds(right, COLOURS[1])
    assert not holds(right, COLOURS[0])  # its score is too low
    assert holds(pair[:10], WHITE)
    assert holds(
        draw_pair(grey(300, 400), dataset.records[0], prediction, dataset.classes, score_threshold=0.4)[:, -1200:],
        COLOURS[0],
    )


def test_the_title_says_that_there_are_no_detections(dataset_of, prediction_of, monkeypatch):
    titles = []
    monkeypatch.setattr("detect.report.pictures._side_by_side", lambda left, right, texts: titles.append(texts) or left)
    dataset = dataset_of({1: [((100, 100, 300, 250), 0, "")]})
    prediction = prediction_of(1, [((100, 100, 300, 250), 0, 0.3)])
    for score in (0.3, 0.37):  # 0.3 is that of the detection as float32, too
        draw_pair(grey(300, 400), dataset.records[0], prediction, dataset.classes, score_threshold=score)
    assert titles == [
        ("ground truth: 1", "detections, score >= 0.3: 1"),
        ("ground truth: 1", "no detections, score >= 0.37"),
    ]


def test_a_large_image_is_reduced_and_a_wide_one_has_its_detections_below(dataset_of, prediction_of):
    dataset = dataset_of({1: [((1000, 500, 2000, 900), 0, "")]})
    pair = draw_pair(grey(1000, 3200), dataset.records[0], prediction_of(1, []), dataset.classes)
    panel = (pair.shape[0] - 16) // 2
    assert pair.shape[1] == 1600 and 500 < panel < 600
    assert tuple(pair[panel - 500 + 350, 501]) == COLOURS[0]
    np.testing.assert_array_equal(pair[-500:], grey(500, 1600))


@pytest.mark.parametrize(("height", "width"), [(20, 30), (30, 20), (2, 900), (900, 2)])
def test_titles_are_not_cut_off_with_the_smallest_images(dataset_of, prediction_of, height, width):
    dataset = dataset_of({1: []})
    few, many = (
        draw_pair(grey(height, width), dataset.records[0], prediction_of(1, []), dataset.classes, score_threshold=score)
        for score in (0.5, 0.51234)  # the longer title needs a wider picture, unless it fits
    )
    assert few.shape[1] < many.shape[1] or width == 900
    assert holds(few[:, -1:], WHITE) and not holds(few[:, -2:], BLACK)


def test_long_labels_are_shortened_in_the_middle():
    boxes = np.array([[100, 40, 190, 80]], np.float32)
    short, long = (draw_boxes(grey(100, 900), boxes, np.array([0]), [name]) for name in ("a" * 32, "a" * 99 + " 0.50"))
    ends = [np.nonzero((drawn == COLOURS[0]).all(axis=-1))[1].max() for drawn in (short, long)]
    assert 250 < ends[1] <= ends[0] + 8


def test_an_image_of_medium_size_is_not_scaled(dataset_of, prediction_of):
    dataset = dataset_of({1: []})
    pair = draw_pair(grey(700, 1100), dataset.records[0], prediction_of(1, []), dataset.classes)
    assert pair.shape[1] == 2 * 1100 + 11
    np.testing.assert_array_equal(pair[-700:, :1100], grey(700, 1100))


def on_disk(folder, dataset_of, count):
    dataset = dataset_of({number: [] for number in range(count)})
    (folder / "images").mkdir()
    for record in dataset.records:
        object.__setattr__(record, "path", folder / "images" / f"{record.id}.png")
        Image.fromarray(grey(20, 30)).save(record.path)
    return dataset


def test_pictures_are_spread_evenly_and_the_same_each_time(tmp_path, dataset_of, prediction_of):
    dataset = on_disk(tmp_path, dataset_of, 10)
    predictions = [prediction_of(0, [((5, 5, 20, 15), 0, 0.9)])]
    paths = write_pictures(tmp_path / "new" / "out", dataset, predictions, count=4)
    assert [path.name for path in paths] == ["0.jpg", "3.jpg", "6.jpg", "9.jpg"]
    with Image.open(paths[0]) as picture:
        assert picture.size[0] > 2 * 90  # the title is wider than the image
    bytes_before = paths[0].read_bytes()
    assert write_pictures(tmp_path / "new" / "out", dataset, predictions, count=4) == paths
    assert paths[0].read_bytes() == bytes_before


def test_more_pictures_than_images_or_none(tmp_path, dataset_of):
    dataset = on_disk(tmp_path, dataset_of, 2)
    assert [path.name for path in write_pictures(tmp_path, dataset, [], count=5)] == ["0.jpg", "1.jpg"]
    assert [path.name for path in write_pictures(tmp_path, dataset, [], count=1)] == ["0.jpg"]
    assert write_pictures(tmp_path, dataset, [], count=0) == []
    assert write_pictures(tmp_path, dataset_of({}), []) == []


def test_files_of_images_with_the_same_name_have_their_ids(tmp_path, dataset_of):
    dataset = on_disk(tmp_path, dataset_of, 3)
    (tmp_path / "other").mkdir()
    same = tmp_path / "other" / "0.JPG"
    Image.fromarray(grey(20, 30)).save(same)
    object.__setattr__(dataset.records[2], "path", same)
    assert [path.name for path in write_pictures(tmp_path, dataset, [])] == ["0_0.jpg", "1.jpg", "0_2.jpg"]


def test_a_missing_image_is_an_error(tmp_path, dataset_of):
    with pytest.raises(UserError, match=r"1\.jpg"):
        write_pictures(tmp_path, dataset_of({1: []}), [])


def test_masks_are_drawn_on_both_sides(dataset_of, prediction_of):
    box = (10, 10, 50, 50)
    record = replace(dataset_of({1: [(box, 0, "")]}).records[0], width=60, height=60)
    prediction = prediction_of(1, [(box, 0, 0.9)])
    bitmap = np.zeros((60, 60), np.uint8)
    bitmap[20:40, 20:40] = 1
    image = np.full((60, 60, 3), 128, np.uint8)
    plain = draw_pair(image, record, prediction, ("cat", "dog"))
    one = draw_pair(image, replace(record, masks=(encode(bitmap),)), prediction, ("cat", "dog"))
    both = draw_pair(
        image, replace(record, masks=(None,)), replace(prediction, masks=(encode(bitmap),)), ("cat", "dog")
    )
    middle = plain.shape[1] // 2
    assert (one[:, :middle] != plain[:, :middle]).any() and np.array_equal(one[:, middle:], plain[:, middle:])
    assert (both[:, middle:] != plain[:, middle:]).any() and np.array_equal(both[:, :middle], plain[:, :middle])
