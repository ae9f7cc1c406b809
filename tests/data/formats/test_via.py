"""VGG Image Annotator: a JSON object with the regions of each image."""

import math

import numpy as np
import pytest

from detect.data.read import read, splits
from detect.errors import UserError


def region(attributes, **shape):
    return {"shape_attributes": shape, "region_attributes": attributes}


def rect(attributes, x=10, y=20, width=30, height=40):
    return region(attributes, name="rect", x=x, y=y, width=width, height=height)


BOX = rect({"class": "cat"})


def entry(regions, name="a.jpg"):
    return {"filename": name, "size": 1234, "regions": regions, "file_attributes": {}}


@pytest.mark.parametrize(
    ("shape", "box"),
    [
        ({"name": "rect", "x": 10, "y": 20, "width": 30, "height": 40}, [10, 20, 40, 60]),
        ({"name": "polygon", "all_points_x": [10, 30, 50], "all_points_y": [40, 20.5, 70]}, [10, 20.5, 50, 70]),
        ({"name": "circle", "cx": 50, "cy": 40, "r": 5}, [45, 35, 55, 45]),
        ({"name": "ellipse", "cx": 50, "cy": 40, "rx": 10, "ry": 20}, [40, 20, 60, 60]),
        ({"name": "ellipse", "cx": 50, "cy": 40, "rx": 10, "ry": 20, "theta": math.pi / 2}, [30, 30, 70, 50]),
    ],
)
@pytest.mark.parametrize("version", [1, 2, "project"])
def test_boxes(tmp_path, draw, dump, shape, box, version):
    draw("a.jpg")
    item = region({"class": "cat"}, **shape)
    document = {"a.jpg1234": entry({"0": item} if version == 1 else [item])}
    if version == "project":
        document = {"_via_settings": {"ui": {}}, "_via_img_metadata": document, "_via_attributes": {"region": {}}}
    path = dump("via.json", document)
    for place in (tmp_path, path):
        dataset = read(place, "train")
        assert (dataset.format, splits(place), dataset.classes, dataset.repaired) == ("via", ("all",), ("cat",), ())
        np.testing.assert_allclose(dataset.records[0].boxes, [box], atol=1e-5)


@pytest.mark.parametrize(
    "attributes",
    [
        {"label": "cat", "colour": "red"},
        {"kind of animal": "cat"},
        {"type": {"cat": True, "dog": False}},
        {"name": "cat "},
    ],
)
def test_the_attribute_with_the_class(tmp_path, draw, dump, attributes):
    draw("a.jpg")
    dump("via.json", {"a": entry([rect(attributes)])})
    assert read(tmp_path, "train").classes == ("cat",)


def test_regions_without_attributes_are_of_one_class(tmp_path, draw, dump):
    draw("train/a.jpg", "val/a.jpg")
    dump("train/via_region_data.json", {"a": entry({"0": rect({})})})
    dump("val/via_region_data.json", {"a": entry({"0": rect({}, x=0)})})
    assert splits(tmp_path) == ("train", "val")
    assert read(tmp_path, "train").classes == ("object",)
    (record,) = read(tmp_path, "val").records
    assert record.path == tmp_path / "val/a.jpg" and record.boxes.tolist() == [[0, 20, 30, 60]]
    dump("val/via_region_data.json", {"a": entry({"0": BOX})})
    with pytest.raises(UserError, match=r"a\.jpg, region 1: its class is null, expected a text"):
        read(tmp_path, "train")


def test_shapes_without_area(tmp_path, draw, dump):
    draw("a.jpg")
    line = region({"class": "cat"}, name="polyline", all_points_x=[1, 2], all_points_y=[3, 4])
    dump("via.json", {"a": entry([region({"class": "cat"}, name="point", cx=1, cy=2), line, BOX])})
    dataset = read(tmp_path, "train")
    assert dataset.records[0].boxes.tolist() == [[10, 20, 40, 60]]
    assert [(d.rule, d.detail) for d in dataset.repaired] == [
        ("shape-without-area", "a.jpg, region 1: point"),
        ("shape-without-area", "a.jpg, region 2: polyline"),
    ]


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        (
            entry([rect({"colour": "red", "size": "big"})]),
            r"a\.jpg, region 1 has the attributes colour, size, one of",
        ),
        (entry([rect({"class": ""})]), r"a\.jpg, region 1: its class is \"\", expected a text"),
        (entry([rect({"class": {"cat": True, "dog": True}})]), r"a\.jpg, region 1: its class is null, expected a text"),
        (
            entry([rect({"class": "cat"}, x="1")]),
            r"a\.jpg, region 1: .* is no rect, polygon, circle or ellipse",
        ),
        (
            entry([region({"class": "cat"}, name="polygon", all_points_x=[1], all_points_y=[])]),
            r"a\.jpg, region 1: .*",
        ),
        (entry([{"region_attributes": {"class": "cat"}}]), r"a\.jpg, region 1: null is no rect"),
        (entry([4]), r"a\.jpg, region 1 is 4, expected an object"),
        (entry(4), r"it has no list, but 4, where each a\.jpg, region is expected"),
        (entry([], name=None), r"w: the image's file name is null, expected a text"),
        (7, r"w is 7, expected an object"),
    ],
)
def test_malformed_files(tmp_path, draw, dump, wrong, problem):
    draw("a.jpg", "b.jpg")
    dump("via.json", {"v": entry([BOX], "b.jpg"), "w": wrong})
    with pytest.raises(UserError, match=rf"1 × broken-file, first .*via\.json: {problem}"):
        read(tmp_path, "train")


def test_a_file_that_is_cut_off(tmp_path, draw, dump):
    draw("a.jpg")
    path = dump("via.json", {"v": entry([BOX])})
    path.write_text(path.read_text()[:-2])
    with pytest.raises(UserError, match=r"1 × broken-file, first .*via\.json: it is not JSON: "):
        read(tmp_path, "train")
