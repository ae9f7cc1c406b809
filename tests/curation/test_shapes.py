import hashlib
import json

import cv2
import numpy as np
import pytest

from detect.curation import shapes
from detect.curation.shapes import SHAPES, VISIBLE, draw_scene, make_shapes, outlines
from detect.data.masks import RLE
from detect.errors import UserError


def annotation_file(root, split):
    return json.loads((root / "annotations" / f"instances_{split}.json").read_text())


def digests(root):
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "shapes"
    return make_shapes(out, images={"train": 24, "val": 1, "none": 0}, size=(96, 160), progress=False)


def test_no_images_make_an_empty_split(made):
    empty = annotation_file(made, "none")
    assert empty["images"] == empty["annotations"] == []
    assert [category["name"] for category in empty["categories"]] == list(SHAPES)


def test_ids_are_coco_s_and_refer_to_files(made):
    train = annotation_file(made, "train")
    assert [image["id"] for image in train["images"]] == list(range(1, 25))
    assert [annotation["id"] for annotation in train["annotations"]] == list(range(1, len(train["annotations"]) + 1))
    for image in train["images"]:
        pixels = cv2.imread(str(made / "images" / "train" / image["file_name"]))
        assert pixels.shape == (image["height"], image["width"], 3)
        assert 96 <= min(pixels.shape[:2]) <= max(pixels.shape[:2]) <= 160


def test_boxes_lie_inside_and_hold_their_area(made):
    train = annotation_file(made, "train")
    sides = {image["id"]: (image["width"], image["height"]) for image in train["images"]}
    assert {annotation["category_id"] for annotation in train["annotations"]} == set(range(1, len(SHAPES) + 1))
    for annotation in train["annotations"]:
        x, y, w, h = annotation["bbox"]
        width, height = sides[annotation["image_id"]]
        assert x >= 0 and y >= 0 and x + w <= width and y + h <= height
        assert 0 < annotation["area"] <= w * h


def test_masks_are_disjoint_and_boxes_are_their_extent(made):
    train = annotation_file(made, "train")
    for index in range(8):
        seed = [0, shapes.zlib.crc32(b"train"), index]
        _, labels, masks = draw_scene(np.random.default_rng(seed), (96, 160))
        own = [annotation for annotation in train["annotations"] if annotation["image_id"] == index + 1]
        assert [annotation["category_id"] for annotation in own] == [label + 1 for label in labels]
        assert not masks or np.sum(masks, axis=0).max() == 1
        for annotation, mask in zip(own, masks, strict=True):
            rows, columns = np.nonzero(mask)
            x, y = columns.min(), rows.min()
            assert annotation["bbox"] == [x, y, columns.max() + 1 - x, rows.max() + 1 - y]
            assert annotation["area"] == mask.sum()
            height, width = annotation["segmentation"]["size"]
            rle = RLE(height, width, annotation["segmentation"]["counts"].encode())
            np.testing.assert_array_equal(rle.bitmap(*mask.shape), mask)


def test_same_seed_same_bytes_and_count_changes_no_image(made, tmp_path):
    again = make_shapes(tmp_path / "again", images={"train": 24, "val": 1, "none": 0}, size=(96, 160), progress=False)
    assert digests(again) == digests(made)
    fewer = make_shapes(tmp_path / "fewer", images={"train": 3}, size=(96, 160), progress=False)
    assert digests(fewer / "images").items() <= digests(made / "images").items()
    other = make_shapes(tmp_path / "other", images={"train": 3}, size=(96, 160), seed=1, progress=False)
    assert not set(digests(other / "images").values()) & set(digests(made / "images").values())


def test_train_and_val_share_no_image(made):
    files = digests(made / "images")
    assert files["train/000000.jpg"] != files["val/000000.jpg"]


def test_one_number_gives_val_a_fifth(tmp_path):
    out = make_shapes(tmp_path / "shapes", images=6, size=(64, 64), progress=False)
    assert len(annotation_file(out, "train")["images"]) == 6
    assert len(annotation_file(out, "val")["images"]) == 2


def test_some_scenes_are_empty_and_some_full():
    counts = [len(draw_scene(np.random.default_rng([5, index]), (64, 80))[1]) for index in range(120)]
    assert min(counts) == 0 and max(counts) == shapes.MAX_SHAPES


@pytest.mark.parametrize(
    ("shape", "area"),
    [
        ("circle", np.pi),
        ("square", 2.0),
        ("triangle", 3 * np.sqrt(3) / 4),
        ("ring", np.pi * (1 - 0.55**2)),
    ],
)
def test_areas_of_the_outlines(shape, area):
    contours = outlines(shape)
    assert all(np.linalg.norm(contour, axis=1).max() <= 1 for contour in contours)
    shoelace = sum(
        float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)) / 2 for x, y in (contour.T for contour in contours)
    )
    assert shoelace == pytest.approx(area, rel=5e-3)


def test_a_drawn_shape_covers_its_area():
    ratios = []
    for index in range(60):
        alpha, area = shapes._random_shape(np.random.default_rng(index), index % len(SHAPES), 200, 200)
        mask = alpha >= 0.5
        if not (mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any()):
            ratios.append(mask.sum() / area)
    assert len(ratios) > 10
    assert np.abs(np.array(ratios) - 1).max() < 0.06


def test_what_is_hidden_is_random_shapen_anew(monkeypatch):
    """Of two equal discs at the same position the second would hide the first, so the scene has one."""
    disc = cv2.circle(np.zeros((64, 64), np.float32), (32, 32), 10, 1.0, -1)
    monkeypatch.setattr(shapes, "_random_shape", lambda *args: (disc, float(disc.sum())))
    monkeypatch.setattr(shapes, "EMPTY", 0.0)
    for index in range(5):
        assert len(draw_scene(np.random.default_rng(index), (64, 64))[1]) == 1


def test_what_the_border_hides_is_random_shapen_anew(monkeypatch):
    disc = cv2.circle(np.zeros((64, 64), np.float32), (32, 32), 10, 1.0, -1)
    monkeypatch.setattr(shapes, "_random_shape", lambda *args: (disc, float(disc.sum()) / VISIBLE + 1))
    monkeypatch.setattr(shapes, "EMPTY", 0.0)
    assert draw_scene(np.random.default_rng(0), (64, 64))[1] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"images": {}}, "at least one split"),
        ({"images": -3}, "images=-3: make at least 1"),
        ({"images": 0}, "images=0: make at least 1"),
        ({"images": {"train": -1}}, "no negative"),
        ({"images": {"../up": 1}}, "'../up'"),
        ({"size": (20, 64)}, "64"),
        ({"size": (128, 64)}, "smallest"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_wrong_arguments(tmp_path, arguments, words):
    with pytest.raises(UserError, match=words) as caught:
        make_shapes(tmp_path / "shapes", **{"images": 1, "progress": False, **arguments})
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_left_alone(tmp_path):
    (tmp_path / "shapes").mkdir()
    (tmp_path / "shapes" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty; choose another path or remove it"):
        make_shapes(tmp_path / "shapes", images=1, progress=False)
    assert (tmp_path / "shapes" / "mine.txt").read_text() == "mine"


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "shapes").mkdir()
    out = make_shapes(tmp_path / "shapes", images={"train": 1}, size=(64, 64), progress=False)
    assert sorted(path.name for path in out.iterdir()) == ["annotations", "images"]


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shapes, "draw_scene", full)
    with pytest.raises(UserError, match="No space left"):
        make_shapes(tmp_path / "deep" / "shapes", images=2, progress=False)
    assert list(tmp_path.iterdir()) == []
