"""VOC folders and coordinates, which count from 1."""

import numpy as np
import pytest
from PIL import Image

from detect.data.read import read, splits
from detect.errors import UserError


def item(name="cat", box=(2, 3, 10, 20), difficult=0):
    corners = "".join(
        f"<{tag}>{value}</{tag}>" for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{corners}</bndbox></object>"


def save(base, images, split="train"):
    """Write images, given as a mapping of stem to list of objects, and list them for a split."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    for stem, objects in images.items():
        Image.new("RGB", (40, 30)).save(base / "JPEGImages" / f"{stem}.jpg")
        text = f"<annotation><size><width>40</width><height>30</height></size>{''.join(objects)}</annotation>"
        (base / "Annotations" / f"{stem}.xml").write_text(text)
    (base / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in images))


def test_no_image(tmp_path):
    save(tmp_path, {})
    dataset = read(tmp_path, "train")
    assert len(dataset) == 0 and dataset.classes == () and dataset.format == "voc"


def test_an_image_without_boxes_is_kept(tmp_path):
    save(tmp_path, {"000001": []})
    (record,) = read(tmp_path, "train").records
    assert record.boxes.shape == (0, 4) and record.id == 1


def test_corners_count_from_1_and_belong_to_the_box(tmp_path):
    save(tmp_path, {"000012": [item(box=(1, 1, 40, 30)), item("dog", (2, 3.5, 10, 20), difficult=1)]})
    dataset = read(tmp_path, "train")
    (record,) = dataset.records
    np.testing.assert_array_equal(record.boxes, [[0, 0, 40, 30], [1, 2.5, 10, 20]])
    np.testing.assert_array_equal(record.areas, [1200, 9 * 17.5])
    assert record.labels.tolist() == [0, 1] and record.difficult.tolist() == [False, True] and not record.crowd.any()
    assert record.path == tmp_path / "JPEGImages" / "000012.jpg" and dataset.repaired == ()


@pytest.mark.parametrize(
    ("box", "rule"),
    [
        ((5, 5, 5, 5), "zero-area"),
        ((5, 5, 5, 9), "zero-area"),
        ((9, 5, 4, 9), "negative-size"),
        ((0, 1, 9, 9), "clipped"),
    ],
)
def test_corners_that_are_no_box(tmp_path, box, rule):
    save(tmp_path, {"1": [item(box=box)]})
    dataset = read(tmp_path, "train")
    assert [defect.rule for defect in dataset.repaired] == [rule]
    assert len(dataset.records[0].boxes) == (rule == "clipped")


def test_classes_are_those_of_the_whole_folder(tmp_path):
    save(tmp_path, {"a": [item("zebra")], "b": [item("ant")]})
    save(tmp_path, {"c": [item("cat")]}, split="val")
    for split in ("train", "val"):
        dataset = read(tmp_path, split)
        assert dataset.classes == ("ant", "cat", "zebra") and dataset.category_ids == (1, 2, 3)
    assert read(tmp_path, "val").records[0].labels.tolist() == [1]


def test_labels_follow_given_classes(tmp_path):
    save(tmp_path, {"a": [item("dog"), item("cat")]})
    dataset = read(tmp_path, "train", classes=("cat", "dog", "horse"))
    assert dataset.records[0].labels.tolist() == [1, 0] and dataset.classes == ("cat", "dog", "horse")
    with pytest.raises(UserError, match=r"1 × unknown-class, first .*a\.xml: object 2 \(cat\)"):
        read(tmp_path, "train", classes=("dog",))


@pytest.mark.parametrize("folder", ["VOC2007", "VOCdevkit/VOC2007", "VOC2012"])
def test_the_year_may_lie_below_the_root(tmp_path, folder):
    save(tmp_path / folder, {"a": [item()]})
    assert splits(tmp_path) == ("train",)
    assert read(tmp_path, "train").records[0].path == tmp_path / folder / "JPEGImages" / "a.jpg"


def test_two_years_are_ambiguous(tmp_path):
    for year in ("VOC2007", "VOC2012"):
        save(tmp_path / year, {"a": []})
    with pytest.raises(UserError, match="VOC2007 and VOC2012"):
        read(tmp_path, "train")


def test_lists_of_a_single_class_are_no_splits(tmp_path):
    for split in ("train", "my_train"):
        save(tmp_path, {"000012": [], "img 1": []}, split=split)
    for split, line in {
        "cat_train": "000012  1",
        "cat_trainval": "000012 -1",
        "dog_val": "000012\t0",
        "two_1": "img 1",
    }.items():
        (tmp_path / "ImageSets" / "Main" / f"{split}.txt").write_text(f"{line}\n")
    assert splits(tmp_path) == ("my_train", "train", "two_1")
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("img 1\n000012 -1\n")
    with pytest.raises(
        UserError, match=r"1 × class-list, first .*train\.txt: line 2: 000012 -1: this is the list of a single"
    ):
        read(tmp_path, "train")


@pytest.mark.parametrize(
    ("stems", "ids"),
    [
        (("2008_000003", "2008_000001"), [2008000003, 2008000001]),
        (("a1", "b1"), [1, 2]),
        (("a", "1"), [1, 2]),
        (("9" * 20, "1"), [1, 2]),
    ],
)
def test_ids(tmp_path, stems, ids):
    save(tmp_path, {stem: [] for stem in stems})
    assert [record.id for record in read(tmp_path, "train").records] == ids


def test_extensions(tmp_path):
    save(tmp_path, {"a": []})
    Image.new("RGB", (40, 30)).save(tmp_path / "JPEGImages" / "b.png")
    (tmp_path / "JPEGImages" / "a.jpg").rename(tmp_path / "JPEGImages" / "a.JPEG")
    (tmp_path / "Annotations" / "b.xml").write_text("<annotation/>")
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("a.JPEG\r\nb\r\n\r\n")
    assert [record.path.name for record in read(tmp_path, "train").records] == ["a.JPEG", "b.png"]


def test_what_is_no_image_is_not_taken_for_one(tmp_path):
    save(tmp_path, {"a": []})
    Image.new("RGB", (40, 30)).save(tmp_path / "JPEGImages" / "a.png")
    (tmp_path / "JPEGImages" / "a.jpg").unlink()
    (tmp_path / "JPEGImages" / "a.json").write_text("{}")  # as written by labelme
    assert [record.path.name for record in read(tmp_path, "train").records] == ["a.png"]


BOMB = '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;&b;">]><annotation>&c;</annotation>'


@pytest.mark.parametrize("text", ["", "<annotation>", BOMB, '<?xml version="1.0" encoding="none"?><a/>', "\0", "{}"])
def test_files_that_are_no_xml(tmp_path, text):
    save(tmp_path, {"a": []})
    (tmp_path / "Annotations" / "a.xml").write_text(text)
    with pytest.raises(UserError, match=r"1 × broken-file, first .*a\.xml: it is not XML") as error:
        read(tmp_path, "train")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "<object/>",
        "<object><name> </name></object>",
        "<object><name>cat</name></object>",
        item(box=(1, 2, 3, "")),
        item(box=(1, 2, 3, "4 px")),
    ],
)
def test_objects_that_are_none(tmp_path, text):
    save(tmp_path, {"a": [item(), text]})
    with pytest.raises(UserError, match=r"1 × broken-file, first .*a\.xml: object 2"):
        read(tmp_path, "train")


def test_an_image_without_its_xml(tmp_path):
    save(tmp_path, {"a": []})
    (tmp_path / "Annotations" / "a.xml").unlink()
    with pytest.raises(UserError, match=r"1 × missing-annotation, first .*a\.xml"):
        read(tmp_path, "train")
    with pytest.raises(UserError, match="missing-annotation"):
        read(tmp_path, "train", classes=("cat",))


def test_a_line_twice(tmp_path):
    save(tmp_path, {"a": []})
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("a\na\n")
    with pytest.raises(UserError, match=r"1 × duplicate-image, first .*train\.txt: line 2: a"):
        read(tmp_path, "train")


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd"])
def test_names_that_lead_out(tmp_path, name):
    save(tmp_path, {"a": []})
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text(f"a\n{name}\n")
    with pytest.raises(UserError, match=r"1 × path-outside-root, first .*train\.txt: line 2"):
        read(tmp_path, "train")


@pytest.mark.parametrize("name", ["x" * 5000, "x " * 3000, "x/" * 3000 + "y", "a\0b", "x" * 300 + " 7"])
def test_names_that_no_file_can_have(tmp_path, name):
    save(tmp_path, {"a": []})
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text(f"a\n{name}\n")
    with pytest.raises(UserError, match=r"1 × (missing-annotation|path-outside-root)") as error:
        read(tmp_path, "train")
    assert str(error.value).isprintable() and len(str(error.value)) < 1500


def test_years_whose_names_are_no_line(tmp_path):
    for year in ("VOC2007\n", "VOC2012"):
        save(tmp_path / year, {"a": []})
    with pytest.raises(UserError, match="give one of these folders as the root") as error:
        read(tmp_path, "train")
    assert str(error.value).isprintable()


XML = "<annotation><filename>{}</filename><object><name>cat</name><bndbox>{}</bndbox></object></annotation>"
CORNERS = "<xmin>3</xmin><ymin>5</ymin><xmax>10</xmax><ymax>12</ymax>"


def save_pair(root, image, annotation, filename="x.jpg"):
    for path in (root / image, root / annotation):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 20)).save(root / image)
    (root / annotation).write_text(XML.format(filename, CORNERS))


@pytest.mark.parametrize(
    "places",
    [("a.jpg", "a.xml"), ("images/a.jpg", "annotations/a.xml"), ("a.png", "annots/a.xml"), ("img/a.JPG", "xml/a.xml")],
)
def test_xml_files_without_lists_are_one_split(tmp_path, places):
    save_pair(tmp_path, *places)
    assert splits(tmp_path) == ("all",)
    dataset = read(tmp_path, "train")
    assert (dataset.split, dataset.format, dataset.classes) == ("all", "voc", ("cat",))
    (record,) = dataset.records
    assert record.path == tmp_path / places[0] and record.boxes.tolist() == [[2, 4, 10, 12]]


def test_folders_are_splits_and_classes_do_not_depend_on_them(tmp_path):
    save_pair(tmp_path, "train/a.jpg", "train/a.xml")
    save_pair(tmp_path, "valid/a.jpg", "valid/a.xml")
    text = (tmp_path / "valid" / "a.xml").read_text()
    (tmp_path / "valid" / "a.xml").write_text(text.replace("cat", "bat"))
    assert splits(tmp_path) == ("train", "valid")
    assert read(tmp_path, "train").classes == read(tmp_path, "val").classes == ("bat", "cat")
    assert read(tmp_path, "val").records[0].path == tmp_path / "valid" / "a.jpg"


@pytest.mark.parametrize("folder", ["{}", "images/{}"])
def test_a_missing_image_is_not_taken_from_another_split(tmp_path, folder):
    save_pair(tmp_path, f"{folder.format('train')}/a.jpg", "train/a.xml", filename="a.jpg")
    save_pair(tmp_path, f"{folder.format('test')}/a.jpg", "test/a.xml", filename="a.jpg")
    (tmp_path / folder.format("test") / "a.jpg").unlink()
    with pytest.raises(UserError, match=r"split test: 1 × missing-image, first .*test/a\.jpg: there is no such file"):
        read(tmp_path, "test")


def test_the_image_is_the_one_that_the_file_names_if_no_image_has_its_stem(tmp_path):
    save_pair(tmp_path, "images/b.jpg", "annotations/a.xml", filename="B.jpg")
    assert read(tmp_path, "train").records[0].path == tmp_path / "images" / "b.jpg"
    (tmp_path / "images" / "b.jpg").rename(tmp_path / "c.jpg")
    with pytest.raises(UserError, match=r"1 × missing-image, first .*annotations/a\.jpg: there is no such file"):
        read(tmp_path, "train")


def test_other_xml_files_are_no_annotations(tmp_path):
    (tmp_path / "a.xml").write_text("<?xml version='1.0'?><annotations><version>1.1</version></annotations>")
    (tmp_path / "b.xml").write_text("<html><annotation/></html>")
    with pytest.raises(UserError, match="no data set of a known format"):
        splits(tmp_path)


def test_a_declaration_and_a_comment_come_before_the_annotation(tmp_path):
    save_pair(tmp_path, "a.jpg", "a.xml")
    text = (tmp_path / "a.xml").read_text()
    (tmp_path / "a.xml").write_text(f'<?xml version="1.0"?>\n<!-- by hand -->\n{text}', encoding="utf-8-sig")
    assert len(read(tmp_path, "train").records[0].boxes) == 1
