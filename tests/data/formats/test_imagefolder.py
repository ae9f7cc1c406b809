from pathlib import Path

import cv2
import numpy as np
import pytest

from detect.data.formats.imagefolder import ImageClasses, read_imagefolder, summary
from detect.errors import UserError


def write(root: Path, *names: str) -> Path:
    """Write images of 4 × 4 pixels to these paths below the root."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((4, 4, 3), 90, np.uint8))
    return root


@pytest.fixture
def animals(tmp_path) -> Path:
    return write(
        tmp_path, "train/dog/1.jpg", "train/cat/b.JPG", "train/cat/a.png", "train/cat/more/c.jpg", "valid/dog/9.jpg"
    )


def test_classes_are_sorted_and_images_come_class_by_class(animals):
    dataset = read_imagefolder(animals, "train")
    assert (dataset.root, dataset.split, dataset.classes) == (str(animals), "train", ("cat", "dog"))
    names = [path.relative_to(animals / "train").as_posix() for path in dataset.images]
    assert names == ["cat/a.png", "cat/b.JPG", "cat/more/c.jpg", "dog/1.jpg"]
    assert dataset.labels.tolist() == [0, 0, 0, 1] and len(dataset) == 4 and dataset.repaired == ()
    assert dataset.name(3) == str(animals / "train" / "dog" / "1.jpg")


def test_what_is_hidden_or_no_image_is_neither_class_nor_image(animals):
    write(animals, "train/.ipynb_checkpoints/1.jpg", "train/dog/.thumbs/1.jpg")
    (animals / "train" / "dog" / "._1.jpg").write_bytes(b"a resource fork")
    (animals / "train" / "dog" / "notes.txt").write_text("no image")
    (animals / "train" / "list.txt").write_text("no class")
    dataset = read_imagefolder(animals, "train")
    assert dataset.classes == ("cat", "dog") and len(dataset) == 4


def test_a_validation_split_has_many_names_and_follows_the_classes(animals):
    dataset = read_imagefolder(animals, "val", ("dog", "cow", "cat"))
    assert dataset.split == "valid" and dataset.classes == ("dog", "cow", "cat") and dataset.labels.tolist() == [0]
    assert read_imagefolder(animals, "val", ("cat", "dog")).labels.tolist() == [1]


def test_links_of_ones_own_lead_where_they_lead(animals, tmp_path_factory):
    elsewhere = write(tmp_path_factory.mktemp("elsewhere"), "1.jpg", "2.jpg")
    (animals / "train" / "bird").symlink_to(elsewhere, target_is_directory=True)
    with pytest.raises(UserError, match=r"2 × path-outside-root, first .*bird/1\.jpg"):
        read_imagefolder(animals, "train")
    dataset = read_imagefolder(animals, "train", follow_links=True)
    assert dataset.classes == ("bird", "cat", "dog") and dataset.labels.tolist() == [0, 0, 1, 1, 1, 2]


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (
            "test",
            r"there is no split test, only train, valid; images are expected in .*/SPLIT/CLASS/; name one",
        ),
        ("../train", r"there is no split \.\./train, only train, valid"),
    ],
)
def test_a_split_that_is_not_there(animals, split, message):
    with pytest.raises(UserError, match=message):
        read_imagefolder(animals, split)


def test_two_validation_splits_are_none(animals):
    write(animals, "validation/dog/1.jpg")
    with pytest.raises(UserError, match=r"there is no split val, only train, valid, validation"):
        read_imagefolder(animals, "val")
    assert read_imagefolder(animals, "valid").split == "valid"


def test_folders_without_splits_classes_or_images(tmp_path):
    with pytest.raises(UserError, match=r"nowhere: there is no such folder; check the path"):
        read_imagefolder(tmp_path / "nowhere", "train")
    with pytest.raises(UserError, match=r"there is no split train, only no folder"):
        read_imagefolder(tmp_path, "train")
    write(tmp_path, "train/1.jpg")
    with pytest.raises(UserError, match=r"train: it has no class folder; put the images"):
        read_imagefolder(tmp_path, "train")
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir()
    with pytest.raises(UserError, match=r"train/a: the class has no image \(and 1 more\); add images \(\.bmp"):
        read_imagefolder(tmp_path, "train")


def test_a_class_that_training_lacks(animals):
    with pytest.raises(UserError, match=r"valid: dog is not among the 2 classes of the training split .* add it there"):
        read_imagefolder(animals, "val", ("cat", "cow"))


def test_unreadable_images_are_counted_or_left_out(animals):
    (animals / "train" / "cat" / "a.png").write_bytes(b"no image")
    cut = animals / "train" / "cat" / "b.JPG"
    cut.write_bytes(cut.read_bytes()[:-40])
    with pytest.raises(UserError) as error:
        read_imagefolder(animals, "train")
    line = str(error.value)
    assert "2 × unreadable-image, first" in line and "a.png: this is not an image" in line and "\n" not in line
    assert "--data.skip_unreadable true" in line
    dataset = read_imagefolder(animals, "train", skip_unreadable=True)
    assert [path.name for path in dataset.images] == ["c.jpg", "1.jpg"] and dataset.labels.tolist() == [0, 1]
    assert [defect.path.name for defect in dataset.repaired] == ["a.png", "b.JPG"]
    assert summary(dataset).splitlines()[2].startswith(f"  2 images are left out, first {animals}")


def test_a_class_with_unreadable_images_alone(animals):
    (animals / "train" / "dog" / "1.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"dog: the class has no readable image; add"):
        read_imagefolder(animals, "train", skip_unreadable=True)


def test_a_summary_names_the_smallest_and_the_largest_class():
    labels = np.array([0, 1, 1, 2, 2, 2])
    dataset = ImageClasses("made", "train", ("a\x1b", "b", "c"), np.zeros((6, 2, 2, 3), np.uint8), labels)
    assert summary(dataset) == "made, split train\n  6 images of 3 classes, from 1 (a?) to 3 (c) each"
    assert dataset.name(4) == "4"
