import numpy as np
import pytest
from sklearn.datasets import load_digits

from detect.data.digits import read_digits
from detect.errors import UserError


def test_splits_are_a_partition_with_the_same_share_of_each_digit():
    train, test = read_digits("train"), read_digits("test")
    assert (len(train), len(test)) == (1437, 360) and train.classes == tuple("0123456789")
    of_train, of_test = np.bincount(train.labels), np.bincount(test.labels)
    np.testing.assert_array_equal(of_train + of_test, np.bincount(load_digits().target))
    np.testing.assert_allclose(of_test, 0.2 * (of_train + of_test), atol=1)


def test_pixels_are_the_counts_in_their_order():
    images, digits = load_digits(return_X_y=True)
    known = {image.astype(int).tobytes(): place for place, image in enumerate(images)}
    places = []
    for split in ("train", "test"):
        dataset = read_digits(split)
        assert dataset.images.shape[1:] == (8, 8, 3) and dataset.images.dtype == np.uint8
        assert (dataset.images == dataset.images[..., :1]).all()
        assert (dataset.images.min(), dataset.images.max()) == (0, 255)
        counts = np.round(dataset.images[..., 0] * (16 / 255)).astype(int)
        found = [known[image.tobytes()] for image in counts]
        assert found == sorted(found) and digits[found].tolist() == dataset.labels.tolist()
        places += found
    assert sorted(places) == list(range(1797))  # all images are different


def test_labels_follow_the_classes_of_a_model():
    classes = tuple("x9876543210")
    dataset = read_digits("test", classes)
    assert dataset.classes == classes
    np.testing.assert_array_equal(dataset.labels, 10 - read_digits("test").labels)


def test_a_wrong_split_and_wrong_classes():
    with pytest.raises(UserError, match=r"digits: there is no split val; name one of train, test"):
        read_digits("val")
    with pytest.raises(UserError, match=r"digits: 2, 3, 4, 5, 6 … is not among the 2 classes"):
        read_digits("test", ("0", "1"))
