"""Files of a data folder and the lookup of images."""

import unicodedata

import pytest

from detect.data.tree import Tree, split_in, usual_split
from detect.errors import UserError


def tree(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return Tree(root)


def test_a_place_that_does_not_exist(tmp_path):
    with pytest.raises(UserError, match="there is no such folder or file; check the path"):
        Tree(tmp_path / "none")


def test_an_empty_folder(tmp_path):
    assert Tree(tmp_path).files == Tree(tmp_path).images == ()
    found = Tree(tmp_path).image("a.jpg")
    assert found is not None and (found.path, found.renamed) == (tmp_path / "a.jpg", False)


def test_hidden_files_are_left_out_and_the_order_is_fixed(tmp_path):
    files = tree(tmp_path, "b.jpg", "a.txt", ".c.jpg", ".git/d.jpg", "e/f.PNG").files
    assert [path.name for path in files] == ["a.txt", "b.jpg", "f.PNG"]
    assert [path.name for path in Tree(tmp_path).images] == ["b.jpg", "f.PNG"]


def test_links_to_folders_are_followed_once_and_only_on_request(tmp_path):
    tree(tmp_path / "root", "a.jpg")
    (tmp_path / "root" / "loop").symlink_to(tmp_path / "root")
    tree(tmp_path / "other", "b.jpg")
    (tmp_path / "root" / "more").symlink_to(tmp_path / "other")
    assert [path.name for path in Tree(tmp_path / "root").images] == ["a.jpg"]
    assert [path.name for path in Tree(tmp_path / "root", follow_links=True).images] == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize("folder", ["", "annotations", "Annotations", "labels"])
def test_a_file_stands_for_its_data_folder(tmp_path, folder):
    tree(tmp_path, f"{folder}/x.json".lstrip("/"), "y.json")
    opened = Tree(tmp_path / folder / "x.json")
    assert (opened.root, [path.name for path in opened.annotation_files(".json")]) == (tmp_path, ["x.json"])


@pytest.mark.parametrize(
    ("name", "path", "renamed"),
    [
        ("train/a b.jpg", "train/a b.jpg", False),
        ("a b.jpg", "train/a b.jpg", False),
        ("train\\a b.jpg", "train/a b.jpg", True),
        ("C:\\data\\train\\a b.jpg", "train/a b.jpg", True),
        ("/home/somebody/train/a b.jpg", "train/a b.jpg", True),
        ("../train/a b.jpg", "train/a b.jpg", True),
        ("A B.JPG", "train/a b.jpg", True),
        ("a b.png", "train/a b.jpg", True),
        ("a b", "train/a b.jpg", False),
        (unicodedata.normalize("NFD", "é.jpg"), "é.jpg", True),
        ("x.jpg", "x.jpg", False),
        ("video1/x.jpg", "video1/x.jpg", False),
        ("data/video2/x.jpg", "video2/x.jpg", True),
    ],
)
def test_names_as_other_systems_write_them(tmp_path, name, path, renamed):
    files = tree(tmp_path, "train/a b.jpg", "é.jpg", "video1/x.jpg", "video2/x.jpg", "x.jpg")
    found = files.image(name)
    assert found is not None and (found.path, found.renamed) == (tmp_path / path, renamed)


@pytest.mark.parametrize("name", ["data/x.jpg", "X.jpg", "video/x.jpg"])
def test_a_name_that_fits_several_images_is_not_found(tmp_path, name):
    found = tree(tmp_path, "a/x.jpg", "b/x.jpg").image(name)
    assert found is not None and not found.path.exists()


def test_an_image_of_another_split_is_not_taken(tmp_path):
    files = tree(tmp_path, "train/a.jpg", "val2017/b.jpg")
    for name, split, path in (
        ("a.jpg", "val", "a.jpg"),
        ("b.jpg", "valid", "val2017/b.jpg"),
        ("b.jpg", "train", "b.jpg"),
        ("a.jpg", "val_coco", "a.jpg"),
        ("b.jpg", "train_val", "val2017/b.jpg"),
    ):
        found = files.image(name, (), split)
        assert found is not None and found.path == tmp_path / path
    found = files.image("x/train/a.jpg", (), "val")  # the name itself says train
    assert found is not None and found.path == tmp_path / "train" / "a.jpg"


def test_dots_in_names_without_suffix(tmp_path):
    files = tree(tmp_path, "1.2.3.png", "v1.png")
    for name, path in (("1.2.3", "1.2.3.png"), ("1.2", "1.2"), ("v1.5", "v1.5"), ("v1.jpg", "v1.png")):
        found = files.image(name)
        assert found is not None and found.path == tmp_path / path


@pytest.mark.parametrize("name", ["../b.jpg", "/etc/passwd", "a\0.jpg"])
def test_names_that_lead_out_and_fit_no_image(tmp_path, name):
    assert tree(tmp_path, "a.jpg").image(name) is None


@pytest.mark.parametrize(
    ("annotation", "image"),
    [
        ("a.xml", "a.jpg"),
        ("labels/b.xml", "images/b.png"),
        ("train/ann/c.xml", "train/img/c.jpg"),
        ("ann/valid/c.xml", "img/valid/c.jpg"),
        ("ann/test/c.xml", None),
        ("val/c.xml", "img/valid/c.jpg"),
        ("ann/d.jpg.json", "img/d.jpg"),
        ("x/e.xml", None),
        ("x/none.xml", None),
    ],
)
def test_the_image_of_an_annotation_file(tmp_path, annotation, image):
    names = ("a.jpg", "images/b.png", "train/img/c.jpg", "img/valid/c.jpg", "img/d.jpg", "y/e.jpg", "z/e.jpg")
    files = tree(tmp_path, *names)
    assert files.image_of(tmp_path / annotation) == (tmp_path / image if image else None)


@pytest.mark.parametrize(
    ("name", "usual"),
    [
        *[(name, "train") for name in ("train", "train2017", "Training")],
        *[(name, "val") for name in ("val_2014", "valid", "validation", "dev")],
        *[("testing", "test"), ("trainval", None), ("trains", None), ("", None)],
    ],
)
def test_usual_splits(name, usual):
    assert usual_split(name) == usual


def test_folders_name_the_splits(tmp_path):
    assert split_in(["x", "val", "train"]) == "val"
    files = tree(tmp_path, "train/a.xml", "valid/b.xml", "c.xml")
    assert {split: [path.name for path in paths] for split, paths in files.by_split(files.files).items()} == {
        "rest": ["c.xml"],
        "train": ["a.xml"],
        "valid": ["b.xml"],
    }
    assert list(files.by_split(files.files[:1])) == ["all"] and files.by_split([]) == {}
