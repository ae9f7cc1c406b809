import json
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from detect.errors import UserError
from detect.prediction import result as module
from detect.prediction.result import Result, class_labels
from detect.report import drawing
from detect.report.drawing import COLOURS

CLASSES, IDS = ("car", "person", "traffic light"), (3, 1, 10)
BOXES = [[10, 20, 40, 60], [50.25, 5, 90, 44.75], [0, 0, 100, 80]]
GREY = 128


def made(boxes=BOXES, scores=(0.9, 0.5, 0.25), labels=(1, 0, 1), size=(80, 100), **given) -> Result:
    if not {"pixels", "path"} & given.keys():
        given["pixels"] = np.full((*size, 3), GREY, np.uint8)
    arrays = np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.array(labels, np.int64)
    return Result(*arrays, CLASSES, IDS, size, **given)


@pytest.fixture
def unchecked_init(monkeypatch):
    """Disable the type checks that tests add to `Result`, so that its own checks see the arguments."""
    monkeypatch.setattr(Result, "__init__", Result.__init__.__wrapped__)


def empty(**given) -> Result:
    return made([], [], [], **given)


def holds(picture, colour) -> bool:
    return bool((picture == colour).all(axis=-1).any())


def test_torch_is_not_needed():
    code = "import sys, detect.prediction.result; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.split() == [b"False"]


def test_no_detections():
    result = empty()
    assert len(result) == 0 and result.names == () and list(result) == []
    assert result.boxes.shape == (0, 4) and result.boxes.dtype == np.float32
    assert len(result[:5]) == len(result[[]]) == len(result[np.zeros(0, bool)]) == 0
    assert len(result.filter(score=0.5, classes="car")) == 0
    np.testing.assert_array_equal(result.plot(), result.image)
    assert result.crop() == result.to_coco(1) == json.loads(result.to_json())["detections"] == []


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_arrays_get_their_types_and_are_read_only_copies(kind, unchecked_init):
    given = kind(deepcopy(BOXES)), kind([0.9, 0.5, 0.25]), kind([1, 0, 1])
    result = Result(*given, CLASSES, IDS, (80, 100), pixels=np.zeros((80, 100, 3), np.uint8))
    assert [values.dtype for values in (result.boxes, result.scores, result.labels)] == [
        np.float32, np.float32, np.int64
    ]  # fmt: skip
    given[0][0][0] = 99
    assert result.boxes[0, 0] == 10
    for values in (result.boxes, result.scores, result.labels, result.pixels):
        with pytest.raises(ValueError, match="read-only"):
            values[0] = 0


def test_pixels_are_not_copied_and_stay_writable_for_their_owner():
    pixels = np.zeros((80, 100, 3), np.uint8)
    result = made(pixels=pixels)
    assert np.shares_memory(result.image, pixels)
    pixels[0] = 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"boxes": [[1, 2, 3]]}, r"boxes have shape \(1, 3\), not \(1, 4\)"),
        ({"boxes": [[1, 2, 3, np.nan]] * 3}, "boxes contain NaN"),
        ({"scores": [0.5]}, r"scores have shape \(1,\), not \(3,\)"),
        ({"scores": [0.5, np.inf, 0]}, "scores contain NaN or infinity"),
        ({"labels": [[1], [2], [3]]}, "labels have shape"),
        ({"labels": [0, 1, 3]}, r"labels are 0 … 3 for 3 classes"),
        ({"labels": [0, 1, -1]}, r"labels are -1 … 1 for 3 classes"),
        ({"pixels": np.zeros((100, 80, 3), np.uint8)}, r"pixels have shape \(100, 80, 3\)"),
    ],
)
def test_invalid_arrays(given, message, unchecked_init):
    arrays = {"boxes": BOXES, "scores": [0.9, 0.5, 0.25], "labels": [1, 0, 1]}
    with pytest.raises(ValueError, match=message):
        Result(**{**arrays, **given}, classes=CLASSES, category_ids=IDS, size=(80, 100))


def test_each_class_needs_a_category_id(unchecked_init):
    with pytest.raises(ValueError, match="2 category ids for 1 classes"):
        Result([], [], [], ("a",), (1, 2), (5, 5))


@pytest.mark.parametrize(
    ("key", "kept"),
    [
        (0, [0]),
        (-1, [2]),
        (np.int64(1), [1]),
        (slice(None, 2), [0, 1]),
        (slice(None, None, -1), [2, 1, 0]),
        ([2, 0], [2, 0]),
        (np.array([1, 1]), [1, 1]),
        ([], []),
        (np.array([True, False, True]), [0, 2]),
        ([False, True, False], [1]),
    ],
)
def test_indexing_gives_a_result(key, kept):
    result = made(index=7, path="a.mp4", pixels=np.zeros((80, 100, 3), np.uint8))
    part = result[key]
    assert isinstance(part, Result) and len(part) == len(kept)
    np.testing.assert_array_equal(part.boxes, result.boxes[kept])
    np.testing.assert_array_equal(part.scores, result.scores[kept])
    np.testing.assert_array_equal(part.labels, result.labels[kept])
    assert (part.path, part.index, part.size) == ("a.mp4", 7, (80, 100)) and np.shares_memory(part.image, result.image)


@pytest.mark.parametrize("key", [3, -4, [5], np.array([True, False])])
def test_an_index_out_of_range(key):
    with pytest.raises(IndexError):
        made()[key]


def test_iteration_yields_single_detections():
    assert [(one.names, len(one)) for one in made()] == [(("person",), 1), (("car",), 1), (("person",), 1)]


def test_filter():
    result = made()
    assert result.filter().scores.tolist() == result.scores.tolist()
    assert result.filter(score=0.5).names == ("person", "car")  # a score at the threshold stays
    assert result.filter(classes="person").scores.tolist() == [np.float32(0.9), 0.25]
    assert result.filter(classes=["car", 1], score=0.3).names == ("person", "car")
    assert len(result.filter(classes=[])) == 0


@pytest.mark.parametrize(
    ("chosen", "message"),
    [("Persn", "of person?"), (3, "car, person"), (-1, "class -1: no such class"), ("x", "car, person, traffic li")],
)
def test_an_unknown_class(chosen, message):
    with pytest.raises(UserError, match=message):
        made().filter(classes=[chosen])


def test_class_labels_classes_are_sorted_and_each_once():
    assert class_labels(["traffic light", 0, "car", np.int64(2)], CLASSES) == [0, 2]


def test_the_image_is_the_kept_pixels_or_the_file(tmp_path):
    path = tmp_path / "a.png"
    pixels = np.random.default_rng(0).integers(0, 256, (80, 100, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    np.testing.assert_array_equal(made(path=str(path)).image, pixels)
    assert (made(path=str(path), pixels=np.zeros_like(pixels)).image == 0).all()
    with pytest.raises(UserError, match="size of the image has changed"):
        _ = made(path=str(path), size=(80, 101)).image
    path.unlink()
    with pytest.raises(UserError, match=r"a\.png: there is no such image"):
        _ = made(path=str(path)).image


@pytest.mark.parametrize("given", [{"path": None}, {"path": "a.mp4", "index": 3}, {"path": "https://x.org/a.jpg"}])
def test_pixels_that_were_not_kept(given):
    with pytest.raises(UserError, match="not kept"):
        made(**given).plot()


def test_a_box_is_drawn_along_its_inner_edge_in_its_colour():
    picture = made([[100, 80, 180, 160]], [0.5], [2], (200, 300)).plot()
    row = picture[120]
    assert [tuple(row[x]) for x in (98, 99, 100, 101, 102, 103)] == [
        (GREY,) * 3, (0, 0, 0), COLOURS[2], COLOURS[2], (0, 0, 0), (GREY,) * 3
    ]  # fmt: skip
    assert tuple(row[179]) == tuple(picture[159, 140]) == COLOURS[2] and tuple(row[180]) == (0, 0, 0)


@pytest.mark.parametrize("size", [(1, 1), (2, 90), (90, 2), (33, 47)])
def test_the_smallest_images(size):
    result = made([[-5, -5, 500, 500], [0, 0, 0, 0], [46.9, 32.9, 46.9, 32.9]], size=size)
    assert result.plot().shape == (*size, 3)
    assert all(min(crop.shape[:2]) >= 1 for crop in result.crop())


@pytest.mark.parametrize(
    ("size", "width"), [((60, 64), None), ((1500, 2000), None), ((60, 64), 640), ((400, 1000), 100)]
)
def test_a_label_is_readable_and_complete(size, width):
    height = size[0] * (width or size[1]) / size[1]
    blank = np.full((round(height), width or size[1], 3), GREY, np.uint8)
    box = [[0, size[0] - 1, 1, size[0]]]  # in the corner, where the label has to be moved
    picture = made(box, [0.5], [1], size).plot(width=width)
    assert picture.shape == blank.shape
    rows, columns = np.nonzero((picture == COLOURS[1]).all(axis=-1))
    assert np.ptp(rows) >= 10 and np.ptp(rows) <= max(16, 0.04 * max(blank.shape))
    assert 40 <= np.ptp(columns) <= max(90, 0.3 * max(blank.shape))


def test_labels_do_not_overlap_each_other_or_other_boxes():
    # Above the lower box is the upper one, so the label of the lower one goes below it.
    boxes = [[60, 20, 160, 79], [60, 80, 160, 140]]
    picture = made(boxes, [0.9, 0.8], [0, 1], (200, 220)).plot()
    above, below = (np.nonzero((picture == COLOURS[label]).all(axis=-1))[0] for label in (0, 1))
    assert above.min() < 15 and above.max() == 78
    assert below.min() == 80 and below.max() > 145
    same = made([[60, 80, 160, 140]] * 4, [0.9, 0.8, 0.7, 0.6], [0, 1, 2, 0], (200, 220)).plot()
    alone = made([[60, 80, 160, 140]], [0.9], [1], (200, 220)).plot()
    line = 2 * (100 + 60) * 2
    label = (alone == COLOURS[1]).all(axis=-1).sum() - line
    assert label > 300
    assert (same == COLOURS[1]).all(
        axis=-1
    ).sum() > 0.8 * label  # its box is hidden by the first one, but not its label


def test_a_long_name_is_shortened_before_the_score():
    one = made([[5, 30, 60, 60]], [0.5], [0])
    short, long = (
        replace(one, size=(70, 900), pixels=np.zeros((70, 900, 3), np.uint8), classes=(name, "", "")).plot()
        for name in ("a" * 32, "a" * 60)
    )
    ends = [np.nonzero((picture == COLOURS[0]).all(axis=-1))[1].max() for picture in (short, long)]
    assert 200 < ends[1] <= ends[0] + 8
    font = ImageFont.load_default(10)
    text = drawing._shortened("a" * 60 + " 0.50", font, 90)
    assert text.startswith("aaaa") and text.endswith("a… 0.50") and 80 < drawing.text_size(text, font)[0] <= 90
    assert drawing._shortened("aaa 0.50", font, 90) == drawing._shortened(" aaa\n 0.50", font, 90) == "aaa 0.50"
    assert drawing._shortened("aaa 0.50", font, 9) == "… 0.50"  # nothing would fit


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "a.png"])
def test_a_picture_is_written(name, tmp_path):
    result = made()
    picture = result.plot(tmp_path / name, width=300)
    assert picture.shape == (240, 300, 3) and holds(picture, COLOURS[0]) and holds(picture, COLOURS[1])
    with Image.open(tmp_path / name) as written:
        assert written.format == ("PNG" if name == "a.png" else "JPEG")
        difference = np.asarray(written).astype(int) - picture
    assert np.abs(difference).mean() < (0.1 if name == "a.png" else 4)
    assert (result.image == GREY).all()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no/a.jpg", "no such folder; create it to write a.jpg"),
        ("a.bmp", "choose one of"),
        ("a", "choose"),
        ("f.png", "cannot be"),
    ],
)
def test_a_picture_that_cannot_be_written(name, message, tmp_path):
    (tmp_path / "f.png").mkdir()
    with pytest.raises(UserError, match=message) as caught:
        made().plot(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_crops_have_every_pixel_that_a_box_touches():
    pixels = np.arange(8 * 10 * 3, dtype=np.uint8).reshape(8, 10, 3)
    boxes = [[2, 3, 5, 7], [2.5, 3.5, 4.5, 6.5], [-9, -9, 99, 99], [4, 4, 4, 4], [20, 20, 30, 30]]
    crops = made(boxes, [0.5] * 5, [0] * 5, (8, 10), pixels=pixels).crop()
    expected = [pixels[3:7, 2:5], pixels[3:7, 2:5], pixels, pixels[4:5, 4:5], pixels[7:8, 9:10]]
    for crop, one in zip(crops, expected, strict=True):
        np.testing.assert_array_equal(crop, one)
    crops[0][:] = 0  # a copy: painting on it does not change the image


def test_coco_results_have_category_ids():
    results = made().to_coco(17)
    assert results[1] == {"image_id": 17, "category_id": 3, "bbox": [50.25, 5.0, 39.75, 39.75], "score": 0.5}
    assert [one["category_id"] for one in results] == [1, 3, 1]
    assert json.loads(json.dumps(results)) == results  # Python numbers


def test_json():
    text = made(path="a b.jpg", index=None).to_json(indent=2)
    content = json.loads(text)
    assert "\n" in text and content["detections"][1] == {
        "box": [50.25, 5.0, 90.0, 44.75], "score": 0.5, "label": 0, "name": "car"
    }  # fmt: skip
    assert {**content, "detections": 3} == {
        "path": "a b.jpg", "index": None, "height": 80, "width": 100, "detections": 3
    }  # fmt: skip


def test_pandas():
    pandas = pytest.importorskip("pandas")
    frame = made(path="a.mp4", index=4, pixels=None).to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == ["path", "index", "x1", "y1", "x2", "y2", "score", "label", "name"]
    assert frame.iloc[1].tolist() == ["a.mp4", 4, 50.25, 5.0, 90.0, 44.75, 0.5, 0, "car"]
    assert frame.groupby("name").size().to_dict() == {"car": 1, "person": 2}
    frame.loc[0, "score"] = 0.0  # its columns are copies
    assert made(path=None).to_pandas()["path"].isna().all()
    assert list(empty().to_pandas().columns) == list(frame.columns) and len(empty().to_pandas()) == 0


def test_supervision():
    supervision = pytest.importorskip("supervision")
    result = made()
    detections = result.to_supervision()
    assert isinstance(detections, supervision.Detections)
    np.testing.assert_array_equal(detections.xyxy, result.boxes)
    assert detections["class_name"].tolist() == ["person", "car", "person"]
    assert detections.class_id.tolist() == [1, 0, 1]
    assert len(detections[detections.confidence > 0.3]) == 2
    detections.xyxy[0] = 0
    assert result.boxes[0].tolist() == BOXES[0]
    assert len(empty().to_supervision()) == 0


@pytest.mark.parametrize(("method", "package"), [("to_pandas", "pandas"), ("to_supervision", "supervision")])
def test_a_package_that_is_missing(method, package, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(module, "import_module", missing)
    with pytest.raises(UserError, match=rf"^{package} is not installed: pip install 'rcnn-family\[{package}\]'$"):
        getattr(made(), method)()


def test_the_repr_names_the_detections():
    """It is one line, so that a list of results can be read."""
    classes = ("cat", "traffic light")
    boxes, scores = np.zeros((12, 4), np.float32), np.linspace(0.95, 0.4, 12, dtype=np.float32)
    labels = np.array([1] + [0] * 11)
    result = Result(boxes, scores, labels, classes, (1, 2), (30, 40), path="a.jpg")
    assert repr(result[:2]) == "Result(path='a.jpg', size=(30, 40), 2 detections: traffic light 0.95, cat 0.90)"
    assert repr(result).endswith(
        "12 detections: traffic light 0.95, " + repr(result[1:10]).split(": ")[1][:-1] + ", … and 2 more)"
    )
    frame = Result(boxes[:0], scores[:0], labels[:0], classes, (1, 2), (30, 40), index=3)
    assert repr(frame) == "Result(index=3, size=(30, 40), no detections)"
    assert "\n" not in repr(Result(boxes, scores, labels, ("a\nb", "c"), (1, 2), (30, 40)))
