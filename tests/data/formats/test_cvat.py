"""CVAT's XML: shapes and their bounds, subsets, and tracks of a video."""

import numpy as np
import pytest
from PIL import Image

from detect.data.read import read, splits
from detect.errors import UserError

BOX = '<box label="cat" occluded="0" xtl="4" ytl="5" xbr="24.5" ybr="20"/>'


def image(shapes="", name="a.jpg", id=0, more=""):
    return f'<image id="{id}" name="{name}" width="40" height="30" {more}>{shapes}</image>'


def save(root, body, *images, meta=""):
    for name in images or ("images/a.jpg",):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(root / name)
    text = f'<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>{meta}{body}</annotations>'
    (root / "annotations.xml").write_text(text)
    return root


def boxes(root, *arguments, **options):
    return [record.boxes.tolist() for record in read(save(root, *arguments, **options), "train").records]


@pytest.mark.parametrize(
    ("shape", "box"),
    [
        (BOX, [4, 5, 24.5, 20]),
        ('<polygon label="cat" points="4,5;24,6;10,20"/>', [4, 5, 24, 20]),
        ('<mask label="cat" rle="1, 2" left="4" top="5" width="20" height="15"/>', [4, 5, 24, 20]),
        ('<ellipse label="cat" cx="14" cy="12" rx="10" ry="4"/>', [4, 8, 24, 16]),
        ('<ellipse label="cat" cx="14" cy="12" rx="4" ry="10" rotation="90.0"/>', [4, 8, 24, 16]),
        ('<box label="cat" xtl="10" ytl="5" xbr="18" ybr="25" rotation="90.00"/>', [4, 11, 24, 19]),
        ('<box label="cat" xtl="8" ytl="8" xbr="16" ybr="16" rotation="45"/>', [6.34315, 6.34315, 17.65685, 17.65685]),
    ],
)  # fmt: skip
def test_bounds_of_shapes(tmp_path, shape, box):
    ((found,),) = boxes(tmp_path, image(shape))
    np.testing.assert_allclose(found, box, rtol=1e-6)


def test_shapes_without_box(tmp_path):
    shapes = '<points label="cat" points="1,2"/><polyline label="cat" points="1,2;3,4"/><tag label="cat"/>'
    save(tmp_path, image(shapes + BOX))
    dataset = read(tmp_path, "train")
    assert dataset.format == "cvat" and len(dataset.records[0].boxes) == 1
    assert [defect.rule for defect in dataset.repaired] == ["shape-without-area"] * 2
    assert dataset.repaired[0].detail == "image 0, points 1: cat"


def test_labels_in_their_order(tmp_path):
    labels = "".join(
        f"<label><name>{name}</name>{kind}</label>"
        for name, kind in [
            ("zebra", "<type>rectangle</type>"),
            ("lane", "<type>polyline</type>"),
            ("cat", ""),
            ("1", "<type>points</type><parent>s</parent>"),
        ]
    )
    save(tmp_path, image(BOX), meta=f"<meta><task><labels>{labels}</labels></task></meta>")
    dataset = read(tmp_path, "train")
    assert dataset.classes == ("zebra", "cat") and dataset.records[0].labels.tolist() == [1]


def test_subsets(tmp_path):
    body = (
        image(BOX, "1.jpg", 1, 'subset="Train"')
        + image("", "1.jpg", 2, 'subset="Validation"')
        + image(BOX.replace("cat", "dog"), "3.jpg", 3, 'subset="default"')
    )
    save(tmp_path, body, "images/Train/1.jpg", "images/Validation/1.jpg", "images/default/3.jpg")
    assert splits(tmp_path) == ("Train", "Validation", "rest")
    assert [record.path for record in read(tmp_path, "val").records] == [tmp_path / "images" / "Validation" / "1.jpg"]
    assert read(tmp_path, "train").classes == read(tmp_path, "val").classes == ("cat", "dog")


def test_the_subset_of_a_task(tmp_path):
    save(tmp_path, image(BOX), meta="<meta><task><subset>Validation</subset></task></meta>")
    assert splits(tmp_path) == ("Validation",) and len(read(tmp_path, "val")) == 1


def test_the_file_itself(tmp_path):
    save(tmp_path, image(BOX))
    (tmp_path / "b.xml").write_text(f"<annotations>{image(BOX)}</annotations>")
    assert len(read(tmp_path / "annotations.xml", "train")) == 1


TRACK = (
    '<track id="7" label="cat"><box frame="0" outside="0" xtl="4" ytl="5" xbr="24" ybr="20"/>'
    '<box frame="2" outside="0" xtl="5" ytl="5" xbr="24" ybr="20"/>'
    '<box frame="3" outside="1" xtl="5" ytl="5" xbr="24" ybr="20"/></track>'
)


def test_tracks_of_a_video(tmp_path):
    frames = [f"images/frame_{number:06}.png" for number in range(4)]
    assert boxes(tmp_path, TRACK, *frames) == [[[4, 5, 24, 20]], [], [[5, 5, 24, 20]], []]


def test_a_video_without_its_frames(tmp_path):
    save(tmp_path, TRACK, "a.jpg")
    with pytest.raises(
        UserError, match=r"annotations\.xml: it is CVAT for video, and .* export the task as CVAT for images"
    ):
        read(tmp_path, "train")


def test_a_frame_that_is_missing(tmp_path):
    save(tmp_path, TRACK, "images/frame_000000.png")
    with pytest.raises(UserError, match=r"1 × missing-image, first .*frame_000002\.png"):
        read(tmp_path, "train")


BOMB = '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;&b;">]>'


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (image('<box label="cat" xtl="4" ytl="5" xbr="x" ybr="20"/>'), "broken-file, first .*xml: image 0, box 1"),
        (image('<box xtl="4" ytl="5" xbr="6" ybr="20"/>'), "image 0, box 1 has no label or no numbers of a box"),
        (image('<polygon label="cat" points="1,2;3;4,5"/>'), "image 0, polygon 1 has no label or no numbers"),
        (image('<box label="c" xtl="4" ytl="5" xbr="9" ybr="9" rotation="inf"/>'), "image 0, box 1 has"),
        (image('<box label="cat" xtl="4" ytl="nan" xbr="5" ybr="20"/>'), "nan-box, first .*xml: image 0, box 1"),
        (image(BOX, name=" "), "image 0 has no name"),
        (image(BOX, name="../x.jpg"), "path-outside-root"),
        (image(BOX, name="b.jpg"), r"missing-image, first .*b\.jpg"),
        (image(BOX) + image(id=1), r"duplicate-image, first .*xml: a\.jpg is there twice"),
        (image(BOX) + "<image", r"1 × broken-file, first .*annotations\.xml: it is not XML"),
    ],
)  # fmt: skip
def test_damaged_files(tmp_path, body, message):
    save(tmp_path, body)
    with pytest.raises(UserError, match=message):
        read(tmp_path, "train")


def test_an_xml_bomb(tmp_path):
    save(tmp_path, image(BOX))
    path = tmp_path / "annotations.xml"
    path.write_text(f"{BOMB}<annotations><version>&c;</version></annotations>")  # CVAT writes no DOCTYPE
    with pytest.raises(UserError, match=r"no data set of a known format|not in the format cvat"):
        read(path, "train", format="cvat")


def test_given_classes(tmp_path):
    save(tmp_path, image(BOX))
    assert read(tmp_path, "train", classes=["dog", "cat"]).records[0].labels.tolist() == [1]
    with pytest.raises(UserError, match="1 × unknown-class"):
        read(tmp_path, "train", classes=["dog"])
