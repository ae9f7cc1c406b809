"""Small data sets and predictions, written as lists."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from detect.data.dataset import Dataset, Record
from detect.evaluation.coco import Prediction

Truth = tuple[tuple[float, float, float, float], int, str]
"""A box, its class and its mark: "" or "crowd" or "difficult"."""


def make_record(number: int, truths: list[Truth]) -> Record:
    boxes = np.array([box for box, _, _ in truths], np.float32).reshape(-1, 4)
    return Record(
        id=number,
        path=Path("/data/images") / f"{number}.jpg",
        width=400,
        height=300,
        boxes=boxes,
        labels=np.array([label for _, label, _ in truths], np.int64),
        crowd=np.array([mark == "crowd" for _, _, mark in truths], bool),
        difficult=np.array([mark == "difficult" for _, _, mark in truths], bool),
        areas=np.prod(boxes[:, 2:] - boxes[:, :2], axis=1, dtype=np.float64),
    )


def make_dataset(images: dict[int, list[Truth]], classes=("cat", "dog"), category_ids=(7, 3)) -> Dataset:
    records = tuple(make_record(number, truths) for number, truths in images.items())
    return Dataset(Path("/data"), "val", "coco", classes, category_ids, records)


def make_prediction(number: int, found: list[tuple[tuple[float, float, float, float], int, float]]) -> Prediction:
    return Prediction(
        number,
        boxes=np.array([box for box, _, _ in found], np.float32).reshape(-1, 4),
        scores=np.array([score for _, _, score in found], np.float32),
        labels=np.array([label for _, label, _ in found], np.int64),
    )


def random_case(seed: int) -> tuple[Dataset, list[Prediction]]:
    """Crowds, ties of scores and of overlaps, empty images, images not predicted, a class without truths."""
    random = np.random.default_rng(seed)
    whole = random.random() < 0.5  # whole numbers make overlaps that lie on a threshold

    def boxes(n: int) -> np.ndarray:
        sides = np.exp(random.uniform(1, 5, (n, 2)))
        corner = random.uniform(0, 120, (n, 2))
        return np.concatenate([corner, corner + sides], axis=1)

    def rounded(drawn: np.ndarray) -> list:
        drawn = np.round(drawn) if whole else drawn
        drawn[:, 2:] = np.maximum(drawn[:, 2:], drawn[:, :2] + 1)
        return drawn.tolist()

    images, predictions = {}, []
    for number in random.permutation(40)[:8].tolist():
        drawn = boxes(int(random.integers(0, 9) * (random.random() < 0.8)))
        marks = random.choice(["", "", "", "", "crowd"], len(drawn)).tolist()
        classes = random.integers(0, 3, len(drawn))
        images[number] = list(zip(rounded(drawn.copy()), classes.tolist(), marks, strict=True))
        if random.random() < 0.1:
            continue
        n = int(random.integers(0, 40))
        found, labels = boxes(n), random.integers(0, 4, n)
        if len(drawn) and n:
            of = random.integers(0, len(drawn), n)
            sides = np.tile(drawn[of, 2:] - drawn[of, :2], 2)
            near = drawn[of] + random.normal(0, 0.08, (n, 4)) * sides
            found = np.where(random.random((n, 1)) < 0.8, near, found)
            labels = np.where(random.random(n) < 0.8, classes[of], labels)
        scores = np.where(random.random(n) < 0.5, random.random(n).round(1), random.random(n))
        predictions.append(
            make_prediction(number, list(zip(rounded(found), labels.tolist(), scores.tolist(), strict=True)))
        )
    return make_dataset(images, ("a", "b", "c", "none"), (90, 1, 17, 4)), predictions


@pytest.fixture
def dataset_of() -> Callable[..., Dataset]:
    return make_dataset


@pytest.fixture
def prediction_of() -> Callable[..., Prediction]:
    return make_prediction


@pytest.fixture
def case_of() -> Callable[[int], tuple[Dataset, list[Prediction]]]:
    return random_case
