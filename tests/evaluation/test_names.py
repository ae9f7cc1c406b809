"""Results with ids of their own are matched to a ground truth by the names of images and classes."""

from pathlib import Path

import pytest

from detect.errors import UserError
from detect.evaluation.names import match_names

FILE = Path("run/predictions.json")


def listing(*names: str, first: int = 1, classes=("cat", "dog")) -> dict:
    return {
        "images": [{"id": first + number, "file_name": name} for number, name in enumerate(names)],
        "categories": [{"id": first + number, "name": name} for number, name in enumerate(classes)],
    }


def match(predicted: dict, ground_truth: dict) -> tuple[dict[int, int], tuple[str, ...]]:
    """Match a result per predicted image; return the ground truth's id of each image with a partner, and the notes."""
    results = [{"image_id": image["id"], "category_id": 1, "bbox": [image["id"]] * 4} for image in predicted["images"]]
    matched, notes = match_names(results, FILE, predicted, ground_truth)
    return {result["bbox"][0]: result["image_id"] for result in matched}, notes


def test_no_images():
    assert match_names([], FILE, listing(), listing()) == ([], ())


def test_ids_of_images_and_classes_become_those_of_the_ground_truth():
    results = [{"image_id": 2, "category_id": 2, "score": 0.5}, {"image_id": 1, "category_id": 1, "score": 0.25}]
    truth = listing("b.jpg", "a.jpg", first=70, classes=("dog", "cat"))
    assert match_names(results, FILE, listing("photos/a.jpg", "photos/b.jpg"), truth) == (
        [{"image_id": 70, "category_id": 70, "score": 0.5}, {"image_id": 71, "category_id": 71, "score": 0.25}],
        (),
    )


@pytest.mark.parametrize(
    "name",
    [
        "IMG_é.jpg",
        "img_E\u0301.JPG",
        "val/img_é.jpg",
        "C:\\photos\\VAL\\img_é.jpg",
        "/data/val/img_é.jpg",
        "./img_é.jpg",
    ],
)
def test_spellings_of_one_path(name):
    assert match(listing("photos/val/img_é.jpg"), listing("other.jpg", name, first=5))[0] == {1: 6}


def test_the_longest_common_end_decides():
    predicted, truth = listing("x/a/1.jpg", "x/b/1.jpg"), listing("b/1.jpg", "a/1.jpg", first=5)
    assert match(predicted, truth) == ({1: 6, 2: 5}, ())
    # The first image has a partner with a longer common end than the second, which is not in the ground truth.
    assert match(predicted, listing("a/1.jpg", first=5))[0] == {1: 5}


def test_images_of_only_one_file_are_told():
    matched, notes = match(listing("1.jpg", "2.jpg", "3.jpg"), listing("2.jpg", "8.jpg", "9.jpg", first=5))
    assert matched == {2: 5}
    assert notes == (
        f"{FILE}: ignored 2 images that the ground truth does not list",
        f"{FILE}: has no predictions on 2 images of the ground truth, whose objects count as missed",
    )


@pytest.mark.parametrize(
    ("predicted", "truth", "message"),
    [
        (
            listing("1.jpg"),
            listing("a/1.jpg", "b/1.jpg"),
            "1.jpg may be a/1.jpg and b/1.jpg of the ground truth; predict again on a folder in which the paths end",
        ),
        (
            listing("x/1.jpg", "y/1.jpg"),
            listing("1.jpg"),
            "x/1.jpg and y/1.jpg are both 1.jpg of the ground truth; predict again on each image once",
        ),
        (
            listing("1.jpg"),
            listing("2.jpg"),
            "none of its images, such as 1.jpg, has a name of the ground truth, such as 2.jpg; give the ground truth",
        ),
        (
            listing("1.jpg"),
            listing("1.jpg", classes=("cow",)),
            "detects 'cat', and the ground truth has 1 class: cow; predict only classes of the ground truth with --cl",
        ),
    ],
)
def test_names_that_do_not_fit_are_refused(predicted, truth, message):
    with pytest.raises(UserError) as caught:
        match(predicted, truth)
    assert str(caught.value).startswith(f"{FILE}: {message}")


def test_a_result_of_an_image_that_is_not_listed():
    results = [{"image_id": 9, "category_id": 1}]
    with pytest.raises(UserError, match=r"image_id 9, which is not in run/images\.json"):
        match_names(results, FILE, listing("1.jpg"), listing("1.jpg"))
