"""Every rule, on the smallest file that violates it."""

import json
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detect.data.dataset import Dataset
from detect.data.defects import RULES, DefectLog, as_json, refuse_without_boxes, summary
from detect.data.read import read
from detect.errors import UserError

GOOD = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0}


def without(field):
    return {key: value for key, value in GOOD.items() if key != field}


@pytest.fixture
def save(tmp_path):
    """Return a function that writes a COCO folder with one image, 40 × 30, and the given entries."""

    def write(*annotations, images=({"id": 1, "file_name": "a.png", "width": 40, "height": 30},)):
        (tmp_path / "annotations").mkdir()
        categories = [{"id": 1, "name": "cat"}]
        document = {"images": list(images), "annotations": list(annotations), "categories": categories}
        (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(document))
        Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
        return tmp_path

    return write


@pytest.mark.parametrize("id", [1, 0])  # pycocotools scores an id of 0 wrong, but ids are renumbered
def test_a_good_file_has_no_defect(save, id):
    assert read(save(GOOD | {"id": id}), "train").repaired == ()


@pytest.mark.parametrize(
    ("rule", "entry", "box", "area"),
    [
        ("zero-area", GOOD | {"bbox": [1, 2, 0, 4]}, None, None),
        ("zero-area", GOOD | {"bbox": [1, 2, 3, 0]}, None, None),
        ("zero-area", GOOD | {"bbox": [1, 2, 5e-4, 4]}, None, None),
        ("negative-size", GOOD | {"bbox": [5, 5, -3, 4]}, None, None),
        ("outside-image", GOOD | {"bbox": [40, 2, 3, 4]}, None, None),
        ("outside-image", GOOD | {"bbox": [-9, 2, 9, 4]}, None, None),
        ("outside-image", GOOD | {"bbox": [1, 100, 3, 4]}, None, None),
        ("outside-image", GOOD | {"bbox": [1e30, 100, 1e30, 4]}, None, None),
        ("clipped", GOOD | {"bbox": [-1, 2, 3, 4]}, [0, 2, 2, 6], 12),
        ("clipped", GOOD | {"bbox": [30, 20, 11, 11]}, [30, 20, 40, 30], 12),
        ("clipped", GOOD | {"bbox": [-1e30, -1e30, 2e30, 2e30]}, [0, 0, 40, 30], 12),
        ("missing-area", without("area"), [1, 2, 4, 6], 12),
        ("missing-area", GOOD | {"area": None}, [1, 2, 4, 6], 12),
        ("missing-area", GOOD | {"area": float("nan")}, [1, 2, 4, 6], 12),
        ("missing-area", GOOD | {"area": -1}, [1, 2, 4, 6], 12),
        ("missing-iscrowd", without("iscrowd"), [1, 2, 4, 6], 12),
        ("unknown-image", GOOD | {"image_id": 2}, None, None),
        ("zero-area", GOOD | {"bbox": []}, None, None),
        ("zero-area", GOOD | {"bbox": None}, None, None),
        ("implied-box", without("bbox") | {"segmentation": [[1, 2, 4, 2, 4, 6]]}, [1, 2, 4, 6], 12),
        ("id-not-number", GOOD | {"image_id": "1"}, [1, 2, 4, 6], 12),
        ("id-not-number", GOOD | {"id": "first"}, [1, 2, 4, 6], 12),
    ],
)
def test_repaired(save, rule, entry, box, area):
    dataset = read(save(entry), "train")
    assert RULES[rule].verdict == "repaired"
    assert [defect.rule for defect in dataset.repaired] == [rule]
    assert dataset.repaired[0].path.name == "instances_train.json" and "annotation" in dataset.repaired[0].detail
    (record,) = dataset.records  # the image is kept without the box
    np.testing.assert_array_equal(record.boxes, np.array([] if box is None else [box]).reshape(-1, 4))
    np.testing.assert_array_equal(record.areas, [] if area is None else [area])


def test_duplicate_annotation_ids_are_kept_and_counted(save):
    dataset = read(save(GOOD, GOOD | {"bbox": [5, 5, 5, 5]}, GOOD), "train")
    assert [defect.rule for defect in dataset.repaired] == ["duplicate-annotation-id"] * 2
    assert len(dataset.records[0].boxes) == 3


def test_identical_boxes_are_no_defect(save):
    dataset = read(save(GOOD, GOOD | {"id": 2}), "train")
    assert dataset.repaired == () and len(dataset.records[0].boxes) == 2


def test_a_size_other_than_the_images(save):
    image = {"id": 1, "file_name": "a.png", "width": 30, "height": 40}
    dataset = read(save(GOOD, images=[image]), "train")
    assert (dataset.records[0].width, dataset.records[0].height) == (40, 30)
    (defect,) = dataset.repaired
    assert (defect.rule, defect.detail) == ("size-mismatch", "a.png is 40 × 30, not 30 × 40")


def test_a_size_that_is_text_is_shown_as_text(save):
    dataset = read(save(GOOD, images=[{"id": 1, "file_name": "a.png", "width": "40", "height": 30}]), "train")
    (defect,) = dataset.repaired
    assert defect.rule == "size-mismatch"
    assert defect.detail == 'a.png is 40 × 30, not "40" × 30: whole numbers are expected'


def test_a_size_that_is_not_given_is_no_defect(save):
    assert read(save(images=[{"id": 1, "file_name": "a.png", "width": None}]), "train").repaired == ()


@pytest.mark.parametrize(
    ("rule", "entries", "images", "place"),
    [
        ("nan-box", [GOOD | {"bbox": [1, float("nan"), 3, 4]}], None, "annotation 1 of image 1"),
        ("nan-box", [GOOD | {"bbox": [1, 2, float("inf"), 4]}], None, "annotation 1 of image 1"),
        ("nan-box", [GOOD | {"bbox": [1e308, 2, 1e308, 4]}], None, "annotation 1 of image 1"),
        ("unknown-category", [GOOD | {"category_id": 2}], None, "annotation 1 of image 1: category 2"),
        ("broken-file", [without("bbox")], None, r"annotations\[0\]: bbox is missing, expected four numbers \[x, y"),
        ("broken-file", [GOOD | {"bbox": [1, "2", 3]}], None, r'bbox is \[1, "2", 3\], expected four numbers'),
        ("broken-file", [], [{"id": [7], "file_name": "a.png"}], r"images\[0\]: id is \[7\], expected a whole number"),
        ("broken-file", [[7, None]], None, r"annotations\[0\] is \[7, null\], not an object"),
        ("duplicate-image", [], [{"id": 1, "file_name": "a.png"}] * 2, "image a.png"),
        ("duplicate-image", [], [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "./a.png"}], "images 1 and 2"),
        ("path-outside-root", [], [{"id": 1, "file_name": "../b.png"}], r"it names the image \.\./b\.png"),
        ("path-outside-root", [], [{"id": 1, "file_name": "/etc/passwd"}], "it names the image /etc/passwd"),
        ("path-outside-root", [], [{"id": 1, "file_name": "a\0.png"}], r"it names the image a\?\.png"),
        ("missing-image", [], [{"id": 1, "file_name": "b.png"}], r"b\.png: there is no such file"),
    ],
)
def test_refused(save, rule, entries, images, place):
    root = save(*entries, images=images) if images else save(*entries)
    assert RULES[rule].verdict == "refused"
    with pytest.raises(UserError, match=f"1 × {rule}, first .*{place}") as error:
        read(root, "train")
    assert "\n" not in str(error.value) and RULES[rule].action in str(error.value)


def test_missing_annotation_is_refused(tmp_path):
    """Only VOC has a file per image; the tests of VOC cover the case."""
    assert RULES["missing-annotation"].verdict == "refused"


@pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda data: b"", lambda data: b"no image"])
def test_unreadable_images_are_refused_or_left_out(save, damage):
    root = save(
        GOOD, GOOD | {"id": 2, "image_id": 2}, images=[{"id": id, "file_name": f"{id}.png"} for id in (1, 2, 3)]
    )
    data = (root / "a.png").read_bytes()
    (root / "1.png").write_bytes(damage(data))
    (root / "2.png").write_bytes(data)
    with pytest.raises(
        UserError, match=r"1 × missing-image, first .*3\.png.*1 × unreadable-image, first .*1\.png"
    ) as error:
        read(root, "train")
    remedy = "(replace the image, or leave such images out with --data.skip_unreadable true)"
    assert str(error.value).endswith(f"instances_train.json {remedy}") and "restore the file" not in str(error.value)
    dataset = read(root, "train", skip_unreadable=True)
    assert [record.id for record in dataset.records] == [2] and len(dataset.records[0].boxes) == 1
    assert sorted(defect.rule for defect in dataset.repaired) == ["missing-image", "unreadable-image"]
    assert "the image is left out" in summary(dataset)


def test_all_refused_defects_are_reported_at_once(save):
    bad = GOOD | {"bbox": [float("nan")] * 4}
    with pytest.raises(UserError) as error:
        read(save(bad, bad | {"id": 2}, GOOD | {"id": 3, "category_id": 9}), "train")
    assert "2 × nan-box" in str(error.value) and "1 × unknown-category" in str(error.value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("7", '"7"'),
        (None, "null"),
        ({"ä": [True, 1.5]}, '{"ä": [true, 1.5]}'),
        ("x" * 99, '"' + "x" * 59),
        (date(2020, 1, 2), "date"),
    ],
)
def test_values_are_shown_as_json_writes_them(value, text):
    assert as_json(value) == text


def test_a_value_that_is_too_deep_is_its_kind():
    value = []
    for _ in range(10**5):
        value = [value]
    assert as_json(value) == "list"


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ([], ""),
        ([GOOD | {"iscrowd": 1}], ""),
        ([GOOD | {"bbox": [99, 99, 5, 5]}], ": 1 × outside-image, first .*: annotation 1 of image 1: .*"),
    ],
)
def test_a_split_without_a_box_to_train_on(save, entries, why):
    dataset = read(save(*entries), "train")
    match = (
        f"the split train, of 1 images, has no box to train on{why}; add boxes or name another split with --data.train$"
    )
    with pytest.raises(UserError, match=match) as error:
        refuse_without_boxes(dataset)
    assert str(error.value).startswith(str(dataset.root)) and "\n" not in str(error.value)


def test_images_that_were_left_out_are_reported_when_no_box_remains(save):
    root = save(GOOD, images=[{"id": 1, "file_name": "b.png"}])
    with pytest.raises(
        UserError, match=r"of 0 images, .*1 × missing-image, first .*b\.png: .*\(the image is left out\); "
    ):
        refuse_without_boxes(read(root, "train", skip_unreadable=True))


def test_one_box_is_enough_to_train_on(save):
    refuse_without_boxes(read(save(GOOD, GOOD | {"id": 2, "iscrowd": 1}), "train"))


def test_every_rule_says_what_is_done():
    for name, (verdict, action) in RULES.items():
        assert verdict in ("refused", "repaired") and len(action) > 20, name


def test_defect_log():
    log = DefectLog(Path("data"), "train")
    log.raise_refused()
    log.add("clipped", Path("a.xml"), "object 1")
    log.raise_refused()
    assert [defect.rule for defect in log.repaired] == ["clipped"]
    with pytest.raises(UserError, match=r"^data, split train: 1 × broken-file, first b\.xml: line \?1 \("):
        log.stop("broken-file", Path("b.xml"), "line \x1b1")


def test_summary(save):
    dataset = read(save(GOOD, GOOD | {"id": 2, "bbox": [0, 0, 0, 0]}), "train")
    lines = summary(dataset).splitlines()
    assert lines[1:4] == [
        "  1 images, 0 of them without a box",
        "  1 boxes, 0 of them crowds, 0 difficult",
        "  1 class: cat 1",
    ]
    assert lines[4].startswith("  1 × zero-area") and "annotation 2 of image 1" in lines[5]


def test_summary_of_nothing():
    lines = summary(Dataset(Path("data"), "train", "coco", (), (), ())).splitlines()
    assert lines[1] == "  0 images, 0 of them without a box"


def test_summary_of_many_classes(dataset_of):
    names = tuple(f"class{number}" for number in range(80))
    box = (1.0, 2.0, 30.0, 40.0)
    images = {1: [(box, 7, ""), (box, 7, ""), (box, 3, "")]}
    assert summary(dataset_of(images, names, tuple(range(80)))).splitlines()[3] == (
        "  80 classes, 78 of them without a box: class7 2, class3 1"
    )
    images = {1: [(box, label, "") for label in range(20)]}
    assert summary(dataset_of(images, names[:20], tuple(range(20)))).splitlines()[3] == (
        f"  20 classes: {', '.join(f'{name} 1' for name in names[:12])}, … and 8 more"
    )


def test_the_repr_of_a_data_set_is_a_line(dataset_of):
    assert repr(dataset_of({1: [], 2: []})) == "Dataset('/data', val, coco, 2 images, 2 classes: cat, dog)"
