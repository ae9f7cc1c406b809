"""YOLO folders: data.yaml, images and labels."""

import numpy as np
import pytest
from PIL import Image

from detect.data.defects import refuse_without_boxes
from detect.data.read import read, splits
from detect.errors import UserError

YAML = "names: [cat, dog]\ntrain: images/train\nval: images/val\n"


def save_image(path, size=(40, 20)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)


@pytest.fixture
def root(tmp_path):
    """Data folder with one image in train and none in val."""
    (tmp_path / "data.yaml").write_text(YAML)
    save_image(tmp_path / "images" / "train" / "a.jpg")
    (tmp_path / "images" / "val").mkdir()
    (tmp_path / "labels" / "train").mkdir(parents=True)
    return tmp_path


def label(root, text, name="a"):
    (root / "labels" / "train" / f"{name}.txt").write_text(text)


def test_no_image(root):
    dataset = read(root, "val")
    assert len(dataset) == 0 and dataset.classes == ("cat", "dog") and dataset.format == "yolo"


@pytest.mark.parametrize("text", [None, "", "\n\n"])
def test_an_image_without_labels_is_empty_and_one_without_their_file_is_counted(root, text):
    if text is not None:
        label(root, text)
    dataset = read(root, "train")
    (record,) = dataset.records
    missing = [("missing-label", root / "labels" / "train" / "a.txt")]
    assert [(defect.rule, defect.path) for defect in dataset.repaired] == (missing if text is None else [])
    assert record.boxes.shape == (0, 4) and (record.width, record.height, record.id) == (40, 20, 1)


def test_boxes_and_polygons(root):
    label(root, "1 0.5 0.5 0.5 0.25\n0 0.25 0.25 0.5 0.125 0.375 0.75\n\n0.0 0.5 0.5 1 1 \n")
    dataset = read(root, "train")
    (record,) = dataset.records
    np.testing.assert_array_equal(record.boxes, [[10, 7.5, 30, 12.5], [10, 2.5, 20, 15], [0, 0, 40, 20]])
    np.testing.assert_array_equal(record.labels, [1, 0, 0])
    np.testing.assert_array_equal(record.areas, [100, 56.25, 800])
    assert dataset.repaired == () and dataset.category_ids == (0, 1)


def test_the_rounding_of_the_file_is_no_defect(root):
    label(root, "0 0.333333 0.5 0.666667 1.0000002")
    dataset = read(root, "train")
    assert dataset.repaired == () and dataset.records[0].boxes.min() == 0


def test_the_expected_label_path_is_reported_when_all_are_missing(root):
    with pytest.raises(
        UserError, match=r"no box to train on: 1 × missing-label, first .*/labels/train/a\.txt: .*`labels`"
    ):
        refuse_without_boxes(read(root, "train"))


@pytest.mark.parametrize("line", ["0 320 240 100 80", "0 5 5 9 5 9 9", "0 0.5 0.5 2.1 1"])
def test_boxes_in_pixels(root, line):
    label(root, f"0 0.9 0.5 0.5 1.2\n{line}\n")
    largest = {"0 320 240 100 80": "320", "0 5 5 9 5 9 9": "7", "0 0.5 0.5 2.1 1": "2.1"}[line]
    problem = f"line 2: it has the number {largest}"
    with pytest.raises(UserError, match=rf"1 × pixel-box, first .*a\.txt: {problem} \(YOLO needs fractions"):
        read(root, "train")


def test_a_box_that_is_infinite_is_none_in_pixels(root):
    label(root, "0 0.5 0.5 inf 1")
    with pytest.raises(UserError, match="1 × nan-box"):
        read(root, "train")


def test_a_class_that_has_no_name(root):
    label(root, "2 0.5 0.5 1 1")
    with pytest.raises(
        UserError, match=r"1 × unknown-category, first .*: line 1: class 2, which is not one of names in data.yaml"
    ):
        read(root, "train")


@pytest.mark.parametrize(
    ("nc", "shown"),
    [("3", '"3"'), ("", '""'), ("[2]", r'\["2"\]'), ("2020-01-01", '"2020-01-01"'), ("0x1" + "0" * 5000, '"0x10*')],
)
def test_a_count_that_differs_from_the_names(root, nc, shown):
    (root / "data.yaml").write_text(f"nc: {nc}\n{YAML}")
    with pytest.raises(UserError, match=rf"1 × class-count, first .*data\.yaml: nc is {shown}, but names has 2"):
        read(root, "train")


def test_a_count_that_is_that_of_the_names(root):
    (root / "data.yaml").write_text(f"nc: 2\n{YAML}")
    assert read(root, "train").classes == ("cat", "dog")


@pytest.mark.parametrize("key", ["val", "valid", "validation"])
def test_the_validation_split_has_three_names(root, key):
    (root / "data.yaml").write_text(f"names: [cat]\ntrain: images/train\n{key}: images/val\n")
    for name in ("val", "valid", "validation"):
        assert read(root, name).split == key


def test_names_as_a_dict_need_not_be_dense(root):
    (root / "data.yaml").write_text("names: {4: 1, 2: cat}\ntrain: images/train\n")
    label(root, "4 0.5 0.5 0.5 0.5\n2 0.5 0.5 0.5 0.5")
    dataset = read(root, "train")
    assert (dataset.classes, dataset.category_ids) == (("cat", "1"), (2, 4))
    assert dataset.records[0].labels.tolist() == [1, 0]


def test_labels_follow_given_classes(root):
    label(root, "0 0.5 0.5 0.5 0.5\n1 0.5 0.5 0.5 0.5")
    dataset = read(root, "train", classes=("bird", "dog", "cat"))
    assert dataset.records[0].labels.tolist() == [2, 1] and dataset.category_ids == (2, 1, 0)
    with pytest.raises(UserError, match=r"1 × unknown-class, first .*a\.txt: line 2: class 1, dog"):
        read(root, "train", classes=("cat",))


def test_splits_are_those_that_are_named(root):
    (root / "data.yaml").write_text(YAML + "test:\n")
    assert splits(root) == ("train", "val")


@pytest.mark.parametrize("entry", ["../train/images", "train/images", "./train/images"])
def test_images_and_labels_within_the_folder_of_the_split(root, entry):
    save_image(root / "train" / "images" / "deep" / "x.png")
    save_image(root / "train" / "images" / "._x.png")
    (root / "train" / "labels" / "deep").mkdir(parents=True)
    (root / "train" / "labels" / "deep" / "x.txt").write_text("1 0.5 0.5 1 1")
    (root / "data.yaml").write_text(f"names: [cat, dog]\ntrain: {entry}\n")
    (record,) = read(root, "train").records
    assert record.path == root / "train" / "images" / "deep" / "x.png" and record.labels.tolist() == [1]


def test_several_folders(root):
    save_image(root / "images" / "more" / "b.jpg")
    (root / "data.yaml").write_text("names: [cat]\ntrain: [images/train, images/more]\n")
    assert [record.path.name for record in read(root, "train").records] == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize("line", ["./images/train/a.jpg", "images/train/a.jpg"])
def test_a_list_of_images(root, line):
    label(root, "1 0.5 0.5 1 1")
    (root / "train.txt").write_text(f"{line}\n\n")
    (root / "data.yaml").write_text("names: [cat, dog]\ntrain: train.txt\n")
    (record,) = read(root, "train").records
    assert record.path == root / "images" / "train" / "a.jpg" and record.labels.tolist() == [1]


def test_a_list_may_name_whole_paths_within_the_root(root):
    (root / "train.txt").write_text(f"{root / 'images' / 'train' / 'a.jpg'}\n")
    (root / "data.yaml").write_text("names: [cat]\ntrain: train.txt\n")
    assert len(read(root, "train")) == 1


def test_a_list_that_names_an_image_twice(root):
    (root / "train.txt").write_text("images/train/a.jpg\nimages/train/a.jpg\n")
    (root / "data.yaml").write_text("names: [cat]\ntrain: train.txt\n")
    with pytest.raises(UserError, match="1 × duplicate-image,"):
        read(root, "train")


@pytest.mark.parametrize("path", [".", "/somewhere/else", "../datasets/cats"])
def test_path_of_another_machine_is_ignored(root, path):
    (root / "data.yaml").write_text(f"path: {path}\n{YAML}")
    assert len(read(root, "train")) == 1


def test_path_within_the_root(root):
    save_image(root / "cats" / "images" / "b.jpg")
    (root / "data.yaml").write_text("path: cats\nnames: [cat]\ntrain: images\n")
    assert read(root, "train").records[0].path.name == "b.jpg"


@pytest.mark.parametrize("line", ["../../secret.jpg", "/etc/secret.jpg"])
def test_names_that_lead_out(root, line):
    (root / "train.txt").write_text(line)
    (root / "data.yaml").write_text("names: [cat]\ntrain: train.txt\n")
    with pytest.raises(UserError, match="1 × path-outside-root"):
        read(root, "train")
    (root / "data.yaml").write_text("names: [cat]\ntrain: ../../elsewhere\n")
    with pytest.raises(UserError, match="1 × path-outside-root"):
        read(root, "train")


@pytest.mark.parametrize(
    "line",
    ["0", "0 1 2 3", "0 1 2 3 4 5", "0 1 2 3 4 5 6 7", "cat 1 2 3 4", "0.5 0.5 0.5 1 1", "nan 1 1 1 1", "inf 1 1 1 1"],
)
def test_lines_that_are_no_box(root, line):
    label(root, f"0 0.5 0.5 1 1\n{line}\n")
    with pytest.raises(UserError, match=r"1 × broken-file, first .*a\.txt: line 2"):
        read(root, "train")


def test_labels_that_are_no_text(root):
    (root / "labels" / "train" / "a.txt").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(UserError, match=r"1 × broken-file, first .*a\.txt"):
        read(root, "train")


BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nnames: [*b, *b]\ntrain: images/train\n"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7",
        "names: [",
        "[" * 5000,
        "!!python/object/apply:os.getcwd []",
        BOMB,
        "train: images/train",
        "train: images/train\nnames: cat",
        "train: images/train\nnames: [cat, cat]",
        "train: images/train\nnames: [[cat]]",
        "train: images/train\nnames: {cat: 0}",
        "names: [cat]\ntrain: nowhere",
        "\0",
    ],
)
def test_yaml_that_describes_no_data_set(root, text):
    (root / "data.yaml").write_text(text)
    with pytest.raises(UserError, match=r"data\.yaml") as error:
        read(root, "train")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "value",
    ["!!int ''", "!!bool maybe", "!!timestamp soon", "!!float abc", "2001-99-99", ":".join(["59"] * 300) + ".5"],
)
def test_values_are_read_as_text_whatever_yaml_takes_them_for(root, value):
    (root / "data.yaml").write_text(f"names: [cat]\ntrain: images/train\nx: {value}\n")
    assert read(root, "train").classes == ("cat",)


@pytest.mark.parametrize(
    "entry", ["{a: b}", "[{a: b}]", "[[images/train]]", "!!binary YQ==", "0x" + "f" * 6000, "[null]"]
)
def test_splits_that_are_no_paths(root, entry):
    (root / "data.yaml").write_text(f"names: [cat]\ntrain: {entry}\n")
    with pytest.raises(UserError, match=r"train names .*, which does not exist below .*; correct the entry, or move"):
        read(root, "train")


@pytest.mark.parametrize("name", ["[a]", "!!pairs [a: b]", "''"])
def test_names_that_are_no_text(root, name):
    (root / "data.yaml").write_text(f"names: [cat, {name}]\ntrain: images/train\n")
    with pytest.raises(UserError, match="one of the names is not text"):
        read(root, "train")


@pytest.mark.parametrize(
    "names", [("no", "yes"), ("off", "on"), ("n", "Y"), ("null", "~"), ("1e3", "012"), ("=", "<<")]
)
def test_names_that_yaml_takes_for_other_values(root, names):
    (root / "data.yaml").write_text(f"names: [{', '.join(names)}]\ntrain: images/train\n")
    assert read(root, "train").classes == names


def test_names_that_yaml_takes_for_numbers_and_dates(root):
    (root / "data.yaml").write_text("names: [1, 2.5, 2001-01-01]\ntrain: images/train\n")
    assert read(root, "train").classes == ("1", "2.5", "2001-01-01")


@pytest.mark.parametrize("name", ["x" * 5000, "x/" * 3000, '"\\u202e"', '"a\\nb"', "nowhere"])
def test_places_that_are_not_there(root, name):
    (root / "data.yaml").write_text(f"names: [cat]\ntrain: {name}\n")
    with pytest.raises(UserError, match="which does not exist") as error:
        read(root, "train")
    assert str(error.value).isprintable() and len(str(error.value)) < 1500


@pytest.mark.parametrize("line", [".", "./", "./.", ".//."])
def test_a_list_that_names_the_data_folder_itself(root, line):
    """The label file of the folder itself would lie outside of the folder."""
    (root.parent / f"{root.name}.txt").write_text("0 0.5 0.5 1 1\n")
    (root / "train.txt").write_text(f"{line}\n")
    (root / "data.yaml").write_text("names: [cat]\ntrain: train.txt\n")
    with pytest.raises(UserError, match="1 × path-outside-root"):
        read(root, "train")


def test_a_list_of_names_that_no_file_can_have(root):
    (root / "train.txt").write_text("x" * 5000 + "\n")
    (root / "data.yaml").write_text("names: [cat]\ntrain: train.txt\n")
    with pytest.raises(UserError, match="1 × missing-image") as error:
        read(root, "train")
    assert len(str(error.value)) < 1500


def layout(root, *, images, labels, text="1 0.5 0.5 0.5 0.5\n"):
    for image, file in zip(images, labels, strict=True):
        save_image(root / image)
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(text)


@pytest.mark.parametrize("name", ["data.yml", "dataset.yaml", "coco128.yaml"])
def test_a_yaml_of_any_name(tmp_path, name):
    layout(tmp_path, images=["images/train/a.jpg"], labels=["labels/train/a.txt"])
    (tmp_path / name).write_text("names: [cat, dog]\ntrain: images/train\n")
    (tmp_path / "hyp.yaml").write_text("lr0: 0.01\n")
    for root in (tmp_path, tmp_path / name):
        dataset = read(root, "train")
        assert dataset.root == tmp_path and dataset.records[0].labels.tolist() == [1]


def test_two_yaml_files_with_names(tmp_path):
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text("names: [cat]\ntrain: .\n")
    with pytest.raises(UserError, match=r"a\.yaml and b\.yaml all name classes; give one of these files as the root"):
        splits(tmp_path)


@pytest.mark.parametrize("file", ["classes.txt", "labels/classes.txt", "obj.names", "labels/_darknet.labels"])
def test_class_names_without_a_yaml(tmp_path, file):
    layout(tmp_path, images=["images/a.jpg", "images/b.jpg"], labels=["labels/a.txt", "labels/b.txt"])
    (tmp_path / "labels" / "b.txt").unlink()
    (tmp_path / file).write_text("cat\ndog\n\n")
    assert splits(tmp_path) == ("all",)
    dataset = read(tmp_path, "train")
    assert [len(record.boxes) for record in dataset.records] == [1, 0] and dataset.classes == ("cat", "dog")
    assert [defect.rule for defect in dataset.repaired] == ["missing-label"]


def test_labels_beside_the_images_in_the_folders_of_the_splits(tmp_path):
    layout(tmp_path, images=["train/a.jpg", "valid/b.jpg"], labels=["train/a.txt", "valid/b.txt"])
    (tmp_path / "train" / "classes.txt").write_text("cat\ndog")
    assert splits(tmp_path) == ("train", "valid")
    assert read(tmp_path, "val").records[0].path == tmp_path / "valid" / "b.jpg"


def test_names_files_that_disagree(tmp_path):
    layout(tmp_path, images=["images/a.jpg"], labels=["labels/a.txt"])
    (tmp_path / "classes.txt").write_text("cat")
    (tmp_path / "labels" / "classes.txt").write_text("dog")
    with pytest.raises(UserError, match=r"labels/classes\.txt has other class names; make both files the same"):
        splits(tmp_path)


def test_keypoints_follow_the_box(tmp_path):
    line = "0 0.5 0.5 0.25 0.5 0.45 0.45 2 0.55 0.9 2\n"
    layout(tmp_path, images=["images/train/a.jpg"], labels=["labels/train/a.txt"], text=line)
    (tmp_path / "data.yaml").write_text("names: [cat]\ntrain: images/train\nkpt_shape: [2, 3]\n")
    np.testing.assert_array_equal(read(tmp_path, "train").records[0].boxes, [[15, 5, 25, 15]])
    (tmp_path / "data.yaml").write_text("names: [cat]\ntrain: images/train\nkpt_shape: 6\n")
    with pytest.raises(UserError, match=r"kpt_shape is \"6\"; write \[number of keypoints, 2 or 3\]"):
        read(tmp_path, "train")


def test_an_absent_split_is_told_and_is_no_error(tmp_path):
    layout(tmp_path, images=["train/images/a.jpg"], labels=["train/labels/a.txt"])
    (tmp_path / "data.yaml").write_text("names: [cat, dog]\ntrain: ../train/images\ntest: ../test/images\n")
    assert splits(tmp_path) == ("train",)
    (defect,) = read(tmp_path, "train").repaired
    assert (defect.rule, defect.detail) == ("absent-split", "test names ../test/images, which does not exist")
    with pytest.raises(UserError, match="there is no split test; name one of train"):
        read(tmp_path, "test")


@pytest.mark.parametrize("place", ["/home/somebody/data/images/train", "data\\images\\train", "../images/train"])
def test_folders_of_another_machine(tmp_path, place):
    layout(tmp_path, images=["images/train/a.jpg"], labels=["labels/train/a.txt"])
    (tmp_path / "data.yaml").write_text(f"path: /home/somebody/data\nnames: [cat, dog]\ntrain: {place}\n")
    assert len(read(tmp_path, "train")) == 1


def test_every_key_with_images_is_a_split(tmp_path):
    layout(tmp_path, images=["images/night/a.jpg"], labels=["labels/night/a.txt"])
    (tmp_path / "data.yaml").write_text("names: [cat, dog]\nnight: images/night\nauthor: me\ndownload: images\n")
    assert splits(tmp_path) == ("night",)


def test_paths_of_another_machine_in_a_list(tmp_path):
    layout(tmp_path, images=["images/a.jpg"], labels=["labels/a.txt"])
    (tmp_path / "data.yaml").write_text("names: [cat, dog]\ntrain: train.txt\n")
    (tmp_path / "train.txt").write_text("D:\\work\\images\\a.JPG\n")
    dataset = read(tmp_path, "train")
    assert [defect.rule for defect in dataset.repaired] == ["foreign-name"] and len(dataset.records[0].boxes) == 1
