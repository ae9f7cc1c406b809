"""Conversion between COCO, VOC and YOLO: what the readers return, and which losses are reported."""

import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from PIL import Image

from detect.curation.convert import convert
from detect.data.read import read, splits
from detect.errors import UserError

FORMATS = ("coco", "voc", "yolo")
CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 5, "name": "traffic light"}, {"id": 90, "name": "b<&>é"}]


def save_image(path, size=(41, 31), turn=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, (len(path.name), 7, 99))
    exif = Image.Exif()
    exif[0x0112] = turn
    image.save(path, exif=exif)


def save_coco(root, split, images, annotations=(), categories=CATEGORIES):
    """Write a COCO split of images (id, file name) and annotations (image, category, bbox, other fields)."""
    entries = [
        {"id": place, "image_id": image, "category_id": category, "bbox": bbox, "area": bbox[2] * bbox[3], "iscrowd": 0}
        | fields
        for place, (image, category, bbox, fields) in enumerate(annotations, start=1)
    ]
    names = [{"id": id, "file_name": name} for id, name in images]
    path = root / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": names, "annotations": entries, "categories": categories}))


@pytest.fixture
def plain(tmp_path):
    """Data set that all formats can store, except category ids: decimals, edges, an empty and a rotated image."""
    root = tmp_path / "plain"
    for split, name in [("train", "1.png"), ("train", "2 b.png"), ("val", "3.jpg")]:
        save_image(root / split / name, turn=6 if name == "3.jpg" else 1)
    boxes = [
        (1, 90, [0, 0, 41, 31], {}),
        (1, 3, [0.1, 2.7, 10.333, 20.5], {}),
        (1, 3, [7, 8, 9, 10], {}),
        (1, 3, [7, 8, 9, 10], {}),
    ]
    save_coco(root, "train", [(1, "1.png"), (2, "2 b.png")], boxes)
    save_coco(root, "val", [(3, "3.jpg")], [(3, 5, [30 / 7, 0.001, 26, 40.999], {})])
    return root


def check_same(before, after, *, ids=True):
    assert [record.id for record in before.records] == [record.id for record in after.records] or not ids
    for one, other in zip(before.records, after.records, strict=True):
        assert (one.width, one.height) == (other.width, other.height)
        np.testing.assert_array_equal(one.boxes, other.boxes)
        names = [
            [dataset.classes[label] for label in record.labels] for dataset, record in ((before, one), (after, other))
        ]
        assert names[0] == names[1]
        for column in ("crowd", "difficult"):
            np.testing.assert_array_equal(getattr(one, column), getattr(other, column))
        np.testing.assert_allclose(one.areas, other.areas, rtol=1e-6)
        assert one.path.read_bytes() == other.path.read_bytes()


@pytest.mark.parametrize("second", FORMATS)
@pytest.mark.parametrize("first", FORMATS)
def test_every_way_around(plain, tmp_path, first, second):
    convert(plain, tmp_path / "one", first, progress=False)
    convert(tmp_path / "one", tmp_path / "two", second, progress=False)
    done = convert(tmp_path / "two", tmp_path / "three", "coco", progress=False)
    assert done.images == {"train": 2, "val": 1} and done.boxes == {"train": 4, "val": 1}
    for split in ("train", "val"):
        before = read(plain, split)
        for folder in ("one", "two", "three"):
            after = read(tmp_path / folder, split)
            assert after.repaired == ()
            check_same(before, after)
    assert set(splits(tmp_path / "two")) == {"train", "val"}


def test_coco_keeps_ids_areas_and_crowds(plain, tmp_path):
    boxes = [(12, 90, [1, 2, 3, 4], {"area": 5.5}), (11, 3, [0, 0, 20, 20], {"iscrowd": 1})]
    save_coco(plain, "train", [(12, "1.png"), (11, "2 b.png")], boxes)
    done = convert(plain, tmp_path / "out", "coco", progress=False)
    turned = "image is stored rotated (EXIF): its boxes refer to the upright image"
    assert +done.changed == {turned: 1}
    assert done.classes == ("cat", "traffic light", "b<&>é")
    before, after = read(plain, "train"), read(tmp_path / "out", "train")
    check_same(before, after)
    assert after.category_ids == (3, 5, 90) and after.classes == before.classes
    assert after.records[1].crowd.tolist() == [True] and after.records[0].areas.tolist() == [5.5]


def test_losses_of_voc_are_reported(plain, tmp_path):
    boxes = [
        (12, 90, [1, 2, 3, 4], {"area": 5.5}),
        (12, 90, [1, 2, 1, 4], {}),
        (11, 3, [0, 0, 20, 20], {"iscrowd": 1}),
    ]
    save_coco(plain, "train", [(12, "1.png"), (11, "2 b.png")], boxes)
    done = convert(plain, tmp_path / "out", "voc", ["train"], progress=False)
    assert +done.changed == {
        "crowd left out: VOC has only single objects": 1,
        "box left out: in VOC a box at most one pixel wide or high has no area": 1,
        "area replaced by the area of the box: VOC has no areas": 1,
        "class without objects lost: VOC has no list of classes": 2,
        "category gets a new id: VOC numbers its categories": 1,
        "image gets a new id: VOC has only file names": 2,
    }
    after = read(tmp_path / "out", "train")
    assert after.classes == done.classes == ("b<&>é",) and after.repaired == ()
    np.testing.assert_array_equal(after.records[0].boxes, [[1, 2, 4, 6]])
    assert len(after.records[1].boxes) == 0
    lines = done.lines()
    assert lines[:2] == ["train: 2 images, 1 boxes", "1 classes"] and lines[-1].startswith("only boxes are")
    assert "1 × crowd left out: VOC has only single objects" in lines


def test_losses_of_yolo_are_reported(plain, tmp_path):
    boxes = [(1, 90, [1, 2, 0.5, 4], {"area": 5.5}), (1, 3, [0, 0, 20, 20], {"iscrowd": 1})]
    save_coco(plain, "train", [(1, "1.png"), (2, "2 b.png")], boxes)
    done = convert(plain, tmp_path / "out", "yolo", ["train"], progress=False)
    assert +done.changed == {
        "crowd left out: YOLO has only single objects": 1,
        "area replaced by the area of the box: YOLO has no areas": 1,
        "category gets a new id: YOLO numbers its categories": 3,
    }
    after = read(tmp_path / "out", "train")
    np.testing.assert_array_equal(after.records[0].boxes, np.float32([[1, 2, 1.5, 6]]))
    assert after.classes == ("cat", "traffic light", "b<&>é")
    assert (tmp_path / "out" / "labels" / "train" / "2 b.txt").read_bytes() == b""


def test_difficult(plain, tmp_path):
    convert(plain, tmp_path / "voc", "voc", progress=False)
    (path,) = (tmp_path / "voc" / "Annotations").glob("1.xml")
    path.write_text(path.read_text("utf-8").replace("<difficult>0", "<difficult>1", 1), "utf-8")
    done = convert(tmp_path / "voc", tmp_path / "again", "voc", progress=False)
    assert not any("difficult" in what for what in +done.changed)
    check_same(read(tmp_path / "voc", "train"), read(tmp_path / "again", "train"))
    for to in ("coco", "yolo"):
        done = convert(tmp_path / "voc", tmp_path / to, to, progress=False)
        assert done.changed[f"difficult flag lost: {to.upper()} has none"] == 1


def test_an_image_of_two_splits_lies_once_in_voc(plain, tmp_path):
    convert(plain, tmp_path / "voc", "voc", progress=False)
    lists = tmp_path / "voc" / "ImageSets" / "Main"
    (lists / "trainval.txt").write_text((lists / "train.txt").read_text() + (lists / "val.txt").read_text())
    for between in ("voc", "coco"):
        convert(tmp_path / "voc", tmp_path / f"by {between}", between, progress=False)
        convert(tmp_path / f"by {between}", tmp_path / f"after {between}", "voc", progress=False)
        assert len(list((tmp_path / f"after {between}" / "JPEGImages").iterdir())) == 3
        for split in ("train", "val", "trainval"):
            check_same(read(tmp_path / "voc", split), read(tmp_path / f"after {between}", split))


def test_names_that_collide_or_are_unsafe(tmp_path):
    names = ["a.png", "A.jpg", "x/a.png", "a_2.png", "c.jpg.png", " d .png", "e:f.png", "no ending", ".g.png"]
    for name in names:
        save_image(tmp_path / "in" / "train" / "tmp.png")
        (tmp_path / "in" / "train" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / "train" / "tmp.png").rename(tmp_path / "in" / "train" / name)
    images = list(enumerate(names, start=1))
    save_coco(tmp_path / "in", "train", images, [(id, 3, [id, 2, 3, 4], {}) for id, _ in images])
    for to in FORMATS:
        done = convert(tmp_path / "in", tmp_path / to, to, progress=False)
        after = read(tmp_path / to, "train")
        assert (
            after.repaired == ()
            and done.changed["image renamed: its name is taken or not allowed on some systems"] == 8
        )
        order = np.argsort([record.boxes[0, 0] for record in after.records])
        stems = [after.records[place].path.name for place in order]
        assert stems == [
            *("a.png", "A_2.jpg", "a_3.png", "a_2_2.png", "c_jpg.png", "d.png", "e_f.png", "no ending.png", "g.png")
        ]


def test_splits_of_coco_that_disagree_on_the_classes(tmp_path):
    for split in ("train", "val"):
        save_image(tmp_path / "in" / split / f"{split}.png")
    save_coco(tmp_path / "in", "train", [(1, "train.png")], [(1, 4, [1, 2, 3, 4], {})], [{"id": 4, "name": "cat"}])
    categories = [{"id": 4, "name": "dog"}, {"id": 9, "name": "cat"}]
    save_coco(
        tmp_path / "in", "val", [(1, "val.png")], [(1, 4, [1, 2, 3, 4], {}), (1, 9, [1, 2, 3, 4], {})], categories
    )
    done = convert(tmp_path / "in", tmp_path / "out", "yolo", progress=False)
    assert done.classes == ("cat", "dog")
    assert read(tmp_path / "out", "train").records[0].labels.tolist() == [0]
    assert read(tmp_path / "out", "val").records[0].labels.tolist() == [1, 0]


@pytest.mark.parametrize("to", FORMATS)
def test_no_image_and_no_class(tmp_path, to):
    save_coco(tmp_path / "in", "train", [], categories=[])
    done = convert(tmp_path / "in", tmp_path / "out", to, progress=False)
    after = read(tmp_path / "out", "train")
    assert len(after) == 0 and after.classes == done.classes == () and done.images == {"train": 0}


@pytest.mark.parametrize("to", FORMATS)
def test_limit(plain, tmp_path, to):
    done = convert(plain, tmp_path / "out", to, limit=1, progress=False)
    assert done.images == {"train": 1, "val": 1}
    assert [record.path.name for record in read(tmp_path / "out", "train").records] == ["1.png"]


def test_repairs_and_omissions_are_reported(plain, tmp_path):
    boxes = [(1, 3, [-5, 2, 20, 4], {}), (1, 3, [5, 2, 0, 4], {}), (2, 3, [5, 2, 2, 4], {})]
    save_coco(plain, "train", [(1, "1.png"), (2, "2 b.png")], boxes)
    (plain / "train" / "2 b.png").write_bytes(b"no image")
    done = convert(plain, tmp_path / "out", "coco", ["train"], progress=False)
    assert {what.partition(":")[0]: number for what, number in (+done.changed).items()} == {
        "zero-area": 1,
        "clipped": 1,
    }
    assert len(done.unreadable) == 1 and "2 b.png: this is not an image" in done.unreadable[0]
    assert done.images == {"train": 1} and done.boxes == {"train": 1}


def test_crops_by_the_same_entry(plain, tmp_path):
    done = convert(plain, tmp_path / "out", "imagefolder", ["train"], progress=False)
    assert done.lines() == [
        "class 'b<&>é': its folder is b_&_é",
        "1 images of 1 classes; 3 boxes with a side under 16 pixels and 0 crowds left out",
    ]


def test_a_split_named_twice_is_counted_once(plain, tmp_path):
    save_coco(plain, "val", [(3, "3.jpg")], [(3, 5, [1, 2, 0, 4], {})])
    done = convert(plain, tmp_path / "out", "voc", ["val", "valid"], progress=False)
    assert {number for what, number in done.changed.items() if what.startswith("zero-area")} == {1}


def test_a_margin_of_nothing(plain, tmp_path):
    convert(plain, tmp_path / "out", "imagefolder", ["val"], margin=0.0, progress=False)
    (path,) = (tmp_path / "out").rglob("*.jpg")
    with Image.open(path) as image:
        assert image.size == (27, 41)  # x from 4.3 to 30.3, and the whole height of the upright image, 31 × 41


def test_an_empty_split_that_yolo_does_not_know(tmp_path):
    save_coco(tmp_path / "in", "more", [])
    with pytest.raises(UserError, match="YOLO has only train, val and test, not the split more"):
        convert(tmp_path / "in", tmp_path / "out", "yolo", progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "coco", "limit": 0}, "--limit: 0"),
        ({"to": "coco", "margin": 0.0}, "--margin: only crops"),
        ({"to": "coco", "names": ["test"]}, "there is no split test"),
        ({"to": "yolo", "names": ["more"]}, "YOLO has only train, val and test, not the split more"),
        ({"to": "yolo"}, "YOLO has only train, val and test, not the split more"),
        ({"to": "yolo", "names": ["val", "val2017"]}, "the splits val and val2017 would both be YOLO's val"),
        ({"to": "voc", "names": ["val2017"]}, r"VOC cannot store the class 'a\\x00b'"),
    ],
)
def test_mistakes_leave_nothing_behind(plain, tmp_path, options, message):
    for split, id, name in [("more", 4, "4.png"), ("val2017", 5, "5.png")]:
        save_image(plain / split / name)
        save_coco(plain, split, [(id, name)], [(id, 1, [1, 2, 3, 4], {})], [{"id": 1, "name": "a\0b"}])
    with pytest.raises(UserError, match=message):
        convert(plain, tmp_path / "out", progress=False, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["plain"]


@pytest.mark.parametrize("name", [" cat", "a\rb", "\x1b", "\ud800", "\ufffe"])
def test_classes_that_xml_changes(tmp_path, name):
    save_image(tmp_path / "in" / "train" / "1.png")
    save_coco(tmp_path / "in", "train", [(1, "1.png")], [(1, 1, [1, 2, 3, 4], {})], [{"id": 1, "name": name}])
    with pytest.raises(UserError, match="VOC cannot store the class") as error:
        convert(tmp_path / "in", tmp_path / "out", "voc", progress=False)
    assert str(error.value).isprintable()
    for to in ("coco", "yolo"):
        if name == "\ud800" and to == "yolo":  # a lone surrogate, which UTF-8 cannot encode
            with pytest.raises(UserError, match="YOLO cannot store the class"):
                convert(tmp_path / "in", tmp_path / to, to, progress=False)
        else:
            convert(tmp_path / "in", tmp_path / to, to, progress=False)
            assert read(tmp_path / to, "train").classes == (name,)


def test_a_folder_that_is_there_stays(plain, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(UserError, match="the folder is not empty"):
        convert(plain, tmp_path / "out", "coco", progress=False)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_disk_that_takes_no_more(plain, tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr("detect.curation.convert.shutil.copyfile", full)
    with pytest.raises(UserError, match=r"1\.png: No space left on device; fix that or choose another --out"):
        convert(plain, tmp_path / "out", "coco", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["plain"]


# -------------------------------------------------------------------------------------------------------------- oracles


def test_pycocotools_reads_it(plain, tmp_path, capsys):
    from pycocotools.coco import COCO

    convert(plain, tmp_path / "out", "coco", progress=False)
    coco = COCO(tmp_path / "out" / "annotations" / "instances_train.json")
    for record in read(plain, "train").records:
        entries = coco.loadAnns(coco.getAnnIds(imgIds=[record.id]))
        boxes = np.array([entry["bbox"] for entry in entries]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        np.testing.assert_array_equal(boxes.astype(np.float32), record.boxes)
    assert [coco.cats[id]["name"] for id in sorted(coco.cats)] == [entry["name"] for entry in CATEGORIES]
    assert min(coco.anns) == 1
    capsys.readouterr()


def test_the_standard_library_reads_the_xml(plain, tmp_path):
    convert(plain, tmp_path / "out", "voc", progress=False)
    tree = ElementTree.parse(tmp_path / "out" / "Annotations" / "1.xml")
    corners = [[box.findtext(name) for name in ("xmin", "ymin", "xmax", "ymax")] for box in tree.iter("bndbox")]
    assert corners[0] == ["1", "1", "41", "31"] and corners[2] == ["8", "9", "16", "18"]  # whole numbers stay whole
    assert [name.text for name in tree.iterfind("object/name")] == ["b<&>é", "cat", "cat", "cat"]
    assert tree.findtext("filename") == "1.png" and tree.findtext("size/width") == "41"
    assert (tmp_path / "out" / "ImageSets" / "Main" / "train.txt").read_text() == "1\n2 b\n"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_supervision_reads_it(plain, tmp_path):
    supervision = pytest.importorskip("supervision")
    convert(plain, tmp_path / "yolo", "yolo", progress=False)
    folder = tmp_path / "yolo"
    known = supervision.DetectionDataset.from_yolo(
        str(folder / "images" / "train"), str(folder / "labels" / "train"), str(folder / "data.yaml")
    )
    dataset = read(plain, "train")
    assert tuple(known.classes) == dataset.classes
    for record in dataset.records:
        found = known.annotations[str(folder / "images" / "train" / record.path.name)]
        np.testing.assert_allclose(found.xyxy.reshape(-1, 4), record.boxes, atol=1e-4)
        np.testing.assert_array_equal([] if found.class_id is None else found.class_id, record.labels)


def test_yaml_by_itself(plain, tmp_path):
    convert(plain, tmp_path / "out", "yolo", progress=False)
    assert yaml.safe_load((tmp_path / "out" / "data.yaml").read_text("utf-8")) == {
        "train": "images/train",
        "val": "images/val",
        "nc": 3,
        "names": ["cat", "traffic light", "b<&>é"],
    }
    numbers = re.findall(r"\S+", (tmp_path / "out" / "labels" / "train" / "1.txt").read_text())
    assert numbers[:5] == ["2", "0.5", "0.5", "1", "1"] and not any("e" in number for number in numbers)


@pytest.mark.parametrize("to", ["voc", "imagefolder"])
def test_nothing_is_written_into_the_data_set(plain, to):
    before = sorted(plain.rglob("*"))
    with pytest.raises(UserError, match="sub lies in the data set; choose a folder outside of it"):
        convert(plain, plain / "sub", to, progress=False)
    assert sorted(plain.rglob("*")) == before


def test_where_no_folder_can_be_made(plain, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/out: cannot be created \(Not a directory\); fix that or choose another"):
        convert(plain, tmp_path / "file" / "out", "voc", progress=False)


@pytest.mark.parametrize(("split", "name"), [("Validation", "val"), ("training", "train"), ("all", "train")])
def test_splits_by_other_names(tmp_path, split, name):
    save_image(tmp_path / "in" / "images" / "a.jpg")
    corners = 'xtl="1" ytl="2" xbr="3" ybr="9"'
    image = f'<image id="0" name="a.jpg" subset="{split}"><box label="cat" {corners}/></image>'
    (tmp_path / "in" / "annotations.xml").write_text(f"<annotations>{image}</annotations>")
    done = convert(tmp_path / "in", tmp_path / "out", "yolo", progress=False)
    assert done.images == {name: 1} and read(tmp_path / "out", name).records[0].boxes.tolist() == [[1, 2, 3, 9]]
