"""Masks that do not fit their boxes are found; those of photographs and of drawn shapes have no finding."""

import json
import os
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from detect.curation.check import check
from detect.curation.doctor.diagnosis import CHECKS
from detect.data.masks import bounds, encode
from detect.data.read import read

DATA = Path(os.environ.get("DETECT_DATA", Path(__file__).parents[3].parent / "shared" / "data"))
RULES = ("broken-mask", "mask-size", "empty-mask", "mask-unlike-box", "mask-outside-box", "no-mask", "scattered-mask")
WIDTH, HEIGHT = 120, 80


def rectangle(x1, y1, x2, y2):
    return [x1, y1, x2, y1, x2, y2, x1, y2]


def rle(*boxes, size=(HEIGHT, WIDTH)):
    bitmap = np.zeros(size, np.uint8)
    for x1, y1, x2, y2 in boxes:
        bitmap[y1:y2, x1:x2] = 1
    return encode(bitmap).segmentation()


def write(root, *annotations):
    """Write a COCO data set of one image with these boxes and segmentations."""
    (root / "train").mkdir(parents=True)
    (root / "annotations").mkdir()
    picture = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    cv2.imwrite(str(root / "train" / "a.png"), picture)
    entries = [
        {"id": number, "image_id": 1, "category_id": 1, "bbox": box, "area": 100, "iscrowd": 0}
        | ({} if segmentation is None else {"segmentation": segmentation})
        | fields
        for number, (box, segmentation, fields) in enumerate(annotations, start=1)
    ]
    image = {"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}
    document = {"images": [image], "annotations": entries, "categories": [{"id": 1, "name": "cat"}]}
    (root / "annotations" / "instances_train.json").write_text(json.dumps(document))
    return root


def findings(root, **options):
    report = check(root, progress=False, workers=1, **options)
    return [finding for finding in report.findings if finding.rule in RULES]


GOOD = [10, 10, 40, 20], [rectangle(10, 10, 50, 30)], {}


def test_without_masks_nothing_is_missed(tmp_path):
    assert findings(write(tmp_path, ([10, 10, 40, 20], None, {}))) == []
    assert findings(write(tmp_path / "empty")) == []


def test_a_mask_may_be_two_pixels_off_and_in_pieces_near_each_other(tmp_path):
    behind_poles = rle(*((x, 40, x + 8, 70) for x in range(5, 105, 10)))
    root = write(
        tmp_path,
        GOOD,
        ([60, 10, 40, 20], [rectangle(58, 8, 102, 32)], {}),
        ([5, 40, 98, 30], behind_poles, {}),
        ([20, 75, 2, 2], [rectangle(21, 76, 23, 78)], {}),  # tiny: IoU 0.14, but one pixel off
        ([5, 60, 110, 4], rle((5, 60, 9, 64), (50, 60, 54, 64), (111, 60, 115, 64)), {"iscrowd": 1}),
    )
    assert findings(root) == []


@pytest.mark.parametrize(
    ("rule", "box", "segmentation", "what"),
    [
        ("empty-mask", [10, 10, 40, 20], [rectangle(130, 10, 150, 30)], "the mask has no pixel"),
        ("mask-unlike-box", [10, 10, 40, 20], [rectangle(10, 40, 50, 60)], "(10, 40, 50, 60), has IoU 0.00"),
        ("mask-unlike-box", [10, 10, 80, 20], [rectangle(10, 10, 40, 30)], "has IoU 0.38"),
        ("mask-outside-box", [10, 10, 40, 20], [rectangle(10, 10, 53, 30)], "extends 3 pixels"),
        (
            "scattered-mask",
            [5, 60, 110, 4],
            rle((5, 60, 9, 64), (50, 60, 54, 64), (111, 60, 115, 64)),
            "in 3 pieces",
        ),
    ],
)
def test_each_defect_is_found(tmp_path, rule, box, segmentation, what):
    page = tmp_path / "page.html"
    (found,) = findings(write(tmp_path / "data", GOOD, (box, segmentation, {})), html=page)
    assert (found.rule, found.place, found.path.name) == (
        rule,
        "annotation 2 of image 1",
        "instances_train.json",
    )
    assert what in found.what and found.advice == CHECKS[rule].advice
    assert "data:image/jpeg" in page.read_text()


@pytest.mark.parametrize(
    ("rule", "segmentation", "what"),
    [
        ("mask-size", rle((5, 5, 9, 9), size=(20, 30)), "its mask is 30 × 20, the image 120 × 80"),
        ("broken-mask", rle(), "its mask has no pixel"),
        ("broken-mask", {"size": [HEIGHT, WIDTH], "counts": [5, 3]}, "no run-length encoding"),
    ],
)
def test_masks_that_the_reader_leaves_out_are_reported(tmp_path, rule, segmentation, what):
    found = findings(write(tmp_path / "data", GOOD, ([10, 10, 40, 20], segmentation, {})))
    assert {finding.rule for finding in found} == {rule, "no-mask"}
    assert any(finding.rule == rule and what in finding.what for finding in found)


def test_objects_without_a_mask_are_counted_but_not_crowds(tmp_path):
    root = write(tmp_path, ([60, 10, 40, 20], None, {}), GOOD, ([60, 40, 40, 20], None, {"iscrowd": 1}))
    (found,) = findings(root)
    assert found.rule == "no-mask"
    assert found.what == "split train: 1 of 2 objects have no mask, first annotation 1 of image 1 in a.png"


def test_the_page_shows_the_mask(tmp_path):
    from detect.curation.doctor.page import _with_masks

    (found,) = findings(write(tmp_path, ([10, 10, 40, 20], [rectangle(10, 40, 50, 60)], {})))
    grey = np.full((HEIGHT, WIDTH, 3), 100, np.uint8)
    (drawn,) = _with_masks([grey], found)
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[40:60, 10:50] = True
    np.testing.assert_array_equal((drawn != 100).any(axis=2), expected)
    assert (grey == 100).all()


def test_photographs_have_no_finding():
    if not (DATA / "coco_mini").is_dir():
        pytest.skip("photographs of COCO are not in DETECT_DATA")
    report = check(DATA / "coco_mini", progress=False)
    assert Counter(finding.rule for finding in report.findings).keys().isdisjoint(RULES)


def test_a_repaired_copy_keeps_masks_and_leaves_out_unusable_ones(tmp_path):
    beyond = [rectangle(100, 10, 130, 30)]
    root = write(
        tmp_path / "data",
        GOOD,
        GOOD,  # repeated
        ([100, 10, 30, 20], beyond, {"area": 999}),  # clipped: its pixels within the image do not change
        ([60, 10, 10, 10], rle((60, 10, 70, 20)), {"area": None}),
        ([60, 40, 10, 10], {"size": [HEIGHT, WIDTH], "counts": "no runs"}, {}),
    )
    report = check(root, fix=tmp_path / "copy", progress=False, workers=1)
    document = json.loads((tmp_path / "copy" / "annotations" / "instances_train.json").read_text())
    first, clipped, pixels, without = document["annotations"]
    assert first["segmentation"] == GOOD[1]
    assert clipped["bbox"] == [100, 10, 20, 20] and clipped["segmentation"] == beyond and clipped["area"] == 999
    assert pixels["segmentation"] == rle((60, 10, 70, 20)) and pixels["area"] == 100
    assert "segmentation" not in without and without["bbox"] == [60, 40, 10, 10]
    lines = (tmp_path / "copy" / "MENDED.txt").read_text().splitlines()
    assert any(line.endswith("annotation 5 of image 1: its mask is left out") for line in lines)
    assert report.findings and [one.rule for one in findings(tmp_path / "copy")] == ["no-mask"]


def test_of_two_equal_boxes_the_one_with_a_mask_remains_and_other_masks_are_other_objects(tmp_path):
    box, ring = [10, 10, 40, 20], rle((10, 10, 50, 12), (10, 28, 50, 30), (10, 10, 12, 30), (48, 10, 50, 30))
    root = write(tmp_path / "data", (box, None, {}), GOOD, (box, ring, {}))
    report = check(root, fix=tmp_path / "copy", progress=False, workers=1)
    (finding,) = [finding for finding in report.findings if finding.rule == "duplicate-box"]
    assert finding.what.startswith("annotation 1 of image 1: the same box and class as annotation 2 of image 1")
    document = json.loads((tmp_path / "copy" / "annotations" / "instances_train.json").read_text())
    assert [entry["segmentation"] for entry in document["annotations"]] == [GOOD[1], ring]


def test_scaled_images_scale_their_polygons(tmp_path):
    """The images were halved after they were annotated: the check sees the masks in the boxes, the copy has both."""
    root = write(
        tmp_path / "data", *[([10 * k, 60, 80, 90], [rectangle(10 * k, 60, 10 * k + 80, 150)], {}) for k in range(16)]
    )
    path = root / "annotations" / "instances_train.json"
    document = json.loads(path.read_text())
    document["images"][0] |= {"width": 2 * WIDTH, "height": 2 * HEIGHT}
    path.write_text(json.dumps(document))
    report = check(root, fix=tmp_path / "copy", progress=False, workers=1)
    assert "scaled-images" in {one.rule for one in report.findings} and findings(root) == []
    (repaired,) = read(tmp_path / "copy", "train", progress=False).records
    for mask, box in zip(repaired.masks, repaired.boxes, strict=True):
        np.testing.assert_array_equal(bounds(mask.bitmap(HEIGHT, WIDTH)), box)
